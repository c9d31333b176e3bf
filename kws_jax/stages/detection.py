"""How a trained network detects keywords in continuous audio.

A stream of validation clips chooses the threshold that makes at most the wanted false
alarms an hour, of equally good ones the middle; streams of test clips, clean and over
noise, tell what it does there and what false rejects any number of false alarms costs.
Where there are rooms for the test, the same streams are heard again far from the
microphone: each word through one of the rooms, the gaps and the noise as they were. All
is kept in `detection.json`.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from kws_jax import config as configs
from kws_jax import together
from kws_jax.condition_names import CLEAN
from kws_jax.data.conditions import Condition
from kws_jax.data.corpus import TEST, VALIDATION, Split
from kws_jax.data.stream import (
    Bed,
    StreamSettings,
    check_background,
    plan_stream,
    render,
)
from kws_jax.errors import UserError
from kws_jax.evaluation import det_curve, detection
from kws_jax.evaluation.det_curve import Curve
from kws_jax.evaluation.detection import Heard
from kws_jax.evaluation.testing import noise_conditions
from kws_jax.parts import Parts
from kws_jax.stages import dispatch, listeners
from kws_jax.stages.detection_records import RATES, Listening, describe, rows_of
from kws_jax.stages.listeners import Listener
from kws_jax.training.checkpoints import write_json

FILE = "detection.json"
# What of the config shapes streams, beside the clips: their words and gaps, which words
# that of validation lacks, what is heard under them, and how they sound far away.
# Fields, or groups of them.
_SHAPING = {
    "words": tuple(
        f"detection.{field.name}" for field in dataclasses.fields(StreamSettings)
    ),
    "validation": ("data.unheard_words",),
    "noise": (
        *("data.noise_seen", "data.noise_unseen", "data.noise_test_fraction"),
        *("data.noise_hours", "detection.snr_db"),
    ),
    "rooms": (
        *("data.rooms", "data.rooms_test_fraction", "data.simulated_rooms"),
        "evaluation.seed",
    ),
}
_METRICS = ("frr@", "false_alarms_per_hour")
# Of rows that were measured at the workdir's threshold.
AT_THRESHOLD = ("frr@threshold", "false_alarms_per_hour")


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
    listeners.windows_rule(parts.config)
    listeners.check(parts)
    names = [field.name for field in dataclasses.fields(StreamSettings)]
    settings = StreamSettings(**{name: config[name] for name in names})
    streams = {
        split: plan_stream(_words(parts, split), settings)
        for split in (VALIDATION, TEST)
    }
    for split, stream in streams.items():
        check_background(stream, parts.held_out.background.get(split))
    conditions = noise_conditions(
        parts.noise, config.snr_db, far=parts.test_rooms is not None
    )
    where = [(VALIDATION, CLEAN), *((TEST, name) for name in conditions)]
    listenings = []
    for split, name in where:
        condition, bank = conditions[name]
        listenings.append(
            Listening(
                split,
                name,
                streams[split],
                dataclasses.replace(condition, snr_db=()),
                parts.held_out.background.get(split),
                Bed(bank, _bed_rms(parts, condition.snr_db[0])) if bank else None,
            )
        )
    return listenings


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
        curves = det_curve.curves(heard, spoken, rule, max(*RATES, target))
        if not thresholds:
            thresholds = choose(curves, target)
        common = dict.fromkeys(parts.keywords, thresholds[""])
        heard_with = {
            "threshold": thresholds[""],
            "scores": scores,
            "rule": dataclasses.asdict(rule),
        }
        events = detection.events(heard, spoken, common, rule)
        right = sum(event.right for event in events)
        errors = (curves[""].references - right, len(events) - right)
        told.append(describe(listening, curves, errors) | heard_with)
        rows += rows_of(stage, listening, curves, errors)
    kept = {
        "keywords": parts.keywords,
        "scores": scores,
        "rule": dataclasses.asdict(rule),
        "target_false_alarms_per_hour": target,
        "threshold": thresholds.pop(""),
        "thresholds": thresholds,
        "chosen_on": {"streams": VALIDATION, "hours": listenings[0].stream.hours},
        "measured_on": _measured_on(parts),
        "streams": told,
        "rows": rows,
    }
    if together.is_first():
        _tell_replaced(folder, console)
        write_json(folder / FILE, kept)
    return rows


def choose(curves: Mapping[str, Curve], target: float) -> dict[str, float]:
    """The threshold for `target` false alarms an hour of each curve, by its key.

    A keyword that is never said has that of all together, under "": nothing tells how
    clearly it is heard.
    """
    pooled = curves[""]
    told = {word: c if c.references else pooled for word, c in curves.items()}
    return {word: float(c.thresholds[c.at(target)]) for word, c in told.items()}


def _tell_replaced(folder: Path, console: Console) -> None:
    """Says so where thresholds of a recording of one's own are about to go."""
    former = {}
    # What is damaged is replaced, too.
    with contextlib.suppress(UserError):
        former = load(folder) if (folder / FILE).exists() else {}
    recording = former.get("chosen_on", {}).get("recording")
    if recording:
        console.print(
            "Detection: thresholds of validation clips take the place of those chosen "
            f"on {recording}",
            markup=False,
        )


def _measured_on(parts: Parts) -> dict[str, Any]:
    """What tells streams from others, for JSON.

    The fingerprint of the clips, how far from a word it counts as found, and the words,
    by which `compare` knows other streams; and for readers where the clips lie, and
    what is heard under and around the words (`_SHAPING`).
    """
    config = parts.config
    fields = configs.fields(config)
    shaping: dict[str, dict[str, Any]] = {
        what: {
            field: value
            for field, value in fields.items()
            if any(f"{field}.".startswith(f"{name}.") for name in names)
        }
        for what, names in _SHAPING.items()
    }
    # However the config spells them, or the protocol has them.
    shaping["words"]["labels"] = sorted(parts.keywords)
    return {
        "clips": parts.clips,
        "dir": config.data.dir,
        "tolerance_ms": config.detection.tolerance_ms,
        **shaping,
    }


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
    clips = _clips(parts, listening.stream.words, listening.words_in)
    return listener.hear(
        render(
            listening.stream,
            clips,
            background=listening.background,
            bed=listening.bed,
        )
    )


def _clips(parts: Parts, words: Split, condition: Condition) -> Iterator[np.ndarray]:
    for batch in parts.eval_batches(words, condition, rooms=parts.test_rooms):
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
