"""ONNX by `jax2onnx`, in float, for one clip at a time.

The batch of the artefact is 1. Input and output are named "input" and "probabilities";
what `Inference.describe` says is the entry "kws_jax" of the model's metadata.
onnxruntime runs it:

    import json
    import numpy as np, onnxruntime

    session = onnxruntime.InferenceSession("kws.onnx")
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["kws_jax"])
    audio = np.zeros((1, *metadata["input"]["shape"]), np.float32)
    probabilities = session.run(None, {"input": audio})[0][0]
    print(metadata["labels"][probabilities.argmax()], probabilities.max())
"""

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
from jax import lax
from jax.extend import core as jex_core

from kws_jax.deploy.formats import Artefact, Request
from kws_jax.deploy.inference import Inference
from kws_jax.deploy.program import plain

_INPUT, _OUTPUT, _METADATA = "input", "probabilities", "kws_jax"


def write(inference: Inference, request: Request, path: Path) -> None:
    """Writes the artefact, see the module."""
    shape = (1, *inference.input_shape(request.input))
    example = jax.ShapeDtypeStruct(shape, np.float32)
    function = inference.folded().function(request.input)
    program = plain(function, example, {"stack": _stack, "scan": _steps})
    with _silent():
        import jax2onnx

        model = jax2onnx.to_onnx(
            program,
            inputs=[example],
            model_name=inference.name,
            input_names=[_INPUT],
            output_names=[_OUTPUT],
        )
    metadata = json.dumps(inference.describe(request.input))
    onnx.helper.set_model_props(model, {_METADATA: metadata})
    path.write_bytes(model.SerializeToString())


def load(path: Path) -> Artefact:
    """Reads the artefact for onnxruntime."""
    options = onnxruntime.SessionOptions()
    # As on a small device; more threads only wait for each other in so small a network.
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)
    metadata = json.loads(session.get_modelmeta().custom_metadata_map[_METADATA])

    def run(inputs: np.ndarray) -> np.ndarray:
        clips = (session.run(None, {_INPUT: clip[None]})[0] for clip in inputs)
        return np.concatenate(list(clips))

    return Artefact(metadata, run)


def _stack(*parts: jax.Array, axis: int, **_: Any) -> jax.Array:
    """`jnp.stack`, whose own primitive the converter does not know."""
    return jnp.concatenate([lax.expand_dims(part, (axis,)) for part in parts], axis)


def _steps(*inputs: jax.Array, jaxpr: Any, length: int, **settings: Any) -> list[Any]:
    """A `lax.scan`, its steps written out; the converter's own loops do not load."""
    constants, carry = settings["num_consts"], settings["num_carry"]
    known, state = inputs[:constants], list(inputs[constants : constants + carry])
    given = inputs[constants + carry :]
    outputs = []
    order = range(length)[::-1] if settings["reverse"] else range(length)
    for step in order:
        now = [lax.index_in_dim(x, step, keepdims=False) for x in given]
        results = jex_core.jaxpr_as_fun(jaxpr)(*known, *state, *now)
        state = list(results[:carry])
        outputs.append(results[carry:])
    return state + [jnp.concatenate([y[None] for y in ys]) for ys in zip(*outputs)]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without the converter's complaints of plug-ins that are not needed here."""
    logger = logging.getLogger("jax2onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
