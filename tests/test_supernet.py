import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kws_jax.errors import UserError
from kws_jax.models.genotype import Genotype
from kws_jax.models.searched import MixedLayer, SearchedTCNet
from kws_jax.search.random_search import random_genotype
from kws_jax.search.space import SearchSpace
from kws_jax.search.supernet import SuperNet, extract

SPACE = SearchSpace(strides=(2, 1), channels=(8, 8), stem_channels=4)
FEATURES = np.random.default_rng(0).normal(size=(3, 14, 5)).astype(np.float32)
LABELS = 3


@functools.cache
def supernet(shortcut="1x1", affine=True):
    space = SearchSpace(
        SPACE.strides, SPACE.channels, SPACE.stem_channels, shortcut=shortcut
    )
    net = SuperNet(LABELS, space, dropout=0.0, affine=affine)
    weights = tuple(jnp.ones(len(names)) for names in space.candidates)
    variables = jax.jit(lambda x: net.init(jax.random.key(0), x, weights, train=False))(
        FEATURES
    )
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda v: (
            v
            if v.ndim > 1
            else (v + rng.uniform(0.1, 0.5, v.shape)).astype(np.float32)
        ),
        variables,
    )

    def evaluate(variables, weights):
        return net.apply(variables, FEATURES, weights, train=False)

    def train(variables, weights):
        return net.apply(
            variables, FEATURES, weights, train=True, mutable=["batch_stats"]
        )

    return space, variables, jax.jit(evaluate), jax.jit(train)


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


@pytest.mark.parametrize(
    ("layers", "shortcut", "affine"),
    [
        *((layers, "1x1", True) for layers in GENOTYPES),
        ((("C5", "C9SE"), ("C7SE",)), "jx1", True),
        ((("C5SE",), ("C3",)), "1x1", False),
    ],
)
def test_supernet_with_one_hot_weights_is_the_derived_network(layers, shortcut, affine):
    space, variables, evaluate, train = supernet(shortcut, affine)
    genotype = space.genotype(layers)
    derived = SearchedTCNet(LABELS, genotype, dropout=0.0)
    taken = extract(variables, genotype)
    weights = one_hot(space, genotype)

    expected_shapes = jax.eval_shape(
        lambda x: derived.init(jax.random.key(0), x, train=False), FEATURES
    )
    chex.assert_trees_all_equal_shapes(taken, expected_shapes)

    got = evaluate(variables, weights)
    expected = jax.jit(lambda v: derived.apply(v, FEATURES, train=False))(taken)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)

    got, moved = train(variables, weights)
    expected, derived_moved = jax.jit(
        lambda v: derived.apply(v, FEATURES, train=True, mutable=["batch_stats"])
    )(taken)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    moved = extract({"params": variables["params"], **moved}, genotype)
    chex.assert_trees_all_close(
        moved["batch_stats"], derived_moved["batch_stats"], rtol=1e-4, atol=1e-6
    )


def test_output_is_linear_in_the_weights_of_the_last_layer():
    layer = MixedLayer(("C3", "C5SE", "SKIP"), 4)
    x = np.random.default_rng(2).normal(size=(2, 9, 4)).astype(np.float32)
    variables = layer.init(jax.random.key(0), x, jnp.ones(3), train=False)
    run = jax.jit(lambda w: layer.apply(variables, x, w, train=False))
    parts = np.stack([run(w) for w in jnp.eye(3)])
    weights = jnp.array([0.2, -1.0, 3.0])
    expected = np.einsum("o,obtc->btc", weights, parts)
    np.testing.assert_allclose(run(weights), expected, rtol=1e-4, atol=1e-5)
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
    space, variables, _, _ = supernet()
    net = SuperNet(LABELS, space, dropout=0.0)

    def loss(params, weights):
        logits, _ = net.apply(
            {**variables, "params": params},
            FEATURES,
            weights,
            train=True,
            mutable=["batch_stats"],
        )
        return jnp.sum(jax.nn.log_softmax(logits)[:, 0])

    weights = tuple(
        jnp.full(len(names), 1 / len(names)) for names in space.candidates
    )
    params, ops = jax.jit(jax.grad(loss, (0, 1)))(variables["params"], weights)
    chex.assert_tree_all_finite((params, ops))
    for gradient in jax.tree.leaves((params, ops)):
        assert np.abs(gradient).max() > 0


def test_candidates_are_those_of_the_paper():
    candidates = SearchSpace().candidates
    assert [len(names) for names in candidates] == [8, 9, 8, 9, 8, 9]
    assert all(("SKIP" in names) == (len(names) == 9) for names in candidates)


def test_architecture_starts_small_and_differs_by_layer():
    alphas = SearchSpace().init_architecture(jax.random.key(0))
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


def test_a_space_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="channels"):
        SearchSpace(channels=(8, 8))


def test_genotype_outside_the_skeleton_is_refused_by_the_space():
    with pytest.raises(UserError, match=r"layers\[0\]"):
        SPACE.genotype([["SKIP"], ["C3"]])
    assert isinstance(SPACE.genotype([["C3"], ["SKIP"]]), Genotype)
