"""The tables of a comparison, as Markdown."""

import statistics
from collections.abc import Sequence

from kws_jax.comparison.rows import Difference, Row

_HEADS = (
    "network",
    "seeds",
    "clean, % (sd)",
    "seen noise, %",
    "unseen noise, %",
    "far clean, %",
    "far seen noise, %",
    "far unseen noise, %",
    "missed at 1 FA/h, %",
    "missed at 10 FA/h, %",
    "parameters",
    "MACs",
    "search, min",
    "train, min",
)
_NOTHING = "–"


def overview(rows: Sequence[Row], baseline: Row | None) -> str:
    """A line for each row; columns that no row fills are left out.

    Noise is the mean over the SNRs that were tested; missed are the keywords of the
    clean test stream, where `detection` was measured.
    """
    lines = [_cells(row) for row in rows]
    kept = [i for i, _ in enumerate(_HEADS) if any(c[i] != _NOTHING for c in lines)]
    heads = [_HEADS[i] for i in kept]
    cells = [[line[i] for i in kept] for line in lines]
    if baseline is not None:
        heads.append(f"clean against {baseline.name} (95 %)")
        for row, line in zip(rows, cells, strict=True):
            line.append("" if row is baseline else _told(row.difference(baseline)))
    return _markdown(heads, cells)


def in_noise(rows: Sequence[Row], baseline: Row | None) -> str:
    """For each kind of noise a table: a line for each row, a column for each SNR.

    A cell is the accuracy, in percent, the mean over the seeds, and with a baseline its
    difference to that in points, with the 95 % interval of a paired bootstrap over the
    test clips. The last column is the mean over the SNRs.
    """
    tables = []
    for kind in dict.fromkeys(kind for row in rows for kind in row.kinds()):
        tested = {snr for row in rows for snr in row.kinds().get(kind, [])}
        levels = sorted(tested, reverse=True)
        clean = "far clean" if kind.startswith("far ") else "clean"
        each = [(f"{s:g} dB", f"{kind} {s:g} dB") for s in levels]
        columns = [("clean", [clean]), *((head, [name]) for head, name in each)]
        columns.append(("mean of the noisy", [name for _, name in each]))
        title = f"{kind.capitalize()} noise: accuracy, %"
        if baseline is not None:
            title += f"; in points against {baseline.name} (95 %)"
        cells = [
            [row.name, *(_cell(row, names, baseline) for _, names in columns)]
            for row in rows
        ]
        heads = ["network", *(head for head, _ in columns)]
        tables.append(f"{title}\n\n{_markdown(heads, cells)}")
    return "\n\n".join(tables)


def _cell(row: Row, conditions: Sequence[str], baseline: Row | None) -> str:
    right = row.share_right(conditions)
    if right is None:
        return _NOTHING
    value = f"{100 * right.mean():.2f}"
    if baseline is None or row is baseline:
        return value
    return f"{value}, {_told(row.difference(baseline, conditions))}"


def _cells(row: Row) -> list[str]:
    return [
        row.name,
        str(len(row.runs)),
        _percent(row.values("accuracy"), spread=True),
        _percent(row.in_noise("seen")),
        _percent(row.in_noise("unseen")),
        _percent(row.values("accuracy", "far clean")),
        _percent(row.in_noise("far seen")),
        _percent(row.in_noise("far unseen")),
        _percent(row.values("frr@1fa/h"), spread=True),
        _percent(row.values("frr@10fa/h"), spread=True),
        f"{statistics.fmean(row.values('parameters')):,.0f}",
        f"{statistics.fmean(row.values('macs')) / 1e6:.2f} M",
        _minutes(row.seconds(last=False)),
        _minutes(row.seconds(last=True)),
    ]


def _percent(values: list[float], *, spread: bool = False) -> str:
    if not values:
        return _NOTHING
    mean = f"{100 * statistics.fmean(values):.2f}"
    if spread and len(values) > 1:
        mean += f" ({100 * statistics.stdev(values):.2f})"
    return mean


def _minutes(seconds: list[float]) -> str:
    mean = statistics.fmean(seconds) / 60
    return f"{mean:.1f}" if mean else _NOTHING


def _told(difference: Difference | None) -> str:
    if difference is None:
        return "other test clips"
    value, (low, high) = difference
    return f"{100 * value:+.2f} ({100 * low:+.2f} … {100 * high:+.2f})"


def _markdown(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    lines += ["| " + " | ".join(line) + " |" for line in cells]
    return "\n".join(lines)
