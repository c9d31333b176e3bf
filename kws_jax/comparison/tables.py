"""The tables of a comparison, as Markdown."""

import statistics
from collections.abc import Callable, Sequence

from kws_jax.comparison import streams
from kws_jax.comparison.rows import OtherClipsError, Row
from kws_jax.condition_names import (
    CLEAN,
    FAR,
    SEEN,
    UNSEEN,
    clean_of,
    level,
    noisy,
)

_HEADS = (
    "network",
    "seeds",
    "clean, % (sd)",
    "before, in float, %",
    "seen noise, %",
    "unseen noise, %",
    "far clean, %",
    "far seen noise, %",
    "far unseen noise, %",
    "missed at 1 FA/h, % (sd)",
    "missed at 10 FA/h, % (sd)",
    "unheard words taken, % (sd) [95 % over words]",
    "rare ones, % (sd) [95 % over words]",
    "parameters",
    "MACs",
    "bits of a weight, an activation",
    "bytes, packed",
    "search, min",
    "train, min",
)
_NOTHING = "–"
_OTHER_STREAMS = "other streams"
_MISSED = ("frr@1fa/h", "frr@10fa/h")
# The values of some runs -> what a cell says of them.
Show = Callable[[list[float]], str]
NOTE = (
    "Intervals tell what other test clips would give for these very networks: they "
    "hold neither the spread of the seeds nor that there are many of them."
)


def overview(rows: Sequence[Row], baseline: Row | None) -> str:
    """A line for each row; columns that no row fills are left out.

    Noise is the mean over the SNRs at which all rows were tested that know this kind of
    noise; missed are the keywords of the clean test stream, where `detection` was
    measured, and taken for keywords are words that training was kept from, with the
    interval of `Row.interval_over_words`. What only some of the runs have is the mean
    of these, whose number stands behind it; means in noise want all runs. What was
    missed on other streams than those of the baseline, or else of the first row, is
    marked, and of seeds on streams of their own there is no mean.
    """
    lines = [_cells(row, rows, baseline) for row in rows]
    kept = [i for i, _ in enumerate(_HEADS) if any(c[i] != _NOTHING for c in lines)]
    heads = [_HEADS[i] for i in kept]
    cells = [[line[i] for i in kept] for line in lines]
    if baseline is not None:
        heads.append(f"clean against {baseline.name} (95 %)")
        for row, line in zip(rows, cells, strict=True):
            line.append("" if row is baseline else _difference(row, baseline))
    return _markdown(heads, cells)


def levels(rows: Sequence[Row]) -> str:
    """At which SNRs the means of `overview` are taken; '' where nothing is in noise."""
    told: dict[str, list[str]] = {}
    for kind in _kinds(rows):
        names = [name.removeprefix(f"{kind} ") for name in _shared(rows, kind)]
        told.setdefault(", ".join(names) or "none that all rows share", []).append(kind)
    each = [f"{' and '.join(kinds)} at {names}" for names, kinds in told.items()]
    return f"Means in noise: {'; '.join(each)}." if each else ""


def other_streams(rows: Sequence[Row], baseline: Row | None) -> str:
    """What the mark in `overview` means; '' where there is none."""
    marked = [
        row
        for row in rows
        for metric in _MISSED
        if _OTHER_STREAMS in _missed(row, rows, baseline, metric)
    ]
    if not marked:
        return ""
    first = streams.first_known(rows, baseline)
    return (
        f"Missed: “{_OTHER_STREAMS}” are not those of {first.name}, or not the same "
        "for all seeds; figures on them are not to be compared."
    )


def in_noise(rows: Sequence[Row], baseline: Row | None) -> str:
    """For each kind of noise a table: a line for each row, a column for each SNR.

    A cell is the accuracy, in percent, the mean over the seeds, and with a baseline its
    difference to that in points, with the 95 % interval of a paired bootstrap over the
    test clips. The last column is the mean over the SNRs at which all rows were tested
    that know this kind of noise.
    """
    tables = []
    for kind in _kinds(rows):
        tested = {snr for row in rows for snr in row.kinds().get(kind, [])}
        levels = sorted(tested, reverse=True)
        columns = {level(snr): [noisy(kind, snr)] for snr in levels}
        columns = {CLEAN: [clean_of(kind)], **columns, "mean": _shared(rows, kind)}
        title = f"{kind.capitalize()} noise: accuracy, %"
        if baseline is not None:
            title += f"; in points against {baseline.name} (95 %)"
        cells = [
            [row.name, *(_cell(row, names, baseline) for names in columns.values())]
            for row in rows
        ]
        tables.append(f"{title}\n\n{_markdown(['network', *columns], cells)}")
    if tables and baseline is not None:
        tables.append(NOTE)
    return "\n\n".join(tables)


