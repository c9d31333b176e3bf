"""On which continuous audio the runs of a comparison were measured."""

from collections.abc import Sequence
from typing import Any

from kws_jax.comparison.rows import Row
from kws_jax.report.workdir import CLEAN, Run


def differ(row: Row, other: Row) -> bool:
    """Whether some runs of the two were measured on other clean test streams.

    As far as their workdirs know it: those of earlier versions tell how many words were
    said alone. A row differs from itself where its runs do.
    """
    ours, theirs = ([_stream_of(run) for run in each.runs] for each in (row, other))
    return any(
        one[name] != another[name]
        for one in ours
        for another in theirs
        for name in one.keys() & another.keys()
    )


def first_known(rows: Sequence[Row], baseline: Row | None) -> Row:
    """The row whose streams are those of a table: the baseline, or else the first.

    Of those whose workdirs tell of any.
    """
    ordered = [row for row in (baseline, *rows) if row is not None]
    known = (row for row in ordered if any(map(_stream_of, row.runs)))
    return next(known, ordered[0])


def _stream_of(run: Run) -> dict[str, Any]:
    """What tells the clean test stream of a run from others; {} where none is known."""
    detection = run.detection or {}
    for stream in detection.get("streams", ()):
        if (stream["split"], stream["condition"]) == ("test", CLEAN):
            measured_on = detection.get("measured_on", {})
            told = {"keywords": stream["keywords"], **measured_on.get("words", {})}
            for name in ("clips", "tolerance_ms"):
                told |= {name: measured_on[name]} if name in measured_on else {}
            return told
    return {}
