"""The frame that all pages share."""

from kws_jax.report.markup import Markup, tag
from kws_jax.report.style import CSS


def document(title: str, main: Markup) -> str:
    """A page as HTML text: no links to elsewhere, no scripts.

    Args:
      title: of the window.
      main: all that it shows.
    """
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width,initial-scale=1"),
        tag("title", title),
        tag("style", Markup(CSS)),
    )
    return "<!doctype html>\n" + tag("html", head, tag("body", main), lang="en") + "\n"
