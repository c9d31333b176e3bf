"""Accuracy against the signal-to-noise ratio, of each of several seeds."""

import math
import statistics
from collections.abc import Mapping, Sequence

from kws_jax.report import text
from kws_jax.report.chart import Chart, curve_class, dot_key
from kws_jax.report.markup import Markup, join, tag

# SNR in dB -> the accuracy of each seed, a fraction.
Curve = Mapping[float, Sequence[float]]


def draw(names: Sequence[str], curves: Mapping[str, Sequence[Curve]]) -> Markup | None:
    """A panel for each kind of noise, with one axis for all, and a curve for each name.

    Lines go through the means of the seeds; each seed is a dot. None where nothing was
    tested in noise.

    Args:
      names: of the experiments; a single one is not named in the drawing.
      curves: kind of noise -> the curve of each experiment, empty where it has none.
    """
    accuracies = [
        value
        for each in curves.values()
        for curve in each
        for values in curve.values()
        for value in values
    ]
    if not accuracies:
        return None
    low = math.floor(20 * min(accuracies)) / 20
    panels = [
        tag(
            "figure",
            tag("figcaption", tag("b", f"{kind.capitalize()} noise")),
            _panel(kind, names, of_kind, (low, 1.0)),
        )
        for kind, of_kind in curves.items()
    ]
    keys = [dot_key(curve_class(n), name) for n, name in enumerate(names)]
    keys = keys if len(names) > 1 else []
    note = "Lines go through the means of the seeds; each dot is a seed."
    return join(
        [
            tag("p", join([*keys, note]), class_="legend"),
            tag("div", join(panels), class_="multiples"),
        ]
    )


def _panel(
    kind: str,
    names: Sequence[str],
    curves: Sequence[Curve],
    y: tuple[float, float],
) -> Markup:
    snrs = sorted({snr for curve in curves for snr in curve})
    chart = Chart(
        f"Test accuracy against signal-to-noise ratio, {kind} noise",
        x=(snrs[0] - 1, snrs[-1] + 1),
        y=y,
        size=(460, 330),
        margins=(12, 16, 46, 62),
    )
    chart.y_axis(lambda v: f"{100 * v:.0f} %")
    chart.x_axis(
        "signal-to-noise ratio (dB)", lambda v: f"{v:g}".replace("-", "−"), snrs
    )
    for number, (name, curve) in enumerate(zip(names, curves, strict=True)):
        if not curve:
            continue
        class_ = curve_class(number)
        means = {snr: statistics.fmean(values) for snr, values in curve.items()}
        chart.line(means.items(), class_)
        for snr, values in curve.items():
            told = f"{name}, {snr:g} dB: {text.percent(means[snr], 2)}"
            dots = [
                tag("circle", class_=f"dot {class_}", cx=x, cy=y, r=2.5)
                for x, y in (chart.at((snr, value)) for value in values)
            ]
            chart.add(tag("g", tag("title", told), join(dots)))
    return chart.svg("chart wide")
