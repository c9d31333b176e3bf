"""The pair losses beside the literal sums of the paper, in float64."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from kws_jax.objectives import metric_learning as ml

M, D = 3, 5
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


def literal_cn2(z, distance, weight):
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
    return log1p_exp(d(z[0], z[1]) - (weight or 1 / count) * total)


def literal_npair(z, distance, weight):
    d = DISTANCES[distance]
    total = sum(d(z[0], n) for n in z[2:])
    return log1p_exp(d(z[0], z[1]) - (weight or 1 / len(z[2:])) * total)


def literal_triplet(z, distance, weight):
    d = DISTANCES[distance]
    return np.mean(
        [log1p_exp(d(z[0], z[1]) - (weight or 1) * d(z[0], n)) for n in z[2:]]
    )


LITERAL = {"cn2": literal_cn2, "npair": literal_npair, "triplet": literal_triplet}


@pytest.mark.parametrize("weight", [None, 1.0, 0.03])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("loss", LITERAL)
def test_losses_are_the_literal_sums(loss, distance, weight, float64):
    for classes in (2, 3, 12):
        z = tuples_of(classes)
        expected = [LITERAL[loss](each, distance, weight) for each in z]
        found = ml.LOSSES[loss](jnp.asarray(z), distance=distance, weight=weight)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


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


@pytest.mark.parametrize("loss", LITERAL)
@pytest.mark.parametrize("distance", DISTANCES)
def test_gradients_are_those_of_finite_differences(loss, distance, float64):
    z = jnp.asarray(tuples_of(4)[:1])
    f = jax.jit(lambda z: ml.LOSSES[loss](z, distance=distance).sum())
    check_grads(f, (z,), order=1, modes=["rev"], atol=1e-6, rtol=1e-6, eps=1e-5)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("case", ["same", "zero", "far", "near"])
def test_extremes_have_a_finite_loss_and_gradient_in_float32(distance, case):
    z = np.float32(tuples_of(12))
    if case == "same":
        z[:] = z[:, :1]
    elif case == "zero":
        z[:] = 0
    elif case == "far":  # distances of some 1e4, squared of 1e8
        z[:, 1] *= 1e4
    else:  # beside a mean that is far larger than the distances
        z = np.float32(1 + 1e-6 * z)
    for loss in ml.LOSSES.values():
        value, gradient = jax.value_and_grad(
            lambda z, loss=loss: loss(z, distance=distance).sum()
        )(jnp.asarray(z))
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
        if case in ("same", "zero"):
            np.testing.assert_allclose(value, M * math.log(2), rtol=1e-5)
            assert np.abs(gradient).max() < 1e-5


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


def test_normalised_embeddings_have_length_one_and_zero_stays():
    x = jnp.asarray([[3.0, 4.0], [0.0, 0.0], [1e-12, 0.0]])
    expected = [[0.6, 0.8], [0.0, 0.0], [1.0, 0.0]]
    np.testing.assert_allclose(ml.normalise(x), expected, rtol=1e-6)
    gradient = jax.grad(lambda x: ml.normalise(x).sum())(jnp.zeros((1, 2)))
    np.testing.assert_array_equal(gradient, np.ones((1, 2)))
