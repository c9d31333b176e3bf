"""The pair losses beside the literal sums of the paper, in float64."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_values import QUICK

from kws_jax.objectives import metric_learning as ml

M, D = 3, 5
quickly = functools.partial(jax.jit, compiler_options=QUICK)
DISTANCES = {
    "euclid": lambda x, y: math.sqrt(((x - y) ** 2).sum()),
    "sq_euclid": lambda x, y: ((x - y) ** 2).sum(),
    "cosine": lambda x, y: 1 - x @ y / math.sqrt((x @ x) * (y @ y)),
}


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def tuples_of(classes, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return scale * rng.normal(size=(M, classes + 1, D))


def log1p_exp(x):
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


def literal_cn2(z, distance, weight, scale):
    """L' of the paper for one tuple; z[0] anchor, z[1] positive, and the classes' sum.

    The anchor's class is i = 0, the negatives are of the classes 1 … N − 1.
    """
    d, n, i = DISTANCES[distance], len(z) - 1, 0
    negative = {j: z[j + 1] for j in range(1, n)}
    total, count = 0.0, 0
    for j in range(n):
        if j == i:
            continue
        total, count = total + d(z[0], negative[j]), count + 1
        for k in range(j + 1, n):
            if k != i:
                total, count = total + d(negative[j], negative[k]), count + 1
    assert count == math.comb(n, 2)
    return log1p_exp(scale * (d(z[0], z[1]) - (weight or 1 / count) * total))


def literal_npair(z, distance, weight, scale):
    d = DISTANCES[distance]
    total = sum(d(z[0], n) for n in z[2:])
    return log1p_exp(scale * (d(z[0], z[1]) - (weight or 1 / len(z[2:])) * total))


def literal_triplet(z, distance, weight, scale):
    d = DISTANCES[distance]
    nearer = [d(z[0], z[1]) - (weight or 1) * d(z[0], n) for n in z[2:]]
    return np.mean([log1p_exp(scale * x) for x in nearer])


LITERAL = {"cn2": literal_cn2, "npair": literal_npair, "triplet": literal_triplet}


def all_losses(z, distance, weight=None, scale=1.0):
    """Every loss of tuples [m, r, d], as [losses, m]."""
    settings = {"distance": distance, "weight": weight, "scale": scale}
    return jnp.stack([loss(z, **settings) for loss in ml.LOSSES.values()])


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("classes", [2, 3, 12])
def test_losses_are_the_literal_sums(classes, distance, float64):
    z, settings = tuples_of(classes), ((None, 1.0), (1.0, 1.0), (0.03, 0.25))

    @quickly
    def found(z):
        return [all_losses(z, distance, *each) for each in settings]

    for (weight, scale), losses in zip(settings, found(z), strict=True):
        assert losses.dtype == np.float64
        for name, values in zip(ml.LOSSES, losses, strict=True):
            expected = [LITERAL[name](each, distance, weight, scale) for each in z]
            np.testing.assert_allclose(values, expected, rtol=1e-12)


@pytest.mark.parametrize("distance", DISTANCES)
def test_twelve_classes_have_66_distances_between_them(distance, float64):
    z = tuples_of(12)
    pairs = list(itertools.combinations(range(12), 2))
    assert len(pairs) == 66
    expected = [sum(DISTANCES[distance](e[j], e[k]) for j, k in pairs) for e in z]
    sums = ml.DISTANCE_SUMS[distance](jnp.asarray(z)[:, :12])
    np.testing.assert_allclose(sums, expected, rtol=1e-12)


@pytest.mark.parametrize("distance", DISTANCES)
def test_two_classes_make_all_of_them_the_triplet_loss(distance, float64):
    z = jnp.asarray(tuples_of(2))
    losses = [loss(z, distance=distance, weight=0.7) for loss in ml.LOSSES.values()]
    np.testing.assert_allclose(losses[1:], losses[:-1], rtol=1e-12)


@pytest.mark.parametrize(
    ("times", "comes_apart"), [(1.0, False), (2.0, False), (2.4, True), (4.0, True)]
)
def test_a_heap_of_classes_comes_apart_where_lambda_is_large_enough(times, comes_apart):
    """6 of 12 classes drawn alike come apart from c = (N − 1) / (m − 1) = 2.2 on."""
    classes, heap, dimensions = 12, 6, 30
    alone = np.arange(classes) >= heap
    centres = 1e4 * np.eye(classes, dimensions) * alone[:, None]
    spread = np.random.default_rng(0).normal(size=(2000, classes + 1, dimensions))

    @quickly
    def slope(radius, order):
        """Of the mean loss by the radius; the anchor's class leads `order`."""
        members = jnp.concatenate([order[:1], order])
        moving = jnp.where(jnp.asarray(alone)[members], 0.0, 1.0)[:, None]

        def loss(radius):
            tuples = jnp.asarray(centres)[members] + radius * moving * spread
            # A scale so small that distances alone count, not the softplus' slope.
            weight = times / math.comb(classes, 2)
            settings = {"distance": "euclid", "weight": weight, "scale": 1e-9}
            return ml.cn2_pair_loss(tuples, **settings).mean()

        return jax.grad(loss)(radius)

    orders = [np.roll(np.arange(classes), -anchor) for anchor in range(classes)]
    slopes = [slope(jnp.float32(0.1), jnp.asarray(order)) for order in orders]
    assert (sum(slopes) < 0) == comes_apart


