"""Plots of the page: recall, architecture and learning."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kws_jax.report import operations, text
from kws_jax.report.chart import Chart, Point, line_key, path_of
from kws_jax.report.markup import Markup, join, tag
from kws_jax.report.workdir import Measure, Run

_MOST_POINTS = 300
_SPLIT_CLASS = {"train": "train", "validation": "validation"}
_CURVES = {
    "loss": "Loss",
    "accuracy": "Accuracy",
    "learning_rate": "Learning rate",
    "weight_bits": "Bits of a weight",
    "activation_bits": "Bits of an activation",
}
# Of stages that may end early (stages/training_run.py).
_ENDING = ("epochs", "best_epoch", "stopped_early")


def recall(run: Run) -> Markup | None:
    """Recall of each word on clean test clips with its interval, best first."""
    rows = sorted(run.recalls(), key=lambda row: -row[1].value)
    if not rows:
        return None
    step = 25
    chart = Chart(
        "Recall of each word",
        x=(floor([m for _, m in rows]), 1.0),
        y=(0, 1),
        size=(560, step * len(rows) + 46),
        margins=(4, 80, 44, 92),
    )
    for value in chart.x.ticks(5):
        x = chart.x(value)
        chart.add(tag("path", class_="grid", d=f"M{x:.1f} {chart.top}V{chart.bottom}"))
    chart.x_axis("recall on clean test clips", lambda v: f"{100 * v:.0f} %", None)
    for i, (label, measure) in enumerate(rows):
        _recall_row(chart, chart.top + step * (i + 0.5), text.word(label), measure)
    return chart.svg("chart wide")


def architecture(run: Run) -> Markup | None:
    """The mixing weights of each layer's candidates over the search, with a legend."""
    if not run.architecture:
        return None
    layers = len(run.architecture[-1]["ops"])
    chosen = run.genotype["layers"] if run.genotype else [[]] * layers
    top = max(max(w) for line in run.architecture for w in line["weights"])
    charts = [
        _architecture_layer(run.architecture, layer, set(chosen[layer]), top)
        for layer in range(layers)
    ]
    names = {name for layer in run.architecture[-1]["ops"] for name in layer}
    legend = _operation_legend(names, decided=run.genotype is not None)
    return join([legend, tag("div", join(charts), class_="multiples")])


def learning_curves(run: Run) -> Markup | None:
    """Loss, accuracy and learning rate of each stage, training and validation."""
    blocks = []
    for stage in run.stages:
        lines = [line for line in run.metrics if line["stage"] == stage]
        charts = [
            chart
            for metric, title in _CURVES.items()
            if (chart := _learning_chart(lines, metric, f"{title}, {stage}", title))
        ]
        if charts:
            blocks.append(tag("h3", f"Stage “{stage}”{_ending(run, stage)}"))
            blocks += _stage_note(run, stage)
            blocks.append(tag("div", join(charts), class_="multiples"))
    if not blocks:
        return None
    keys = [line_key("train", "training"), line_key("validation", "validation")]
    return join([tag("p", join(keys), class_="legend"), *blocks])


def _ending(run: Run, stage: str) -> str:
    """After how many epochs a stage has ended that may end early, else nothing."""
    values = {
        m.metric: m.value
        for m in run.results
        if (m.stage, m.split) == (stage, "train") and m.metric in _ENDING
    }
    if len(values) < len(_ENDING):
        return ""
    epochs, best, early = (values[name] for name in _ENDING)
    how = "ended early" if early else "its full length"
    return f", {epochs:.1f} epochs ({how}), best state at {best:.1f}"


def _stage_note(run: Run, stage: str) -> list[Markup]:
    kinds = {s["name"]: s.get("kind") for s in run.config.get("stages") or ()}
    if kinds.get(stage) != "embed":
        return []
    note = (
        "Training is told by the loss on tuples of clips, validation by a classifier "
        "that takes the nearest mean of a class: its cross-entropy and its accuracy."
    )
    return [tag("p", note, class_="note")]


def floor(measures: Sequence[Measure]) -> float:
    """A round lower end of an axis of fractions, below every interval."""
    lows = [m.interval[0] if m.interval else m.value for m in measures]
    lowest = min((v for v in lows if math.isfinite(v)), default=0.0)
    return max(0.0, math.floor(20 * (lowest - 0.005)) / 20)


def tip(name: str, measure: Measure) -> Markup:
    """What is shown where the pointer rests on a measure."""
    parts = [f"{name}: {text.percent(measure.value)}", text.interval(measure)]
    if measure.count:
        parts.append(text.plural(measure.count, "clip"))
    return tag("title", " · ".join(part for part in parts if part))


def _recall_row(chart: Chart, y: float, name: str, measure: Measure) -> None:
    parts: list[Markup | None] = [tip(name, measure)]
    if measure.interval:
        low, high = (chart.x(v) for v in measure.interval)
        d = f"M{low:.1f} {y:.1f}H{high:.1f}"
        parts.append(tag("path", class_="line c0 thick", d=d))
    x = chart.x(measure.value)
    parts += [
        tag("circle", class_="dot c0", cx=x, cy=y, r=4.5),
        chart.text(chart.left - 10, y + 4.5, name, "end", "label"),
        chart.text(chart.right + 10, y + 4.5, text.percent(measure.value), "start"),
    ]
    chart.add(tag("g", join(parts)))


