"""Networks of every family as packed programs, beside JAX."""

import dataclasses
import functools
import itertools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from network_values import QUICK, random_variables
from settled import clips, settled
from test_quantized_network import (  # noqa: F401
    FAMILIES,
    Kinds,
    features_of,
    shallow,
)

from kws_jax.deploy import (
    check,
    formats,
    packed_check,
    packed_format,
    packed_program,
    packed_writer,
)
from kws_jax.deploy.inference import Inference
from kws_jax.deploy.packed_operations import OPERATIONS, conv, quantize
from kws_jax.deploy.packed_primitives import SETTINGS
from kws_jax.deploy.packed_reader import PackedNetwork, load
from kws_jax.errors import UserError
from kws_jax.frontends.registry import create_frontend
from kws_jax.models import front_filter
from kws_jax.models.learned_frontend import WithFrontend, create_filters
from kws_jax.models.mbconv import MBConvNet
from kws_jax.models.tc_resnet import TCResNet
from kws_jax.quantization import calibration
from kws_jax.quantization.integers import IntegerNetwork
from kws_jax.quantization.network import Bits, QuantizedNetwork
from kws_jax.quantization.sites import find_sites

pytestmark = pytest.mark.usefixtures("compiled_quickly")
LABELS = ("yes", "no", "_unknown_", "_silence_")
NO_LAYERS = IntegerNetwork({}, {}, ())


@functools.cache
def measured(model, shape, content, spread):
    """Settled variables, sites and ranges of activations, by features as bytes."""
    x = np.frombuffer(content, np.float32).reshape(shape)
    variables = settled(model, random_variables(model, x), x, spread)
    sites = find_sites(model, variables, x[:1])
    parts = (variables["params"], variables["batch_stats"])
    return variables, sites, calibration.measure_ranges(model, sites, *parts, [x])


def inference_of(model, x, bits, frontend=None, spread=2.0, wider=1.0):
    """A quantised network as if trained on features x. Learned bits differ by layer."""
    variables, sites, ranges = measured(model, x.shape, x.tobytes(), spread)
    signed = calibration.signs(ranges)
    network = QuantizedNetwork(model, sites, bits, signed)
    bounds = calibration.initial_bounds(ranges, signed, bits.activations)
    bounds = {name: wider * bound for name, bound in bounds.items()}
    trees = {"weights": variables["params"], **network.initial_trees(bounds)}
    if bits.learned:
        widths = itertools.cycle((3.0, 0.0, 1.0, 5.0, 2.0))
        trees["quantization_bits"] = jax.tree.map(
            lambda _: jnp.float32(next(widths)), trees["quantization_bits"]
        )
    # Only its shape is asked for where features are given.
    shape = x.shape[1:]
    frontend = frontend or dataclasses.replace(create_frontend("mfcc"), shape=shape)
    stats = variables["batch_stats"]
    return Inference("tested", LABELS, frontend, model, trees, stats, network)


def clips_of(bands, frames=12):
    """Features of four clips, each about a mean of its own."""
    x = features_of(bands, frames, batch=4)
    means = np.random.default_rng(1).normal(size=(4, 1, bands))
    return x + means.astype(np.float32)


def compiled(function, x):
    return np.asarray(jax.jit(function).lower(x).compile(QUICK)(x))


def assert_same_answers(inference, x, given="features"):
    """Of four clips, as features or waveforms; returns the packed program."""
    program = packed_writer.to_program(inference, given)
    used = {i for operation in program.operations for i in operation.inputs}
    last = len(program.constants) + len(program.operations)
    assert used | {program.output} == set(range(last + 1))
    want = np.log(compiled(inference.function(given), x))
    got = np.log(PackedNetwork(program).probabilities(x))
    assert packed_check.check(program).shape == (1, *got.shape[1:])
    # Of any three clips, so that what ignores its input fails below.
    for i in range(4):
        assert np.ptp(np.delete(want, i, 0), axis=0).max() > 0.1
    np.testing.assert_array_equal(got.argmax(-1), want.argmax(-1))
    # Programs round differently, so that a value on the border of two steps may fall to
    # either side: one clip of four may have such a one.
    assert sorted(np.abs(got - want).max(-1))[-2] < 1e-3
    return program


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(("model", "bands"), FAMILIES)
def test_every_family_answers_as_in_jax(model, bands, learned, request):
    request.getfixturevalue("shallow")
    x = clips_of(bands)
    inference = inference_of(model, x, Bits(4, 4, learned=learned))
    program = assert_same_answers(inference, x)
    widths = inference.quantized.bits_of(inference.trees, "weights")
    assert len({int(bits) for bits in widths.values()}) > learned
    counts = inference.quantized.sites.weight_counts
    assert packed_format.sizes(program)["weights"] == sum(
        int(np.ceil(counts[name] * int(widths[name]) / 8)) for name in counts
    )