@pytest.mark.parametrize("distance", DISTANCES)
def test_gradients_are_those_of_finite_differences(distance, float64):
    shape, step = (1, 5, D), 1e-5
    z = tuples_of(4)[0].ravel()

    def f(z):
        return all_losses(z.reshape(shape), distance)[:, 0]

    @quickly
    def both(z):
        moved = jax.vmap(f)(z + step * jnp.eye(len(z)))
        back = jax.vmap(f)(z - step * jnp.eye(len(z)))
        return jax.jacrev(f)(z), (moved - back).T / (2 * step)

    np.testing.assert_allclose(*both(z), rtol=1e-6, atol=1e-9)


def extremes():
    """Tuples of 12 classes whose distances are 0, or far or near beside a mean."""
    z = np.float32(tuples_of(12))
    far = z.copy()
    far[:, 1] *= 1e4  # distances of some 1e4, squared of 1e8
    return np.stack([np.repeat(z[:, :1], 13, axis=1), 0 * z, far, 1 + 1e-6 * z])


@pytest.mark.parametrize("distance", DISTANCES)
def test_extremes_have_a_finite_loss_and_gradient_in_float32(distance):
    def sums(z):
        return all_losses(z, distance).sum(1)

    @quickly
    def both(cases):
        return jax.vmap(sums)(cases), jax.vmap(jax.jacrev(sums))(cases)

    values, gradients = both(extremes())
    assert np.isfinite(values).all()
    assert np.isfinite(gradients).all()
    # Where all distances are 0: ln 2 each, and no direction in which to go.
    np.testing.assert_allclose(values[:2], M * math.log(2), rtol=1e-5)
    assert np.abs(gradients[:2]).max() < 1e-5


def test_a_loss_is_linear_where_distances_are_large():
    z = np.float32(tuples_of(3))
    z[:, 1] = z[:, 0] + np.float32([1e4, 0, 0, 0, 0])
    found = ml.cn2_pair_loss(jnp.asarray(z), distance="euclid")
    between = [literal_cn2_sum(each) / 3 for each in np.float64(z)]
    np.testing.assert_allclose(found, 1e4 - np.array(between), rtol=1e-6)


def literal_cn2_sum(z):
    classes = [z[0], *z[2:]]
    pairs = itertools.combinations(classes, 2)
    return sum(DISTANCES["euclid"](x, y) for x, y in pairs)


def test_euclid_alone_prefers_spread_classes_to_two_opposite_heaps():
    # A regular simplex, from the products of its corners.
    gram = np.full((4, 4), -1 / 3) + 4 / 3 * np.eye(4)
    values, vectors = np.linalg.eigh(gram)
    spread = vectors * np.sqrt(np.maximum(values, 0))
    heaps = np.eye(4)[[0, 0, 0, 0]] * np.array([[1.0], [1.0], [-1.0], [-1.0]])
    both = jnp.float32(np.stack([spread, heaps]))
    sums = {name: np.asarray(f(both)) for name, f in ml.DISTANCE_SUMS.items()}
    np.testing.assert_allclose(sums["sq_euclid"], 16, rtol=1e-5)
    np.testing.assert_allclose(sums["cosine"], 8, rtol=1e-5)
    assert sums["euclid"][0] > 1.2 * sums["euclid"][1]


def test_normalised_embeddings_have_length_one_and_zero_stays():
    x = jnp.asarray([[3.0, 4.0], [0.0, 0.0], [1e-12, 0.0]])
    expected = [[0.6, 0.8], [0.0, 0.0], [1.0, 0.0]]
    np.testing.assert_allclose(ml.normalise(x), expected, rtol=1e-6)
    gradient = jax.grad(lambda x: ml.normalise(x).sum())(jnp.zeros((1, 2)))
    np.testing.assert_array_equal(gradient, np.ones((1, 2)))
