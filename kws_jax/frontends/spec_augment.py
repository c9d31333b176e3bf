"""SpecAugment: blank stripes in time and in frequency, drawn for each example."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from kws_jax.errors import UserError


def spec_augment(
    key: PRNGKeyArray,
    features: Float[Array, "b t f"],
    *,
    time_masks: int = 1,
    time_width: int = 25,
    frequency_masks: int = 1,
    frequency_width: int = 25,
    min_width: int = 0,
    fill: float = 0.0,
) -> Float[Array, "b t f"]:
    """Sets random stripes of time frames and of frequency bins to `fill`.

    The start of a stripe is uniform over all positions of its axis, its length uniform
    in min_width … width; what sticks out at the end is cut off. The official ConvMixer
    draws 1 … 25 (`min_width=1`) and fills with 0 before it normalises, which equals
    `fill=1.0517` on normalised log-mel features.

    Args:
      key: PRNG key; the draws depend on it and on the shape alone.
      features: [b, t, f].
      time_masks: stripes along time for each example.
      time_width: the longest stripe in frames.
      frequency_masks: stripes along frequency for each example.
      frequency_width: the longest stripe in bins.
      min_width: the shortest stripe, in frames and bins.
      fill: value of the masked cells.

    Returns:
      [b, t, f] in the type of `features`.

    Raises:
      UserError: if a number is negative or `min_width` is above a width.

    Reference: Park et al. 2019, arXiv 1904.08779.
    """
    if min(time_masks, frequency_masks, min_width) < 0 or min_width > min(
        time_width, frequency_width
    ):
        raise UserError(
            f"SpecAugment needs time_masks >= 0, frequency_masks >= 0 and 0 <= "
            f"min_width <= time_width, frequency_width; got time_masks={time_masks}, "
            f"frequency_masks={frequency_masks}, min_width={min_width}, "
            f"time_width={time_width}, frequency_width={frequency_width}."
        )
    batch, frames, bins = features.shape
    time_key, frequency_key = jax.random.split(key)
    in_time = _stripes(time_key, batch, frames, time_masks, min_width, time_width)
    in_frequency = _stripes(
        frequency_key, batch, bins, frequency_masks, min_width, frequency_width
    )
    masked = in_time[:, :, None] | in_frequency[:, None, :]
    return jnp.where(masked, jnp.asarray(fill, features.dtype), features)


def _stripes(
    key: PRNGKeyArray, batch: int, size: int, masks: int, shortest: int, longest: int
) -> Bool[Array, "b n"]:
    start_key, width_key = jax.random.split(key)
    start = jax.random.randint(start_key, (batch, masks, 1), 0, size)
    width = jax.random.randint(width_key, (batch, masks, 1), shortest, longest + 1)
    position = jnp.arange(size)[None, None]
    return ((position >= start) & (position < start + width)).any(axis=1)
