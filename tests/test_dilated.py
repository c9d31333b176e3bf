import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from four_devices import on_four_devices
from jax.test_util import check_grads
from scipy import ndimage

from kws_jax.ops import dilated
from kws_jax.ops.dilated import dilated_conv


def arrays(h, w, taps=(3, 3), channels=(3, 2)):
    rng = np.random.default_rng(h)
    x = rng.normal(size=(2, h, w, channels[0])).astype(np.float32)
    return x, rng.normal(size=(*taps, *channels)).astype(np.float32)


# sizes that the dilation divides or not, and an image smaller than the reach
CASES = [(8, 6, 1), (8, 6, 2), (9, 7, 4), (5, 3, 8)]
# taps, channels: those that are completed by zeros, as they are, too few for it
SHAPES = [((3, 3), (5, 7)), ((3, 5), (8, 6)), ((5, 1), (1, 9))]


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


@pytest.mark.parametrize(("taps", "channels"), SHAPES)
@pytest.mark.parametrize("dilation", [1, 16])
def test_completed_channels_give_the_gradients_of_the_plain_form(
    dilation, taps, channels
):
    x, kernel = arrays(36, 40, taps, channels)
    dy = np.random.default_rng(1).normal(size=(2, 36, 40, channels[1]))
    with jax.enable_x64(True):
        wide = [jnp.asarray(a, jnp.float64) for a in (x, kernel)]
        expected, pull = jax.vjp(lambda *a: dilated._conv(*a, dilation), *wide)
        expected_gradients = pull(jnp.asarray(dy))
    result, ours = jax.vjp(lambda *a: dilated_conv(*a, dilation), x, kernel)
    gradients = ours(jnp.asarray(dy, jnp.float32))
    pairs = [(result, expected), *zip(gradients, expected_gradients)]
    for got, want in pairs:
        scale = float(np.abs(want).max())
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * scale)


def test_gradients_of_first_and_second_order_are_those_of_differences():
    x, kernel = (a.astype(np.float64) for a in arrays(4, 3))
    with jax.enable_x64(True):
        check_grads(lambda *a: dilated_conv(*a, 2), (x, kernel), order=2)


def test_even_taps_are_refused():
    with pytest.raises(ValueError, match="odd"):
        dilated_conv(*arrays(8, 8, taps=(2, 2)), 2)


_ON_FOUR_DEVICES = """
import jax
import numpy as np

from kws_jax.ops.dilated import dilated_conv
from kws_jax.training import sharding

mesh = sharding.data_mesh()
assert mesh.size == 4
rng = np.random.default_rng(0)
x, dy = (rng.normal(size=(8, 7, 5, c)).astype(np.float32) for c in (5, 6))
kernel = rng.normal(size=(3, 3, 5, 6)).astype(np.float32)


def gradients(x, kernel, dy):
    return jax.vjp(lambda *a: dilated_conv(*a, 2), x, kernel)[1](dy)


shared = sharding.shard({"x": x, "dy": dy}, mesh)
arguments = (shared["x"], sharding.replicate(kernel, mesh), shared["dy"])
compiled = jax.jit(gradients).lower(*arguments).compile()
dx, d_kernel = compiled(*arguments)
assert dx.sharding.is_equivalent_to(shared["x"].sharding, 4)
padded = np.pad(np.float64(x), ((0, 0), (2, 2), (2, 2), (0, 0)))
for i in range(3):
    for j in range(3):
        met = padded[:, 2 * i : 2 * i + 7, 2 * j : 2 * j + 5]
        want = np.einsum("bhwc,bhwd->cd", met, dy)
        np.testing.assert_allclose(d_kernel[i, j], want, rtol=0, atol=1e-4)
text = compiled.as_text()
assert "all-reduce" in text and "all-gather" not in text, text
"""


def test_devices_keep_their_clips_and_add_up_the_kernel_gradient():
    on_four_devices("-c", _ON_FOUR_DEVICES)
