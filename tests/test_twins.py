"""The PyTorch twins, written from the papers, compute what the project does."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_values import QUICK, random_variables

from kws_jax.frontends.registry import create_frontend
from kws_jax.models.conv_mixer import ConvMixer
from kws_jax.models.counting import count_parameters
from kws_jax.models.mbconv import MBConvNet
from kws_jax.models.registry import create_model
from kws_jax.models.res15 import Res15
from kws_jax.models.tenet import TENet
from kws_jax.search.space import SearchSpace
from kws_jax.search.supernet import SuperNet

torch = pytest.importorskip("torch", reason="PyTorch (extra 'twins') is not installed")

from benchmarks.twins import (  # noqa: E402
    carry,
    conv_mixer,
    frontends,
    mbconv,
    registry,
    res15,
    supernet,
    tc_resnet,
    tenet,
)

TOLERANCE = 1e-4
LABELS = 5


@pytest.fixture(autouse=True)
def _one_thread():
    """Waiting threads of PyTorch slow each other down where other programs run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def assert_close(ours, theirs, what):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, what
    largest = np.abs(theirs).max()
    assert largest > 0, what
    error = np.abs(ours - theirs).max() / largest
    assert error < TOLERANCE, f"{what}: {error:.2e}"


def assert_twins(model, twin, features, *arguments, cancelled="none"):
    """Logits in both modes, running means and all gradients agree.

    Both are asked for the sum of the logits times fixed numbers. Gradients of the
    parameters whose names match `cancelled` are zero, but for rounding, in both.
    """
    variables = random_variables(model, features, *arguments)
    direction = np.random.default_rng(2).normal(size=(len(features), LABELS))
    direction = direction.astype(np.float32)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def ours(params, batch_stats):
        variables = {"params": params, "batch_stats": batch_stats}

        def objective(params):
            logits, updated = model.apply(
                {**variables, "params": params},
                features,
                *arguments,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(0)},
            )
            return (logits * direction).sum(), (logits, updated["batch_stats"])

        evaluated = model.apply(variables, features, *arguments, train=False)
        return evaluated, jax.grad(objective, has_aux=True)(params)

    evaluated, (gradients, (trained, moved)) = ours(
        variables["params"], variables["batch_stats"]
    )
    carry.carry(variables, twin)
    inputs = torch.from_numpy(features).transpose(1, 2).contiguous()
    weights = [[torch.from_numpy(np.array(w)) for w in a] for a in arguments]
    assert_close(evaluated, twin.eval()(inputs, *weights).detach(), "evaluation")
    logits = twin.train()(inputs, *weights)
    assert_close(trained, logits.detach(), "training")
    (logits * torch.from_numpy(direction)).sum().backward()
    expected = carry.state_of({"params": gradients, "batch_stats": moved}, twin)
    state = twin.state_dict()
    theirs = {n: p.grad for n, p in twin.named_parameters() if p.requires_grad}
    rounding = TOLERANCE * max(gradient.abs().max() for gradient in theirs.values())
    for name, gradient in theirs.items():
        if re.fullmatch(cancelled, name):
            assert gradient.abs().max() < rounding, name
            assert expected.pop(name).abs().max() < rounding, name
        else:
            assert_close(expected.pop(name), gradient, name)
    for name, value in expected.items():
        if name.endswith("running_mean"):
            assert_close(value, state[name], name)


