"""The merged layer computes what the candidates compute one after the other."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_values import QUICK, random_variables

from kws_jax.models.counting import count_macs
from kws_jax.models.genotype import OPERATIONS
from kws_jax.models.searched import MixedLayer
from kws_jax.search.merged import MergedLayer
from kws_jax.search.space import SearchSpace
from kws_jax.search.supernet import SuperNet

BLOCKS = OPERATIONS[:-1]
RNGS = {"noise": jax.random.key(7)}


def features(channels, frames=14):
    rng = np.random.default_rng(channels)
    return rng.normal(size=(3, frames, channels)).astype(np.float32)


def weights_of(operations):
    return jnp.linspace(0.5, 1.5, len(operations)) * (-1) ** jnp.arange(len(operations))


def everything(layer, variables, x, weights):
    """Outputs in both modes, new statistics, gradients by params, x and weights."""
    direction = np.random.default_rng(5).normal(size=(64,)).astype(np.float32)

    def objective(params, x, weights):
        y, moved = layer.apply(
            {**variables, "params": params},
            x,
            weights,
            train=True,
            mutable=["batch_stats"],
            rngs=RNGS,
        )
        return jnp.vdot(jnp.resize(direction, y.shape), y), (y, moved)

    evaluated = layer.apply(variables, x, weights, train=False)
    gradients, (trained, moved) = jax.grad(objective, (0, 1, 2), has_aux=True)(
        variables["params"], x, weights
    )
    return (evaluated, trained, moved), gradients


def assert_close(ours, theirs, tolerance):
    """Each leaf relative to its largest entry, or to a hundredth of the tree's."""
    chex.assert_trees_all_equal_shapes_and_dtypes(ours, theirs)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs))
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True
    ):
        scale = max(np.abs(b).max(), largest / 100)
        error = np.abs(a - b).max() / scale
        assert error < tolerance, f"{jax.tree_util.keystr(path)}: {error:.1e}"


def assert_same(operations, inputs, channels, stride=1, frames=14, **settings):
    x, weights = features(inputs, frames), weights_of(operations)
    arguments = (operations, channels, stride)
    mixed = MixedLayer(*arguments, **settings)
    variables = random_variables(mixed, x, weights)
    results = [
        jax.jit(functools.partial(everything, layer), compiler_options=QUICK)(
            variables, x, weights
        )
        for layer in (MergedLayer(*arguments, **settings), mixed)
    ]
    (values, gradients), (expected, expected_gradients) = results
    for ours, theirs in zip(values, expected, strict=True):
        assert_close(ours, theirs, 1e-5)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert_close(ours, theirs, 1e-4)
    assert np.abs(expected_gradients[2]).min() > 0


@pytest.mark.parametrize(
    ("operations", "settings"),
    [
        (OPERATIONS, {}),
        (("SKIP", "C5SE"), {}),
        (("C7", "SKIP"), {}),
        (("C9", "C3"), {}),
        # names in an order that is not that of the merged channels
        (("C9SE", "C3SE", "SKIP", "C3"), {}),
        (("C3SE", "C5SE", "C9SE"), {"se_reduction": 16}),
        (("C3", "C5SE", "SKIP"), {"skip_noise": 0.3, "batch_norm_momentum": 0.5}),
    ],
)
def test_normal_layer_is_the_sum_of_its_candidates(operations, settings):
    assert_same(operations, 6, 6, **settings)


@pytest.mark.parametrize("shortcut", ["1x1", "jx1"])
@pytest.mark.parametrize(
    ("inputs", "stride", "frames"),
    [(4, 2, 14), (6, 2, 13), (4, 1, 14), (4, 2, 3)],
)
def test_reduction_layer_is_the_sum_of_its_candidates(inputs, stride, frames, shortcut):
    operations = ("C3", "C9SE", "C5")
    assert_same(operations, inputs, 6, stride, frames, shortcut=shortcut)


def test_reduction_layer_of_all_blocks():
    assert_same(BLOCKS, 4, 6, 2)


@pytest.mark.parametrize("weights", [None, jnp.ones(2)])
def test_without_weights_it_is_the_plain_sum(weights):
    operations, x = ("C3", "SKIP"), features(4)
    mixed = MixedLayer(operations, 4)
    variables = random_variables(mixed, x)
    result = MergedLayer(operations, 4).apply(variables, x, weights, train=False)
    assert_close(result, mixed.apply(variables, x, train=False), 1e-5)


def test_only_skip_has_noise_in_training_alone():
    layer, x = MergedLayer(("SKIP",), 4, skip_noise=0.2), features(4)
    np.testing.assert_array_equal(layer.apply({}, x, jnp.ones(1), train=False), x)
    noisy = layer.apply({}, x, jnp.ones(1), train=True, rngs=RNGS)
    other = layer.apply(
        {}, x, jnp.ones(1), train=True, rngs={"noise": jax.random.key(8)}
    )
    assert np.std(noisy - x) == pytest.approx(0.2 * np.std(x), rel=0.2)
    assert np.abs(noisy - other).max() > 0


def test_an_unknown_shortcut_is_refused():
    layer = MergedLayer(("C3",), 4, 2, shortcut="2x2")
    with pytest.raises(ValueError, match="shortcut"):
        layer.init(jax.random.key(0), features(4), train=False)


def test_initial_values_are_those_of_the_candidates():
    x, operations = features(4), ("C3SE", "C5")
    merged, mixed = (
        jax.jit(
            functools.partial(layer(operations, 6, 2).init, train=False),
            compiler_options=QUICK,
        )(jax.random.key(3), x)
        for layer in (MergedLayer, MixedLayer)
    )
    chex.assert_trees_all_equal(merged, mixed)


@pytest.mark.parametrize("shortcut", ["1x1", "jx1"])
def test_macs_of_the_supernet_are_those_of_its_candidates(shortcut):
    space = SearchSpace(
        strides=(2, 1), channels=(8, 8), stem_channels=4, shortcut=shortcut
    )
    net, x = SuperNet(5, space), features(6, frames=14)
    weights = tuple(jnp.ones(len(names)) for names in space.candidates)
    expected, frames = 14 * 3 * 6 * 4 + 8 * 5, 7
    for before, reduction in ((4, True), (8, False)):
        for name in BLOCKS:
            k = int(name[1])
            expected += frames * k * (before * 8 + 8 * 8)
            expected += 2 * 8 * 2 if name.endswith("SE") else 0
            if reduction:
                expected += frames * (1 if shortcut == "1x1" else k) * before * 8
    variables = jax.eval_shape(
        functools.partial(net.init, train=False), jax.random.key(0), x, weights
    )
    apply = functools.partial(net.apply, train=False)
    assert count_macs(apply, variables, x, weights) == len(x) * expected
