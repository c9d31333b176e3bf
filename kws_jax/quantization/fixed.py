"""Quantisers of a given number of bits: AQT's, and here alone.

AQT's own layers are not used, since the gradient of its convolution is zero. Another
library takes its place by another `_rounded`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from aqt.jax.v2 import aqt_quantizer, utils
from aqt.jax.v2.numerics import utils as numerics

from kws_jax.quantization.straight_through import Quantizer, fake_quantize, top_level

FEWEST_BITS, MOST_BITS = 1, 8


def step(bound: jax.Array, bits: int, *, signed: bool) -> jax.Array:
    """The value of the integer 1, s of `quantize`.

    By the reciprocal: XLA divides by a constant so in some programs and not in others,
    and integers are to give the same values in all.
    """
    return bound * jnp.float32(1 / top_level(bits, signed=signed))


def quantize(x: jax.Array, bound: jax.Array, *, bits: int, signed: bool) -> jax.Array:
    """Rounds x to the nearest of the values that `bits` bits can tell apart.

    y = s · clip(round(x / s), −top or 0, top), s = bound / top (`top_level`); ties go
    to the even integer. One bit signed is binary: bound where x ≥ 0, else −bound.
    Gradients are those of `straight_through.fake_quantize`.

    Args:
      x: values.
      bound: end of the range, above 0; of as many axes as x, which it spreads over.
      bits: 1 to 8.
      signed: whether the values may be negative.

    Raises:
      ValueError: another number of bits.
    """
    if not FEWEST_BITS <= bits <= MOST_BITS:
        raise ValueError(f"bits must be {FEWEST_BITS} … {MOST_BITS}, got {bits}")
    quantizer = _quantizer(bits, signed)
    top = jnp.asarray(top_level(bits, signed=signed), x.dtype)
    return fake_quantize(quantizer, signed, x, bound, top)


@functools.cache
def _quantizer(bits: int, signed: bool) -> Quantizer:
    """One function for the same bits: JAX tells programs apart by their functions."""

    def quantizer(x: jax.Array, bound: jax.Array, top: jax.Array) -> jax.Array:
        del top
        scale = step(bound, bits, signed=signed)
        if signed:
            return _rounded(x, scale, bits)
        # AQT's grids are symmetric: the upper half of one with a bit more, zero and
        # 2^b − 1 values, is the unsigned one.
        return _rounded(jnp.maximum(x, 0), scale, bits + 1)

    return quantizer


class _GivenScale:
    """What AQT calls a calibration, of a scale that is known."""

    def __init__(self, scale: jax.Array, dtype: Any = None) -> None:
        del dtype
        self._scale = scale

    def init_calibration(self) -> None:
        """There is nothing to prepare."""

    def get_scale_and_bias_and_sparsity(self, *_: Any) -> tuple[list, list, None]:
        """The scale."""
        return [self._scale], [], None


def _rounded(x: jax.Array, scale: jax.Array, bits: int) -> jax.Array:
    if bits == 1:
        # AQT's integers of one bit are −1/2 and 1/2.
        scale = 2 * scale
    quantizer = aqt_quantizer.Quantizer(
        numerics=numerics.get_numerics(bits, preserve_max_val=True),
        calib_shared_axes=None,
        scale_stop_grad=True,
        calibration=functools.partial(_GivenScale, scale),
        context=utils.Context(key=None, train_step=None),
    )
    quantizer.init_calibration()
    values, _ = quantizer.quant(x, calibration_axes=None)
    return values.dequant()
