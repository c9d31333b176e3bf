"""Data parameters on the page: their course over the epochs, and the clips to hear."""

from collections.abc import Mapping, Sequence
from typing import Any

from kws_jax.report import text
from kws_jax.report.chart import Chart, Point, line_key, path_of
from kws_jax.report.markup import Markup, join, tag
from kws_jax.report.workdir import Run

# group in the log -> (title of its chart, note below)
_CHARTS = {
    "instance": "Mean σ of clips",
    "instance_by_label": "Mean σ of clips, by label",
    "class": "σ of labels",
}
_STYLES = ("c0", "c1", "c2", "c3", "k0", "plain")
_GROUPS = ("clean", "noisy", "flipped")


def data_parameters(run: Run) -> Markup | None:
    """Charts of each stage that had data parameters, and its table of clips."""
    blocks: list[Markup] = []
    for stage in run.stages:
        lines = [line for line in run.data_parameters if line["stage"] == stage]
        charts = [
            _chart(lines, group, title)
            for group, title in _CHARTS.items()
            if any(line.get(group) for line in lines)
        ]
        summary = run.data_parameter_summary.get(stage) or {}
        if charts or summary:
            blocks.append(tag("h3", f"Stage “{stage}”"))
            blocks.append(tag("div", join(charts), class_="multiples"))
            blocks += _clips(summary)
    return join(blocks) if blocks else None


def _chart(lines: Sequence[Mapping[str, Any]], group: str, title: str) -> Markup:
    """One curve for each member of a group, the most telling ones in colour."""
    curves = _curves(lines, group)
    values = [y for points in curves.values() for _, y in points]
    epochs = [x for points in curves.values() for x, _ in points]
    log = min(values) > 0 and max(values) > 8 * min(values)
    chart = Chart(
        title,
        x=(0.0, max(epochs)),
        y=_range(values, log),
        size=(320, 220),
        margins=(10, 12, 40, 46),
        log_y=log,
    )
    chart.y_axis(lambda v: f"{v:.3g}", 4)
    chart.x_axis("epoch")
    classes = _classes({name: points[-1][1] for name, points in curves.items()})
    for name, points in curves.items():
        shown = text.word(name)
        tip = tag("title", f"{shown}: {points[-1][1]:.3g}")
        d = path_of(map(chart.at, points))
        chart.add(tag("path", tip, class_=f"line {classes.get(name, 'clean')}", d=d))
    keys = [line_key(class_, text.word(name)) for name, class_ in classes.items()]
    if len(curves) > len(classes):
        keys.append(line_key("clean", "others"))
    caption = join([tag("b", title), " (log scale)" if log else ""])
    return tag(
        "figure",
        tag("figcaption", caption),
        chart.svg(),
        tag("p", join(keys), class_="legend"),
    )


def _range(values: Sequence[float], log: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    if log:
        return low / 1.1, high * 1.1
    room = 0.08 * (high - low) or 0.05 * high
    return max(0.0, low - room), high + room


def _curves(lines: Sequence[Mapping[str, Any]], group: str) -> dict[str, list[Point]]:
    names = dict.fromkeys(name for line in lines for name in line.get(group) or {})
    return {
        name: [
            (float(line["epoch"]), float(line[group][name]))
            for line in lines
            if name in (line.get(group) or {})
        ]
        for name in names
    }


def _classes(last: Mapping[str, float]) -> dict[str, str]:
    """A colour for each of a few names, else for the groups and the outermost ones.

    Of SNRs those are the softest and the loudest noise, of labels those that end
    highest and lowest.
    """
    names = list(last)
    if len(names) > len(_STYLES):
        groups = [name for name in names if name in _GROUPS]
        others = [name for name in names if name not in _GROUPS]
        if not groups:
            others.sort(key=lambda name: -last[name])
        ends = 1 if groups else 2
        names = [*groups, *others[:ends], *others[-ends:]]
    return dict(zip(names, _STYLES, strict=False))


def _clips(summary: Mapping[str, Any]) -> list[Markup]:
    """The clips with the largest σ, and how many of the flipped ones were found."""
    blocks = []
    if summary.get("flipped"):
        found, all_of_them = summary["flipped_in_top_fifth"], summary["flipped"]
        told = (
            f"Of {all_of_them:,} clips with a wrong label on purpose, {found:,} "
            f"({text.percent(found / all_of_them)}) are in the fifth with the largest "
            "σ."
        )
        blocks.append(tag("p", told))
    rows = summary.get("largest")
    if rows:
        marked = any("label_before" in row for row in rows)
        heads = ["clip", "label", *(["label before"] if marked else []), "heard"]
        names = [tag("th", name, scope="col") for name in heads]
        head = tag("tr", join(names), tag("th", "σ", scope="col", class_="number"))
        body = join(_clip_row(row, marked) for row in rows)
        table = tag("table", tag("thead", head), tag("tbody", body), class_="results")
        blocks.append(tag("p", "The clips with the largest σ, to listen to:"))
        blocks.append(tag("div", table, class_="scroll"))
    return blocks


def _clip_row(row: Mapping[str, Any], marked: bool) -> Markup:
    before = row.get("label_before")
    cells = [tag("td", row["name"]), tag("td", text.word(row["label"]))]
    if marked:
        cells.append(tag("td", text.word(before) if before else ""))
    cells += [
        tag("td", "in noise" if row["noisy"] else "clean"),
        tag("td", f"{row['sigma']:.3g}", class_="number"),
    ]
    return tag("tr", join(cells))
