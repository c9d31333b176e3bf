import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import ndimage, special

from kws_jax.models.counting import count_macs
from kws_jax.ops import frequency_branch as ops
from kws_jax.ops.frequency_branch import Kernels, frequency_branch


def arrays(maps=3, taps=5, shape=(2, 13, 8), dtype=np.float32):
    rng = np.random.default_rng(maps)
    kernels = Kernels(
        rng.normal(size=(3, 3, 1, maps)).astype(dtype),
        rng.normal(size=(1, taps, 1, maps)).astype(dtype),
        rng.normal(size=(maps, 1)).astype(dtype),
    )
    return rng.normal(size=shape).astype(dtype), kernels


def by_hand(x, kernels):
    """Ng et al., Eq. (1), with SciPy in float64."""

    def swish(y):
        return y * special.expit(y)

    expand, depthwise, project = (np.asarray(k, np.float64) for k in kernels)
    out = np.zeros(x.shape)
    for clip, result in zip(x.astype(np.float64), out):
        for m in range(len(project)):
            y = ndimage.correlate(clip, expand[:, :, 0, m], mode="constant")
            y = ndimage.correlate1d(
                swish(y), depthwise[0, :, 0, m], axis=1, mode="constant"
            )
            result += project[m, 0] * swish(y)
    return out


# Frames that fill no tile, several tiles with a rest, tiles of the largest size.
SHAPES = [
    (3, 5, (2, 13, 8)),
    (64, 5, (2, 30, 8)),
    (8, 7, (2, 98, 16)),
    (1, 1, (1, 1, 4)),
]


@pytest.mark.parametrize(("maps", "taps", "shape"), SHAPES)
def test_equals_the_formula(maps, taps, shape):
    x, kernels = arrays(maps, taps, shape)
    result = jax.jit(frequency_branch)(x, *kernels)
    np.testing.assert_allclose(result, by_hand(x, kernels), rtol=1e-5, atol=1e-5 * maps)


@pytest.mark.parametrize(("maps", "taps", "shape"), SHAPES)
def test_tiles_and_layers_agree_in_value_and_gradient(maps, taps, shape):
    x, kernels = arrays(maps, taps, shape)
    expected, pull = jax.vjp(ops._by_layers, x, kernels)
    chex.assert_trees_all_close(
        ops._by_tiles(x, kernels), expected, rtol=1e-5, atol=1e-5 * maps
    )
    dy = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)
    for got, wanted in zip(
        jax.tree.leaves(jax.jit(ops._gradients_by_tiles)(x, kernels, dy)),
        jax.tree.leaves(pull(dy)),
        strict=True,
    ):
        scale = float(jnp.abs(wanted).max())
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * scale)


def test_gradients_of_first_and_second_order_are_those_of_differences(monkeypatch):
    # Several tiles, of values and of gradients.
    monkeypatch.setattr(ops, "_MOST_FRAMES", 2)
    monkeypatch.setattr(ops, "_GRADIENT_FRAMES", 2)
    x, kernels = arrays(2, 3, (1, 3, 4), np.float64)
    with jax.enable_x64(True):
        check_grads(frequency_branch, (x, *kernels), order=2, modes=["rev"])


def test_bfloat16_gradients_of_many_tiles_are_those_of_layers_in_float32():
    # 784 tiles, whose sums grow with each: in bfloat16 they would stand still.
    rng = np.random.default_rng(0)
    _, kernels = arrays(2, 3)
    x = 1 + rng.normal(size=(128, 98, 4))
    dy = 1 + 0.3 * rng.normal(size=x.shape)
    rounded = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), (x, kernels))
    dy = jnp.asarray(dy, jnp.bfloat16)
    got = jax.jit(ops._gradients_by_tiles)(*rounded, dy)
    chex.assert_trees_all_equal_dtypes(got, rounded)
    x, kernels = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), rounded)
    wanted = jax.vjp(ops._by_layers, x, kernels)[1](dy.astype(jnp.float32))
    for got_leaf, leaf in zip(
        jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True
    ):
        np.testing.assert_allclose(
            got_leaf.astype(jnp.float32), leaf, rtol=0, atol=0.03 * jnp.abs(leaf).max()
        )


def test_vmap_over_networks_equals_one_after_the_other():
    x, kernels = arrays()
    several = Kernels(*(jnp.stack([k, 2 * k]) for k in kernels))
    both = jax.vmap(lambda k: frequency_branch(x, *k))(several)
    second = frequency_branch(x, *(2 * k for k in kernels))
    chex.assert_trees_all_close(both[1], second, rtol=1e-5, atol=1e-5)

    def gradients(k):
        return jax.grad(lambda k: jnp.sin(frequency_branch(x, *k)).sum())(k)

    apart = gradients(jax.tree.map(lambda leaf: leaf[1], several))
    together = jax.tree.map(lambda leaf: leaf[1], jax.vmap(gradients)(several))
    chex.assert_trees_all_close(together, apart, rtol=1e-4, atol=1e-4)


def test_what_is_stored_in_a_tile_of_the_gradient_stays_apart():
    # Else XLA computes it again for each of its users, at twice the time.
    x, kernels = arrays(64, 5, (2, 30, 8))
    program = jax.jit(ops._gradients_by_tiles).lower(x, kernels, x).compile()
    assert program.as_text().count(" conditional(") == 2


def test_even_taps_are_refused():
    x, kernels = arrays(taps=4)
    with pytest.raises(ValueError, match="odd"):
        frequency_branch(x, *kernels)


def test_multiply_accumulates_are_those_of_the_three_convolutions():
    x, kernels = arrays(maps=3, taps=5)
    assert count_macs(frequency_branch, x, *kernels) == x.size * 3 * (9 + 5 + 1)
