"""Accuracy against size of several networks."""

import dataclasses
import math
from collections.abc import Sequence

from kws_jax.report import text
from kws_jax.report.chart import Chart, curve_class, dot_key
from kws_jax.report.markup import Markup, join, tag

# Pixels of the radius of the network with the most operations.
_RADIUS = 22.0


@dataclasses.dataclass(frozen=True)
class Point:
    """A network: what it belongs to, its name, its size and its accuracy (a fraction).

    Those that a search has found are joined to a curve.
    """

    group: str
    searched: bool
    name: str
    parameters: float
    macs: float
    accuracy: float


def draw(points: Sequence[Point]) -> Markup:
    """A dot for each network, of an area in proportion to its operations."""
    largest = max(point.macs for point in points)
    most = max(point.parameters for point in points)
    accuracies = [100 * point.accuracy for point in points]
    room = max(0.5, 0.15 * (max(accuracies) - min(accuracies)))
    chart = Chart(
        "Accuracy against parameters",
        x=(0.0, 1.1 * most / 1000),
        y=(min(accuracies) - room, min(100.0, max(accuracies) + room)),
        size=(720, 430),
        margins=(24, 24, 44, 62),
    )
    chart.y_axis(lambda v: f"{v:.4g} %")
    chart.x_axis("parameters, thousands")
    groups = list(dict.fromkeys(point.group for point in points))
    for number, group in enumerate(groups):
        own = [point for point in points if point.group == group]
        _curve(chart, own, curve_class(number), largest)
    keys = [dot_key(curve_class(n), group) for n, group in enumerate(groups)]
    note = f"Area: MACs of a clip, {text.millions(largest)} for the largest dot."
    return join([tag("p", join([*keys, note]), class_="legend"), chart.svg("chart")])


def _curve(chart: Chart, points: Sequence[Point], class_: str, largest: float) -> None:
    ordered = sorted(points, key=lambda point: point.parameters)
    places = [(p.parameters / 1000, 100 * p.accuracy) for p in ordered]
    if len(places) > 1 and all(point.searched for point in points):
        chart.line(places, class_)
    for point, place in zip(ordered, places):
        x, y = chart.at(place)
        told = (
            f"{point.name}: {text.percent(point.accuracy, 2)}, "
            f"{text.plural(point.parameters, 'parameter')}, "
            f"{text.millions(point.macs)} MACs"
        )
        dot = tag(
            "circle",
            tag("title", told),
            class_=f"dot {class_}",
            cx=x,
            cy=y,
            r=_RADIUS * math.sqrt(point.macs / largest),
            style="fill-opacity:.45",
        )
        chart.add(dot)
