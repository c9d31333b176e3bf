import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from kws_jax.ops.norm_relu import Norm, norm_relu, residual_sum

B, T, N, C = 2, 5, 3, 4


def normal(*shape):
    rng = np.random.default_rng(sum(shape))
    return rng.normal(size=shape).astype(np.float32)


def norm_of(gated):
    shape = (B, N, C) if gated else (N, C)
    return Norm(normal(N, C), normal(*shape), normal(*shape, 1)[..., 0])


def plain(x, norm):
    """x [b, t, n, c] normed, by the definition."""
    scale, bias = norm.scale, norm.bias
    if scale.ndim == 3:
        scale, bias = scale[:, None], bias[:, None]
    return (x - norm.mean) * scale + bias


def plain_sum(x, norm, shortcut, weights):
    outputs = jax.nn.relu(plain(x, norm) + shortcut)
    return jnp.einsum("n,btnc->btc", weights, outputs)


def assert_same(ours, definition, *args):
    expected, pull = jax.vjp(definition, *args)
    result, pull_ours = jax.vjp(ours, *args)
    chex.assert_trees_all_close(result, expected, rtol=1e-5, atol=1e-5)
    dy = normal(*expected.shape)
    chex.assert_trees_all_close(pull_ours(dy), pull(dy), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gated", [False, True])
def test_norm_relu_and_its_gradients_are_the_definition(gated):
    assert_same(
        norm_relu,
        lambda x, norm: jax.nn.relu(plain(x, norm)),
        normal(B, T, N, C),
        norm_of(gated),
    )


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("shortcuts", [1, N])
def test_residual_sum_and_its_gradients_are_the_definition(gated, shortcuts):
    # a weight of zero gets its gradient all the same
    weights = np.array([0.5, 0.0, -2.0], np.float32)
    args = normal(B, T, N, C), norm_of(gated), normal(B, T, shortcuts, C), weights
    assert_same(residual_sum, plain_sum, *args)


def test_gradients_of_second_order_are_those_of_differences():
    args = normal(B, T, N, C), norm_of(True), normal(B, T, 1, C), normal(N)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda v: v.astype(np.float64), args)
        check_grads(residual_sum, wide, order=2, modes=["rev"], eps=1e-5)
