import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kws_jax.ops.pointwise import pointwise, pointwise_conv


def test_dense_layer_is_the_product_at_every_place():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    layer = nn.Dense(6, dot_general=pointwise)
    variables = layer.init(jax.random.key(0), x)
    kernel, bias = (variables["params"][n] for n in ("kernel", "bias"))
    expected = np.einsum("...c,cd->...d", x.astype(np.float64), kernel) + bias
    np.testing.assert_allclose(
        layer.apply(variables, x), expected, rtol=1e-5, atol=1e-6
    )


def test_gradient_of_the_kernel_copies_no_transposed_input():
    x, kernel = jnp.zeros((2, 3, 5)), jnp.zeros((5, 6))
    numbers = (((2,), (0,)), ((), ()))
    gradient = jax.grad(lambda k: pointwise(x, k, numbers).sum())
    program = str(jax.make_jaxpr(gradient)(kernel))
    assert "dimension_numbers=(([0], [0]), ([], []))" in program


def test_other_products_are_refused():
    with pytest.raises(ValueError, match="dense layer"):
        pointwise(jnp.zeros((2, 3)), jnp.zeros((2, 3)), (((0,), (0,)), ((), ())))


@pytest.mark.parametrize(
    ("shape", "strides"), [((2, 7, 3), 1), ((2, 7, 3), 2), ((2, 6, 5, 3), (2, 1))]
)
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_convolution_of_one_tap_equals_the_general_one(shape, strides, padding):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    taps = (1,) * (len(shape) - 2)
    plain = nn.Conv(4, taps, strides, padding, use_bias=False)
    ours = plain.clone(conv_general_dilated=pointwise_conv)
    variables = plain.init(jax.random.key(0), x)

    def loss(layer, variables, x):
        y = layer.apply(variables, x)
        return jnp.sin(y).sum(), y

    gradients = jax.grad(loss, argnums=(1, 2), has_aux=True)
    chex.assert_trees_all_close(
        gradients(ours, variables, x),
        gradients(plain, variables, x),
        rtol=1e-5,
        atol=1e-5,
    )


def test_kernels_of_several_taps_are_refused():
    layer = nn.Conv(4, (3,), conv_general_dilated=pointwise_conv)
    with pytest.raises(ValueError, match="one tap"):
        layer.init(jax.random.key(0), jnp.zeros((1, 7, 3)))


def test_padding_that_would_count_is_refused():
    layer = nn.Conv(4, (1,), padding=((1, 0),), conv_general_dilated=pointwise_conv)
    with pytest.raises(ValueError, match="padding"):
        layer.init(jax.random.key(0), jnp.zeros((1, 7, 3)))