def _kinds(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(kind for row in rows for kind in row.kinds()))


def _shared(rows: Sequence[Row], kind: str) -> list[str]:
    """The conditions of a kind of noise in which all rows were tested that know it."""
    each = [set(row.kinds()[kind]) for row in rows if kind in row.kinds()]
    levels = set.intersection(*each) if each else set()
    return [noisy(kind, snr) for snr in sorted(levels)]


def _cell(row: Row, conditions: Sequence[str], baseline: Row | None) -> str:
    value = _of_runs(row, _means(row, conditions), _percent)
    if baseline is None or row is baseline or value == _NOTHING:
        return value
    difference = _difference(row, baseline, conditions)
    return value if difference == _NOTHING else f"{value}, {difference}"


def _means(row: Row, conditions: Sequence[str]) -> list[float]:
    """The accuracy of each run, the mean over the conditions; [] where it lacks one."""
    each = [row.values("accuracy", condition) for condition in conditions]
    if not each or any(len(values) < len(row.runs) for values in each):
        return []
    return [statistics.fmean(values) for values in zip(*each, strict=True)]


def _cells(row: Row, rows: Sequence[Row], baseline: Row | None) -> list[str]:
    def in_noise(kind: str) -> str:
        return _of_runs(row, _means(row, _shared(rows, kind)), _percent)

    def shown(metric: str, show: Show, condition: str = CLEAN) -> str:
        return _of_runs(row, row.values(metric, condition), show)

    return [
        row.name,
        str(len(row.runs)),
        shown("accuracy", _spread),
        shown("float_accuracy", _percent),
        in_noise(SEEN),
        in_noise(UNSEEN),
        shown("accuracy", _percent, FAR + CLEAN),
        in_noise(FAR + SEEN),
        in_noise(FAR + UNSEEN),
        *(_missed(row, rows, baseline, metric) for metric in _MISSED),
        _over_words(row, "false_accept/unheard"),
        _over_words(row, "false_accept/unheard_rare"),
        shown("parameters", lambda v: f"{statistics.fmean(v):,.0f}"),
        shown("macs", lambda v: f"{statistics.fmean(v) / 1e6:.2f} M"),
        _bits(row),
        shown("packed_bytes", lambda v: f"{statistics.fmean(v):,.0f}"),
        _of_runs(row, row.seconds(searching=True), _minutes),
        _of_runs(row, row.seconds(searching=False), _minutes),
    ]


def _of_runs(row: Row, values: list[float], show: Show) -> str:
    """What `show` makes of the values, and of how many runs they are if not of all."""
    if not values:
        return _NOTHING
    few = len(values) < len(row.runs)
    return show(values) + (f" ({len(values)} of {len(row.runs)})" if few else "")


def _missed(row: Row, rows: Sequence[Row], baseline: Row | None, metric: str) -> str:
    shown = _of_runs(row, row.values(metric), _spread)
    if shown == _NOTHING:
        return shown
    if streams.differ(row, row):
        return _OTHER_STREAMS
    first = streams.first_known(rows, baseline)
    return shown + (f", {_OTHER_STREAMS}" if streams.differ(row, first) else "")


def _percent(values: list[float]) -> str:
    return f"{100 * statistics.fmean(values):.2f}"


def _spread(values: list[float]) -> str:
    """The mean in percent and, of several, the deviation."""
    deviation = f" ({100 * statistics.stdev(values):.2f})" if len(values) > 1 else ""
    return _percent(values) + deviation


def _minutes(seconds: list[float]) -> str:
    return f"{statistics.fmean(seconds) / 60:.1f}"


def _bits(row: Row) -> str:
    each = [row.values(metric) for metric in ("weight_bits", "activation_bits")]
    if not all(each):
        return _NOTHING
    told = ", ".join(f"{statistics.fmean(values):.3g}" for values in each)
    return _of_runs(row, min(each, key=len), lambda _: told)


def _over_words(row: Row, metric: str) -> str:
    """The mean and the deviation over the seeds, and the interval over the words."""
    shown = _of_runs(row, row.values(metric), _spread)
    interval = row.interval_over_words(metric)
    if interval is None:
        return shown
    low, high = interval
    return f"{shown} [{100 * low:.1f} … {100 * high:.1f}]"


def _difference(row: Row, baseline: Row, conditions: Sequence[str] = (CLEAN,)) -> str:
    try:
        difference = row.difference(baseline, conditions)
    except OtherClipsError:
        return "other test"
    if difference is None:
        return _NOTHING
    value, (low, high) = difference
    return f"{100 * value:+.2f} ({100 * low:+.2f} … {100 * high:+.2f})"


def _markdown(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    lines += ["| " + " | ".join(line) + " |" for line in cells]
    return "\n".join(lines)
