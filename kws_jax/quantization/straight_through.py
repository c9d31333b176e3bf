"""The gradient of quantisation, whoever quantises.

Rounding has a gradient of zero almost everywhere. The straight-through estimator takes
that of the identity in its place: Bengio, Léonard and Courville, 2013, arXiv 1308.3432.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# (x, bound, top) -> x on the grid bound/top · {-top or 0, …, top}
Quantizer = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def top_level(bits: Any, *, signed: bool) -> Any:
    """The largest integer of the grid of b bits: a number, or an array of at least 2.

    Signed, 2^(b−1) − 1, so that the grid −top … top is symmetric and has zero in it;
    one bit has the values −1 and 1 alone. Unsigned, 2^b − 1: one bit has 0 and 1.
    """
    largest = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    # A maximum would halve the gradient by two learned bits.
    return largest if isinstance(bits, jax.Array) else max(1, largest)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def fake_quantize(
    quantizer: Quantizer,
    signed: bool,
    x: jax.Array,
    bound: jax.Array,
    top: jax.Array,
) -> jax.Array:
    """Values of x on a grid of few, with straight-through gradients.

    y = s · q with the step s = bound / top and the integer q = round(x / s), which
    lies in −top … top where `signed`, else in 0 … top. As if rounding were the
    identity, the gradients are

        ∂y/∂x     = 1                 inside the range, 0 outside
        ∂y/∂bound = (y − x) / bound   inside,           y / bound outside
        ∂y/∂top   = −(y − x) / top    inside,           0 outside

    where the range is −bound … bound (0 … bound), both ends included: for a range that
    stays, a finer step changes only what rounding adds.

    Args:
      quantizer: makes y of x, bound and top.
      signed: whether q may be negative.
      x: values.
      bound: end of the range, above 0; of as many axes as x, which it spreads over.
      top: the largest q, a scalar.

    Reference: ∂y/∂bound is that of Esser et al., "Learned Step Size Quantization", ICLR
    2020, Eq. (3), by the end of the range in place of the step.
    """
    del signed
    return quantizer(x, bound, top)


def _forward(quantizer, signed, x, bound, top):
    del signed
    y = quantizer(x, bound, top)
    return y, (x, bound, top, y)


def _backward(quantizer, signed, saved, dy):
    del quantizer
    x, bound, top, y = saved
    # By the range and not by x / s, whose rounding could put the largest |x| outside.
    inside = (x <= bound) & (x >= (-bound if signed else 0.0))
    added = y - x
    d_bound = dy * jnp.where(inside, added, y) / bound
    spread = [axis for axis in range(x.ndim) if bound.shape[axis] == 1]
    d_top = -(dy * jnp.where(inside, added, 0.0)).sum() / top
    return (
        jnp.where(inside, dy, 0.0),
        d_bound.sum(spread, keepdims=True),
        d_top.astype(top.dtype),
    )


fake_quantize.defvjp(_forward, _backward)
