"""What detection tells of a stream or a recording: for JSON, and as rows of results."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kws_jax.data.conditions import Condition
from kws_jax.data.corpus import VALIDATION
from kws_jax.data.noise import NoiseBank
from kws_jax.data.stream import Bed, Stream
from kws_jax.evaluation.det_curve import Curve
from kws_jax.evaluation.metrics import poisson_interval, result, wilson_interval

# False alarms an hour at which false rejects are reported.
RATES = (1.0, 10.0)


@dataclasses.dataclass(frozen=True)
class Listening:
    """A stream with all that is heard in it.

    Attributes:
      split: which clips are its words.
      condition: its name in results.
      stream: the plan.
      words_in: how the words themselves are heard: as they are, or through rooms.
      background: for the gaps between them.
      bed: noise under everything.
    """

    split: str
    condition: str
    stream: Stream
    words_in: Condition
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
        "false_alarms_per_hour_ci95": _per_hour(alarms, pooled.hours),
        # Of each keyword and, under "", of all at one threshold: how often it is said,
        # the threshold for each of RATES, and [false alarms, false rejects].
        "curves": {
            word: {
                "references": curve.references,
                **{_threshold_key(rate): _threshold(curve, rate) for rate in RATES},
                "points": curve.points(),
            }
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
    """Rows of one stream; each keyword alone where the test has no bed of noise."""
    where = (stage, listening.split, listening.condition)
    pooled, (misses, alarms) = curves[""], errors
    rows = [
        _reject_row(where, "frr@threshold", misses, pooled.references),
        result(
            *where,
            "false_alarms_per_hour",
            alarms / pooled.hours,
            _per_hour(alarms, pooled.hours),
            alarms,
        ),
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


def recording_lines(
    curves: Mapping[str, Curve],
    errors: tuple[int, int],
    rates: Sequence[float] = RATES,
) -> Iterator[dict[str, Any]]:
    """What was measured on a recording with labels, for JSON, a dict a line.

    For each keyword that is said, at thresholds of its own:

        curve           the keyword
        references      how often it is said
        frr@1fa/h       the share that is missed where at most one false alarm an hour
        frr@1fa/h_ci95  is allowed, and its 95 % interval; so for all `rates`
        threshold@1fa/h where that is, for `--threshold`: not rounded; above all scores
                        where the rate is kept only if nothing is heard
        points          [false alarms, false rejects], where more alarms help

    In a recording so short that a rate allows no alarm at all, a `note` says so. Last,
    of all keywords at one threshold: `keywords` (how often one is said), `hours`; at
    the threshold that was used `false_reject_rate` and `false_alarms_per_hour`, each
    with `_ci95`; and over all thresholds the rates, their thresholds and `points` as
    above. Other numbers are rounded to six decimals.

    Args:
      curves: of each keyword, and under "" of all.
      errors: false rejects and false alarms at the threshold that was used.
      rates: false alarms an hour, rising.
    """
    pooled, (misses, alarms) = curves[""], errors
    for word, curve in curves.items():
        if word and curve.references:
            told = {"curve": word, "references": curve.references}
            yield told | _operating_points(curve, rates)
    few = [f"{rate:g}" for rate in rates if 0 < rate * pooled.hours < 1 - 1e-9]
    if few:
        alarms_told = f"{' or '.join(few)} false alarm{'' if few == ['1'] else 's'}"
        yield {
            "note": f"In so short a recording ({pooled.hours:.3g} h) at most "
            f"{alarms_told} an hour means none at all."
        }
    yield {
        "keywords": pooled.references,
        "hours": round(pooled.hours, 6),
        **_rejected("false_reject_rate", misses, pooled.references),
        "false_alarms_per_hour": round(alarms / pooled.hours, 6),
        "false_alarms_per_hour_ci95": _rounded(_per_hour(alarms, pooled.hours)),
        **_operating_points(pooled, rates),
    }


def _operating_points(curve: Curve, rates: Sequence[float]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for rate in rates:
        missed = int(curve.misses[curve.at(rate)])
        told |= _rejected(f"frr@{rate:g}fa/h", missed, curve.references)
        told[_threshold_key(rate)] = _threshold(curve, rate)
    return told | {"points": [list(point) for point in curve.points()]}


def _threshold_key(rate: float) -> str:
    return f"threshold@{rate:g}fa/h"


def _threshold(curve: Curve, rate: float) -> float:
    return float(curve.thresholds[curve.at(rate)])


def _rejected(name: str, misses: int, count: int) -> dict[str, Any]:
    """A share of missed keywords with its interval."""
    interval = wilson_interval(misses, count)
    return {name: round(misses / count, 6), f"{name}_ci95": _rounded(interval)}


def _rounded(interval: tuple[float, float]) -> list[float]:
    return [round(bound, 6) for bound in interval]


def _per_hour(alarms: int, hours: float) -> tuple[float, float]:
    """The 95 % interval of the false alarms an hour, of which so many were counted."""
    low, high = poisson_interval(alarms)
    return low / hours, high / hours


def _reject_row(
    where: tuple[str, str, str], metric: str, misses: int, count: int
) -> dict[str, Any]:
    interval = wilson_interval(misses, count)
    return result(*where, metric, misses / count, interval, count)
