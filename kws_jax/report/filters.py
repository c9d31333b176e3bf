"""What the learned filters of the front end hear, before and after training."""

from collections.abc import Mapping, Sequence
from typing import Any

from kws_jax.report.chart import Chart, dot_key, path_of
from kws_jax.report.markup import Markup, join, tag
from kws_jax.report.workdir import Run

_TITLES = {"before": "Before training", "after": "After training"}


def filters(run: Run) -> Markup | None:
    """The bands as bars, if told by edges, and the frequency responses."""
    found = run.filters
    if not found:
        return None
    states = [state for state in _TITLES if state in found]
    responses = [_responses(found, state) for state in states]
    parts: list[Markup] = [tag("div", join(responses), class_="multiples")]
    if all("low" in found[state] for state in states):
        parts.insert(0, _bands(found))
    return join(parts)


def _bands(found: Mapping[str, Any]) -> Markup:
    """A bar from edge to edge for each filter: grey before, blue after training."""
    before, after = found["before"], found["after"]
    count = len(after["low"])
    chart = Chart(
        "Bands of the learned filters",
        x=(0, count + 1),
        y=(0, found["sample_rate"] / 2000),
        size=(640, 340),
        margins=(12, 14, 44, 50),
    )
    chart.y_axis(lambda v: f"{v:g}")
    chart.x_axis("filter, by its first band; its band in kHz")
    step = (chart.right - chart.left) / (count + 1)
    for state, class_, aside in ((before, "c1", -0.2), (after, "c0", 0.2)):
        for number, edges in enumerate(zip(state["low"], state["high"]), start=1):
            x = chart.x(number + aside)
            low, high = (chart.y(edge / 1000) for edge in edges)
            tip = f"filter {number}: {edges[0]:.0f} – {edges[1]:.0f} Hz"
            bar = tag(
                "path",
                tag("title", tip),
                class_=f"line {class_}",
                style=f"stroke-width:{min(4.0, 0.4 * step):.1f}",
                d=f"M{x:.1f} {low:.1f}V{high:.1f}",
            )
            chart.add(bar)
    keys = [dot_key("c1", "before training"), dot_key("c0", "after training")]
    return join([tag("p", join(keys), class_="legend"), chart.svg("chart wide")])


def _responses(found: Mapping[str, Any], state: str) -> Markup:
    """Every filter as a thin line, their mean as a bold one."""
    responses: Sequence[Sequence[float]] = found[state]["response"]
    kilohertz = [f / 1000 for f in found["frequencies"]]
    chart = Chart(
        f"Frequency responses {state} training",
        x=(0, max(kilohertz)),
        y=(0, 1.04),
        size=(320, 210),
        margins=(10, 12, 40, 40),
    )
    chart.y_axis(lambda v: f"{v:g}", 4)
    chart.x_axis("kHz")
    for number, response in enumerate(responses):
        d = path_of(map(chart.at, zip(kilohertz, response)))
        chart.add(
            tag("path", class_=f"line c{number % 4}", d=d, style="stroke-width:.7")
        )
    mean = [sum(values) / len(responses) for values in zip(*responses)]
    chart.line(zip(kilohertz, mean), "plain")
    caption = tag("figcaption", tag("b", _TITLES[state]))
    return tag("figure", caption, chart.svg())
