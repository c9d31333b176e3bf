import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import ndimage

from kws_jax.models.counting import count_macs
from kws_jax.ops.example_conv import example_conv


def arrays(rows):
    rng = np.random.default_rng(rows)
    x = rng.normal(size=(3, 9, 6)).astype(np.float32)
    return x, rng.normal(size=(rows, 3, 5)).astype(np.float32)


# taps of each example, or the same for all; the reach may be larger than the map
@pytest.mark.parametrize(("rows", "dilation"), [(3, 1), (3, 2), (1, 2), (1, 4)])
def test_equals_the_correlation_with_the_spread_taps(rows, dilation):
    x, taps = arrays(rows)
    spread = np.zeros((rows, 2 * dilation + 1, 4 * dilation + 1))
    spread[:, ::dilation, ::dilation] = taps
    expected = [
        ndimage.correlate(clip, spread[i % rows], mode="constant")
        for i, clip in enumerate(x.astype(np.float64))
    ]
    result = example_conv(x, taps, dilation)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


def test_gradients_of_first_and_second_order_are_right():
    x, taps = arrays(3)
    conv = jax.jit(lambda x, taps: jnp.sin(example_conv(x, taps, 2)))
    check_grads(conv, (x, taps), order=2, modes=["rev"], rtol=0.02, atol=0.02)


def test_an_even_number_of_taps_is_refused():
    with pytest.raises(ValueError, match="odd"):
        example_conv(jnp.zeros((1, 4, 4)), jnp.zeros((1, 2, 3)))


def test_its_products_are_counted_and_others_are_not():
    x, taps = (jnp.zeros(a.shape) for a in arrays(3))
    assert count_macs(lambda x, t: 2 * example_conv(x, t) * x, x, taps) == x.size * 15
