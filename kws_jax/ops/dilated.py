"""Dilated 2-D convolution.

XLA's convolution on CPUs takes dilated kernels at nearly the speed of plain ones. Two
things are slow there: numbers of channels that are no multiple of 4, here completed
with zeros, and the gradient by the kernel, here a matrix product.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_LAYOUT = ("NHWC", "HWIO", "NHWC")
# Multiples of it are fast. Fewer channels would become many times as many.
_VECTOR = 4
# Places of one product in the kernel's gradient, so that all it reads stays in cache.
_PLACES = 640


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
        cpu=functools.partial(_completed, dilation=dilation),
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
        cpu=functools.partial(_gradients, dilation=dilation),
        default=of_conv,
    )


_dilated.defvjp(_forward, _backward)


def _conv(
    x: jax.Array,
    kernel: jax.Array,
    dilation: int,
    padding: str | Sequence[tuple[int, int]] = "SAME",
) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=_LAYOUT,
    )


def _completed(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    """The convolution with zeros for further channels."""
    rows, columns = _reach(kernel, dilation)
    return _conv_padded(_padded(x, rows, 0), kernel, dilation, (0, columns))


def _conv_padded(
    x: jax.Array, kernel: jax.Array, dilation: int, more: tuple[int, int]
) -> jax.Array:
    """The convolution of what `_padded` gives, with `more` zeros around it."""
    channels = kernel.shape[-1]
    pads = [(0, _missing(n)) for n in kernel.shape[2:]]
    kernel = jnp.pad(kernel, ((0, 0), (0, 0), *pads))
    return _conv(x, kernel, dilation, [(n, n) for n in more])[..., :channels]


def _gradients(
    x: jax.Array, kernel: jax.Array, dy: jax.Array, dilation: int
) -> tuple[jax.Array, jax.Array]:
    """Gradients by x and by kernel."""
    rows, columns = _reach(kernel, dilation)
    left, right = _padded(x, rows, 0), _padded(dy, 0, columns)
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    dx = _conv_padded(right, turned, dilation, (rows, 0))
    *_, c, d = kernel.shape
    d_kernel = _kernel_gradient(left, right, kernel.shape[:2], dilation)
    return dx, d_kernel[:, :, :c, :d].astype(kernel.dtype)


def _kernel_gradient(
    x: jax.Array, dy: jax.Array, taps: Sequence[int], dilation: int
) -> jax.Array:
    """Σ_s x[s + (i, j)] dy[s]ᵀ for taps (i, j), as Σ_s x[s + (i, 0)] dy[s − (0, j)]ᵀ.

    So one product of k·c by l·d entries makes all taps, from k and l shifted copies.
    x is padded along the rows, dy along the columns. A loop goes over clips and blocks
    of rows, on all devices at once where the clips are spread over several.
    """
    devices = math.gcd(len(x), jax.device_count())
    x, dy = (a.reshape(devices, -1, *a.shape[1:]) for a in (x, dy))
    (b, h), (w, c), d = dy.shape[1:3], x.shape[3:], dy.shape[-1]
    blocks = -(-h * w // _PLACES)
    size = -(-h // blocks)
    dtype = jnp.promote_types(x.dtype, jnp.float32)

    def add(total: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
        clip, block = index // blocks, index % blocks
        row = jnp.minimum(block * size, h - size)

        def part(a: jax.Array, row: jax.Array, column: int) -> jax.Array:
            sizes = (devices, 1, size, w, a.shape[-1])
            return lax.dynamic_slice(a, (0, clip, row, column, 0), sizes)

        left = [part(x, row + dilation * i, 0) for i in range(taps[0])]
        right = [part(dy, row, dilation * j) for j in reversed(range(taps[1]))]
        if h % size:
            # The last block reaches back into the one before.
            new = row + jnp.arange(size) >= block * size
            right = [jnp.where(new[:, None, None], a, 0) for a in right]
        # Else the copies are fused into one loop that decides at each element.
        left, right = lax.optimization_barrier(
            [
                jnp.concatenate(a, -1).reshape(devices, size * w, -1)
                for a in (left, right)
            ]
        )
        product = jnp.einsum("pni,pnj->pij", left, right, preferred_element_type=dtype)
        return total + product, None

    start = jnp.zeros((devices, taps[0] * c, taps[1] * d), dtype)
    total, _ = lax.scan(add, start, jnp.arange(b * blocks))
    return total.sum(0).reshape(taps[0], c, taps[1], d).swapaxes(1, 2)


def _reach(kernel: jax.Array, dilation: int) -> tuple[int, int]:
    rows, columns = (dilation * (taps // 2) for taps in kernel.shape[:2])
    return rows, columns


def _padded(x: jax.Array, rows: int, columns: int) -> jax.Array:
    """Zeros at both ends of the rows and columns, and for missing channels."""
    pads = [(rows, rows), (columns, columns), (0, _missing(x.shape[-1]))]
    return jnp.pad(x, [(0, 0), *pads])


def _missing(channels: int) -> int:
    return -channels % _VECTOR if channels >= _VECTOR else 0
