import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from network_values import conv_same

from kws_jax.ops import side_by_side
from kws_jax.ops.side_by_side import own_conv, shared_conv

# odd, even, one, and more than there are frames
TAPS = [3, 4, 1, 9]


def normal(*shape):
    rng = np.random.default_rng(sum(shape))
    return rng.normal(size=shape).astype(np.float32)


# even and odd numbers of frames, and fewer frames than taps
@pytest.mark.parametrize("frames", [16, 13, 4])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("taps", TAPS)
def test_shared_conv_is_each_kernel_alone(frames, stride, taps):
    x, kernels = normal(2, frames, 3), normal(4, taps, 3, 5)
    expected = np.stack([conv_same(x, kernel, stride) for kernel in kernels], axis=2)
    y = shared_conv(x, list(kernels), stride)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("taps", TAPS)
def test_own_conv_is_each_kernel_on_its_input(taps):
    x, kernels = normal(2, 7, 4, 3), normal(4, taps, 3, 3)
    expected = [conv_same(x[:, :, n], kernel) for n, kernel in enumerate(kernels)]
    y = own_conv(x, list(kernels))
    np.testing.assert_allclose(y, np.stack(expected, 2), rtol=1e-5, atol=1e-5)


def test_both_forms_of_own_conv_agree_in_value_and_gradient():
    x, kernels = normal(2, 12, 4, 3), tuple(normal(4, 5, 3, 3))
    expected, pull = jax.vjp(side_by_side._grouped, x, kernels)
    result, ours = jax.vjp(own_conv, x, list(kernels))
    chex.assert_trees_all_close(result, expected, rtol=1e-5, atol=1e-5)
    dy = jnp.cos(jnp.arange(expected.size, dtype=jnp.float32)).reshape(expected.shape)
    dx, d_kernels = ours(dy)
    chex.assert_trees_all_close((dx, tuple(d_kernels)), pull(dy), rtol=1e-5, atol=1e-5)


def test_gradients_of_first_and_second_order_are_those_of_differences():
    x, kernels = normal(1, 4, 2, 2), tuple(normal(2, 3, 2, 2))
    wide = jax.tree.map(lambda v: v.astype(np.float64), (x, kernels))
    with jax.enable_x64(True):
        check_grads(own_conv, wide, order=2, modes=["rev"])
