"""Norms and 1×1 convolutions with the batch last, against flax and float64."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from kws_jax.ops import batch_last

RNG = np.random.default_rng(0)
near = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
ACTIVATIONS = {None: lambda x: x, "relu": nn.relu, "relu6": nn.relu6}


def images():
    """[c, f, t, b] with a mean other than 0, and a scale that meets both limits."""
    return (RNG.normal(size=(4, 3, 5, 6)) + 1.5).astype(np.float32)


SCALE, BIAS = np.array([2, 0.5, -3, 8], np.float32), np.array([1, 0, 2, 1], np.float32)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_batch_norm_and_its_gradient_are_those_of_flax(activation):
    x = images()
    dy = RNG.normal(size=x.shape).astype(np.float32)
    norm = nn.BatchNorm(use_running_average=False, momentum=0, epsilon=1e-3, axis=0)
    stats = {"mean": jnp.zeros(4), "var": jnp.ones(4)}

    def expected(x, scale, bias):
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": stats}
        y, moved = norm.apply(variables, x, mutable=["batch_stats"])
        return ACTIVATIONS[activation](y), moved["batch_stats"]

    def ours(x, scale, bias):
        return batch_last.batch_norm(x, scale, bias, 1e-3, activation)

    y, pull, moved = jax.vjp(expected, x, SCALE, BIAS, has_aux=True)
    found, found_pull, (mean, var) = jax.vjp(ours, x, SCALE, BIAS, has_aux=True)
    for got, wanted in [
        (found, y),
        (mean, moved["mean"]),
        (var, moved["var"]),
        *zip(found_pull(dy), pull(dy), strict=True),
    ]:
        near(got, wanted, atol=2e-5)
    alone = batch_last.normalise(x, mean, SCALE / np.sqrt(var + 1e-3), BIAS, activation)
    near(alone, y)


def test_gradient_of_batch_norm_is_that_of_differences():
    with jax.enable_x64(True):
        inputs = tuple(np.float64(a) for a in (images(), SCALE, BIAS))

        def smooth(*a):
            return batch_last.batch_norm(*a, 1e-3, None)[0]

        check_grads(smooth, inputs, order=1, modes=["rev"])


def test_pointwise_is_the_product_of_channels():
    x, kernel = images(), RNG.normal(size=(1, 1, 4, 3)).astype(np.float32)
    expected = np.einsum("cftb,cd->dftb", np.float64(x), kernel[0, 0])
    near(batch_last.pointwise(x, kernel), expected)
