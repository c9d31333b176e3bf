"""Thresholds that are chosen on a recording of one's own, kept as the workdir's.

Streams that were measured before stay in `detection.json`, each with the threshold and
the rule that it was measured with; rows of results that were measured at the former
threshold go, since their names say that it is the workdir's.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kws_jax.errors import UserError
from kws_jax.evaluation.detection import Rule
from kws_jax.report.page import write_report
from kws_jax.stages import detection, listeners
from kws_jax.training.checkpoints import saving, write_json
from kws_jax.workdirs import read_json

# What a stream was measured with.
_MEASURED_WITH = ("threshold", "scores", "rule")


@dataclasses.dataclass(frozen=True)
class Recording:
    """What thresholds are chosen on: the file's name without its folder, and hours."""

    name: str
    hours: float


def check(recording: Recording, target: float) -> None:
    """Raises UserError where so many false alarms an hour would mean none at all."""
    if 0 < target * recording.hours < 1 - 1e-9:
        alarms = f"{target:g} false alarm{'' if target == 1 else 's'}"
        raise UserError(
            f"--keep_thresholds: in {recording.name} ({recording.hours:.3g} h) at most "
            f"{alarms} an hour would mean none at all. Give a recording of "
            f"{1 / target:.3g} h at least, or another "
            "--detection.target_false_alarms_per_hour: "
            f"{1 / recording.hours:.3g} or more, or 0."
        )


def keep(
    folder: Path,
    recording: Recording,
    thresholds: Mapping[str, float],
    *,
    target: float,
    scores: str,
    rule: Rule,
) -> None:
    """Makes thresholds those of the workdir, for exports and for `--threshold`.

    The caller holds the workdir's lock.

    Args:
      folder: the workdir, with or without a `detection.json`.
      recording: what they were chosen on.
      thresholds: of each keyword, and under "" of all together.
      target: false alarms an hour that they were chosen for.
      scores: what they are of.
      rule: how scores become events.

    Raises:
      UserError: where files of the workdir are damaged or cannot be written.
    """
    path = folder / detection.FILE
    former: dict[str, Any] = {"streams": [], "rows": []}
    if path.exists():
        former = detection.load(folder)
    # Streams of earlier versions do not say it themselves; some knew windows alone.
    before = {"scores": listeners.WINDOWS}
    before |= {name: former[name] for name in _MEASURED_WITH if name in former}
    each = {word: value for word, value in thresholds.items() if word}
    kept = former | {
        "keywords": list(each),
        "scores": scores,
        "rule": dataclasses.asdict(rule),
        "target_false_alarms_per_hour": target,
        "threshold": thresholds[""],
        "thresholds": each,
        "chosen_on": {"recording": recording.name, "hours": recording.hours},
        "streams": [before | stream for stream in former["streams"]],
        "rows": _of_any_threshold(former["rows"]),
    }
    results = folder / "results.json"
    tested = results.exists()
    if tested:
        # First: should this be all that is written, nothing that stands is wrong.
        write_json(results, _of_any_threshold(read_json(results)))
    write_json(path, kept)
    if tested:
        with saving(folder / "report.html"):
            write_report(folder)


def _of_any_threshold(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["metric"] not in detection.AT_THRESHOLD]
