"""The format "packed": a quantised network with its weights at their bits.

The size of the file is the memory that the network needs: integers at the bits that
they were trained with, scales and biases in float32, and the program in a kilobyte or
two. Tables that follow from a few settings (windows, mel filters, cosines) are told by
them. It runs without JAX: kws_jax/deploy/packed_reader.py. The layout stands in
kws_jax/deploy/packed_format.py.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from kws_jax.deploy import packed_file, packed_format, packed_program, packed_reader
from kws_jax.deploy.formats import WAVEFORM, Artefact, Request
from kws_jax.deploy.inference import Inference
from kws_jax.errors import UserError
from kws_jax.quantization.integers import to_integers
from kws_jax.quantization.network import run_folded
from kws_jax.quantization.sites import Site
from kws_jax.training.state import WEIGHTS


def write(inference: Inference, request: Request, path: Path) -> None:
    """Writes the file, and prints what its bytes are.

    Raises:
      UserError: a network in float, or one that the format has no operations for.
    """
    program = to_program(inference, request.input)
    path.write_bytes(packed_format.to_bytes(program))
    held = packed_format.sizes(program)
    print(
        f"Packed: {held['weights']:,} bytes of weights at their bits, "
        f"{held['constants']:,} of scales, biases and other numbers, "
        f"{held['program']:,} of program and labels"
    )


def load(path: Path) -> Artefact:
    """The file as the reader without JAX runs it; "bytes" say what its size is of."""
    program = packed_file.read(path)
    told = {**program.metadata, "bytes": packed_format.sizes(program)}
    return Artefact(told, packed_reader.PackedNetwork(program).probabilities)


def to_program(inference: Inference, kind: str) -> packed_format.Program:
    """What the file holds, for WAVEFORM or FEATURES as input.

    Raises:
      UserError: as `write`.
    """
    network = inference.quantized
    if network is None:
        raise UserError(
            "--format=packed holds integers, and the network "
            f"{inference.name} was trained in float: add a stage of kind 'quantize' "
            "(configs/quantized.py), or choose another --format."
        )
    sites, params = network.sites, inference.trees[WEIGHTS]

    def infer(
        kernels: Mapping[str, jax.Array],
        on_input: Callable[[Site, jax.Array], jax.Array],
        x: jax.Array,
    ) -> jax.Array:
        features = inference.frontend(x) if kind == WAVEFORM else x
        logits = run_folded(
            inference.model,
            sites,
            params,
            inference.batch_stats,
            features,
            kernels=kernels,
            on_input=on_input,
        )
        return inference.probabilities(logits)

    integers = to_integers(network, inference.trees, inference.batch_stats)
    told: dict[str, Any] = inference.describe(kind)
    return packed_program.trace(infer, integers, inference.input_shape(kind), told)
