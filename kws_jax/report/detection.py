"""The part of the report on continuous audio: DET curves and the stored threshold."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kws_jax.condition_names import CLEAN, FAR
from kws_jax.report import text
from kws_jax.report.chart import Chart, Point, path_of
from kws_jax.report.markup import Markup, join, tag
from kws_jax.report.workdir import Run

_HEADS = (
    "stream",
    "hours",
    "keywords",
    "at the threshold",
    "missed",
    "false alarms an hour",
    "95 % interval",
)


def facts(run: Run) -> Iterator[tuple[str, str]]:
    """For the terminal: false rejects at 1 and 10 false alarms an hour, near, far."""
    for place, where in (("", ""), (FAR, ", far")):
        shown = [
            f"{text.percent(measure.value)} missed at "
            f"{text.plural(rate, 'false alarm')} an hour"
            for rate in (1, 10)
            if (measure := run.find(f"frr@{rate}fa/h", place + CLEAN))
        ]
        if shown:
            yield f"detection in continuous audio{where}", ", ".join(shown)


def section(run: Run) -> Markup | None:
    """DET curves of all keywords and of each, clean, and what the threshold does."""
    if not run.detection:
        return None
    streams = run.detection["streams"]
    found = {s["condition"]: s for s in streams if s["split"] == "test"}
    clean, far = found.get(CLEAN), found.get(FAR + CLEAN)
    note = "Far from the microphone, each word through a room:"
    return join(
        [
            _det(clean) if clean else None,
            tag("p", note, class_="note") if far else None,
            _det(far, ", far") if far else None,
            _threshold_note(run.detection),
            _table(run.detection) if streams else None,
        ]
    )


def _det(stream: Mapping[str, Any], where: str = "") -> Markup:
    """False rejects over false alarms an hour, both by their logarithm."""
    curves, hours = stream["curves"], float(stream["hours"])
    pooled = curves[""]
    # Half of one: where the logarithm of none would be.
    none_alarms = 0.5 / hours
    none_missed = 0.5 / pooled["references"]
    most = max(20.0, 200 * none_alarms)
    words = [word for word in curves if word]
    stairs = {
        word: _steps(curve, hours, none_alarms, none_missed, most)
        for word, curve in curves.items()
    }
    lowest = min(share for points in stairs.values() for _, share in points)
    chart = Chart(
        f"False rejects against false alarms an hour{where}",
        x=(none_alarms, most),
        y=(0.8 * lowest, 1.0),
        margins=(12, 100, 46, 62),
        log_y=True,
        log_x=True,
    )
    chart.y_axis(lambda v: f"{100 * v:g} %")
    for value in chart.x.ticks(5):
        x = chart.x(value)
        chart.add(tag("path", class_="grid", d=f"M{x:.1f} {chart.top}V{chart.bottom}"))
    chart.x_axis("false alarms an hour")
    ends: list[tuple[float, str, str]] = []
    # The pooled curve last, so that it lies above the others.
    for word in [*words, ""]:
        curve, style = curves[word], _style(word, words)
        points = stairs[word]
        name = word or "all keywords"
        tip = tag("title", f"{name}, {text.plural(curve['references'], 'time')} said")
        d = path_of(map(chart.at, points))
        chart.add(tag("path", tip, class_=f"line {style}", d=d))
        ends.append((chart.at(points[-1])[1], name, style))
    for y, name, style in _spread(ends, 15.0, chart.top + 4, chart.bottom):
        chart.add(chart.text(chart.right + 8, y + 4, name, "start", f"name {style}"))
    return chart.svg("chart wide")


def _style(word: str, words: Sequence[str]) -> str:
    """Four colours, then the same ones dashed."""
    if not word:
        return "bold plain"
    number = words.index(word)
    return f"each c{number % 4}" + (" squeeze" if number // 4 % 2 else "")


def _steps(
    curve: Mapping[str, Any],
    hours: float,
    none_alarms: float,
    none_missed: float,
    most: float,
) -> list[Point]:
    """The curve as a stair: so many misses until more false alarms are allowed."""
    points: list[Point] = []
    for alarms, misses in curve["points"]:
        rate = max(alarms / hours, none_alarms)
        if rate > most:
            break
        share = max(misses / curve["references"], none_missed)
        if points:
            points.append((rate, points[-1][1]))
        points.append((rate, share))
    points = points or [(none_alarms, 1.0)]
    return [*points, (most, points[-1][1])]


def _spread(
    ends: Sequence[tuple[float, str, str]], gap: float, top: float, bottom: float
) -> list[tuple[float, str, str]]:
    """Labels (y, name, class) moved apart by `gap` pixels, none below `bottom`."""
    placed: list[tuple[float, str, str]] = []
    limit = bottom
    for y, name, style in sorted(ends, reverse=True):
        y = min(y, limit)
        placed.append((max(y, top), name, style))
        limit = y - gap
    return placed


def _threshold_note(detection: Mapping[str, Any]) -> Markup:
    told = (
        f"The threshold {detection['threshold']:.4g} was chosen on "
        f"{_chosen_on(detection)}, to keep false alarms at or below "
        f"{detection['target_false_alarms_per_hour']:g} an hour, with "
        f"{_listening(detection)}."
    )
    for stream in detection["streams"][:1]:
        # All were measured together, perhaps before this threshold was chosen.
        measured = {**detection, **stream}
        now, then = _listening(detection), _listening(measured)
        if (measured["threshold"], then) == (detection["threshold"], now):
            told += " With it:"
            continue
        told += f" Streams were measured before, at {measured['threshold']:.4g}"
        told += ":" if then == now else f", with {then}:"
    return tag("p", told, class_="note")


def _chosen_on(detection: Mapping[str, Any]) -> str:
    # Versions that did not say it knew validation clips alone.
    chosen_on = detection.get("chosen_on", {})
    if "recording" not in chosen_on:
        return "validation clips"
    return f"the recording {chosen_on['recording']} ({chosen_on['hours']:.3g} h)"


def _listening(heard_with: Mapping[str, Any]) -> str:
    """How a network listened: which scores, and how they became reports."""
    rule = heard_with["rule"]
    if heard_with.get("scores") == "frames":
        how = (
            "the network's own score of a keyword at each frame at which it may end, "
            f"every {rule['hop_ms']:g} ms"
        )
    else:
        how = (
            f"a window of a second every {rule['hop_ms']:g} ms, probabilities averaged "
            f"over {rule['smoothing_ms']:g} ms"
        )
    return f"{how}, and at most one report of a keyword in {rule['refractory_ms']:g} ms"


def _table(detection: Mapping[str, Any]) -> Markup:
    head = tag("tr", join(tag("th", name, scope="col") for name in _HEADS))
    # Streams of versions that had one threshold for all do not say it themselves.
    same = {"threshold": detection["threshold"]}
    body = join(_row(same | stream) for stream in detection["streams"])
    table = tag("table", tag("thead", head), tag("tbody", body), class_="results")
    return tag("div", table, class_="scroll")


def _row(stream: Mapping[str, Any]) -> Markup:
    cells = (
        f"{stream['split']}, {stream['condition']}",
        f"{stream['hours']:.3g}",
        text.count(stream["keywords"]),
        f"{stream['threshold']:.4g}",
        f"{text.count(stream['false_rejects'])} "
        f"({text.percent(stream['false_reject_rate'])})",
    )
    # Measured by a version without intervals, there is none.
    bounds = stream.get("false_alarms_per_hour_ci95")
    numbers = (
        f"{stream['false_alarms_per_hour']:.3g}",
        text.bounds(*bounds) if bounds else "",
    )
    return tag(
        "tr",
        join(tag("td", cell) for cell in cells),
        join(tag("td", number, class_="number") for number in numbers),
    )
