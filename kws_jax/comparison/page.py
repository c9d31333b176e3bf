"""The drawings of a comparison, on a page of its own."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from kws_jax.comparison import noise_plot, size_plot
from kws_jax.comparison.rows import Row
from kws_jax.errors import UserError
from kws_jax.report.document import document
from kws_jax.report.markup import join, tag


def write(rows: Sequence[Row], path: Path) -> None:
    """Draws accuracy against size, where both are known, and in noise, where tested.

    Raises:
      UserError: where the file cannot be written.
    """
    points = [
        size_plot.Point(
            group=row.group,
            searched=row.searched,
            name=row.name,
            parameters=statistics.fmean(row.values("parameters")),
            macs=statistics.fmean(row.values("macs")),
            accuracy=statistics.fmean(row.values("accuracy")),
        )
        for row in rows
        if _is_sized(row)
    ]
    parts = [tag("h1", "Experiments compared")]
    if points:
        parts += [tag("h2", "Accuracy against size"), size_plot.draw(points)]
    if others := [row.name for row in rows if not _is_sized(row)]:
        told = f"Not drawn, since no size is known: {', '.join(others)}."
        parts.append(tag("p", told, class_="note"))
    noise = noise_plot.draw(rows)
    if noise:
        parts += [tag("h2", "Accuracy in noise"), noise]
    try:
        path.write_text(
            document("Experiments compared", tag("main", join(parts))), encoding="utf-8"
        )
    except OSError as error:
        raise UserError(
            f"--plot={path} cannot be written ({error}); name a file in a folder that "
            "exists."
        ) from error


def _is_sized(row: Row) -> bool:
    return all(map(row.values, ("parameters", "macs", "accuracy")))