def _architecture_layer(
    lines: Sequence[Mapping[str, Any]], layer: int, chosen: set[str], top: float
) -> Markup:
    """One layer's weights over the epochs; what was chosen is drawn last and bold."""
    epochs = [float(line["epoch"]) for line in lines]
    ops = lines[-1]["ops"][layer]
    title = " + ".join(op for op in ops if op in chosen)
    chart = Chart(
        f"Architecture weights of layer {layer + 1}",
        x=(min(epochs), max(epochs)),
        y=(0.0, top * 1.04),
        size=(320, 210),
        margins=(10, 12, 40, 40),
    )
    chart.y_axis(lambda v: f"{v:g}", 4)
    chart.x_axis("epoch")
    for name in sorted(ops, key=lambda op: op in chosen):
        position = ops.index(name)
        points = [
            (e, line["weights"][layer][position]) for e, line in zip(epochs, lines)
        ]
        bold = " chosen" if name in chosen else ""
        tip = tag("title", f"{name}: {points[-1][1]:.3f}")
        d = path_of(map(chart.at, points))
        css = operations.parse(name).css
        chart.add(tag("path", tip, class_=f"line {css}{bold}", d=d))
    caption = join([tag("b", f"Layer {layer + 1}"), f" → {title}" if title else None])
    return tag("figure", tag("figcaption", caption), chart.svg())


def _operation_legend(names: set[str], decided: bool) -> Markup:
    """One key for each colour (kernel, skip) and one for the dash (SE)."""
    parsed = [operations.parse(name) for name in sorted(names)]
    keys = [
        line_key(f"k{kernel}", f"kernel {kernel}")
        for kernel in sorted({op.kernel for op in parsed if op.kernel})
    ]
    if any(op.skip for op in parsed):
        keys.append(line_key("skip", "skip"))
    others = [op.name for op in parsed if not op.kernel and not op.skip]
    if others:
        keys.append(line_key("k0", ", ".join(others)))
    if any(op.squeeze for op in parsed):
        keys.append(
            line_key("plain squeeze", "dashed: with squeeze-and-excitation (SE)")
        )
    if decided:
        keys.append(line_key("plain chosen", "bold: chosen"))
    return tag("p", join(keys), class_="legend")


def _learning_chart(
    lines: Sequence[Mapping[str, Any]], metric: str, label: str, title: str
) -> Markup | None:
    """One metric of one stage, a curve for each split; None without values."""
    curves = {
        split: points
        for split in dict.fromkeys(str(line["split"]) for line in lines)
        if (points := _points(lines, split, metric))
    }
    if not curves:
        return None
    if metric == "learning_rate":
        curves = dict(list(curves.items())[:1])
    xs = [x for points in curves.values() for x, _ in points]
    ys = [y for points in curves.values() for _, y in points]
    log = metric != "accuracy" and min(ys) > 0 and max(ys) > 8 * min(ys)
    chart = Chart(
        label,
        x=(min(0.0, *xs), max(xs)),
        y=_range(metric, ys, log),
        size=(320, 220),
        margins=(10, 12, 40, 52),
        log_y=log,
    )
    chart.y_axis((lambda v: f"{100 * v:.0f} %") if metric == "accuracy" else _number, 4)
    chart.x_axis("epoch" if "epoch" in lines[0] else "step")
    for split, points in curves.items():
        class_ = _SPLIT_CLASS.get(split, "k0")
        chart.line(_thin_out(points), class_)
        if split == "validation" and len(points) <= 40:
            chart.dots(points, class_, 2.4)
    scale = " (log scale)" if log else ""
    caption = join([tag("b", title), scale])
    return tag("figure", tag("figcaption", caption), chart.svg())


def _number(value: float) -> str:
    return f"{value:.0e}".replace("e-0", "e-") if 0 < value < 1e-3 else f"{value:.3g}"


def _range(metric: str, ys: Sequence[float], log: bool) -> tuple[float, float]:
    if metric == "accuracy":
        low = math.floor(10 * min(ys)) / 10
        return min(low, 0.9), 1.0
    if log:
        return min(ys) / 1.1, max(ys) * 1.1
    return 0.0, max(ys) * 1.05 or 1.0


def _points(lines: Sequence[Mapping[str, Any]], split: str, metric: str) -> list[Point]:
    """(epoch, value) of the finite values; steps where epochs were not logged."""
    return [
        (float(line.get("epoch", line["step"])), float(line[metric]))
        for line in lines
        if line["split"] == split
        and isinstance(line.get(metric), int | float)
        and math.isfinite(line[metric])
    ]


def _thin_out(points: Sequence[Point]) -> list[Point]:
    """At most 300 points: means of equally many neighbours."""
    size = math.ceil(len(points) / _MOST_POINTS)
    groups = (points[i : i + size] for i in range(0, len(points), size))
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]
