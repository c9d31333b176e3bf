"""Dilated 2-D convolution.

XLA's convolution is fast on CPUs for neighbouring taps alone. With a dilation d, every
d-th row and column form an image of their own, on which the taps are neighbours: there
the d² images are convolved as a larger batch.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def dilated_conv(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k l c d"], dilation: int
) -> Float[Array, "b h w d"]:
    """y[b, s, d] = Σ_{i, c} kernel[i, c, d] · x[b, s + dilation·(i − centre), c].

    Zeros outside ("SAME"). Differentiable in reverse mode, any number of times.

    Args:
      x: images.
      kernel: odd numbers of taps along both axes.
      dilation: distance of neighbouring taps along both axes.

    Returns:
      Images of the same size.

    Raises:
      ValueError: an even number of taps.
    """
    if not all(taps % 2 for taps in kernel.shape[:2]):
        raise ValueError(f"the taps must be odd in number, got {kernel.shape[:2]}")
    return _dilated(x, kernel, dilation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dilated(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_by_phases, dilation=dilation),
        default=functools.partial(_conv, dilation=dilation),
    )


def _forward(x, kernel, dilation):
    return _dilated(x, kernel, dilation), (x, kernel)


def _backward(dilation, saved, dy):
    def of_conv(x, kernel, dy):
        conv = functools.partial(_conv, dilation=dilation)
        return jax.vjp(conv, x, kernel)[1](dy)

    return lax.platform_dependent(
        *saved,
        dy,
        cpu=functools.partial(_gradients_by_phases, dilation=dilation),
        default=of_conv,
    )


_dilated.defvjp(_forward, _backward)


def _conv(x: jax.Array, kernel: jax.Array, dilation: int = 1) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding="SAME",
        rhs_dilation=(dilation, dilation),
        dimension_numbers=_LAYOUT,
    )


def _by_phases(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    if dilation == 1:
        return _conv(x, kernel)
    d, (b, h, w, c) = dilation, x.shape
    x = jnp.pad(x, ((0, 0), (0, -h % d), (0, -w % d), (0, 0)))
    rows, columns = x.shape[1] // d, x.shape[2] // d
    phases = x.reshape(b, rows, d, columns, d, c).transpose(0, 2, 4, 1, 3, 5)
    y = _conv(phases.reshape(-1, rows, columns, c), kernel)
    y = y.reshape(b, d, d, rows, columns, -1).transpose(0, 3, 1, 4, 2, 5)
    return y.reshape(b, rows * d, columns * d, -1)[:, :h, :w]


def _gradients_by_phases(
    x: jax.Array, kernel: jax.Array, dy: jax.Array, dilation: int
) -> tuple[jax.Array, jax.Array]:
    """Gradients by x and by kernel.

    The kernel's is a matrix product for each tap. As the convolution of the images
    with dy, which is what XLA makes of it, it takes twice as long.
    """
    dx = jax.vjp(lambda x: _by_phases(x, kernel, dilation), x)[1](dy)[0]
    taps = kernel.shape[:2]
    reach = [dilation * (n // 2) for n in taps]
    padded = jnp.pad(x, ((0, 0), *((r, r) for r in reach), (0, 0)))
    flat_dy = dy.reshape(-1, dy.shape[-1])

    def tap(start: jax.Array) -> jax.Array:
        met = lax.dynamic_slice(padded, start, x.shape).reshape(-1, x.shape[-1])
        return lax.dot_general(met, flat_dy, (((0,), (0,)), ((), ())))

    starts = np.pad(dilation * np.indices(taps).reshape(2, -1).T, ((0, 0), (1, 1)))
    return dx, lax.map(tap, jnp.asarray(starts)).reshape(kernel.shape)
