"""Quantisation of whole networks, of every family in the registry."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from network_values import QUICK, random_variables

from kws_jax.errors import UserError
from kws_jax.models import conv_mixer, registry, res15, tc_resnet
from kws_jax.models.acoustic_dnn import AcousticDNN
from kws_jax.models.blocks import Head
from kws_jax.models.genotype import Genotype
from kws_jax.models.layers import DepthwiseConv, DilatedConv
from kws_jax.models.mbconv import MBConvNet
from kws_jax.models.searched import SearchedTCNet
from kws_jax.models.tenet import TENet
from kws_jax.ops.pointwise import pointwise_conv
from kws_jax.quantization import calibration, learned
from kws_jax.quantization.integers import to_integers
from kws_jax.quantization.network import Bits, QuantizedNetwork
from kws_jax.quantization.sites import find_sites

# A network of each class, and its bands.
FAMILIES = [
    (tc_resnet.TCResNet(4, width=0.25, dropout=0.0), 6),
    (
        SearchedTCNet(
            4, Genotype((("C3SE", "C5"),), (2,), (6,), 4, "jx1", 2), dropout=0.0
        ),
        4,
    ),
    (conv_mixer.ConvMixer(4, channels=4), 4),
    (res15.Res15(4, maps=6), 5),
    (MBConvNet(4, layers=("E2K3", "SKIP", "SKIP", "E1K3", "SKIP", "SKIP")), 8),
    (TENet(4, channels=4, depth=3, dropout=0.0), 4),
]
# Networks that drop values right before a layer, in training alone.
DROPPING = [
    (model.clone(dropout=0.5), bands)
    for model, bands in FAMILIES
    if hasattr(model, "dropout")
]
RNGS = {"dropout": jax.random.key(1)}
# Bits so many that what rounding adds is not seen.
EXACT = 22


@pytest.fixture
def shallow(monkeypatch):
    """Networks with fewer layers of each kind, which compile in less time."""
    monkeypatch.setitem(tc_resnet.BLOCKS, 8, ((24,), (2,)))
    monkeypatch.setattr(conv_mixer, "BLOCKS", conv_mixer.BLOCKS[-1:])
    monkeypatch.setattr(conv_mixer, "POST", conv_mixer.POST[1:2])
    monkeypatch.setattr(res15, "DILATIONS", (1, 2, 4))


def test_every_registered_network_is_of_a_family_that_is_tested():
    tested = {type(model) for model, _ in FAMILIES}
    # The acoustic model has no stage of quantised training.
    registered = {model for model, _ in registry.MODELS.values()} - {AcousticDNN}
    assert tested == registered


def features_of(bands, frames=12, batch=2):
    rng = np.random.default_rng(3)
    return rng.normal(size=(batch, frames, bands)).astype(np.float32)


def kernel_gradients(gradients):
    flat = traverse_util.flatten_dict(gradients["weights"], sep="/")
    return {k: v for k, v in flat.items() if v.ndim > 1}


def assert_all_learn(gradients, where):
    for name, gradient in gradients.items():
        assert np.isfinite(gradient).all(), (name, where)
        assert np.abs(gradient).max() > 0, (name, where)


@pytest.mark.parametrize(("model", "bands"), FAMILIES)
def test_network_folds_and_every_kernel_learns_at_every_width(model, bands, shallow):
    x = features_of(bands)
    variables = random_variables(model, x)
    params, stats = variables["params"], variables["batch_stats"]
    sites = find_sites(model, variables, x[:1])
    ranges = calibration.measure_ranges(model, sites, params, stats, [x])
    signed = calibration.signs(ranges)
    bits = Bits(EXACT, EXACT, learned=True, most=EXACT, per_channel=True)
    network = QuantizedNetwork(model, sites, bits, signed)

    def trees_at(bits):
        bounds = calibration.initial_bounds(ranges, signed, bits)
        trees = network.initial_trees(bounds)
        offset = learned.offset_of(bits)
        offsets = jax.tree.map(lambda _: offset, trees["quantization_bits"])
        return {**trees, "weights": params, "quantization_bits": offsets}

    def loss(trees, x):
        logits = network.infer(trees, stats, x)
        return (logits * jnp.arange(1.0, 5.0)).sum(), logits

    def measure(trees, x):
        gradients = jax.grad(loss, argnums=(0, 1), has_aux=True)(trees, x)
        return model.apply(variables, x, train=False), *gradients

    compiled = jax.jit(measure).lower(trees_at(EXACT), x).compile(QUICK)
    unfolded, _, logits = compiled(trees_at(EXACT), x)
    np.testing.assert_allclose(logits, unfolded, atol=1e-4)
    errors = {}
    for width in (*range(2, 9), 10, 12):
        _, (gradients, dx), logits = compiled(trees_at(width), x)
        errors[width] = np.sqrt(np.mean(np.square(logits - unfolded)))
        if width <= 8:
            assert_all_learn({**kernel_gradients(gradients), "input": dx}, width)
    # At 8 bits it is the error of rounding: small, and a quarter with two bits more.
    assert errors[8] < 0.05 * np.ptp(unfolded)
    assert 8 < errors[8] / errors[12] < 32


@pytest.mark.parametrize("bits", [1, 8])
@pytest.mark.parametrize(("model", "bands"), FAMILIES + DROPPING)
def test_every_kernel_learns_by_the_batch_at_fixed_widths(model, bands, bits, shallow):
    x = features_of(bands, batch=16)
    variables = settled(model, random_variables(model, x), x)
    stats = variables["batch_stats"]
    sites = find_sites(model, variables, x[:1])
    ranges = calibration.measure_ranges(model, sites, variables["params"], stats, [x])
    network, trees, _ = quantized((model, variables, x, ranges), Bits(bits, bits))
    gradients, dx = gradients_in_training(network, trees, stats, x)
    learning = {**kernel_gradients(gradients), "input": dx}
    if isinstance(model, conv_mixer.ConvMixer) and bits < 8:
        # Behind kernels of one tap few bits are all equally large, and may all lie
        # outside of the next layer's range: that learns first.
        bound = gradients["quantization_bounds"].pop("pre/layer1/pointwise")
        learning = {n: g for n, g in learning.items() if not n.startswith("pre/layer")}
        learning["range"] = bound
    assert_all_learn(learning, bits)


def settled(model, variables, x):
    """The variables with the statistics of a batch as running ones.

    Ranges fit what is heard in training then.
    """

    @functools.partial(jax.jit, compiler_options=QUICK)
    def follow(variables):
        def once(_, stats):
            told = {**variables, "batch_stats": stats}
            settings = {"mutable": ["batch_stats"], "rngs": RNGS}
            _, moved = model.apply(told, x, train=True, **settings)
            return moved["batch_stats"]

        return jax.lax.fori_loop(0, 1000, once, variables["batch_stats"])

    return {**variables, "batch_stats": follow(variables)}


def gradients_in_training(network, trees, stats, x):
    """Of a sum of the logits, by the trees and by the features."""

    def loss(trees, x):
        told = {"params": trees, "batch_stats": stats}
        settings = {"mutable": ["batch_stats"], "rngs": RNGS}
        logits, _ = network.apply(told, x, train=True, **settings)
        return (logits * jnp.arange(1.0, 5.0) ** 2).sum()

    grad = jax.jit(jax.grad(loss, argnums=(0, 1)), compiler_options=QUICK)
    return grad(trees, jnp.asarray(x))


class Dropping(nn.Module):
    """Layers right behind dropout, with inputs of both kinds of signs."""

    tell: Callable

    @nn.compact
    def __call__(self, x, *, train):
        def record(call, arguments, settings, context):
            if isinstance(context.module, nn.Dense):
                self.tell(context.module.name, arguments[0])
            return call(*arguments, **settings)

        body = nn.relu(nn.Dense(24, name="body")(x)).mean(1)
        # The last interceptor is called last: with what the layer gets in the end.
        with nn.intercept_methods(record):
            dropped = nn.Dropout(0.75, deterministic=not train)(x.mean(1))
            shared = nn.Dense(4, name="signed")(dropped) + dropped[:, :4]
            return shared + Head(4, dropout=0.75, name="head")(body, train=train)


@pytest.mark.parametrize(
    "bits",
    [Bits(8, n) for n in (1, 2, 8)] + [Bits(8, n, learned=True) for n in (2, 8)],
    ids=str,
)
def test_what_dropout_keeps_is_rounded_as_in_inference(bits):
    heard = {}
    model, x = Dropping(heard.__setitem__), features_of(6, batch=64)
    variables = {**random_variables(model, x), "batch_stats": {}}
    sites = find_sites(model, variables, x[:1])
    ranges = calibration.measure_ranges(model, sites, variables["params"], {}, [x])
    network, trees, _ = quantized((model, variables, x, ranges), bits)
    assert network.signed == {"body": True, "signed": True, "head/linear": False}
    infer = network.infer(trees, {}, x)
    rounded = dict(heard)
    told = {"params": trees}
    network.apply(told, x, train=True, rngs=RNGS)
    for name in ("signed", "linear"):
        q, trained = np.asarray(rounded[name]), np.asarray(heard[name]) / 4
        kept, count = trained != 0, (q != 0).sum()
        assert abs(kept[q != 0].mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / count)
        np.testing.assert_allclose(trained[kept], q[kept], rtol=1e-6)
    # And without dropout as it infers.
    np.testing.assert_allclose(network.apply(told, x, train=False), infer, rtol=1e-5)


class Kinds(nn.Module):
    """A layer of every kind, with a norm that folds into a layer with a bias too."""

    @nn.compact
    def __call__(self, x, *, train):
        def norm(y, name):
            return nn.BatchNorm(not train, epsilon=1e-3, name=name)(y)

        x = nn.relu(norm(nn.Conv(5, (3,), use_bias=False, name="conv")(x), "conv_bn"))
        x = DepthwiseConv((3,), name="depthwise")(x)
        x = nn.relu(norm(nn.Dense(4, name="biased")(x), "biased_bn"))
        point = nn.Conv(8, (1,), conv_general_dilated=pointwise_conv, name="point")(x)
        x = norm(nn.relu(point), "alone_bn")[..., None]
        x = nn.relu(DilatedConv(3, dilation=2, name="dilated")(x))
        x = DepthwiseConv((3, 3), name="depthwise_image")(x)
        x = nn.relu(nn.Conv(3, (3, 3), name="image")(x)).mean(axis=(1, 2))
        return nn.Dense(4, name="linear")(x)


@pytest.fixture(scope="module")
def kinds():
    """(model, variables, features, ranges of activations)."""
    # Clips enough for some value to lie inside of each range at one bit too.
    model, x = Kinds(), features_of(6, frames=5, batch=16)
    variables = random_variables(model, x)
    sites = find_sites(model, variables, x[:1])
    parts = (variables["params"], variables["batch_stats"])
    return model, variables, x, calibration.measure_ranges(model, sites, *parts, [x])


def quantized(kinds, bits, keep_float=()):
    """The network with measured ranges, its trees and its statistics."""
    model, variables, x, ranges = kinds
    sites = find_sites(model, variables, x[:1], keep_float=keep_float)
    signed = calibration.signs(ranges)
    bounds = calibration.initial_bounds(ranges, signed, bits.activations)
    network = QuantizedNetwork(model, sites, bits, signed)
    trees = {"weights": variables["params"], **network.initial_trees(bounds)}
    return network, trees, variables["batch_stats"]


def test_layers_norms_and_signs_are_found(kinds):
    network, _, _ = quantized(kinds, Bits(8, 8))
    sites = network.sites
    assert {name: site.kind for name, site in sites.layers.items()} == {
        "conv": "conv",
        "depthwise": "depthwise",
        "biased": "dense",
        "point": "conv",
        "dilated": "dilated",
        "depthwise_image": "depthwise",
        "image": "conv",
        "linear": "dense",
    }
    assert {n: s.name for n, s in sites.folded.items()} == {
        "conv_bn": "conv",
        "biased_bn": "biased",
    }
    assert sites.unfolded == ("alone_bn",)
    for name, signed in {"depthwise": False, "linear": False, "conv": True}.items():
        assert network.signed[name] == signed
    assert sites.weight_counts["dilated"] == 9 * 3
    assert sites.activation_counts["depthwise"] == 5 * 5


def test_layers_with_one_input_share_its_quantiser_and_all_branches_fold():
    model, x = registry.create_model("tenet6_narrow", 4, mtconv=True), features_of(4)
    shapes = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False), x[:1]
    )
    sites = find_sites(model, shapes, x[:1])
    first = {s.activation for n, s in sites.layers.items() if "layers_0/temporal" in n}
    assert first == {"layers_0/temporal/conv3"}
    assert sites.layers["layers_0/shortcut_conv"].activation == "layers_0/expand"
    assert sites.unfolded == ()


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_kind_of_layer_learns_at_every_fixed_width(kinds, bits):
    network, trees, stats = quantized(
        kinds, Bits(bits, bits, per_channel=bits % 2 == 0)
    )
    x = jnp.asarray(kinds[2])

    def loss(trees, x):
        return (network.infer(trees, stats, x) * jnp.arange(1.0, 5.0)).sum()

    def measure(trees, x):
        return jax.grad(loss, argnums=(0, 1))(trees, x), network.quantized_kernels(
            trees
        )

    compiled = jax.jit(measure).lower(trees, x).compile(QUICK)
    (gradients, dx), quantised = compiled(trees, x)
    assert_all_learn({**kernel_gradients(gradients), "input": dx}, bits)
    for name, weights in quantised.items():
        per_scale = weights.shape[-1] if network.bits.per_channel else 1
        values = len(np.unique(np.asarray(weights)))
        assert values <= per_scale * (2 if bits == 1 else 2**bits - 1), name
        if bits == 1:
            assert values == 2


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_every_kind_of_layer_learns_with_the_statistics_of_the_batch(kinds, bits):
    model, variables, x, _ = kinds
    variables = settled(model, variables, x)
    stats = variables["batch_stats"]
    sites = find_sites(model, variables, x[:1])
    ranges = calibration.measure_ranges(model, sites, variables["params"], stats, [x])
    network, trees, _ = quantized((model, variables, x, ranges), Bits(bits, bits))
    gradients, dx = gradients_in_training(network, trees, stats, x)
    assert_all_learn({**kernel_gradients(gradients), "input": dx}, bits)


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize(
    ("bits", "per_channel"), [(1, False), (2, True), (5, False), (8, True)]
)
def test_integers_times_scale_are_the_quantised_weights(
    kinds, bits, per_channel, learns
):
    if learns and bits == 1:
        pytest.skip("learned bits are at least 2")
    network, trees, stats = quantized(kinds, Bits(bits, bits, learns, 8, per_channel))
    given = to_integers(network, trees, stats)
    assert list(given.layers) == list(network.sites.layers)
    assert list(given.norms) == ["alone_bn"]
    for name, weights in jax.jit(network.weights_of)(trees, stats).items():
        layer = given.layers[name]
        assert layer.weights.dtype == np.int8
        assert np.abs(layer.weights).max() == max(1, 2 ** (bits - 1) - 1)
        np.testing.assert_allclose(layer.weights * layer.scale, weights, rtol=1e-6)
        assert np.all(layer.scale > 0)


def with_gammas(variables):
    """Of both signs, and 0."""
    flat = traverse_util.flatten_dict(variables["params"], sep="/")
    for name in [n for n in flat if n.endswith("bn/scale")]:
        signs = np.resize([1.0, -1.0, 1.0, -0.5, 0.0], flat[name].shape)
        flat[name] = np.float32(flat[name] * signs)
    return {**variables, "params": traverse_util.unflatten_dict(flat, sep="/")}


@pytest.mark.parametrize(("bits", "per_channel"), [(1, False), (2, True), (4, False)])
def test_norms_of_any_sign_fold_into_integers_as_training_has_them(
    kinds, bits, per_channel
):
    model, variables, x, ranges = kinds
    kinds = model, with_gammas(variables), x, ranges
    network, trees, stats = quantized(kinds, Bits(bits, 8, False, 8, per_channel))
    given = to_integers(network, trees, stats)
    weights_of = jax.jit(network.weights_of, compiler_options=QUICK)
    for name, weights in weights_of(trees, stats).items():
        layer = given.layers[name]
        np.testing.assert_allclose(layer.weights * layer.scale, weights, rtol=1e-6)
        assert np.all(layer.scale >= 0)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def both(trees, x):
        variables = {"params": trees, "batch_stats": stats}
        return network.infer(trees, stats, x), network.apply(variables, x, train=False)

    folded, as_trained = both(trees, x)
    gap, spread = np.abs(folded - as_trained), np.ptp(as_trained)
    # An activation between two integers may be rounded to either.
    assert np.median(gap) < 1e-4 * spread
    assert gap.max() < 0.05 * spread


def test_training_quantises_and_normalises_by_the_batch(kinds):
    """Against the network with kernels rounded by hand, and inputs not at all."""
    network, trees, stats = quantized(kinds, Bits(3, 8))
    x = kinds[2]
    flat = traverse_util.flatten_dict(trees["weights"], sep="/")
    for site in network.sites.layers.values():
        kernel = np.float64(flat["/".join(site.path)])
        step = np.abs(kernel).max() / 3
        flat["/".join(site.path)] = np.float32(
            np.clip(np.rint(kernel / step), -3, 3) * step
        )
    # activations of 8 bits err by little, so that these may be left out here
    expected, moved = Kinds().apply(
        {"params": traverse_util.unflatten_dict(flat, sep="/"), "batch_stats": stats},
        x,
        train=True,
        mutable=["batch_stats"],
    )
    got, updated = network.apply(
        {"params": trees, "batch_stats": stats}, x, train=True, mutable=["batch_stats"]
    )
    spread = np.abs(expected).max()
    assert np.abs(got - expected).max() < 0.1 * spread
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0.1, atol=0.1),
        updated["batch_stats"],
        moved["batch_stats"],
    )
    changed = jax.tree.map(
        lambda a, b: np.abs(a - b).max(), updated["batch_stats"], stats
    )
    assert min(jax.tree.leaves(changed)) > 0


class Chain(nn.Module):
    """Two dense layers with a norm, small enough to be computed by hand."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.BatchNorm(not train, epsilon=1e-3, name="bn")(nn.Dense(7, name="a")(x))
        return nn.Dense(4, name="b")(nn.relu(x).mean(1))


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_a_network_computed_in_integers_answers_alike(bits):
    model, x = Chain(), features_of(6)
    variables = random_variables(model, x)
    stats = variables["batch_stats"]
    sites = find_sites(model, variables, x[:1])
    ranges = calibration.measure_ranges(model, sites, variables["params"], stats, [x])
    network, trees, stats = quantized((model, variables, x, ranges), Bits(bits, bits))
    layers = to_integers(network, trees, stats).layers

    def run(layer, x):
        a = layer.activation
        q = np.clip(np.rint(x / np.float32(a.scale)), -a.highest * a.signed, a.highest)
        if a.signed and a.bits == 1:
            q = np.where(x >= 0, 1, -1)
        total = q.astype(np.int32) @ layer.weights.astype(np.int32)
        return total * (a.scale * layer.scale[0]) + layer.bias

    by_hand = run(layers["b"], np.maximum(run(layers["a"], x), 0).mean(1))
    got = network.infer(trees, stats, x)
    np.testing.assert_allclose(got, by_hand, rtol=1e-4, atol=1e-5)
    if bits == 8:
        assert_within_quantiser_error(
            layers, x, got, model.apply(variables, x, train=False)
        )


