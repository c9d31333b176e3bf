"""An experiment's artefact: written, run on test clips, and compared."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from kws_jax.data.conditions import CLEAN
from kws_jax.data.corpus import Split
from kws_jax.deploy import check, packed_format, packed_writer
from kws_jax.deploy.formats import FEATURES, Request, request_of, writer_of
from kws_jax.deploy.inference import Inference, load_inference
from kws_jax.errors import UserError
from kws_jax.frontends.registry import as_float
from kws_jax.parts import Parts, Setup
from kws_jax.training.checkpoints import saving, write_bytes, write_json
from kws_jax.workdirs import in_bucket

FOLDER = "export"
# Training clips that ranges are measured on.
CALIBRATION_CLIPS = 256
_BATCH = 64  # clips that go through a network at once


def export(
    parts: Parts, folder: Path, request: Request, clips: int, console: Console
) -> dict[str, Any]:
    """Writes the artefact into `folder`/export and checks it; returns the measures.

    Beside the artefact stands a JSON file with what it says of itself, its bytes, the
    measures and the tolerance. It is written for one that fails too.

    Args:
      parts: the experiment's, with its data.
      folder: its workdir.
      request: what to export.
      clips: at most so many test clips, taken evenly; 0 takes all.
      console: for messages.

    Raises:
      UserError: a stage that is not finished, a network that cannot be exported so, or
        an artefact that does not answer as the network.
    """
    inference = load_inference(parts, folder)
    request = dataclasses.replace(
        request, calibration=lambda: _calibration(parts, inference, request.input)
    )
    path = folder / FOLDER / request.file_name
    writer = writer_of(request.format)
    with _on_this_machine(path) as local:
        with saving(local):
            local.parent.mkdir(parents=True, exist_ok=True)
            writer.write(inference, request, local)
        artefact, size = writer.load(local), local.stat().st_size
        audio, truth = _clips(parts, _evenly(parts.task.test, clips))
        inputs = _inputs(inference, request.input, audio)
        measures = check.compare(
            artefact.run(inputs), _probabilities(inference, audio), truth
        )
        measures["milliseconds"] = check.milliseconds(artefact.run, inputs[:1])
    allowed = check.tolerance_of(inference, request)
    told = {
        "artefact": path.name,
        "bytes": size,
        **measures,
        "tolerance": dataclasses.asdict(allowed),
        "metadata": artefact.metadata,
    }
    write_json(path.parent / request.report_name, told)
    # Networks with scores of frames, whose thresholds are no use here.
    frames = hasattr(inference.model, "stream")
    _print(told, path, console, " and --detection.scores=windows" if frames else "")
    check.refuse_mismatch(measures, allowed, path)
    return told


def packed_bytes(setup: Setup, folder: Path) -> int | None:
    """Bytes of the packed file of a finished experiment; None of a float network.

    Raises:
      UserError: a stage that is not finished, or a network that cannot be packed.
    """
    inference = load_inference(setup, folder)
    if inference.quantized is None:
        return None
    program = packed_writer.to_program(inference, request_of("packed", "", "").input)
    return packed_format.sizes(program)["total"]


@contextlib.contextmanager
def _on_this_machine(path: Path) -> Iterator[Path]:
    """Where a file is made and read that is to lie at `path`, a bucket perhaps."""
    if not in_bucket(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as place:
        local = Path(place) / path.name
        yield local
        write_bytes(path, local.read_bytes())


def _print(
    told: dict[str, Any], path: Path, console: Console, detection_flags: str
) -> None:
    console.print(
        f"{path}: {told['bytes']:,} bytes\n"
        f"On {told['clips']:,} test clips: accuracy {told['accuracy']:.2%} (network "
        f"{told['network_accuracy']:.2%}), {told['equal_decisions']:.2%} equal "
        f"decisions, probabilities differ by at most {told['max_difference']:.2g}\n"
        f"One input takes {told['milliseconds']:.2f} ms on this machine (median)"
    )
    if told["metadata"].get("detection") is None:
        console.print(
            "No thresholds for continuous audio are inside: run kws_jax.detect with "
            f"this workdir{detection_flags} first, and export again, to have them there"
        )


def _evenly(split: Split, most: int) -> Split:
    """At most so many clips of a split, from all of it."""
    if not 0 < most < len(split):
        return split
    return split.subset(np.linspace(0, len(split) - 1, most).round().astype(int))


def _clips(parts: Parts, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """int16 audio [n, 16000] of all clips, clean, and their labels [n]."""
    heard, truth = [], []
    for batch in parts.eval_batches(split, CLEAN):
        mask = np.asarray(batch["mask"])
        heard.append(np.asarray(batch["audio"])[mask])
        truth.append(np.asarray(batch["label"])[mask])
    if not heard:
        raise UserError(
            "There are no test clips to check the artefact on: set data.test_fraction "
            "above 0, or give other data."
        )
    return np.concatenate(heard), np.concatenate(truth)


def _calibration(parts: Parts, inference: Inference, kind: str) -> np.ndarray:
    audio, _ = _clips(parts, _evenly(parts.task.train, CALIBRATION_CLIPS))
    return _inputs(inference, kind, audio)


def _inputs(inference: Inference, kind: str, audio: np.ndarray) -> np.ndarray:
    """What an artefact takes, float32 [n, …], of int16 audio [n, 16000]."""
    convert = inference.frontend if kind == FEATURES else as_float
    return _in_batches(convert, audio)


def _probabilities(inference: Inference, audio: np.ndarray) -> np.ndarray:
    return _in_batches(inference.from_waveform, audio)


def _in_batches(function: Any, audio: np.ndarray) -> np.ndarray:
    """A function of batches, over all clips in batches of one size."""
    jitted = jax.jit(function)
    padded = np.pad(audio, ((0, -len(audio) % _BATCH), (0, 0)))
    parts = np.split(padded, len(padded) // _BATCH)
    parts = [np.asarray(jitted(part)) for part in parts]
    return np.concatenate(parts)[: len(audio)]
