import dataclasses
import functools
import re
from pathlib import Path
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from configs import autokws
from kws_jax import config as configs
from kws_jax.errors import UserError
from kws_jax.models.genotype import OPERATIONS, Genotype
from kws_jax.models.searched import MixedLayer, SearchedTCNet
from kws_jax.search.architecture import init_architecture
from kws_jax.search.bilevel import make_search_step
from kws_jax.search.methods import create_method
from kws_jax.search.random_search import random_genotype
from kws_jax.search.space import SearchSpace
from kws_jax.search.supernet import SuperNet
from kws_jax.stages import search
from kws_jax.training.state import ARCHITECTURE, WEIGHTS, create_train_state

SPACE = SearchSpace(strides=(2, 1), channels=(8, 8), stem_channels=4)
FEATURES = np.random.default_rng(0).normal(size=(3, 14, 5)).astype(np.float32)
LABELS = 3


def random_variables(init):
    """Random values, variances positive, of the shapes of `init`; compiles nothing."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda v: (
            rng.uniform(0.5, 1.5, v.shape)
            * (rng.choice([-1, 1], v.shape) ** (v.ndim > 1))
        ).astype(np.float32),
        jax.eval_shape(init),
    )


def extract(variables, genotype):
    """Variables of SearchedTCNet(genotype), taken from those of a supernet.

    Batch norms that were searched without scale and shift get scale 1 and shift 0.
    """
    kept = {
        (f"layers_{index}", operation)
        for index, operations in enumerate(genotype.layers)
        for operation in operations
        if operation != "SKIP"
    }

    def select(tree):
        return {
            path: leaf
            for path, leaf in traverse_util.flatten_dict(tree).items()
            if not path[0].startswith("layers_") or path[:2] in kept
        }

    params, stats = select(variables["params"]), select(variables["batch_stats"])
    for path, leaf in stats.items():
        if path[-1] == "mean":
            params.setdefault((*path[:-1], "scale"), jnp.ones_like(leaf))
            params.setdefault((*path[:-1], "bias"), jnp.zeros_like(leaf))
    return {
        "params": traverse_util.unflatten_dict(params),
        "batch_stats": traverse_util.unflatten_dict(stats),
    }


@functools.cache
def supernet(operations=OPERATIONS, shortcut="1x1"):
    space = dataclasses.replace(SPACE, operations=operations, shortcut=shortcut)
    net = SuperNet(LABELS, space, dropout=0.0)
    weights = tuple(jnp.ones(len(names)) for names in space.candidates)
    features = jnp.asarray(FEATURES)
    variables = random_variables(
        lambda: net.init(jax.random.key(0), features, weights, train=False)
    )

    def both_modes(variables, weights):
        return both(net, variables, weights)

    return space, net, variables, jax.jit(both_modes)


def both(net, variables, *weights):
    """Logits in evaluation, logits in training, new statistics."""
    evaluated = net.apply(variables, FEATURES, *weights, train=False)
    trained, moved = net.apply(
        variables, FEATURES, *weights, train=True, mutable=["batch_stats"]
    )
    return evaluated, trained, moved


def one_hot(space, genotype):
    return tuple(
        jnp.array([float(name in kept) for name in names])
        for names, kept in zip(space.candidates, genotype.layers)
    )


GENOTYPES = [
    (("C9SE",), ("SKIP",)),
    (("C3",), ("C5SE",)),
    (("C7",), ("C9",)),
    (("C5", "C5SE", "C3"), ("C9SE", "C3", "SKIP")),
]


FEW = ("C3SE", "C5", "SKIP")


@pytest.mark.parametrize(
    ("layers", "settings"),
    [
        *((layers, {}) for layers in GENOTYPES),
        ((("C5", "C3SE"), ("C5", "SKIP")), {"operations": FEW, "shortcut": "jx1"}),
        ((("C3SE",), ("C5",)), {"operations": FEW}),
    ],
)
def test_supernet_with_one_hot_weights_is_the_derived_network(layers, settings):
    space, _, variables, run = supernet(**settings)
    genotype = space.genotype(layers)
    derived = SearchedTCNet(LABELS, genotype, dropout=0.0)
    taken = extract(variables, genotype)

    shapes = jax.eval_shape(
        lambda x: derived.init(jax.random.key(0), x, train=False), FEATURES
    )
    chex.assert_trees_all_equal_shapes(taken, shapes)

    evaluated, trained, moved = run(variables, one_hot(space, genotype))
    expected = jax.jit(lambda v: both(derived, v))(taken)
    scale = np.abs(expected[0]).max()
    np.testing.assert_allclose(evaluated, expected[0], rtol=1e-4, atol=1e-5 * scale)
    np.testing.assert_allclose(trained, expected[1], rtol=1e-4, atol=1e-4)
    moved = extract({"params": variables["params"], **moved}, genotype)
    chex.assert_trees_all_close(
        moved["batch_stats"], expected[2]["batch_stats"], rtol=1e-3, atol=1e-4
    )


def test_output_is_linear_in_the_weights_of_the_last_layer():
    layer = MixedLayer(("C3", "C5SE", "SKIP"), 4)
    x = np.random.default_rng(2).normal(size=(2, 9, 4)).astype(np.float32)
    variables = random_variables(
        lambda: layer.init(jax.random.key(0), jnp.asarray(x), train=False)
    )
    run = jax.jit(lambda w: layer.apply(variables, x, w, train=False))
    parts = np.stack([run(w) for w in jnp.eye(3)])
    weights = jnp.array([0.2, -1.0, 3.0])
    expected = np.einsum("o,obtc->btc", weights, parts)
    scale = np.abs(parts).max()
    np.testing.assert_allclose(run(weights), expected, rtol=1e-4, atol=1e-5 * scale)
    np.testing.assert_allclose(parts[2], x, rtol=1e-6)


def test_skip_noise_has_the_asked_deviation_and_only_in_training():
    layer = MixedLayer(("SKIP",), 8, skip_noise=0.2)
    x = 3.0 * jax.random.normal(jax.random.key(1), (20, 30, 8)) + 5.0
    rngs = {"noise": jax.random.key(2)}
    noisy = layer.apply({}, x, jnp.ones(1), train=True, rngs=rngs) - x
    assert float(np.std(noisy) / np.std(x)) == pytest.approx(0.2, rel=0.05)
    assert abs(np.mean(noisy)) < 0.05
    quiet = layer.apply({}, x, jnp.ones(1), train=False)
    np.testing.assert_array_equal(quiet, x)


def test_every_candidate_gets_a_gradient():
    space, net, variables, _ = supernet(FEW)

    def loss(params, weights):
        logits, _ = net.apply(
            {**variables, "params": params},
            FEATURES,
            weights,
            train=True,
            mutable=["batch_stats"],
        )
        return jnp.sum(jax.nn.log_softmax(logits)[:, 0])

    weights = tuple(jnp.full(len(names), 1 / len(names)) for names in space.candidates)
    params, ops = jax.jit(jax.grad(loss, (0, 1)))(variables["params"], weights)
    chex.assert_tree_all_finite((params, ops))
    for gradient in jax.tree.leaves((params, ops)):
        assert np.abs(gradient).max() > 0


def test_candidates_are_those_of_the_paper():
    candidates = SearchSpace().candidates
    assert [len(names) for names in candidates] == [8, 9, 8, 9, 8, 9]
    assert all(("SKIP" in names) == (len(names) == 9) for names in candidates)


def test_architecture_starts_small_and_differs_by_layer():
    alphas = init_architecture(jax.random.key(0), SearchSpace().candidates)
    assert [len(a) for a in alphas] == [8, 9, 8, 9, 8, 9]
    assert 3e-4 < np.std(np.concatenate(alphas)) < 3e-3
    assert not np.allclose(alphas[0], alphas[2])


def test_random_genotypes_follow_their_seed_and_the_space():
    space = SearchSpace()
    drawn = [random_genotype(space, seed) for seed in range(300)]
    assert drawn[7] == random_genotype(space, 7)
    for index, names in enumerate(space.candidates):
        chosen = [genotype.layers[index] for genotype in drawn]
        assert all(len(layer) == 1 for layer in chosen)
        assert {layer[0] for layer in chosen} == set(names)


def space_of(*operations):
    config = autokws.get_config().unlock()
    config.search.operations = operations
    configs.check(config)
    return search.create_space(SimpleNamespace(config=config))


def test_the_operations_of_the_config_are_what_is_searched_and_drawn():
    space = space_of("SKIP", "C5SE", "C3")
    assert space.candidates == (("C5SE", "C3"), ("SKIP", "C5SE", "C3")) * 3
    drawn = [random_genotype(space, seed) for seed in range(50)]
    for index, names in enumerate(space.candidates):
        assert {genotype.layers[index][0] for genotype in drawn} == set(names)


def test_no_operations_are_all_of_them_as_before_there_was_a_choice():
    assert space_of() == SearchSpace()
    config, there = autokws.get_config(), autokws.get_config().unlock()
    del there.search.operations
    assert search.create_space(SimpleNamespace(config=there)) == SearchSpace()
    configs.check_same(config, there, Path("x"))
    there.search.operations = ("C3",)
    with pytest.raises(UserError, match=r"config\.search\.operations: \['C3'\] there"):
        configs.check_same(config, there, Path("x"))


@pytest.mark.parametrize(
    ("operations", "message"),
    [
        (("C3", "C5SF"), "has 'C5SF', which is unknown; did you mean 'C5SE'?"),
        (("SKIP",), "has no block for layers that change frames"),
        (("C3", "SKIP", "C3"), "names 'C3' more than once"),
        (("C3", 5), "config.search.operations = ('C3', 5): give texts in brackets"),
    ],
)
def test_operations_of_which_no_network_can_be_made_are_refused(operations, message):
    with pytest.raises(UserError, match=re.escape(message)):
        space_of(*operations)


def test_a_space_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="channels"):
        SearchSpace(channels=(8, 8))


def test_genotype_outside_the_skeleton_is_refused_by_the_space():
    with pytest.raises(UserError, match=r"layers\[0\]"):
        SPACE.genotype([["SKIP"], ["C3"]])
    assert isinstance(SPACE.genotype([["C3"], ["SKIP"]]), Genotype)


@pytest.mark.parametrize("order", [1, 2])
def test_search_step_takes_the_supernet_and_keeps_the_shape_of_the_state(order):
    space, _, variables, _ = supernet(FEW)
    net = SuperNet(LABELS, space, skip_noise=0.2)
    method = create_method("noisydarts")

    def loss_fn(trees, batch_stats, batch, key):
        dropout, noise = jax.random.split(key)
        logits, moved = net.apply(
            {"params": trees[WEIGHTS], "batch_stats": batch_stats},
            batch,
            method.op_weights(trees[ARCHITECTURE]),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout, "noise": noise},
        )
        return -jnp.mean(jax.nn.log_softmax(logits)[:, 0]), ({}, moved["batch_stats"])

    transformations = {
        WEIGHTS: optax.chain(optax.clip_by_global_norm(5.0), optax.sgd(0.1, 0.9)),
        ARCHITECTURE: optax.adam(3e-4),
    }
    trees = {
        WEIGHTS: variables["params"],
        ARCHITECTURE: init_architecture(jax.random.key(0), space.candidates),
    }
    state = create_train_state(trees, variables["batch_stats"], transformations)
    step = make_search_step(
        loss_fn, transformations, order=order, regulariser=method.regulariser
    )
    moved, metrics = jax.eval_shape(step, state, FEATURES, FEATURES, jax.random.key(1))
    chex.assert_trees_all_equal_shapes_and_dtypes(moved, state)
    norms = {"gradient_norm", "architecture_gradient_norm"}
    assert set(metrics) == {"loss", "architecture_loss"} | norms
