"""Depthwise convolution: each channel is filtered by itself.

XLA's grouped convolution is slow on CPUs, in the gradient above all. There it is made
of shifted copies (`shifted_depthwise.py`); other platforms have kernels of their own.
"""

import functools
from collections.abc import Sequence

import jax
from jax import lax
from jaxtyping import Array, Float

from kws_jax.ops.shifted_depthwise import Geometry, shifted_gradients, shifted_sum

# number of space axes -> layout of input, kernel and output
_LAYOUTS = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC")}
_BATCH_LAST = {1: ("CWN", "WIO", "CWN"), 2: ("CHWN", "HWIO", "CHWN")}


def depthwise_conv(
    x: Float[Array, "b *space c"],
    kernel: Float[Array, "*taps 1 c"],
    *,
    strides: Sequence[int] | None = None,
    dilation: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "SAME",
    batch_last: bool = False,
) -> jax.Array:
    """y[b, s, c] = Σ_i kernel[i, 0, c] · x[b, strides·s + dilation·i − before, c].

    Differentiable in reverse mode, any number of times.

    Args:
      x: input with one or two axes of space.
      kernel: taps, of which there are as many axes as of space.
      strides: step of the output for each axis of space; 1 where None.
      dilation: distance of neighbouring taps for each axis of space; 1 where None.
      padding: "SAME" (TensorFlow's: ⌈size / stride⌉ outputs, the odd zero at the end),
        "VALID", or the numbers of zeros (before, after) for each axis of space.
      batch_last: x and the output lie as [c, *space, b].

    Returns:
      Output with the same channels.
    """
    ones = (1,) * (x.ndim - 2)
    strides, dilation = tuple(strides or ones), tuple(dilation or ones)
    if isinstance(padding, str):
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel.shape, strict=False)]
        padding = lax.padtype_to_pads(x.shape[1:-1], reach, strides, padding)
    pads = tuple((int(before), int(after)) for before, after in padding)
    return _depthwise(x, kernel, Geometry(strides, dilation, pads, batch_last))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(shifted_sum, geometry=geometry),
        default=functools.partial(_grouped_conv, geometry=geometry),
    )


def _forward(x, kernel, geometry):
    return _depthwise(x, kernel, geometry), (x, kernel)


def _backward(geometry, saved, dy):
    def of_grouped_conv(x, kernel, dy):
        conv = functools.partial(_grouped_conv, geometry=geometry)
        return jax.vjp(conv, x, kernel)[1](dy)

    return lax.platform_dependent(
        *saved,
        dy,
        cpu=functools.partial(shifted_gradients, geometry=geometry),
        default=of_grouped_conv,
    )


_depthwise.defvjp(_forward, _backward)


def _grouped_conv(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    layouts = _BATCH_LAST if geometry.batch_last else _LAYOUTS
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=geometry.strides,
        padding=geometry.pads,
        rhs_dilation=geometry.dilation,
        dimension_numbers=layouts[x.ndim - 2],
        feature_group_count=kernel.shape[-1],
    )