def assert_within_quantiser_error(layers, x, quantised, exact):
    """Each rounding errs by half a step, within ranges that cut nothing off.

    |Σ (w + δ)(x + ε) − Σ w·x| ≤ Σ (|w| + s_w/2)·(s_x/2 + e) + s_w/2·|x|, where e is the
    error that x brings with it; ReLU and the mean make it no larger.
    """
    error = 0.0
    for layer in (layers["a"], layers["b"]):
        weights, half = np.abs(layer.weights * layer.scale), layer.scale / 2
        into = layer.activation.scale / 2 + error
        size = layer.activation.scale * layer.activation.highest
        error = ((weights + half) * into + half * size).sum(0).max()
    assert np.abs(quantised - exact).max() <= error
    # Half of what one part in 127 of every product would be: not a bound that is empty.
    assert error < 0.5 * np.abs(exact).max() + 0.5


def test_layers_kept_in_float_are_left_alone_with_their_norms(kinds):
    network, trees, stats = quantized(kinds, Bits(2, 2), ("conv", "depthwise*"))
    assert network.sites.kept == ("conv", "depthwise", "depthwise_image")
    assert network.sites.unfolded == ("conv_bn", "alone_bn")
    assert "conv" not in to_integers(network, trees, stats).layers
    assert "depthwise" not in trees["quantization_bounds"]


