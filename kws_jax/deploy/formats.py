"""The formats of artefacts by name; light, so that flags are checked before JAX loads.

A format is a module of this package with two functions:

    write(inference: Inference, request: Request, path: Path) -> None
        Writes the artefact, with `inference.describe(request.input)` inside of it.
        Raises UserError where this network cannot be written so.
    load(path: Path) -> Artefact
        Reads it again, by what runs it on a device; of the experiment's own code it
        uses nothing.

It is registered by one line in `FORMATS`.
"""

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from kws_jax.errors import UserError, nearest

# What an artefact takes: float32 [b, 16000] in [-1, 1], or the front end's features.
WAVEFORM, FEATURES = "waveform", "features"
INPUTS = (WAVEFORM, FEATURES)
# Schemes of quantisation that an export itself may do; "" leaves the network as it is.
AS_IT_IS, INT8 = "", "int8"


@dataclasses.dataclass(frozen=True)
class Format:
    """A format of artefacts.

    Attributes:
      module: with its `write` and `load`.
      suffix: of the artefact's name.
      inputs: scheme of quantisation -> kinds of input, the default first.
      packages: what the module imports beside this project's own requirements.
      extra: the optional dependencies in pyproject.toml that bring them.
    """

    module: str
    suffix: str
    inputs: Mapping[str, tuple[str, ...]]
    packages: tuple[str, ...] = ()
    extra: str = ""


FORMATS: dict[str, Format] = {
    # Full integers are for features: the power spectrum and its logarithm span more
    # than 8 bits can tell apart, and devices with integers alone have front ends of
    # their own.
    "tflite": Format(
        "kws_jax.deploy.tflite",
        ".tflite",
        {AS_IT_IS: (WAVEFORM, FEATURES), INT8: (FEATURES,)},
        ("ai_edge_litert",),
        "tflite",
    ),
    "onnx": Format(
        "kws_jax.deploy.onnx",
        ".onnx",
        {AS_IT_IS: (WAVEFORM, FEATURES)},
        ("jax2onnx", "onnx", "onnxruntime"),
        "onnx",
    ),
    "packed": Format(
        "kws_jax.deploy.packed_writer", ".kwsp", {AS_IT_IS: (WAVEFORM, FEATURES)}
    ),
    "stablehlo": Format(
        "kws_jax.deploy.stablehlo",
        ".stablehlo.zip",
        {AS_IT_IS: (WAVEFORM, FEATURES)},
    ),
}


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be exported, checked by `request_of`.

    Attributes:
      format: a name in `FORMATS`.
      input: WAVEFORM or FEATURES.
      quantize: a scheme of the format.
      calibration: gives float32 inputs [n, …] of that kind, made of training clips; for
        schemes that measure ranges. It opens nothing until it is called.
    """

    format: str
    input: str
    quantize: str = AS_IT_IS
    calibration: Callable[[], np.ndarray] | None = None

    @property
    def file_name(self) -> str:
        """Of the artefact: "kws.tflite", "kws-int8.tflite", …."""
        return self._named("kws") + FORMATS[self.format].suffix

    @property
    def report_name(self) -> str:
        """Of what the check has found: "tflite.json", "tflite-int8.json", …."""
        return self._named(self.format) + ".json"

    def _named(self, first: str) -> str:
        """`first`, and what is not the default of the format."""
        usual = FORMATS[self.format].inputs[self.quantize][0]
        parts = (first, self.quantize, "" if self.input == usual else self.input)
        return "-".join(filter(None, parts))


@dataclasses.dataclass(frozen=True)
class Artefact:
    """An artefact that was read again.

    Attributes:
      metadata: what is written in it, see `Inference.describe`.
      run: float32 inputs [b, …] -> probabilities [b, k], for any b.
    """

    metadata: dict[str, Any]
    run: Callable[[np.ndarray], np.ndarray]


class Writer(Protocol):
    """The module of a format."""

    def write(self, inference: Any, request: Request, path: Any) -> None:
        """Writes an `Inference` to `path`."""

    def load(self, path: Any) -> Artefact:
        """Reads it again."""


def request_of(format_name: str, input_kind: str = "", quantize: str = "") -> Request:
    """The request for these names; an empty input is the default of the format.

    Raises:
      UserError: an unknown name, names that do not go together, or a format whose
        packages are missing.
    """
    if format_name not in FORMATS:
        raise UserError(
            f"--format={format_name}: there is no such format; "
            f"{nearest(format_name, FORMATS)}"
        )
    chosen = FORMATS[format_name]
    if quantize not in chosen.inputs:
        schemes = [scheme for scheme in chosen.inputs if scheme]
        expected = f"give {' or '.join(schemes)}" if schemes else "it has none"
        raise UserError(
            f"--quantize={quantize} does not go with --format={format_name}: {expected}"
            ", or leave --quantize out."
        )
    kinds = chosen.inputs[quantize]
    if input_kind and input_kind not in kinds:
        scheme = f" --quantize={quantize}" if quantize else ""
        raise UserError(
            f"--input={input_kind} does not go with --format={format_name}{scheme}: "
            f"give {' or '.join(kinds)}."
        )
    missing = [p for p in chosen.packages if not importlib.util.find_spec(p)]
    if missing:
        raise UserError(
            f"--format={format_name} needs {', '.join(missing)}, which is not "
            f"installed: pip install -c constraints.txt -e '.[{chosen.extra}]'"
        )
    return Request(format_name, input_kind or kinds[0], quantize)


def writer_of(format_name: str) -> Writer:
    """The module of a format."""
    module: Any = importlib.import_module(FORMATS[format_name].module)
    return module
