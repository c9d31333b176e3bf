"""The embeddings of the test clips as maps: what lies near what, clean and in noise."""

from collections.abc import Sequence

import numpy as np

from kws_jax.condition_names import CLEAN
from kws_jax.evaluation import separation
from kws_jax.report import text
from kws_jax.report.chart import Chart
from kws_jax.report.markup import Markup, join, tag
from kws_jax.report.workdir import Run

# More would hide each other, and fill the page.
_MOST_CLIPS = 60
_PREFIX = "embedding"


def embeddings(run: Run) -> Markup | None:
    """A map of the clips for each condition, all in the directions of the clean one."""
    if not run.embeddings or not run.evaluation:
        return None
    labels = run.evaluation["labels"]
    found = {
        name.removeprefix(_PREFIX).strip() or CLEAN: separation.normalised(value)
        for name, value in run.embeddings.items()
        if name.startswith(_PREFIX)
    }
    if CLEAN not in found or found[CLEAN].shape[1] < 2:
        return None
    origin, directions, shares = principal_directions(found[CLEAN])
    maps = {name: (e - origin) @ directions.T for name, e in found.items()}
    reach = max(float(np.abs(points).max()) for points in maps.values()) or 1.0
    charts = [
        _map(run, name, points, labels, shares, 1.04 * reach)
        for name, points in maps.items()
    ]
    return tag("div", join(charts), class_="multiples")


def principal_directions(
    points: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean [d], two directions [2, d] of largest variance, their shares of it [2]."""
    mean = points.mean(0)
    _, sizes, directions = np.linalg.svd(points - mean, full_matrices=False)
    shares = sizes**2 / max(float((sizes**2).sum()), 1e-30)
    return mean, directions[:2], shares[:2]


def _map(
    run: Run,
    condition: str,
    points: np.ndarray,
    labels: Sequence[str],
    shares: np.ndarray,
    reach: float,
) -> Markup:
    assert run.embeddings is not None
    truth = run.embeddings["label"]
    chart = Chart(
        f"Embeddings of the test clips, {condition}",
        x=(-reach, reach),
        y=(-reach, reach),
        size=(460, 440),
        margins=(6, 6, 26, 26),
    )
    chart.add(_frame(chart))
    for label in range(len(labels)):
        here = points[truth == label]
        if len(here):
            chart.add(_cloud(chart, here, labels, label))
    for label, name in enumerate(labels):
        here = points[truth == label]
        if len(here):
            chart.add(_name(chart, here.mean(0), name))
    chart.add(*_axis_titles(chart, shares))
    caption = join([tag("b", condition), _ratio(run, condition)])
    return tag("figure", tag("figcaption", caption), chart.svg())


def _ratio(run: Run, condition: str) -> str:
    measure = run.find("class_distance_ratio", condition)
    if measure is None:
        return ""
    return f": distance between words {measure.value:.2f} times that within"


def _cloud(
    chart: Chart, points: np.ndarray, labels: Sequence[str], label: int
) -> Markup:
    """Dots of a class, evenly chosen, as one path of strokes without length."""
    count = min(len(points), _MOST_CLIPS)
    chosen = points[np.linspace(0, len(points) - 1, count).astype(np.int64)]
    pixels = (chart.at((float(x), float(y))) for x, y in chosen)
    style = (
        f"fill:none;stroke:{colour(labels, label)};stroke-width:5;"
        "stroke-linecap:round;opacity:.7"
    )
    tip = f"{text.word(labels[label])}: {text.plural(len(points), 'clip')}"
    if count < len(points):
        tip += f", {count} of them drawn"
    path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in pixels)
    return tag("path", tag("title", tip), d=path, style=style)


def colour(labels: Sequence[str], label: int) -> str:
    """A colour for each word: hues in turn, light and dark; grey for what is none."""
    if labels[label].startswith("_"):
        return "var(--grey)"
    words = [i for i, name in enumerate(labels) if not name.startswith("_")]
    place = words.index(label)
    hue = round(360 * place / len(words))
    return f"hsl({hue} 70% {38 if place % 2 else 54}%)"


def _name(chart: Chart, mean: np.ndarray, name: str) -> Markup:
    x, y = chart.at((float(mean[0]), float(mean[1])))
    return tag(
        "text",
        text.word(name),
        x=x,
        y=y + 4,
        text_anchor="middle",
        class_="label",
        style="font-weight:600;paint-order:stroke;stroke:var(--paper);stroke-width:4px",
    )


def _frame(chart: Chart) -> Markup:
    d = f"M{chart.left} {chart.top}H{chart.right}V{chart.bottom}H{chart.left}Z"
    return tag("path", class_="grid", fill="none", d=d)


def _axis_titles(chart: Chart, shares: np.ndarray) -> tuple[Markup, Markup]:
    first, second = (
        f"{which} direction, {text.percent(float(share), 0)} of the variance"
        for which, share in zip(("first", "second"), shares, strict=True)
    )
    x, y = chart.left - 10, (chart.top + chart.bottom) / 2
    turned = tag(
        "text",
        second,
        x=float(x),
        y=y,
        text_anchor="middle",
        transform=f"rotate(-90 {x} {y:g})",
    )
    middle = (chart.left + chart.right) / 2
    return chart.text(middle, chart.bottom + 18, first, "middle"), turned