def features_of(shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("depth", [8, 14])
def test_tc_resnet(depth):
    model = create_model(f"tc_resnet{depth}", LABELS, width=0.5, dropout=0.0)
    twin = tc_resnet.TCResNet(
        depth, num_labels=LABELS, width=0.5, dropout=0.0, features=6
    )
    # 26 → 13 → 7 → 4 frames: SAME pads oddly, then evenly.
    assert_twins(model, twin, features_of((3, 26, 6)))


def test_supernet():
    space = SearchSpace(strides=(2, 1), channels=(8, 8), stem_channels=4)
    twin = supernet.SuperNet(
        num_labels=LABELS,
        channels=space.channels,
        strides=space.strides,
        stem_channels=4,
        dropout=0.0,
        features=6,
    )
    rng = np.random.default_rng(3)
    weights = tuple(
        jnp.asarray(rng.uniform(0.5, 1.5, len(names)), jnp.float32)
        for names in space.candidates
    )
    assert [list(layer.candidates) for layer in twin.layers] == [
        list(names) for names in space.candidates
    ]
    model = SuperNet(LABELS, space, dropout=0.0)
    assert_twins(model, twin, features_of((3, 20, 6)), weights)


def test_tenet():
    model = TENet(LABELS, channels=4, depth=6, mtconv=True, dropout=0.0)
    twin = tenet.TENet(6, LABELS, channels=4, mtconv=True, dropout=0.0, features=6)
    # What a layer adds to a whole channel, the batch norms of the next block take off.
    cancelled = r"layers\.[0-3]\.(project|shortcut)\.1\.bias"
    assert_twins(model, twin, features_of((3, 26, 6)), cancelled=cancelled)


def test_res15():
    # Larger than the widest reach, so that no tap sees zeros alone.
    features = features_of((2, 20, 18))
    assert_twins(Res15(LABELS, maps=3), res15.Res15(LABELS, maps=3), features)


def test_conv_mixer():
    twin = conv_mixer.ConvMixer(LABELS, channels=8, frames=12, features=6)
    assert_twins(ConvMixer(LABELS, channels=8), twin, features_of((2, 12, 6)))


def test_mbconv():
    layers = ("E2K3", "SKIP", "E1K5", "E3K3", "E2K7", "SKIP")
    twin = mbconv.MBConvNet(LABELS, layers=layers)
    features = features_of((2, 22, 17))
    # Batch norms behind 1×1 convolutions take off what was added to whole channels.
    cancelled = r"blocks\.[234]\.project\.1\.bias"
    model = MBConvNet(LABELS, layers=layers)
    assert_twins(model, twin, features, cancelled=cancelled)


@pytest.mark.parametrize(
    ("name", "settings", "published"),
    [
        ("tc_resnet8", {"width": 1.5}, 144_264),
        ("tc_resnet14", {"width": 1.5}, 303_000),
        ("tenet6", {}, 50_816),
        ("tenet12", {}, 94_208),
        ("res15", {}, 237_882),
        ("conv_mixer", {}, 119_620),
    ],
)
def test_twins_have_the_published_number_of_parameters(name, settings, published):
    twin = registry.create_twin(name, 12, **settings)
    trained = [p.numel() for p in twin.parameters() if p.requires_grad]
    assert sum(trained) == published


@pytest.mark.parametrize("name", sorted(registry.TWINS))
def test_twins_of_full_size_are_as_large_as_the_projects(name):
    model = create_model(name, 12)
    bands = 64 if name == "conv_mixer" else 40
    variables = jax.eval_shape(
        functools.partial(model.init, train=False),
        jax.random.key(0),
        jnp.zeros((1, 98, bands)),
    )
    twin = registry.create_twin(name, 12)
    trained = sum(p.numel() for p in twin.parameters() if p.requires_grad)
    assert trained == count_parameters(variables["params"])


@pytest.fixture(scope="module")
def audio():
    """float32 [4, 16000]: loud and faint noise, a falling tone, digital zeros.

    The tone stands in noise: beside a pure one the other filters hold little more than
    its rounding, in which float32 itself is 1e-4 away from float64.
    """
    rng, time = np.random.default_rng(0), np.arange(16_000) / 16_000
    tone = 0.1 * np.sin(2 * np.pi * (2000 * time - 600 * time**2))
    tone += 1e-2 * rng.normal(size=16_000)
    rows = [0.2 * rng.normal(size=16_000), 1e-3 * rng.normal(size=16_000), tone]
    return np.stack([*rows, np.zeros(16_000)]).astype(np.float32)


@pytest.mark.parametrize("name", ["mfcc", "log_mel"])
def test_front_end(name, audio):
    theirs = frontends.create(name)(torch.from_numpy(audio)).transpose(1, 2)
    ours = jax.jit(create_frontend(name))(audio)
    for clip, twin in zip(np.asarray(ours), theirs.numpy()):
        assert_close(clip, twin, name)


def test_mfcc_is_that_of_tensorflow(audio):
    import tensorflow as tf

    stft = tf.signal.stft(audio, frame_length=480, frame_step=160)
    mel = tf.signal.linear_to_mel_weight_matrix(64, 257, 16_000, 80.0, 7600.0)
    energies = tf.math.log(tf.tensordot(tf.abs(stft) ** 2, mel, 1) + 1e-6)
    expected = tf.signal.mfccs_from_log_mel_spectrograms(energies)[..., :40]
    theirs = frontends.create("mfcc")(torch.from_numpy(audio)).transpose(1, 2)
    assert_close(expected, theirs, "mfcc")


def tc_resnet_variables():
    model = create_model("tc_resnet8", LABELS, width=0.25)
    return random_variables(model, features_of((1, 20, 6)))


def test_what_is_left_over_is_named():
    twin = tc_resnet.TCResNet(8, num_labels=LABELS, width=0.25, features=6)
    variables = tc_resnet_variables()
    variables["params"]["head"]["linear"]["bias"] = np.zeros(LABELS, np.float32)
    with pytest.raises(ValueError, match=r"left over.*params/head/linear/bias"):
        carry.carry(variables, twin)
    del variables["params"]["head"]
    with pytest.raises(ValueError, match=r"classifier\.3\.weight.*head/linear/kernel"):
        carry.carry(variables, twin)


def test_a_twin_of_another_size_is_refused():
    twin = tc_resnet.TCResNet(8, num_labels=LABELS, width=0.5, features=6)
    with pytest.raises(ValueError, match=r"stem\.0\.weight has shape"):
        carry.carry(tc_resnet_variables(), twin)
