"""A trained network as a file: `python -m kws_jax.export --workdir=W --format=F`.

Formats: `tflite` (for ai-edge-litert, also `--quantize=int8`: in integers all through,
of networks in float or trained with 8 bits for activations), `onnx` (for
onnxruntime), `stablehlo` (for JAX alone, any batch, on CPU, GPU and TPU), `packed`
(quantised networks with their weights at their bits, for NumPy alone). Writes
`W/export/kws.…`, runs it on test clips of the experiment's data and compares it with
the network: the result is printed and kept in `W/export/F.json`, with the time that one
input takes on this machine (TensorFlow Lite and ONNX: on one core). An artefact that
answers otherwise than its network, beyond the tolerance that stands there, ends the
program with code 2.

`--input=waveform`, the default of networks in float, takes float32 [b, 16000], one
second in [-1, 1]; `--input=features` what the front end makes of it, [b, t, f], and is
the default for int8. Labels, front end and sample rate are inside each artefact, and
thresholds of detection where `kws_jax.detect` has chosen them. `--data.FIELD=VALUE`
changes the data.
"""

from absl import flags, logging

from kws_jax import command_line
from kws_jax.deploy import formats
from kws_jax.errors import UserError

# Their runtimes are slower to ask, and their accuracy is that of the float network.
_FEW = 1000
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished experiment.")
_FORMAT = flags.DEFINE_string("format", None, f"One of {', '.join(formats.FORMATS)}.")
_INPUT = flags.DEFINE_string("input", "", "waveform or features; '' is the default.")
_QUANTIZE = flags.DEFINE_string("quantize", "", "int8, or '' for what was trained.")
_CLIPS = flags.DEFINE_integer(
    "clips",
    None,
    "Test clips to check the artefact on; 0 takes all, as is the default of packed. Of "
    f"other formats it is {_FEW}.",
    lower_bound=0,
)
_GROUPS = ("data",)


def _define_overrides(argv: list[str]) -> None:
    command_line.define_groups(argv, _GROUPS)


def main(argv: list[str]) -> None:
    """Checks the flags, then exports."""
    if not _FORMAT.value:
        raise UserError(f"Give --format=F, one of {', '.join(formats.FORMATS)}.")
    request = formats.request_of(_FORMAT.value, _INPUT.value, _QUANTIZE.value)
    config, folder = command_line.stored_experiment(argv, _WORKDIR.value, _GROUPS)
    logging.set_verbosity(logging.ERROR)
    from rich.console import Console

    from kws_jax import measuring
    from kws_jax.deploy import artefacts

    console = Console(highlight=False)
    parts = measuring.parts_of_trained(config, folder, console)
    clips = _CLIPS.value
    if clips is None:
        clips = 0 if request.format == "packed" else _FEW
    artefacts.export(parts, folder, request, clips, console)


if __name__ == "__main__":
    command_line.run(main, _define_overrides)
