"""What detection keeps of a stream: its description for JSON, its rows of results."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from kws_jax.data.corpus import VALIDATION
from kws_jax.data.noise import NoiseBank
from kws_jax.data.stream import Bed, Stream
from kws_jax.evaluation.detection import Curve
from kws_jax.evaluation.metrics import result, wilson_interval

# False alarms an hour at which false rejects are reported.
RATES = (1.0, 10.0)


@dataclasses.dataclass(frozen=True)
class Listening:
    """A stream with all that is heard in it.

    What changes the words themselves (`CLEAN` does not) is the condition that
    `detection` gives to `Parts.eval_batches`.
    """

    split: str
    condition: str
    stream: Stream
    background: NoiseBank | None
    bed: Bed | None


def describe(
    listening: Listening, curves: Mapping[str, Curve], errors: tuple[int, int]
) -> dict[str, Any]:
    """A stream and what was measured on it, for JSON."""
    stream, pooled = listening.stream, curves[""]
    misses, alarms = errors
    return {
        "split": listening.split,
        "condition": listening.condition,
        "hours": pooled.hours,
        "keywords": pooled.references,
        "other_words": len(stream.words) - pooled.references,
        "times_heard": stream.rounds,
        "false_rejects": misses,
        "false_reject_rate": misses / pooled.references,
        "false_alarms": alarms,
        "false_alarms_per_hour": alarms / pooled.hours,
        # Of each keyword and, under "", of all at one threshold: how often it is said,
        # and [false alarms, false rejects].
        "curves": {
            word: {"references": curve.references, "points": curve.points()}
            for word, curve in curves.items()
            if curve.references
        },
    }


def rows_of(
    stage: str,
    listening: Listening,
    curves: Mapping[str, Curve],
    errors: tuple[int, int],
) -> list[dict[str, Any]]:
    """Rows of one stream; each keyword alone on the clean test only."""
    where = (stage, listening.split, listening.condition)
    pooled, (misses, alarms) = curves[""], errors
    rows = [
        _reject_row(where, "frr@threshold", misses, pooled.references),
        result(*where, "false_alarms_per_hour", alarms / pooled.hours, None, alarms),
    ]
    if listening.split == VALIDATION:
        return rows
    for rate in RATES:
        shown = curves if listening.bed is None else {"": pooled}
        for word, curve in shown.items():
            if curve.references:
                metric = f"frr@{rate:g}fa/h" + (f"/{word}" if word else "")
                missed = int(curve.misses[curve.at(rate)])
                rows.append(_reject_row(where, metric, missed, curve.references))
    return rows


def _reject_row(
    where: tuple[str, str, str], metric: str, misses: int, count: int
) -> dict[str, Any]:
    interval = wilson_interval(misses, count)
    return result(*where, metric, misses / count, interval, count)
