import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import signal

from kws_jax.models.counting import count_macs
from kws_jax.ops import depthwise, shifted_depthwise
from kws_jax.ops.depthwise import depthwise_conv

# space, taps, strides, dilation, padding
CASES = [
    ((20,), (5,), (1,), (1,), "SAME"),
    ((20,), (9,), (2,), (1,), "SAME"),
    ((21,), (9,), (2,), (1,), "SAME"),
    ((20,), (4,), (1,), (1,), "SAME"),
    ((21,), (3,), (1,), (4,), ((4, 4),)),
    ((23,), (3,), (3,), (2,), ((1, 5),)),
    ((20,), (1,), (2,), (1,), "VALID"),
    ((9, 11), (3, 3), (2, 2), (1, 1), ((1, 1), (1, 1))),
    ((9, 12), (1, 5), (1, 1), (1, 1), "SAME"),
    ((9, 12), (3, 5), (1, 2), (2, 1), ((2, 2), (0, 3))),
    # the last rows and columns meet no tap
    ((8, 11), (3, 3), (3, 2), (1, 2), ((0, 0), (1, 0))),
    ((13, 8), (7, 5), (1, 1), (1, 1), "SAME"),
]


def arrays(space, taps, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, *space, 3)).astype(np.float32)
    return x, rng.normal(size=(*taps, 1, 3)).astype(np.float32)


def by_scipy(x, kernel, strides, dilation, pads):
    """Correlation of each channel with its spread kernel, in float64."""
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel.shape)]
    spread = np.zeros((*reach, 3))
    spread[tuple(slice(None, None, d) for d in dilation)] = kernel[..., 0, :]
    x = np.pad(x.astype(np.float64), ((0, 0), *pads, (0, 0)))
    out = np.stack(
        [
            [signal.correlate(clip[..., c], spread[..., c], "valid") for c in range(3)]
            for clip in x
        ]
    )
    out = np.moveaxis(out, 1, -1)
    return out[(slice(None), *(slice(None, None, s) for s in strides))]


