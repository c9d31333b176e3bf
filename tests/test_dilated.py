import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import ndimage

from kws_jax.ops import dilated
from kws_jax.ops.dilated import dilated_conv


def arrays(h, w, taps=3):
    rng = np.random.default_rng(h)
    x = rng.normal(size=(2, h, w, 3)).astype(np.float32)
    return x, rng.normal(size=(taps, taps, 3, 2)).astype(np.float32)


# sizes that the dilation divides or not, and an image smaller than the reach
CASES = [(8, 6, 1), (8, 6, 2), (9, 7, 4), (5, 3, 8)]


@pytest.mark.parametrize(("h", "w", "dilation"), CASES)
def test_equals_the_correlation_with_the_spread_kernel(h, w, dilation):
    x, kernel = arrays(h, w)
    spread = np.zeros((2 * dilation + 1, 2 * dilation + 1, 3, 2))
    spread[::dilation, ::dilation] = kernel
    expected = [
        [
            sum(
                ndimage.correlate(clip[..., c], spread[..., c, d], mode="constant")
                for c in range(3)
            )
            for d in range(2)
        ]
        for clip in x.astype(np.float64)
    ]
    result = dilated_conv(x, kernel, dilation)
    np.testing.assert_allclose(
        result, np.moveaxis(expected, 1, -1), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(("h", "w", "dilation"), CASES)
def test_both_forms_agree_in_value_and_gradient(h, w, dilation):
    x, kernel = arrays(h, w)
    expected, pull = jax.vjp(lambda *a: dilated._conv(*a, dilation), x, kernel)
    result, ours = jax.vjp(lambda *a: dilated_conv(*a, dilation), x, kernel)
    chex.assert_trees_all_close(result, expected, rtol=1e-5, atol=1e-5)
    dy = jnp.cos(jnp.arange(expected.size, dtype=jnp.float32)).reshape(expected.shape)
    chex.assert_trees_all_close(ours(dy), pull(dy), rtol=1e-5, atol=1e-5)


def test_gradients_of_first_and_second_order_are_those_of_differences():
    x, kernel = (a.astype(np.float64) for a in arrays(4, 3))
    with jax.enable_x64(True):
        check_grads(lambda *a: dilated_conv(*a, 2), (x, kernel), order=2, modes=["rev"])


def test_even_taps_are_refused():
    with pytest.raises(ValueError, match="odd"):
        dilated_conv(*arrays(8, 8, taps=2), 2)
