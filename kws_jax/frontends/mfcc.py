"""Mel-frequency cepstral coefficients as TC-ResNet, TENet and AutoKWS use them."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from kws_jax.errors import UserError
from kws_jax.frontends import spectrum
from kws_jax.ops.tables import dct_matrix, hann, mel_matrix


def mfcc(
    audio: Float[Array, "b s"],
    *,
    sample_rate: int = 16_000,
    window_ms: float = 30,
    hop_ms: float = 10,
    num_mel: int = 64,
    low_hz: float = 80,
    high_hz: float = 7600,
    num_coefficients: int = 40,
    log_offset: float = 1e-6,
) -> Float[Array, "b t f"]:
    """MFCCs in TensorFlow's convention: no padding, no normalisation.

    With P the power spectrum of the frame under a periodic Hann window, zero-padded to
    the next power of two, and W the HTK mel filters,

        E[m] = ln(Σ_k P[k] W[k, m] + log_offset)
        c[i] = sqrt(2/M) Σ_m E[m] cos(π i (m + ½) / M),   M = num_mel.

    Args:
      audio: waveforms [b, s] in [-1, 1].
      sample_rate: in Hz.
      window_ms: length of a frame.
      hop_ms: distance between two frames.
      num_mel: number M of mel filters.
      low_hz: lower edge of the first filter.
      high_hz: upper edge of the last filter.
      num_coefficients: how many of the M coefficients are kept.
      log_offset: added to the mel energies before the logarithm.

    Returns:
      float32 [b, t, f], t = 1 + (s - window) // hop, f = num_coefficients; one second
      with the default settings gives 98 × 40.

    Raises:
      UserError: if the settings contradict each other.

    Reference: `tf.signal.stft`, `tf.signal.linear_to_mel_weight_matrix` and
    `tf.signal.mfccs_from_log_mel_spectrograms`, as called by hyperconnect/TC-ResNet.
    """
    if not 1 <= num_coefficients <= num_mel or log_offset <= 0:
        raise UserError(
            f"MFCCs need 1 <= num_coefficients <= num_mel and log_offset > 0; got "
            f"num_coefficients={num_coefficients}, num_mel={num_mel}, "
            f"log_offset={log_offset:g}. Change these settings of the front end."
        )
    window = spectrum.samples_of(window_ms, sample_rate)
    hop = spectrum.samples_of(hop_ms, sample_rate)
    filters = mel_matrix(
        num_mel=num_mel,
        window=window,
        sample_rate=sample_rate,
        low_hz=low_hz,
        high_hz=high_hz,
    )
    basis = dct_matrix(num_mel, num_coefficients)

    def coefficients(audio: jax.Array) -> jax.Array:
        frames = spectrum.frame(audio, window=window, hop=hop)
        power = spectrum.power_spectrum(frames * hann(window)[None, None])
        energies = jnp.dot(power, filters, precision=lax.Precision.HIGHEST)
        logarithms = jnp.log(energies + log_offset)
        return jnp.dot(logarithms, basis, precision=lax.Precision.HIGHEST)

    return spectrum.by_tiles(coefficients, audio.astype(jnp.float32))