def pads_of(padding, space, taps, strides, dilation):
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, taps)]
    if padding == "VALID":
        return [(0, 0)] * len(space)
    if padding == "SAME":  # TensorFlow's definition
        total = [
            max((-(-n // s) - 1) * s + r - n, 0)
            for n, s, r in zip(space, strides, reach)
        ]
        return [(t // 2, t - t // 2) for t in total]
    return list(padding)


@pytest.mark.parametrize("case", CASES)
def test_equals_the_correlation_of_each_channel(case):
    space, taps, strides, dilation, padding = case
    x, kernel = arrays(space, taps)
    expected = by_scipy(x, kernel, strides, dilation, pads_of(padding, *case[:4]))
    result = depthwise_conv(
        x, kernel, strides=strides, dilation=dilation, padding=padding
    )
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_both_forms_agree_in_value_and_gradient(case):
    space, taps, strides, dilation, padding = case
    x, kernel = arrays(space, taps)
    pads = tuple(pads_of(padding, *case[:4]))
    geometry = shifted_depthwise.Geometry(strides, dilation, pads)
    conv = functools.partial(depthwise._grouped_conv, geometry=geometry)
    expected, pull = jax.vjp(conv, x, kernel)
    shifted = shifted_depthwise.shifted_sum(x, kernel, geometry)
    chex.assert_trees_all_close(shifted, expected, rtol=1e-5, atol=1e-5)
    dy = jnp.cos(jnp.arange(expected.size, dtype=jnp.float32)).reshape(expected.shape)
    gradients = shifted_depthwise.shifted_gradients(x, kernel, dy, geometry)
    chex.assert_trees_all_close(gradients, pull(dy), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", [CASES[1], CASES[5], CASES[7]])
def test_gradients_of_first_and_second_order_are_those_of_differences(case):
    space, taps, strides, dilation, padding = case
    x, kernel = arrays([min(n, 9) for n in space], taps)
    conv = functools.partial(
        depthwise_conv, strides=strides, dilation=dilation, padding=padding
    )
    with jax.enable_x64(True):
        inputs = (x.astype(np.float64), kernel.astype(np.float64))
        check_grads(lambda *a: jnp.sin(conv(*a)), inputs, order=2, modes=["rev"])


@pytest.mark.parametrize("case", [case for case in CASES if len(case[0]) == 2])
def test_tap_gradients_of_images_are_those_in_turn(case):
    space, taps, strides, dilation, padding = case
    x, _ = arrays(space, taps)
    geometry = shifted_depthwise.Geometry(
        strides, dilation, tuple(pads_of(padding, *case[:4]))
    )
    padded = np.pad(x, ((0, 0), *geometry.pads, (0, 0)))
    size = [
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(padded.shape[1:3], taps, strides, dilation)
    ]
    dy = np.random.default_rng(1).normal(size=(2, *size, 3)).astype(np.float32)
    expected = np.zeros((*taps, 3))
    for i, j in np.ndindex(*taps):
        met = padded[:, dilation[0] * i :: strides[0], dilation[1] * j :: strides[1]]
        product = np.float64(met[:, : size[0], : size[1]]) * dy
        expected[i, j] = product.sum((0, 1, 2))
    for gradients in (
        shifted_depthwise._tap_gradients_of_images(x, dy, taps, geometry),
        shifted_depthwise._tap_gradients_in_turn(padded, dy, taps, geometry),
    ):
        found = gradients.reshape(expected.shape)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("most", [0, 256])
def test_images_with_the_batch_last_have_the_same_values_and_gradients(
    case, most, monkeypatch
):
    monkeypatch.setattr(shifted_depthwise, "_MOST_PRODUCTS", most)
    space, taps, strides, dilation, padding = case
    x, kernel = arrays(space, taps)
    conv = functools.partial(
        depthwise_conv, strides=strides, dilation=dilation, padding=padding
    )

    def swapped(x, kernel):
        y = conv(jnp.swapaxes(x, 0, -1), kernel, batch_last=True)
        return jnp.swapaxes(y, 0, -1)

    pads = tuple(pads_of(padding, *case[:4]))
    geometry = shifted_depthwise.Geometry(strides, dilation, pads, batch_last=True)
    plain = depthwise._grouped_conv(jnp.swapaxes(x, 0, -1), kernel, geometry)
    y, pull = jax.vjp(swapped, x, kernel)
    dy = jnp.sin(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
    grouped = functools.partial(
        depthwise._grouped_conv, geometry=geometry._replace(batch_last=False)
    )
    expected, expected_pull = jax.vjp(grouped, x, kernel)
    chex.assert_trees_all_close(
        (y, jnp.swapaxes(plain, 0, -1)), (expected, expected), rtol=1e-5, atol=1e-5
    )
    chex.assert_trees_all_close(pull(dy), expected_pull(dy), rtol=1e-4, atol=1e-4)


def test_works_under_jit_and_vmap():
    x, kernel = arrays((20,), (5,))
    pairs = jnp.stack([x, 2 * x]), jnp.stack([kernel, kernel])
    both = jax.jit(jax.vmap(depthwise_conv))(*pairs)
    chex.assert_trees_all_close(both[1], 2 * depthwise_conv(x, kernel), rtol=1e-5)


def test_multiply_accumulates_are_counted_as_those_of_a_convolution():
    x, kernel = arrays((20,), (5,))
    assert count_macs(depthwise_conv, x, kernel) == 2 * 20 * 3 * 5


@pytest.mark.parametrize("pads", [(0, 0), (0, 3), (3, 0), (3, 3)])
def test_gradient_is_that_of_the_convolution_where_few_places_have_all_taps(pads):
    x, kernel = arrays((3,), (3,))

    def total(conv, x):
        return jnp.sin(conv(x, kernel)).sum()

    ours = functools.partial(depthwise_conv, padding=(pads,))
    geometry = shifted_depthwise.Geometry((1,), (1,), (pads,))
    theirs = functools.partial(depthwise._grouped_conv, geometry=geometry)
    gradients = [jax.grad(functools.partial(total, conv))(x) for conv in (ours, theirs)]
    chex.assert_trees_all_close(*gradients, rtol=1e-4, atol=1e-5)
