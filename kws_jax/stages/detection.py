"""How a trained network detects keywords in continuous audio.

A stream of validation clips chooses the threshold that makes at most the wanted false
alarms an hour; streams of test clips, clean and over noise, tell what it does there and
what false rejects any number of false alarms costs. All is kept in `detection.json`.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from kws_jax.data.conditions import CLEAN
from kws_jax.data.corpus import TEST, VALIDATION, Split
from kws_jax.data.noise import NoiseBank
from kws_jax.data.stream import Bed, Stream, StreamSettings, plan_stream, render
from kws_jax.errors import UserError
from kws_jax.evaluation import detection
from kws_jax.evaluation.detection import Curve, Heard
from kws_jax.evaluation.metrics import poisson_interval, result, wilson_interval
from kws_jax.evaluation.testing import noise_conditions
from kws_jax.parts import Parts
from kws_jax.stages import dispatch, listeners
from kws_jax.stages.listeners import Listener
from kws_jax.training.checkpoints import write_json

FILE = "detection.json"
# False alarms an hour at which false rejects are reported.
RATES = (1.0, 10.0)
_METRICS = ("frr@", "false_alarms_per_hour")


@dataclasses.dataclass(frozen=True)
class Listening:
    """A stream with all that is heard in it.

    What changes the words themselves (`CLEAN` does not) is the condition that
    `_hear` gives to `Parts.eval_batches`.
    """

    split: str
    condition: str
    stream: Stream
    background: NoiseBank | None
    bed: Bed | None


def check(parts: Parts) -> None:
    """Raises UserError where the final test asks for detection that cannot be had."""
    if parts.config.detection.final_test:
        plan(parts)


def plan(parts: Parts) -> list[Listening]:
    """The validation stream, then those of the test.

    Raises:
      UserError: for settings that make no sense, or do not go with the clips.
    """
    config = parts.config.detection
    if jax.process_count() > 1:
        raise UserError(
            "Detection is measured by one process: set config.detection.final_test to "
            "False, and run kws_jax.detect on the workdir."
        )
    target = config.target_false_alarms_per_hour
    if not 0 <= target < np.inf:
        raise UserError(
            f"config.detection.target_false_alarms_per_hour = {target}: give 0 or more."
        )
    listeners.windows_rule(parts.config)
    listeners.check(parts)
    names = [field.name for field in dataclasses.fields(StreamSettings)]
    settings = StreamSettings(**{name: config[name] for name in names})
    streams = {
        split: plan_stream(_words(parts, split), settings)
        for split in (VALIDATION, TEST)
    }
    beds = {
        name: Bed(bank, _bed_rms(parts, condition.snr_db[0])) if bank else None
        for name, (condition, bank) in noise_conditions(
            parts.noise, config.snr_db
        ).items()
    }
    where = [(VALIDATION, "clean"), *((TEST, name) for name in beds)]
    return [
        Listening(
            split,
            name,
            streams[split],
            parts.held_out.background.get(split),
            beds[name],
        )
        for split, name in where
    ]


def _words(parts: Parts, split: str) -> Split:
    """All clips of keywords and of other words of a split, labelled for `Stream`."""
    whole = {VALIDATION: parts.task.validation, TEST: parts.task.test}[split]
    keywords = whole.subset(np.flatnonzero(whole.labels < len(parts.keywords)))
    others = parts.held_out.others[split].split
    unlabelled = np.full(len(others), -1, np.int32)
    return keywords.joined(dataclasses.replace(others, labels=unlabelled))


def _bed_rms(parts: Parts, snr_db: float) -> float:
    """The level of noise `snr_db` below the median keyword clip of training."""
    return parts.reference_rms * 10 ** (-snr_db / 20)


def measure(parts: Parts, folder: Path, console: Console) -> list[dict[str, Any]]:
    """Listens to all streams, writes `detection.json`, returns rows of results.

    Raises:
      UserError: see `plan`.
    """
    listenings = plan(parts)
    network = dispatch.finished_network(parts, folder)
    scores = listeners.scores_of(parts, network)
    rule = listeners.rule_of(parts, network, scores)
    listener = listeners.create_listener(parts, network, scores, rule)
    target = parts.config.detection.target_false_alarms_per_hour
    if listenings[0].stream.hours * min(*RATES, target or np.inf) < 1 - 1e-9:
        console.print(
            "Detection: in so short a stream fewer false alarms an hour than "
            f"{1 / listenings[0].stream.hours:g} means none at all"
        )
    stage = parts.config.stages[-1].name
    told: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    thresholds: dict[str, float] = {}
    for listening in listenings:
        console.print(_announce(listening))
        heard = _hear(parts, listener, listening)
        spoken = listening.stream.spoken(parts.keywords)
        curves = detection.curves(heard, spoken, rule)
        if not thresholds:
            thresholds = {
                w: float(c.thresholds[c.at(target)]) for w, c in curves.items()
            }
        common = dict.fromkeys(parts.keywords, thresholds[""])
        events = detection.events(heard, spoken, common, rule)
        right = sum(event.right for event in events)
        errors = (curves[""].references - right, len(events) - right)
        told.append(_describe(listening, curves, errors))
        rows += _rows(stage, listening, curves, errors)
    kept = {
        "keywords": parts.keywords,
        "scores": scores,
        "rule": dataclasses.asdict(rule),
        "target_false_alarms_per_hour": target,
        "threshold": thresholds.pop(""),
        "thresholds": thresholds,
        "streams": told,
        "rows": rows,
    }
    if jax.process_index() == 0:
        write_json(folder / FILE, kept)
    return rows


def final_test(parts: Parts, folder: Path, console: Console) -> list[dict[str, Any]]:
    """Rows of detection: measured if the config asks for it, else those of before."""
    if parts.config.detection.final_test:
        return measure(parts, folder, console)
    return load(folder)["rows"] if (folder / FILE).exists() else []


def is_row(row: Mapping[str, Any]) -> bool:
    """Whether a row of results is one of `measure`."""
    return row["metric"].startswith(_METRICS)


def load(folder: Path) -> dict[str, Any]:
    """What `measure` has kept in a workdir.

    Raises:
      UserError: where there is nothing, or it cannot be read.
    """
    path = folder / FILE
    if not path.exists():
        raise UserError(
            f"{folder} holds no {FILE}, so there is no threshold. Run `python -m "
            f"kws_jax.detect --workdir={folder}` first, or give --threshold=0.9"
        )
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error}); delete it, and run kws_jax.detect again."
        ) from error


def _hear(parts: Parts, listener: Listener, listening: Listening) -> Heard:
    """Scores of a whole stream."""
    clips = _clips(parts, listening.stream.words)
    return listener.hear(
        render(
            listening.stream,
            clips,
            background=listening.background,
            bed=listening.bed,
        )
    )


def _clips(parts: Parts, words: Split) -> Iterator[np.ndarray]:
    for batch in parts.eval_batches(words, CLEAN):
        yield from np.asarray(batch["audio"])[np.asarray(batch["mask"])]


def _announce(listening: Listening) -> str:
    stream = listening.stream
    said = int((stream.words.labels >= 0).sum())
    line = (
        f"Detection: {stream.hours:g} h of {listening.split} clips, "
        f"{listening.condition}: {said:,} keywords, {len(stream.words) - said:,} other "
        "words"
    )
    if max(stream.rounds) > 1:
        line += (
            f"; longer than the clips allow, which are heard up to {stream.rounds[0]} "
            f"and {stream.rounds[1]} times"
        )
    return line


def _describe(
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
        # and [false alarms, false rejects].
        "curves": {
            word: {"references": curve.references, "points": curve.points()}
            for word, curve in curves.items()
            if curve.references
        },
    }


def _rows(
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


def _per_hour(alarms: int, hours: float) -> tuple[float, float]:
    """The 95 % interval of the false alarms an hour, of which so many were counted."""
    low, high = poisson_interval(alarms)
    return low / hours, high / hours


def _reject_row(
    where: tuple[str, str, str], metric: str, misses: int, count: int
) -> dict[str, Any]:
    interval = wilson_interval(misses, count)
    return result(*where, metric, misses / count, interval, count)
