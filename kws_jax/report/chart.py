"""A small chart: axes, lines, bands and points as SVG that follows the page's colours.

Colours are CSS classes of the page (`c0`, `k9`, …), so that one drawing serves the
light, the dark and the printed page.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

from kws_jax.report.markup import Markup, join, tag

Point = tuple[float, float]
# Colours of curves in the style sheet: c0, c1, …
_COLOURS = 6


@dataclasses.dataclass(frozen=True)
class Scale:
    """Maps [low, high] to pixels [start, end], linearly or by the logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of `value`."""
        low, high = self._bend(self.low), self._bend(self.high)
        share = (self._bend(value) - low) / ((high - low) or 1.0)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """About `count` round values inside the range."""
        if self.log:
            return _log_ticks(self.low, self.high, count)
        step = _round_step((self.high - self.low) / max(count, 1))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]

    def _bend(self, value: float) -> float:
        return math.log10(value) if self.log else value


def _round_step(step: float) -> float:
    """The smallest of 1, 2, 5 × 10^n that is at least `step`."""
    if step <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step * (1 - 1e-9))


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for multiples in ((1, 2, 5), (1, 3), (1,)):
        ticks = [m * 10.0**p for p in powers for m in multiples]
        ticks = [t for t in ticks if low * 0.999 <= t <= high * 1.001]
        if len(ticks) <= count + 2:
            break
    return ticks[:: math.ceil(len(ticks) / (count + 2))] if ticks else [low, high]


class Chart:
    """A drawing in progress; `svg()` ends it.

    The lengths are units of the view box; the page scales the whole to its place.
    """

    def __init__(
        self,
        label: str,
        *,
        x: tuple[float, float],
        y: tuple[float, float],
        size: tuple[int, int] = (560, 330),
        margins: tuple[int, int, int, int] = (12, 14, 40, 50),
        log_y: bool = False,
        log_x: bool = False,
    ):
        """`margins`: top, right, bottom, left."""
        top, right, bottom, left = margins
        self.label, (self.width, self.height) = label, size
        self.left, self.right = left, self.width - right
        self.top, self.bottom = top, self.height - bottom
        self.x = Scale(*x, self.left, self.right, log=log_x)
        self.y = Scale(*y, self.bottom, self.top, log=log_y)
        self._parts: list[Markup] = []

    def add(self, *parts: Markup) -> None:
        """Adds finished SVG elements."""
        self._parts.extend(parts)

    def y_axis(self, write: Callable[[float], str], count: int = 5) -> None:
        """Horizontal grid lines with their values."""
        for value in self.y.ticks(count):
            y = self.y(value)
            self.add(
                tag("path", class_="grid", d=f"M{self.left} {y:.1f}H{self.right}"),
                self.text(self.left - 7, y + 4, write(value), "end"),
            )

    def x_axis(
        self,
        title: str,
        write: Callable[[float], str] = lambda v: f"{v:g}",
        ticks: Sequence[float] | None = None,
    ) -> None:
        """The base line with values below it and the axis title."""
        self.add(
            tag("path", class_="axis", d=f"M{self.left} {self.bottom}H{self.right}")
        )
        count = max(2, (self.right - self.left) // 80)
        for value in self.x.ticks(count) if ticks is None else ticks:
            self.add(self.text(self.x(value), self.bottom + 17, write(value), "middle"))
        middle = (self.left + self.right) / 2
        self.add(self.text(middle, self.height - 4, title, "middle", "title"))

    def line(self, points: Iterable[Point], class_: str) -> None:
        """A line through the points (in data units)."""
        self.add(tag("path", class_=f"line {class_}", d=path_of(map(self.at, points))))

    def dots(self, points: Iterable[Point], class_: str, radius: float = 3.0) -> None:
        """A dot at each point."""
        for x, y in map(self.at, points):
            self.add(tag("circle", class_=f"dot {class_}", cx=x, cy=y, r=radius))

    def at(self, point: Point) -> Point:
        """Data units to pixels."""
        return self.x(point[0]), self.y(point[1])

    def text(
        self, x: float, y: float, text: str, anchor: str = "start", class_: str = ""
    ) -> Markup:
        """A piece of text at a pixel position."""
        return tag(
            "text",
            text,
            x=float(x),
            y=float(y),
            text_anchor=anchor,
            class_=class_ or None,
        )

    def svg(self, class_: str = "chart") -> Markup:
        """The finished drawing."""
        return svg(self.label, self.width, self.height, self._parts, class_)


def svg(
    label: str, width: float, height: float, parts: Iterable[Markup], class_: str
) -> Markup:
    """An inline SVG of the given view box with a text alternative."""
    return tag(
        "svg",
        join(parts),
        class_=class_,
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=label,
        xmlns="http://www.w3.org/2000/svg",
    )


def path_of(points: Iterable[Point]) -> str:
    """SVG path data of a polyline through pixel positions."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def curve_class(number: int) -> str:
    """The CSS classes of a curve: a colour, and from the seventh curve on dashes."""
    colour = f"c{number % _COLOURS}"
    return colour if number < _COLOURS else f"{colour} again"


def dot_key(class_: str, name: str) -> Markup:
    """A dot beside its meaning."""
    return _key(tag("circle", class_=f"dot {class_}", cx=6, cy=6, r=5), 12, name)


def line_key(class_: str, name: str) -> Markup:
    """A short piece of line beside its meaning."""
    return _key(tag("path", class_=f"line {class_}", d="M1 6H27"), 28, name)


def _key(drawn: Markup, width: int, name: str) -> Markup:
    sample = tag(
        "svg",
        drawn,
        viewBox=f"0 0 {width} 12",
        width=width,
        height=12,
        aria_hidden="true",
        xmlns="http://www.w3.org/2000/svg",
    )
    return tag("span", sample, f" {name}", class_="key")
