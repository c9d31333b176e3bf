"""How undecided a search was in each layer, over time."""

from kws_jax.report.chart import Chart, path_of
from kws_jax.report.markup import Markup, tag
from kws_jax.report.workdir import Run


def entropy(run: Run) -> Markup | None:
    """The entropy of each layer's choice over the search, where it was logged."""
    lines = [line for line in run.architecture if "entropy" in line]
    if not lines:
        return None
    epochs = [float(line["epoch"]) for line in lines]
    chart = Chart(
        "Entropy of the choice in each layer",
        x=(min(epochs), max(epochs)),
        y=(0.0, 1.04),
        margins=(12, 80, 44, 50),
    )
    chart.y_axis(lambda v: f"{v:g}")
    chart.x_axis("epoch")
    for layer, last in enumerate(lines[-1]["entropy"]):
        points = [(e, line["entropy"][layer]) for e, line in zip(epochs, lines)]
        tip = tag("title", f"layer {layer + 1}: {last:.3f}")
        dash = None if layer < 4 else "stroke-dasharray:5 3"
        d = path_of(map(chart.at, points))
        chart.add(tag("path", tip, class_=f"line c{layer % 4}", d=d, style=dash))
    for y, layer in _apart(chart, lines[-1]["entropy"]):
        name = f"layer {layer + 1}"
        chart.add(
            chart.text(chart.right + 8, y + 4, name, "start", f"name c{layer % 4}")
        )
    return chart.svg("chart wide")


def _apart(chart: Chart, values: list[float]) -> list[tuple[float, int]]:
    """Where each layer's name stands, none nearer to the next than its height."""
    placed: list[tuple[float, int]] = []
    wanted = sorted((chart.y(value), layer) for layer, value in enumerate(values))
    # what stands lowest must leave room for itself at the end of the axis
    top = min(wanted[0][0], chart.bottom - 17.0 * (len(wanted) - 1))
    for y, layer in wanted:
        top = max(y, top) if not placed else max(y, placed[-1][0] + 17.0)
        top = min(top, chart.bottom - 17.0 * (len(wanted) - 1 - len(placed)))
        placed.append((top, layer))
    return placed
