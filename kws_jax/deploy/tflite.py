"""TensorFlow Lite by way of StableHLO, in built-in operations alone, for one clip.

The batch of the artefact is 1. In float, input and output are float32. With
`--quantize=int8` weights and activations are integers of 8 bits, with ranges measured
on training clips, and so are input and output: q = round(x / scale) + zero_point, by
the input's own numbers. A network that was trained with 8 bits for activations gives
its weights as it has them, to be rounded again with a scale for each channel.

What `Inference.describe` says lies in the file's ZIP archive as `metadata.json`, where
TensorFlow Lite has associated files: `unzip kws.tflite` finds it. ai-edge-litert runs
the artefact:

    import json, zipfile
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    metadata = json.loads(zipfile.ZipFile("kws.tflite").read("metadata.json"))
    interpreter = Interpreter("kws.tflite")
    interpreter.allocate_tensors()
    given = interpreter.get_input_details()[0]["index"]
    made = interpreter.get_output_details()[0]["index"]
    audio = np.zeros((1, *metadata["input"]["shape"]), np.float32)
    interpreter.set_tensor(given, audio)
    interpreter.invoke()
    probabilities = interpreter.get_tensor(made)[0]
    print(metadata["labels"][probabilities.argmax()], probabilities.max())
"""

import functools
import json
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from jax.experimental import jax2tf

from kws_jax.deploy.formats import INT8, Artefact, Request
from kws_jax.deploy.inference import Inference
from kws_jax.deploy.program import Replacements, plain
from kws_jax.errors import UserError
from kws_jax.models import acoustic_dnn
from kws_jax.quantization import fixed

_METADATA = "metadata.json"


def _standardised_by_root(x: jax.Array) -> jax.Array:
    """(x − μ) / sqrt(σ² + 1e-10) over time."""
    centred = x - x.mean(axis=1, keepdims=True)
    variance = jnp.square(centred).mean(axis=1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + 1e-10)


# Of GELU, TensorFlow Lite knows the form by tanh, within 5e-4, less than a step of 8
# bits. The exact one would become a quotient of polynomials, which has no kernel there.
# The variance of a feature much weaker than others is rounded to 0. Its quotient by the
# deviation would end the program; the reciprocal root takes its largest value instead.
_IN_INTEGERS: Replacements = {
    "exact_gelu": functools.partial(jax.nn.gelu, approximate=True),
    "standardised_by_deviation": _standardised_by_root,
}


def write(inference: Inference, request: Request, path: Path) -> None:
    """Writes the artefact, see the module.

    Raises:
      UserError: integers for a network that cannot be had in them.
    """
    if request.quantize == INT8:
        _check_integers(inference)
        folded = inference.without_activation_bits()
    else:
        folded = inference.folded()
    shape = (1, *inference.input_shape(request.input))
    function = folded.function(request.input)
    replacements: Replacements = _IN_INTEGERS if request.quantize == INT8 else {}
    example = jax.ShapeDtypeStruct(shape, np.float32)
    program = plain(function, example, replacements)
    module = tf.function(
        jax2tf.convert(program, with_gradient=False),
        input_signature=[tf.TensorSpec(shape, tf.float32, name="input")],
        autograph=False,
    )
    concrete = module.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], module)
    if request.quantize == INT8:
        _quantize(converter, request)
    with warnings.catch_warnings():
        # Of ranges that are measured later.
        warnings.filterwarnings("ignore", "Statistics for quantized inputs")
        path.write_bytes(converter.convert())
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        metadata = inference.describe(request.input)
        archive.writestr(_METADATA, json.dumps(metadata, indent=1))


def _check_integers(inference: Inference) -> None:
    if inference.name == acoustic_dnn.NETWORK:
        raise UserError(
            f"The network {inference.name!r} adds up scores of all frames, which "
            "integers of 8 bits cannot hold: leave --quantize out."
        )
    if inference.quantized:
        bits = inference.quantized.bits
        if bits.learned or bits.activations < fixed.MOST_BITS:
            raise UserError(
                "--quantize=int8 computes activations with 8 bits, and the last stage "
                "of this network has taught it others: leave --quantize out, or train "
                "with bits such as w8a8."
            )


def _quantize(converter: Any, request: Request) -> None:
    assert request.calibration is not None
    examples = request.calibration()
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([example[None]] for example in examples)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8


def load(path: Path) -> Artefact:
    """Reads the artefact for ai-edge-litert."""
    with zipfile.ZipFile(path) as archive:
        metadata = json.loads(archive.read(_METADATA))
    interpreter = Interpreter(os.fspath(path))
    interpreter.allocate_tensors()
    (given,), (made,) = (
        interpreter.get_input_details(),
        interpreter.get_output_details(),
    )

    def answer(example: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(given["index"], _integers(example[None], given))
        interpreter.invoke()
        return _reals(interpreter.get_tensor(made["index"]), made)

    return Artefact(
        metadata, lambda inputs: np.concatenate([answer(x) for x in inputs])
    )


def _integers(x: np.ndarray, tensor: dict[str, Any]) -> np.ndarray:
    """Values as a tensor of the artefact holds them."""
    if tensor["dtype"] == np.float32:
        return x
    scale, zero = tensor["quantization"]
    limits = np.iinfo(tensor["dtype"])
    rounded = np.round(x / scale) + zero
    return np.clip(rounded, limits.min, limits.max).astype(tensor["dtype"])


def _reals(x: np.ndarray, tensor: dict[str, Any]) -> np.ndarray:
    if tensor["dtype"] == np.float32:
        return x
    scale, zero = tensor["quantization"]
    return (x.astype(np.float32) - zero) * scale
