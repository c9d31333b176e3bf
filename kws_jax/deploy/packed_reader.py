"""Runs a packed network in NumPy: `python -m kws_jax.deploy.packed_reader FILE PATH…`.

Prints one JSON line for each audio file, as kws_jax.predict does. Neither JAX nor Flax
nor TensorFlow is loaded, and no code of any network: what the network computes stands
in the file, as operations on integers and floats. A file may come from anywhere:
kws_jax/deploy/packed_file.py checks what it says before anything is computed.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kws_jax.data.corpus import CLIP_SAMPLES, SAMPLE_RATE
from kws_jax.deploy import packed_file
from kws_jax.deploy.formats import WAVEFORM
from kws_jax.deploy.packed_format import Operation, Program
from kws_jax.deploy.packed_operations import OPERATIONS
from kws_jax.errors import UserError
from kws_jax.evaluation.windows import answer, heard_in

_INT16 = np.float32(1 / 32768)


class _Step(NamedTuple):
    """An operation, the number of its result, and the values of no use after it."""

    operation: Operation
    number: int
    done: tuple[int, ...]


class PackedNetwork:
    """A packed network, ready to answer.

    Attributes:
      metadata: labels, thresholds, front end, sample rate and more.
    """

    def __init__(self, program: Program) -> None:
        """Computes what does not depend on the input, once."""
        self.metadata = dict(program.metadata)
        self._shape, self._output = program.input_shape[1:], program.output
        self._fixed = {
            number: constant.values
            for number, constant in enumerate(program.constants, start=1)
        }
        first = 1 + len(program.constants)
        left: list[tuple[int, Operation]] = []
        for number, operation in enumerate(program.operations, start=first):
            if all(i in self._fixed for i in operation.inputs):
                self._fixed[number] = compute(operation, self._fixed)
            else:
                left.append((number, operation))
        self._steps = self._with_last_uses(left)

    def probabilities(self, inputs: np.ndarray) -> np.ndarray:
        """Probabilities [n, k] of float32 inputs [n, …], computed one by one.

        The metadata's "input" says whether they are waveforms [n, samples] in [-1, 1]
        or features [n, t, f].

        Raises:
          UserError: inputs of another shape.
        """
        if inputs.shape[1:] != self._shape:
            raise UserError(
                f"This packed network takes inputs of shape {self._shape}, got "
                f"{inputs.shape[1:]}."
            )
        return np.concatenate([self._run(example[None]) for example in inputs])

    def _run(self, example: np.ndarray) -> np.ndarray:
        values = {**self._fixed, 0: example.astype(np.float32)}
        for operation, number, done in self._steps:
            values[number] = compute(operation, values)
            for old in done:
                del values[old]
        return values[self._output]

    def _with_last_uses(self, left: Sequence[tuple[int, Operation]]) -> list[_Step]:
        steps, used = [], {self._output}
        for number, operation in reversed(left):
            done = tuple({*operation.inputs, number} - used)
            used |= set(operation.inputs)
            steps.append(_Step(operation, number, done))
        return steps[::-1]


def compute(operation: Operation, values: dict[int, np.ndarray]) -> np.ndarray:
    """The result of an operation on some of the values."""
    inputs = [values[i] for i in operation.inputs]
    # As elsewhere, 0 / 0 is a number that a "select" may leave out.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return OPERATIONS[operation.name](*inputs, **operation.settings)


def load(path: str | Path) -> PackedNetwork:
    """The packed network in a file.

    Raises:
      UserError: as `packed_file.read`.
    """
    return PackedNetwork(packed_file.read(path))


def predictions(file: str, paths: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One answer for each audio file, in order.

    Raises:
      UserError: a file that cannot be read, or a network that takes features, or
        gives what is not finite.
    """
    from kws_jax.data.audio_files import read_audio

    network = load(file)
    told = network.metadata["input"]
    if told["kind"] != WAVEFORM:
        raise UserError(
            f"{file} takes features, not audio: export the network with "
            "--input=waveform."
        )
    if (told["sample_rate"], told["shape"]) != (SAMPLE_RATE, [CLIP_SAMPLES]):
        raise UserError(
            f"{file} takes {told['shape']} samples at {told['sample_rate']} Hz, "
            f"expected [{CLIP_SAMPLES}] at {SAMPLE_RATE}: export the network again."
        )
    for path in paths:
        heard = heard_in(
            lambda clips: network.probabilities(clips * _INT16),
            read_audio(path),
            group=1,
        )
        if not np.isfinite(heard).all():
            raise UserError(
                f"{file} answers {path} with what is no finite number: its weights are "
                "damaged, or overflow. Train or export the network again."
            )
        yield answer(path, network.metadata["labels"], heard)


def main(arguments: Sequence[str]) -> None:
    """Prints the answers; errors end the program with code 2."""
    try:
        if len(arguments) < 2:
            raise UserError("Give a packed network and at least one audio file.")
        for told in predictions(arguments[0], arguments[1:]):
            print(json.dumps(told), flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