def test_network_behind_learned_filters_answers_audio_as_in_jax():
    frontend = create_frontend("sinc", hop_ms=60, num_filters=8)
    learned = create_filters("sinc", frontend.settings, frontend.shape[1])
    encoder = next(model for model, _ in FAMILIES if isinstance(model, MBConvNet))
    audio = jnp.asarray(clips()[::2])
    frames = np.asarray(frontend(audio))
    model = WithFrontend(learned, encoder)
    inference = inference_of(model, frames, Bits(4, 4), frontend)
    program = assert_same_answers(inference, audio, "waveform")
    # The filters are made of their edges and stay in float.
    stored = packed_format.sizes(program)
    counts = inference.quantized.sites.weight_counts
    assert all(name.startswith("encoder/") for name in counts)
    assert stored["weights"] == sum(-(-4 * count // 8) for count in counts.values())


@pytest.mark.parametrize("bits", [1, 8])
def test_every_kind_of_layer_with_scales_of_channels_answers_as_in_jax(bits):
    x = clips_of(6, frames=5)
    # The last layer has three channels, which differ little at 8 bits, a lot at one. At
    # one bit, ranges as they are would leave them the same for all clips.
    widths = Bits(bits, bits, per_channel=True)
    inference = inference_of(Kinds(), x, widths, spread=0.3, wider=1.5)
    program = assert_same_answers(inference, x)
    assert all(c.bits == bits for c in program.constants if c.weights)


@functools.cache
def sounds():
    """float32 [3, 16000]: noise, faint noise, digital zeros."""
    rng = np.random.default_rng(0)
    loud = rng.normal(size=(3, 16_000)) * np.array([[0.2], [1e-3], [0.0]])
    return loud.astype(np.float32)


@pytest.mark.parametrize("name", ["mfcc", "log_mel", "sinc", "conv1d"])
def test_front_ends_give_the_same_features(name):
    frontend = create_frontend(name, hop_ms=100)
    learned = create_filters(name, frontend.settings, frontend.shape[1])

    def features(variables, audio):
        frames = frontend(audio)
        return learned.apply(variables, frames) if learned else frames

    variables = {}
    if learned:
        variables = learned.init(jax.random.key(0), jnp.zeros((1, *frontend.shape)))
    program = packed_program.trace(
        lambda kernels, on_input, x: features(variables, x), NO_LAYERS, (16_000,), {}
    )
    got = PackedNetwork(program).probabilities(sounds())
    assert packed_check.check(program).shape == (1, *got.shape[1:])
    want = compiled(lambda x: features(variables, x), jnp.asarray(sounds()))
    np.testing.assert_allclose(got, want, atol=1e-4)
    stored = packed_format.sizes(program)["constants"]
    # Matrices are told by settings, learned bands by their edges, free taps by all.
    assert stored < (100_000 if name == "conv1d" else 600)


@pytest.mark.parametrize("name", front_filter.FILTERS)
def test_front_filters_are_kept_in_float(name):
    x = features_of(8, frames=9, batch=2)
    model = front_filter.create_filter(name, 8)
    variables = random_variables(model, x)

    def run(x):
        return model.apply(variables, x, train=False)

    program = packed_program.trace(
        lambda kernels, on_input, x: run(x), NO_LAYERS, x.shape[1:], {}
    )
    got = PackedNetwork(program).probabilities(x)
    assert packed_check.check(program).shape == (1, *got.shape[1:])
    np.testing.assert_allclose(got, compiled(run, x), atol=1e-4)


@pytest.mark.parametrize(
    ("space", "strides", "dilation", "padding", "groups"),
    [
        ((11,), (2,), (1,), ((3, 4),), 1),
        ((11,), (1,), (3,), ((0, 2),), 2),
        ((9, 7), (2, 1), (1, 2), ((1, 1), (2, 2)), 6),
    ],
)
def test_convolutions_are_those_of_xla(space, strides, dilation, padding, groups):
    rng = np.random.default_rng(0)
    taps, axes = (3,) * len(space), "WHD"[: len(space)]
    x = rng.integers(-7, 8, (2, *space, 6))
    kernel = rng.integers(-7, 8, (*taps, 6 // groups, 12 if groups < 6 else 6))
    settings = {"strides": strides, "padding": padding, "dilation": dilation}
    got = conv(x, kernel, **settings, groups=groups, largest=2**30)
    want = jax.lax.conv_general_dilated(
        x.astype(np.float32),
        kernel.astype(np.float32),
        strides,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
        feature_group_count=groups,
    )
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, want)


def test_activations_are_rounded_as_in_training():
    x = np.float32([-9, -0.26, -0.25, 0, 0.25, 0.74, 0.76, 9])
    half = np.float32(0.5)
    assert quantize(x, half, bits=3, signed=True).tolist() == [
        *(-3, -1, 0, 0, 0, 1, 2, 3)
    ]
    assert quantize(x, half, bits=2, signed=False).tolist() == [
        *(0, 0, 0, 0, 0, 1, 2, 3)
    ]
    assert quantize(x, half, bits=1, signed=True).tolist() == [-1] * 3 + [1] * 5


def test_what_the_format_cannot_hold_is_named():
    def sort(kernels, on_input, x):
        return jnp.sort(x)

    def spread(kernels, on_input, x):
        return jax.lax.pad(x, 0.0, ((0, 0, 0), (0, 0, 1)))

    with pytest.raises(UserError, match="no operation for 'sort'"):
        packed_program.trace(sort, NO_LAYERS, (3,), {})
    with pytest.raises(UserError, match=r"cannot hold 'pad'.*around the others"):
        packed_program.trace(spread, NO_LAYERS, (3,), {})
    assert {operation for operation, _ in SETTINGS.values()} <= set(OPERATIONS)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(network of audio, path of its packed file)."""
    frontend = create_frontend("mfcc", num_coefficients=8, hop_ms=40)
    model = TCResNet(4, width=0.25, dropout=0.0)
    features = np.asarray(frontend(jnp.asarray(sounds())))
    inference = inference_of(model, features, Bits(3, 4), frontend)
    path = tmp_path_factory.mktemp("packed") / "kws.kwsp"
    request = formats.request_of("packed")
    packed_writer.write(inference, request, path)
    return inference, path


def test_the_file_tells_what_it_is(written):
    inference, path = written
    artefact = packed_writer.load(path)
    assert artefact.metadata["labels"] == list(LABELS)
    assert artefact.metadata["frontend"]["settings"]["hop_ms"] == 40
    assert artefact.metadata["input"]["kind"] == "waveform"
    held = artefact.metadata["bytes"]
    assert held["total"] == path.stat().st_size
    weights = inference.quantized.sites.weight_counts.values()
    assert held["weights"] == sum(-(-3 * count // 8) for count in weights)
    # Beside the weights: less than four kilobytes, program and front end included.
    assert held["total"] - held["weights"] < 4096
    want = compiled(inference.from_waveform, jnp.asarray(sounds()))
    assert len(set(want.argmax(-1))) > 1
    measures = check.compare(artefact.run(sounds()), want, want.argmax(-1))
    assert measures["equal_decisions"] == 1
    allowed = check.tolerance_of(inference, formats.request_of("packed"))
    assert allowed.equal == 0.999


def test_the_reader_alone_loads_no_jax(written, tmp_path):
    _, path = written
    program = (
        "import sys, numpy as np; from kws_jax.deploy import packed_reader as r; "
        f"n = r.load({str(path)!r}); n.probabilities(np.zeros((1, 16000), 'f4')); "
        "print([m for m in ('jax', 'jaxlib', 'flax', 'tensorflow', 'soundfile') "
        "if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
    clip = tmp_path / "clip.wav"
    audio = np.round(sounds()[0] * 32767).clip(-32768, 32767).astype(np.int16)
    soundfile.write(clip, audio, 16_000)
    command = [sys.executable, "-m", "kws_jax.deploy.packed_reader"]
    done = subprocess.run([*command, path, clip], capture_output=True, text=True)
    told = json.loads(done.stdout)
    (heard,) = load(path).probabilities(audio[None] / np.float32(32768))
    assert told["path"] == str(clip)
    assert told["keyword"] == LABELS[heard.argmax()]
    np.testing.assert_allclose([*told["scores"].values()], heard, atol=1e-6)
    done = subprocess.run([*command, path], capture_output=True, text=True)
    assert done.returncode == 2
    assert "at least one audio file" in done.stderr


def test_networks_in_float_are_refused(written):
    inference, path = written
    in_float = Inference(
        "tc_resnet8", LABELS, inference.frontend, inference.model, inference.trees, {}
    )
    with pytest.raises(UserError, match="tc_resnet8 was trained in float: add a stage"):
        packed_writer.write(in_float, formats.request_of("packed"), path)
