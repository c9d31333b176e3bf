"""Front ends whose filters are learned: here the waveform is only cut into frames.

The filters are parameters of the network, of which `kws_jax.models.learned_frontend`
makes the first layer from the same settings.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kws_jax.errors import UserError, nearest
from kws_jax.frontends import spectrum
from kws_jax.ops.sinc_filters import POSTS
from kws_jax.ops.tables import WINDOWS

FIRST_FILTERS = ("uniform", "mel")


def sinc(
    audio: Float[Array, "b s"],
    *,
    sample_rate: int = 16_000,
    window_ms: float = 25,
    hop_ms: float = 10,
    num_filters: int = 60,
    low_hz: float = 30,
    high_hz: float = 7900,
    min_low_hz: float = 50,
    min_band_hz: float = 50,
    unit_hz: float = 100,
    window_function: str = "hamming",
    post: str = "log1p_abs",
) -> Float[Array, "b t w"]:
    """Frames of the waveform for SincConv, as they are.

    Args:
      audio: waveforms [b, s] in [-1, 1].
      sample_rate: in Hz.
      window_ms: length of a filter.
      hop_ms: distance between two frames.
      num_filters: number f of filters.
      low_hz: where the first band begins at first, less `min_low_hz`.
      high_hz: where the last one ends, less `min_low_hz` and `min_band_hz`.
      min_low_hz: the lowest lower edge.
      min_band_hz: the narrowest band.
      unit_hz: Hz in one unit of the parameters; edges move by its square for the same
        gradient and learning rate.
      window_function: on the taps, "hamming", "hann" or "none".
      post: what follows a filter, "log1p_abs", "abs" or "none".

    Returns:
      float32 [b, t, w], t = 1 + (s - w) // hop.

    Raises:
      UserError: if the settings contradict each other.

    Reference: Peter, Roth and Pernkopf, ICASSP 2022 (arXiv 2104.06666), Table 1 (i);
    SincNet for what is not told there.
    """
    if not 0 <= low_hz < high_hz <= sample_rate / 2:
        raise UserError(
            f"The front end 'sinc' needs 0 <= low_hz < high_hz <= {sample_rate / 2:g}; "
            f"got low_hz={low_hz:g}, high_hz={high_hz:g}. Change these settings."
        )
    if (
        min(min_low_hz, min_band_hz, unit_hz) <= 0
        or min_low_hz + min_band_hz > sample_rate / 2
    ):
        raise UserError(
            "The front end 'sinc' needs min_low_hz, min_band_hz and unit_hz above 0 "
            f"and min_low_hz + min_band_hz <= {sample_rate / 2:g}; got "
            f"min_low_hz={min_low_hz:g}, min_band_hz={min_band_hz:g}, "
            f"unit_hz={unit_hz:g}. Change these settings."
        )
    if window_function not in WINDOWS:
        raise UserError(
            f"The front end 'sinc' has no window_function {window_function!r}; "
            f"{nearest(window_function, WINDOWS)}"
        )
    return _frames(audio, "sinc", sample_rate, window_ms, hop_ms, num_filters, post)


def conv1d(
    audio: Float[Array, "b s"],
    *,
    sample_rate: int = 16_000,
    window_ms: float = 25,
    hop_ms: float = 10,
    num_filters: int = 60,
    first_filters: str = "uniform",
    first_gain: float = 1.0,
    post: str = "log1p_abs",
) -> Float[Array, "b t w"]:
    """Frames of the waveform for a free convolution, the baseline of SincConv.

    Args:
      audio: waveforms [b, s] in [-1, 1].
      sample_rate: in Hz.
      window_ms: length of a filter.
      hop_ms: distance between two frames.
      num_filters: number f of filters.
      first_filters: what the taps are before training: "uniform" draws each from
        ±1/sqrt(w), PyTorch's default; "mel" takes those that `sinc` begins with.
      first_gain: what these are multiplied by.  The peaks of SincConv are 1, so its
        outputs are larger than those of "uniform", and the logarithm bends more.
      post: what follows a filter, "log1p_abs", "abs" or "none".

    Result, errors and reference are those of `sinc`.
    """
    if first_filters not in FIRST_FILTERS:
        raise UserError(
            f"The front end 'conv1d' has no first_filters {first_filters!r}; "
            f"{nearest(first_filters, FIRST_FILTERS)}"
        )
    if first_gain <= 0:
        raise UserError(
            f"The front end 'conv1d' needs first_gain above 0; got {first_gain:g}."
        )
    return _frames(audio, "conv1d", sample_rate, window_ms, hop_ms, num_filters, post)


def _frames(
    audio: jax.Array,
    name: str,
    sample_rate: int,
    window_ms: float,
    hop_ms: float,
    num_filters: int,
    post: str,
) -> jax.Array:
    if num_filters < 1:
        raise UserError(
            f"The front end {name!r} needs num_filters >= 1; got {num_filters}."
        )
    if post not in POSTS:
        raise UserError(
            f"The front end {name!r} has no post {post!r}; " + nearest(post, POSTS)
        )
    return spectrum.frame(
        audio.astype(jnp.float32),
        window=spectrum.samples_of(window_ms, sample_rate),
        hop=spectrum.samples_of(hop_ms, sample_rate),
    )
