"""StableHLO by `jax.export`: runs wherever JAX does, for any batch.

The artefact is a ZIP file of two entries: `metadata.json` (see `Inference.describe`)
and `program.bin`, which takes float32 [b, …] for any b and was lowered for CPU, GPU
(CUDA) and TPU. JAX is all that it needs:

    import json, zipfile
    import jax, numpy as np

    with zipfile.ZipFile("kws.stablehlo.zip") as archive:
        metadata = json.loads(archive.read("metadata.json"))
        program = jax.export.deserialize(archive.read("program.bin"))
    audio = np.zeros((1, *metadata["input"]["shape"]), np.float32)
    probabilities = np.asarray(program.call(audio))[0]
    print(metadata["labels"][probabilities.argmax()], probabilities.max())
"""

import json
import zipfile
from pathlib import Path

import jax
import numpy as np
from jax import export

from kws_jax.deploy.formats import Artefact, Request
from kws_jax.deploy.inference import Inference

PLATFORMS = ("cpu", "cuda", "tpu")
_METADATA, _PROGRAM = "metadata.json", "program.bin"


def write(inference: Inference, request: Request, path: Path) -> None:
    """Writes the artefact, see the module."""
    (batch,) = export.symbolic_shape("b")
    shape = (batch, *inference.input_shape(request.input))
    program = export.export(
        jax.jit(inference.function(request.input)), platforms=PLATFORMS
    )(jax.ShapeDtypeStruct(shape, np.float32))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        metadata = inference.describe(request.input)
        archive.writestr(_METADATA, json.dumps(metadata, indent=1))
        archive.writestr(_PROGRAM, bytes(program.serialize()))


def load(path: Path) -> Artefact:
    """Reads the artefact and compiles it for this machine."""
    with zipfile.ZipFile(path) as archive:
        metadata = json.loads(archive.read(_METADATA))
        program = export.deserialize(bytearray(archive.read(_PROGRAM)))
    call = jax.jit(program.call)
    return Artefact(metadata, lambda inputs: np.asarray(call(inputs)))
