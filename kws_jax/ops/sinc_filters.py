"""Band-pass filters that are told by two frequencies each, for raw waveforms.

References: Ravanelli and Bengio, "Speaker Recognition from Raw Waveform with SincNet",
SLT 2018; Peter, Roth and Pernkopf, ICASSP 2022 (arXiv 2104.06666), stage (i).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kws_jax.ops.magnitude import magnitude
from kws_jax.ops.tables import window_values

# What follows the filters; a filter's plain output, taken every hop, has random phase.
POSTS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "none": lambda x: x,
    "abs": jnp.abs,
    "log1p_abs": lambda x: jnp.log1p(jnp.abs(x)),
}


def mel_bands(
    num_filters: int, low_hz: float, high_hz: float
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper edges (Hz) of bands whose centres are evenly spaced in mel.

    Each band reaches from the centre before it to the one behind it; the first begins
    at `low_hz`, the last ends at `high_hz`. float64 [num_filters] both.
    """
    first, last = 2595 * np.log10(1 + np.array([low_hz, high_hz]) / 700)
    hertz = 700 * (10 ** (np.linspace(first, last, num_filters + 2) / 2595) - 1)
    return hertz[:-2], hertz[2:]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def at_most(x: jax.Array, limit: float) -> jax.Array:
    """min(x, limit), with a gradient that still leads back from beyond the limit.

    Beyond it, a gradient passes where a step against it makes x smaller, so that no
    value is pushed further out, and none is lost there.
    """
    return jnp.minimum(x, limit)


def _at_most_forward(x: jax.Array, limit: float) -> tuple[jax.Array, jax.Array]:
    return at_most(x, limit), x <= limit


def _at_most_backward(
    limit: float, inside: jax.Array, dy: jax.Array
) -> tuple[jax.Array]:
    del limit
    return (jnp.where(inside | (dy > 0), dy, 0),)


at_most.defvjp(_at_most_forward, _at_most_backward)


def bands(
    first: Float[Array, " f"],
    second: Float[Array, " f"],
    *,
    min_low_hz: float,
    min_band_hz: float,
    limit_hz: float,
) -> tuple[Float[Array, " f"], Float[Array, " f"]]:
    """Edges (Hz) that any two numbers (Hz) stand for, as in SincNet.

    low = |first| + min_low_hz, high = low + |second| + min_band_hz, each `at_most`
    what leaves min_low_hz <= low, low + min_band_hz <= high <= limit_hz.
    """
    low = at_most(magnitude(first) + min_low_hz, limit_hz - min_band_hz)
    return low, at_most(low + magnitude(second) + min_band_hz, limit_hz)


def sinc_filters(
    low_hz: Float[Array, " f"],
    high_hz: Float[Array, " f"],
    *,
    taps: int,
    sample_rate: int,
    window: str = "hamming",
) -> Float[Array, "taps f"]:
    """Windowed ideal band-pass filters, as columns.

    g[n] = 2 f₂ sinc(2π f₂ n) − 2 f₁ sinc(2π f₁ n) with f₁, f₂ in cycles a sample and
    sinc(x) = sin(x)/x, over its peak 2(f₂ − f₁), times the window. The places n lie
    symmetrically around 0: on halves for an even number of taps. Computed as the
    equal cos(π(f₂ + f₁)n) · sinc(π(f₂ − f₁)n), which loses no digits for narrow bands.
    """
    n = (jnp.arange(taps) - (taps - 1) / 2)[:, None] / sample_rate
    total, width = (high_hz + low_hz)[None], (high_hz - low_hz)[None]
    # jnp.sinc has the π in it
    ideal = jnp.cos(jnp.pi * total * n) * jnp.sinc(width * n)
    return ideal * window_values(window, taps)[:, None].astype(ideal.dtype)
