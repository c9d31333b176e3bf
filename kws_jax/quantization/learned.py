"""Numbers of bits that are learned with the weights.

Reference: Peter, Roth and Pernkopf, "End-to-end Keyword Spotting using Neural
Architecture Search and Quantization", ICASSP 2022 (arXiv 2104.06666), which takes them
from Brevitas (Pappalardo).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kws_jax.ops.magnitude import magnitude
from kws_jax.quantization.straight_through import fake_quantize, top_level

FEWEST_BITS = 2


def bit_width(offset: jax.Array, most: int) -> jax.Array:
    """The number of bits b = round(|o| + 2), at most `most`, of a learned number o.

    Rounding and the upper limit have the gradient of the identity, so ∂b/∂o = sign(o),
    and 1 at o = 0, where bits begin at 2.
    """
    exact = magnitude(offset) + FEWEST_BITS
    rounded = jnp.minimum(jnp.round(exact), most)
    return exact + jax.lax.stop_gradient(rounded - exact)


def offset_of(bits: float) -> jax.Array:
    """The o at which `bit_width` gives `bits`."""
    return jnp.asarray(bits - FEWEST_BITS, jnp.float32)


def quantize(
    x: jax.Array, bound: jax.Array, *, bits: jax.Array, signed: bool
) -> jax.Array:
    """As `fixed.quantize`, for a traced number of bits b, by which it has a gradient.

    The largest integer, top = 2^(b−1) − 1 signed or 2^b − 1, depends on b smoothly, and
    the step s = bound / top with it. With the straight-through gradients of
    `fake_quantize`,

        ∂y/∂b = ∂y/∂top · ∂top/∂b = −(y − x) / top · 2^(b−1) ln 2   (2^b unsigned)

    inside the range and 0 outside. A bit more takes away half of what rounding adds.

    Args:
      x: values.
      bound: end of the range, above 0; of as many axes as x, which it spreads over.
      bits: scalar, a whole number of at least 2.
      signed: whether the values may be negative.
    """
    top = top_level(bits, signed=signed)
    return fake_quantize(_signed if signed else _unsigned, signed, x, bound, top)


def step(bound: jax.Array, bits: jax.Array, *, signed: bool) -> jax.Array:
    """The value of the integer 1, s of `quantize`."""
    return _step(bound, top_level(bits, signed=signed))


def mean_bits(bits: Mapping[str, Any], counts: Mapping[str, int]) -> Any:
    """The mean number of bits, each weighted by how many values have it.

    Args:
      bits: name -> bits.
      counts: name -> number of weights, or of activations of an example.
    """
    total = sum(counts[name] for name in bits)
    return sum(bits[name] * (counts[name] / total) for name in bits)


def largest_offset(most: int) -> float:
    """The size of o at which `bit_width` gives `most`.

    An o that has grown further would give no more bits, and take as long to come back.
    """
    return float(most - FEWEST_BITS)


def _step(bound: jax.Array, top: jax.Array) -> jax.Array:
    # By the reciprocal, as `fixed.step`: XLA divides arrays by scalars so.
    return bound * (1 / top)


def _rounded(
    x: jax.Array, bound: jax.Array, top: jax.Array, lowest: jax.Array
) -> jax.Array:
    scale = _step(bound, top)
    return scale * jnp.clip(jnp.round(x / scale), lowest, top)


def _signed(x: jax.Array, bound: jax.Array, top: jax.Array) -> jax.Array:
    return _rounded(x, bound, top, -top)


def _unsigned(x: jax.Array, bound: jax.Array, top: jax.Array) -> jax.Array:
    return _rounded(x, bound, top, jnp.zeros_like(top))
