"""The tables of a comparison, as Markdown."""

import statistics
from collections.abc import Sequence

from kws_jax.comparison.rows import OtherClipsError, Row

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
NOTE = (
    "Intervals tell what other test clips would give for these very networks: they "
    "hold neither the spread of the seeds nor that there are many of them."
)


def overview(rows: Sequence[Row], baseline: Row | None) -> str:
    """A line for each row; columns that no row fills are left out.

    Noise is the mean over the SNRs at which all rows were tested that know this kind of
    noise; missed are the keywords of the clean test stream, where `detection` was
    measured, and taken for keywords are words that training was kept from, with the
    interval of `Row.interval_over_words`.
    """
    lines = [_cells(row, rows) for row in rows]
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
        clean = "far clean" if kind.startswith("far ") else "clean"
        levels = sorted(tested, reverse=True)
        columns = {f"{snr:g} dB": [f"{kind} {snr:g} dB"] for snr in levels}
        columns = {"clean": [clean], **columns, "mean": _shared(rows, kind)}
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
    return [f"{kind} {snr:g} dB" for snr in sorted(levels)]


def _cell(row: Row, conditions: Sequence[str], baseline: Row | None) -> str:
    value = _percent(_means(row, conditions))
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


def _cells(row: Row, rows: Sequence[Row]) -> list[str]:
    def in_noise(kind: str) -> str:
        return _percent(_means(row, _shared(rows, kind)))

    return [
        row.name,
        str(len(row.runs)),
        _percent(row.values("accuracy"), spread=True),
        _percent(row.values("float_accuracy")),
        in_noise("seen"),
        in_noise("unseen"),
        _percent(row.values("accuracy", "far clean")),
        in_noise("far seen"),
        in_noise("far unseen"),
        _percent(row.values("frr@1fa/h"), spread=True),
        _percent(row.values("frr@10fa/h"), spread=True),
        _over_words(row, "false_accept/unheard"),
        _over_words(row, "false_accept/unheard_rare"),
        _count(row.values("parameters")),
        f"{statistics.fmean(row.values('macs')) / 1e6:.2f} M",
        _bits(row.values("weight_bits"), row.values("activation_bits")),
        _count(row.values("packed_bytes")),
        _minutes(row.seconds(searching=True)),
        _minutes(row.seconds(searching=False)),
    ]


def _percent(values: list[float], *, spread: bool = False) -> str:
    if not values:
        return _NOTHING
    mean = f"{100 * statistics.fmean(values):.2f}"
    if spread and len(values) > 1:
        mean += f" ({100 * statistics.stdev(values):.2f})"
    return mean


def _count(values: list[float]) -> str:
    return f"{statistics.fmean(values):,.0f}" if values else _NOTHING


def _bits(weights: list[float], activations: list[float]) -> str:
    if not (weights and activations):
        return _NOTHING
    return ", ".join(f"{statistics.fmean(v):.3g}" for v in (weights, activations))


def _over_words(row: Row, metric: str) -> str:
    """The mean and the deviation over the seeds, and the interval over the words."""
    shown = _percent(row.values(metric), spread=True)
    interval = row.interval_over_words(metric)
    if interval is None:
        return shown
    low, high = interval
    return f"{shown} [{100 * low:.1f} … {100 * high:.1f}]"


def _minutes(seconds: list[float]) -> str:
    mean = statistics.fmean(seconds) / 60
    return f"{mean:.1f}" if mean else _NOTHING


def _difference(row: Row, baseline: Row, conditions: Sequence[str] = ("clean",)) -> str:
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
