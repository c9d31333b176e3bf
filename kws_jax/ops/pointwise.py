"""The product of channels and a matrix, at every place alike."""

from collections.abc import Sequence
from typing import Any

from jax import lax
from jaxtyping import Array, Float


def pointwise(
    x: Float[Array, "*places c"],
    kernel: Float[Array, "c d"],
    dimension_numbers: Any,
    **settings: Any,
) -> Float[Array, "*places d"]:
    """`lax.dot_general` as flax.linen.Dense calls it, for its argument `dot_general`.

    The places become one axis before the product. XLA would do so by itself for the
    output, but for the kernel's gradient, a sum over several axes, it first writes a
    transposed copy of the input.

    Raises:
      ValueError: another product than that of the last axis of `x` with the first of
        `kernel`.
    """
    if dimension_numbers != (((x.ndim - 1,), (0,)), ((), ())):
        raise ValueError(f"not the product of a dense layer: {dimension_numbers}")
    flat = x.reshape(-1, x.shape[-1])
    y = lax.dot_general(flat, kernel, (((1,), (0,)), ((), ())), **settings)
    return y.reshape(*x.shape[:-1], kernel.shape[1])


def pointwise_conv(
    x: Float[Array, "b *places c"],
    kernel: Float[Array, "*taps c d"],
    window_strides: Sequence[int],
    padding: Any,
    **settings: Any,
) -> Float[Array, "b *strided d"]:
    """`lax.conv_general_dilated` as flax.linen.Conv calls it, for kernels of one tap.

    A product at every place, or at each `window_strides`-th one, with the gradients of
    a product: those of a strided convolution meet mostly zeros.

    Raises:
      ValueError: a kernel of several taps, or of fewer channels (groups); padding by
        numbers that are not 0; a precision.
    """
    if settings.get("precision") is not None:
        raise ValueError("the precision cannot be chosen here")
    if not isinstance(padding, str) and any(map(any, padding)):
        raise ValueError(f"a kernel of one tap needs no padding, got {padding}")
    if kernel.shape[:-1] != (1,) * (x.ndim - 2) + x.shape[-1:]:
        raise ValueError(f"not a kernel of one tap for {x.shape}: {kernel.shape}")
    places = tuple(slice(None, None, stride) for stride in window_strides)
    numbers = (((x.ndim - 1,), (0,)), ((), ()))
    return pointwise(
        x[(slice(None), *places)], kernel.reshape(kernel.shape[-2:]), numbers
    )
