"""How accurate the network is in noise, near and far: plots and a table."""

import statistics
from collections.abc import Mapping, Sequence

from kws_jax.condition_names import CLEAN, FAR, clean_of, level
from kws_jax.report import text
from kws_jax.report.chart import Chart
from kws_jax.report.markup import Markup, join, tag
from kws_jax.report.plots import floor, tip
from kws_jax.report.workdir import Measure, Run

Curves = Mapping[str, Sequence[tuple[float, Measure]]]


def accuracy_in_noise(run: Run) -> Markup | None:
    """A panel for near and one for far clips, where there are both, and the table.

    The table alone where clips were far, but nothing was tested in noise.
    """
    near, far = _places(run)
    clean, far_clean = run.find("accuracy"), run.find("accuracy", FAR + CLEAN)
    if not near and not far:
        return _places_table(clean, far_clean) if far_clean else None
    measures = [m for curves in (near, far) for c in curves.values() for _, m in c]
    measures += [m for m in (clean, far_clean) if m]
    low = floor(measures)
    if not far:
        return join([_panel("", near, clean, low), _table(run)])
    panels = [
        tag("figure", tag("figcaption", tag("b", title), note), panel)
        for title, note, panel in (
            ("Near", ": clips as they were recorded", _panel("near", near, clean, low)),
            ("Far", ": clips through a room", _panel("far", far, far_clean, low)),
        )
    ]
    return join([tag("div", join(panels), class_="multiples"), _table(run)])


def means(run: Run) -> dict[str, float]:
    """Accuracy of the final stage in each kind of noise, the mean over its SNRs."""
    return {
        kind: statistics.fmean(measure.value for _, measure in curve)
        for kind, curve in run.noise().items()
    }


def _places(run: Run) -> tuple[Curves, Curves]:
    """The curves of near and of far clips, by the kind of noise."""
    curves = run.noise()
    near = {kind: c for kind, c in curves.items() if not kind.startswith(FAR)}
    far = {k.removeprefix(FAR): c for k, c in curves.items() if k.startswith(FAR)}
    return near, far


def _panel(place: str, curves: Curves, clean: Measure | None, low: float) -> Markup:
    """Test accuracy for each kind of noise over the SNR, beside the level without."""
    snrs = sorted({snr for curve in curves.values() for snr, _ in curve})
    title = "Test accuracy against signal-to-noise ratio"
    chart = Chart(
        f"{title}, {place}" if place else title,
        x=(snrs[0] - 1, snrs[-1] + 1),
        y=(low, 1.0),
        size=(460, 330) if place else (560, 330),
        margins=(12, 80, 46, 62),
    )
    chart.y_axis(lambda v: f"{100 * v:.0f} %")
    chart.x_axis(
        "signal-to-noise ratio (dB)", lambda v: f"{v:g}".replace("-", "−"), snrs
    )
    ends: list[tuple[float, str, str]] = []
    if clean:
        _level(chart, clean)
        ends.append((chart.y(clean.value), "clean", "clean"))
    for i, (kind, curve) in enumerate(curves.items()):
        # A small step aside keeps the intervals of two curves from hiding each other.
        shift = 0.3 * (i - (len(curves) - 1) / 2)
        _noise_curve(chart, kind, [(snr + shift, m) for snr, m in curve], f"c{i % 4}")
        ends.append((chart.y(curve[-1][1].value), kind, f"c{i % 4}"))
    for y, name, class_ in _spread(ends, 19.0, chart.top + 4):
        chart.add(chart.text(chart.right + 8, y + 4, name, "start", f"name {class_}"))
    return chart.svg("chart wide")


def _table(run: Run) -> Markup:
    """Accuracy with its interval: a row for each SNR, a column for each kind."""
    curves = run.noise()
    columns = {kind: dict(curve) for kind, curve in curves.items()}
    far = any(kind.startswith(FAR) for kind in columns)
    rows = [
        _row(level(snr).replace("-", "−"), [c.get(snr) for c in columns.values()])
        for snr in sorted({snr for c in columns.values() for snr in c}, reverse=True)
    ]
    clean = [run.find("accuracy", clean_of(kind)) for kind in columns]
    mean = join(
        tag("td", tag("b", text.percent(value)), class_="number")
        for value in means(run).values()
    )
    body = [_row("none", clean), *rows, tag("tr", tag("th", "mean of the SNRs"), mean)]
    return _shown([_heading(kind, far) for kind in columns], body)


def _places_table(clean: Measure | None, far_clean: Measure) -> Markup:
    """Accuracy without noise, near and far."""
    return _shown(["near", "far"], [_row("none", [clean, far_clean])])


def _shown(columns: Sequence[str], rows: Sequence[Markup]) -> Markup:
    heads = join(tag("th", name, scope="col") for name in ["noise", *columns])
    table = tag(
        "table", tag("thead", tag("tr", heads)), tag("tbody", *rows), class_="noise"
    )
    return tag("div", table, class_="scroll")


def _heading(kind: str, far: bool) -> str:
    return kind if kind.startswith(FAR) or not far else f"near {kind}"


def _row(name: str, measures: Sequence[Measure | None]) -> Markup:
    cells = [
        tag(
            "td",
            text.percent(m.value),
            " ",
            tag("span", f"({text.interval(m)})" if m.interval else "", class_="soft"),
            class_="number",
        )
        if m
        else tag("td", "–", class_="number")
        for m in measures
    ]
    return tag("tr", tag("th", name, scope="row"), join(cells))


def _level(chart: Chart, clean: Measure) -> None:
    """The accuracy on clean clips as a line across, its interval as a band."""
    if clean.interval:
        low, high = chart.y(clean.interval[0]), chart.y(clean.interval[1])
        chart.add(
            tag(
                "rect",
                class_="band clean",
                x=chart.left,
                y=high,
                width=chart.right - chart.left,
                height=low - high,
            )
        )
    y = chart.y(clean.value)
    chart.add(
        tag(
            "path",
            tip("clean", clean),
            class_="line clean",
            d=f"M{chart.left} {y:.1f}H{chart.right}",
        )
    )


def _noise_curve(
    chart: Chart, kind: str, curve: Sequence[tuple[float, Measure]], class_: str
) -> None:
    chart.line([(snr, m.value) for snr, m in curve], class_)
    for snr, measure in curve:
        x, y = chart.at((snr, measure.value))
        whisker = None
        if measure.interval:
            low, high = (chart.y(v) for v in measure.interval)
            d = f"M{x:.1f} {low:.1f}V{high:.1f}"
            whisker = tag("path", class_=f"line {class_}", d=d)
        dot = tag("circle", class_=f"dot {class_}", cx=x, cy=y, r=4)
        told = tip(f"{kind} noise, {measure.condition}", measure)
        chart.add(tag("g", join([told, whisker, dot])))


def _spread(
    ends: Sequence[tuple[float, str, str]], gap: float, top: float
) -> list[tuple[float, str, str]]:
    """Moves labels (y, name, class) down until they are `gap` pixels apart."""
    placed: list[tuple[float, str, str]] = []
    for y, name, class_ in sorted(ends):
        lowest = placed[-1][0] + gap if placed else top
        placed.append((max(y, lowest), name, class_))
    return placed