def test_norms_that_are_told_in_the_call_to_use_their_statistics_fold():
    class Told(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            y = nn.Dense(4, name="dense")(x)
            return nn.BatchNorm(name="bn")(y, use_running_average=not train).mean(1)

    model, x = Told(), features_of(3)
    variables = random_variables(model, x)
    sites = find_sites(model, variables, x[:1])
    assert sites.layers["dense"].norm == "bn"
    network = QuantizedNetwork(model, sites, Bits(8, 8), {"dense": True})
    trees = {"weights": variables["params"], **network.initial_trees({"dense": 4.0})}
    found = network.infer(trees, variables["batch_stats"], x)
    np.testing.assert_allclose(found, model.apply(variables, x, train=False), atol=0.1)


def test_unknown_pattern_and_layers_that_cannot_be_quantised_are_named():
    class Odd(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            table = self.param("table", nn.initializers.ones, (x.shape[-1], 4))
            return nn.Dense(4, name="dense")(x @ table).mean(1)

    model, x = Odd(), features_of(3)
    variables = random_variables(model, x)
    with pytest.raises(UserError, match="Cannot quantise table"):
        find_sites(model, variables, x[:1])
    assert list(find_sites(model, variables, x, keep_float=("tab*",)).layers) == [
        "dense"
    ]
    with pytest.raises(UserError, match=r"named 'dens'; did you mean 'dense'\?"):
        find_sites(model, variables, x, keep_float=("dens",))
    with pytest.raises(UserError, match="leave one"):
        find_sites(model, variables, x, keep_float=("*",))


def test_ranges_begin_where_rounding_and_cutting_off_balance():
    ranges = {
        "relu": (0.0, 9.0, 0.5),
        "signed": (-4.0, 1.0, 0.5),
        "dead": (0.0, 0.0, 0.0),
    }
    signed = calibration.signs(ranges)
    assert signed == {"relu": False, "signed": True, "dead": False}
    few = calibration.initial_bounds(ranges, signed, bits=2)
    # 2 · mean · √top, with top 3 without and 1 with a sign.
    assert few == pytest.approx({"relu": 3**0.5, "signed": 1.0, "dead": 1.0})
    many = calibration.initial_bounds(ranges, signed, bits=8)
    assert many == pytest.approx(
        {
            "relu": 9.0,
            "signed": 4.0,
            "dead": 1.0,
        }
    )
