"""Kaldi's log-mel filter bank as the official ConvMixer uses it."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from kws_jax.frontends import spectrum
from kws_jax.ops.tables import mel_matrix, symmetric_hann

MEAN, STANDARD_DEVIATION = -8.522078, 4.0515576
# Kaldi floors the energies at the spacing of float32 around 1.
_FLOOR = float(np.finfo(np.float32).eps)


def log_mel(
    audio: Float[Array, "b s"],
    *,
    sample_rate: int = 16_000,
    window_ms: float = 25,
    hop_ms: float = 10,
    num_mel: int = 64,
    low_hz: float = 20,
    high_hz: float = 8000,
    preemphasis: float = 0.97,
    normalized: bool = True,
) -> Float[Array, "b t f"]:
    """Log-mel energies in Kaldi's convention.

    Each frame loses its mean, is pre-emphasised (y[n] = x[n] - preemphasis·x[n-1], with
    x[-1] = x[0]), multiplied by the symmetric Hann window and zero-padded to the next
    power of two; the result is ln max(Σ_k |X[k]|² W[k, m], 2⁻²³). Kaldi's own programs
    read int16 as it is; floor and statistics here belong to audio in [-1, 1]. Since
    each frame loses its mean, the mean of the whole waveform, which the official code
    takes off first, makes no difference.

    Args:
      audio: waveforms [b, s] in [-1, 1].
      sample_rate: in Hz.
      window_ms: length of a frame.
      hop_ms: distance between two frames.
      num_mel: number of mel filters.
      low_hz: lower edge of the first filter.
      high_hz: upper edge of the last filter.
      preemphasis: coefficient of the first-order high-pass filter.
      normalized: whether the result is `normalize`d.

    Returns:
      float32 [b, t, f], t = 1 + (s - window) // hop, f = num_mel; one second with the
      default settings gives 98 × 64.

    Raises:
      UserError: if the settings contradict each other.

    Reference: torchaudio.compliance.kaldi.fbank with window_type="hanning", dither=0,
    as called by dianwen-ng/Keyword-Spotting-ConvMixer.
    """
    window = spectrum.samples_of(window_ms, sample_rate)
    hop = spectrum.samples_of(hop_ms, sample_rate)
    filters = mel_matrix(
        num_mel=num_mel,
        window=window,
        sample_rate=sample_rate,
        low_hz=low_hz,
        high_hz=high_hz,
    )

    def features(audio: jax.Array) -> jax.Array:
        frames = spectrum.frame(audio, window=window, hop=hop)
        frames = frames - frames.mean(axis=2, keepdims=True)
        previous = jnp.concatenate([frames[..., :1], frames[..., :-1]], axis=-1)
        frames = (frames - preemphasis * previous) * symmetric_hann(window)[None, None]
        power = spectrum.power_spectrum(frames)
        energies = jnp.dot(power, filters, precision=lax.Precision.HIGHEST)
        return jnp.log(jnp.maximum(energies, _FLOOR))

    logarithms = spectrum.by_tiles(features, audio.astype(jnp.float32))
    return normalize(logarithms) if normalized else logarithms


def normalize(features: Float[Array, "b t f"]) -> Float[Array, "b t f"]:
    """(x - MEAN) / (2·STANDARD_DEVIATION), the statistics of Speech Commands.

    A value of 0 before (the official fill of masked cells) is +1.0517 afterwards.
    """
    return (features - MEAN) / (2 * STANDARD_DEVIATION)
