"""Keywords in continuous audio: `python -m kws_jax.detect --workdir=W`.

Makes long streams of the experiment's validation and test clips, chooses a threshold on
the former, measures false rejects against false alarms per hour on the latter, and
keeps both in the workdir (`detection.json`, `results.json`, the report).
`--detection.FIELD=VALUE` and `--data.FIELD=VALUE` change the streams and the data.

With `--audio=FILE` it listens to that recording instead and prints one JSON line for
each keyword that it hears: time (seconds: the middle of what was heard, or the end of
the keyword where the network scores single frames), keyword, score. With
`--labels=FILE`, lines of start_seconds,end_seconds,word, it also tells which of them
are right, and then, in lines of their own, how often keywords are missed at one and at
ten false alarms an hour, and at as many as `--detection.target_false_alarms_per_hour`
says, each keyword and all together, at which threshold (a number for `--threshold` on
the next recording), and the errors at the threshold that was used
(`stages.detection_records.recording_lines` names the keys). Of the fields, those of
how it listens may be given here, with a number as `--threshold`.

With `--keep_thresholds` too, those for the wanted false alarms become the workdir's,
for `--threshold=common`, `--threshold=each` and exports, and a last line tells them; a
keyword that the recording does not say has that of all together.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags, logging
from ml_collections import ConfigDict

from kws_jax import command_line
from kws_jax.errors import UserError
from kws_jax.workdirs import folder_of

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished experiment.")
_AUDIO = flags.DEFINE_string("audio", "", "A recording of any length to listen to.")
_LABELS = flags.DEFINE_string("labels", "", "File of start_seconds,end_seconds,word.")
_THRESHOLD = flags.DEFINE_string(
    "threshold",
    "common",
    "With --audio: 'common' (the workdir's, at which all keywords together make the "
    "wanted false alarms), 'each' (at which each keyword alone does), or a number.",
)
_KEEP = flags.DEFINE_bool(
    "keep_thresholds",
    False,
    "With --labels: make the thresholds for the wanted false alarms, chosen on this "
    "recording, those of the workdir.",
)
_GROUPS = ("data", "detection")
_STORED = ("common", "each")
# Fields that say something of a recording; those of streams and clips do not.
_CACHE = "data.cache_dir"
_FILE = "detection.json"  # of `stages.detection`, which is not light
_LISTENING = ("scores", "hop_ms", "smoothing_ms", "refractory_ms")
_TOLERANCE, _TARGET = "tolerance_ms", "target_false_alarms_per_hour"


def _define_overrides(argv: list[str]) -> None:
    if command_line.value_of("audio", argv):
        _check_of_recording(argv)
    command_line.define_groups(argv, _GROUPS)


def _check_of_recording(argv: list[str]) -> None:
    """Raises UserError for the first field that would change nothing, or too much."""
    labels = command_line.value_of("labels", argv)
    stated = command_line.value_of("threshold", argv) or "common"
    changes = [_CACHE, *(f"detection.{name}" for name in _LISTENING)]
    judging = [f"detection.{name}" for name in (_TOLERANCE, _TARGET)]
    for argument in argv:
        given = re.match(r"--?(?:no)?((?:data|detection)\.[^=]+)", argument)
        if not given:
            continue
        if given[1] not in changes + (judging if labels else []):
            raise UserError(
                f"{argument} says nothing of a recording. With --audio may be given "
                f"--{', --'.join(changes)}; with --labels also "
                f"--{' and --'.join(judging)}."
            )
        # It is a rate to be told, and changes nothing that is heard.
        heard = given[1] not in (_CACHE, f"detection.{_TARGET}")
        if heard and stated in _STORED and not _chooses_first(argv):
            raise UserError(
                f"{argument}: the stored threshold goes with the settings that it was "
                "chosen for. Measure again with yours, without --audio, or give "
                "--threshold a number."
            )


def _chooses_first(argv: list[str]) -> bool:
    """Whether thresholds are kept of a recording, in a workdir that has none yet."""
    workdir = command_line.value_of("workdir", argv)
    keeps = "--keep_thresholds" in (argument.partition("=")[0] for argument in argv)
    return bool(keeps and workdir) and not (folder_of(workdir) / _FILE).exists()


def main(argv: list[str]) -> None:
    """Checks the flags, then measures or listens."""
    if not _AUDIO.value and (_LABELS.value or _THRESHOLD.value != "common"):
        raise UserError("--labels and --threshold go with --audio=FILE; give that too.")
    if _KEEP.value and not (_AUDIO.value and _LABELS.value):
        raise UserError(
            "--keep_thresholds chooses them on a recording whose words are known: give "
            "--audio=FILE and --labels=FILE too. Those of validation clips are kept "
            "without any of the three."
        )
    config, folder = command_line.stored_experiment(argv, _WORKDIR.value, _GROUPS)
    logging.set_verbosity(logging.ERROR)
    if not _AUDIO.value:
        from kws_jax import measuring

        measuring.detect(config, folder)
        return
    answers = listen(
        config,
        folder,
        _AUDIO.value,
        _LABELS.value,
        _THRESHOLD.value,
        keep=_KEEP.value,
    )
    for answer in answers:
        print(json.dumps(answer), flush=True)


def listen(
    config: ConfigDict,
    folder: Path,
    audio: str,
    labels: str,
    threshold: str,
    *,
    keep: bool = False,
) -> Iterator[dict[str, Any]]:
    """The keywords in a recording, in order of time; then, with labels, the errors.

    What stands in each is told at the top of this module. With `keep`, which wants
    labels, the thresholds chosen here become those of the workdir.

    Raises:
      UserError: for a recording, labels or a threshold that cannot be used.
    """
    from kws_jax.training.workdir_lock import WorkdirLock

    with WorkdirLock(folder) if keep else contextlib.nullcontext():
        yield from _listen(config, folder, audio, labels, threshold, keep)


def _listen(
    config: ConfigDict,
    folder: Path,
    audio: str,
    labels: str,
    threshold: str,
    keep: bool,
) -> Iterator[dict[str, Any]]:
    from kws_jax.data.audio_files import audio_blocks, seconds_of
    from kws_jax.data.time_labels import read_spoken
    from kws_jax.evaluation import det_curve
    from kws_jax.evaluation import detection as counting
    from kws_jax.parts import load_setup
    from kws_jax.stages import detection, dispatch, listeners, own_thresholds
    from kws_jax.stages import detection_records as records

    setup = dataclasses.replace(load_setup(folder), config=config)
    target = config.detection.target_false_alarms_per_hour
    seconds = seconds_of(audio)
    recording = own_thresholds.Recording(Path(audio).name, seconds / 3600)
    if keep:
        own_thresholds.check(recording, target)
    spoken = None
    if labels:
        spoken = read_spoken(
            Path(labels), seconds=seconds, labels=setup.labels, keywords=setup.keywords
        )
    network = dispatch.finished_network(setup, folder)
    # Where the workdir has none yet, those that are chosen here are used at once.
    fresh = keep and threshold in _STORED and not (folder / detection.FILE).exists()
    if fresh:
        thresholds: dict[str, float] = {}
        scores = listeners.scores_of(setup, network)
        rule = listeners.rule_of(setup, network, scores)
    else:
        thresholds, scores, rule = chosen_thresholds(setup, network, folder, threshold)
    listener = listeners.create_listener(setup, network, scores, rule)
    heard = listener.hear(audio_blocks(audio))
    # Windows end up to a hop before the recording does: its own length counts.
    heard = dataclasses.replace(heard, hours=recording.hours)
    rates = sorted({*records.RATES, target})
    curves, chosen = {}, {}
    if spoken is not None:
        curves = det_curve.curves(heard, spoken, rule, max(rates))
        chosen = detection.choose(curves, target)
    if fresh:
        one = dict.fromkeys(setup.keywords, chosen[""])
        thresholds = one if threshold == "common" else chosen
    events = counting.events(heard, spoken, thresholds, rule)
    for event in events:
        told = {
            "time": round(event.time, 3),
            "keyword": event.word,
            "score": round(event.score, 6),
        }
        yield told if spoken is None else told | {"right": event.right}
    if spoken is not None:
        right = sum(event.right for event in events)
        errors = (curves[""].references - right, len(events) - right)
        yield from records.recording_lines(curves, errors, rates)
    if keep:
        own_thresholds.keep(
            folder, recording, chosen, target=target, scores=scores, rule=rule
        )
        kept = detection.load(folder)
        told_of = ("target_false_alarms_per_hour", "threshold", "thresholds")
        yield {"kept": {name: kept[name] for name in told_of}}


def chosen_thresholds(
    setup: Any, network: Any, folder: Path, threshold: str
) -> tuple[dict[str, float], str, Any]:
    """The threshold of each keyword, and the scores and the rule that it is for.

    Raises:
      UserError: a threshold that is neither stored nor a number that scores can reach.
    """
    from kws_jax.evaluation.detection import Rule
    from kws_jax.stages import detection, listeners

    if threshold in _STORED:
        stored = detection.load(folder)
        common = dict.fromkeys(setup.keywords, stored["threshold"])
        chosen = common if threshold == "common" else stored["thresholds"]
        # Versions that stored no kind of scores knew windows alone.
        scores = stored.get("scores", listeners.WINDOWS)
        return chosen, scores, Rule(**stored["rule"])
    scores = listeners.scores_of(setup, network)
    try:
        value = float(threshold)
    except ValueError:
        value = np.nan
    of_frames = scores == listeners.FRAMES
    # Where every score of 1 is a false alarm, what is told is just above it.
    most = np.nextafter(1.0, 2.0)
    if not (np.isfinite(value) if of_frames else 0 < value <= most):
        expected = "" if of_frames else " above 0, at most 1"
        raise UserError(
            f"--threshold={threshold}: give 'common', 'each', or a number{expected}."
        )
    rule = listeners.rule_of(setup, network, scores)
    return dict.fromkeys(setup.keywords, value), scores, rule


if __name__ == "__main__":
    command_line.run(main, _define_overrides)
