"""Rows of results: their floors, their table and their JSON file."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.timing import Timing


@dataclasses.dataclass(frozen=True)
class Work:
    """What a call has to do at least.

    Attributes:
      operations: float32 additions and multiplications of its matrix products.
      bytes: its inputs, outputs and parameters, each moved once.
    """

    operations: float
    bytes: float

    def floor(self, flops: float, bandwidth: float) -> float:
        """Seconds that no program can beat at these rates: max of the two parts."""
        return max(self.operations / flops, self.bytes / bandwidth)


@dataclasses.dataclass(frozen=True)
class Row:
    """One measured call.

    Attributes:
      name: what is called.
      framework: what ran it.
      median_s, iqr_s: median and interquartile range of the repetitions in seconds.
      repeats: how many repetitions.
      clips: clips that one call takes.
      floor_s: seconds it takes at the machine's limits; None where unknown.
      fraction_of_limit: floor_s / median_s; None where unknown.
    """

    name: str
    framework: str
    median_s: float
    iqr_s: float
    repeats: int
    clips: int
    floor_s: float | None = None
    fraction_of_limit: float | None = None


def make_row(
    name: str,
    framework: str,
    timing: Timing,
    clips: int,
    floor_s: float | None = None,
) -> Row:
    """The row of a timing of a call that takes `clips` clips."""
    fraction = None if floor_s is None else floor_s / timing.median
    return Row(
        name,
        framework,
        timing.median,
        timing.iqr,
        len(timing.seconds),
        clips,
        floor_s,
        fraction,
    )


def print_table(title: str, rows: Sequence[Row], console: Console) -> None:
    """The rows as a table: milliseconds, clips a second, share of the limit."""
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("name", no_wrap=True)
    table.add_column("framework", no_wrap=True)
    for column in ("median ms", "IQR ms", "clips/s", "floor ms", "of limit"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.name,
            row.framework,
            _milliseconds(row.median_s),
            _milliseconds(row.iqr_s),
            f"{row.clips / row.median_s:,.0f}",
            _milliseconds(row.floor_s),
            "" if row.fraction_of_limit is None else f"{row.fraction_of_limit:.2%}",
        )
    console.print(table)


def _milliseconds(seconds: float | None) -> str:
    """Four digits that count, or nothing."""
    if seconds is None:
        return ""
    value = 1e3 * seconds
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def write_json(path: Path, rows: Sequence[Row], **about: Any) -> None:
    """A JSON object: what is known `about` the measurement, and its "rows"."""
    content = {**about, "rows": [dataclasses.asdict(row) for row in rows]}
    path.write_text(json.dumps(content, indent=1) + "\n")
