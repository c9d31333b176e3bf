"""HTML and SVG as escaped-by-construction strings."""

import html
from collections.abc import Iterable

_VOID = frozenset({"br", "meta", "wbr"})


class Markup(str):
    """Text that is HTML already and is not escaped again."""

    __slots__ = ()


def escape(text: object) -> Markup:
    """`text` as HTML: Markup stays as it is, all else is escaped."""
    if isinstance(text, Markup):
        return text
    return Markup(html.escape(str(text), quote=True))


def join(parts: Iterable[object], separator: str = "") -> Markup:
    """The parts one after the other; None is left out."""
    kept = [escape(part) for part in parts if part is not None]
    return Markup(escape(separator).join(kept))


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """`<name attributes>children</name>`, everything but Markup escaped.

    A trailing underscore in an attribute's name is dropped (`class_`), others become
    hyphens (`stroke_width`), `viewBox` keeps its case; attributes that are None are
    left out. Floats are written with at most two decimals, to keep drawings small.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_short(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def _short(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return value
