"""Convolution of maps of one channel, with taps of its own for each example.

As a grouped convolution with a group for each example it would be slow everywhere. A
sum of shifted copies times their taps is one fused loop.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

# Products by element under this name are the multiply-accumulates of a convolution or
# of a matrix product, and are counted as such (kws_jax/models/counting.py).
MULTIPLY_ADDS = "multiply_adds"


def example_conv(
    x: Float[Array, "b t f"], taps: Float[Array, "#b k l"], dilation: int = 1
) -> Float[Array, "b t f"]:
    """y[b, t, f] = Σ_{i, j} taps[b, i, j] · x[b, t + d·(i − k//2), f + d·(j − l//2)].

    d is `dilation`; x is 0 outside ("SAME"). Differentiable in reverse mode, any number
    of times.

    Args:
      x: maps.
      taps: odd numbers of them along both axes; those of the only row, where there is
        but one, serve all examples.
      dilation: distance of neighbouring taps along both axes.

    Returns:
      Maps of the same size.

    Raises:
      ValueError: an even number of taps.
    """
    if not all(count % 2 for count in taps.shape[1:]):
        raise ValueError(f"the taps must be odd in number, got {taps.shape[1:]}")
    return _conv(x, taps, dilation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: jax.Array, taps: jax.Array, dilation: int) -> jax.Array:
    padded, starts = _places(x, taps, dilation)
    each = taps.reshape(taps.shape[0], -1, 1, 1)
    with jax.named_scope(MULTIPLY_ADDS):
        products = [
            lax.slice(padded, start, start + x.shape) * each[:, i]
            for i, start in enumerate(starts)
        ]
    return sum(products[1:], start=products[0])


def _forward(x, taps, dilation):
    return _conv(x, taps, dilation), (x, taps)


def _backward(dilation, saved, dy):
    """Gradients by x, again such a convolution, and by the taps.

    Those by the taps are made in a loop: XLA would otherwise compute what dy is made of
    anew for each tap, as it fuses that into the reductions.
    """
    x, taps = saved
    padded, starts = _places(x, taps, dilation)

    def tap(start: jax.Array) -> jax.Array:
        return (lax.dynamic_slice(padded, start, x.shape) * dy).sum((1, 2))

    by_tap = lax.map(tap, jnp.asarray(starts))
    if len(taps) != len(x):
        by_tap = by_tap.sum(axis=1, keepdims=True)
    dx = _conv(dy, jnp.flip(taps, (1, 2)), dilation)
    return dx, by_tap.T.reshape(taps.shape)


_conv.defvjp(_forward, _backward)


def _places(
    x: jax.Array, taps: jax.Array, dilation: int
) -> tuple[jax.Array, np.ndarray]:
    """Pads x with zeros; where in that [i, 3] begins what each tap meets."""
    count = taps.shape[1:]
    reach = [dilation * (n // 2) for n in count]
    padded = jnp.pad(x, ((0, 0), *((r, r) for r in reach)))
    starts = np.pad(dilation * np.indices(count).reshape(2, -1).T, ((0, 0), (1, 0)))
    return padded, starts
