"""Frames, power spectra and mel filters: what the front ends share."""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kws_jax.errors import UserError


def samples_of(milliseconds: float, sample_rate: int) -> int:
    """The number of whole samples in `milliseconds` at `sample_rate` (Hz)."""
    return int(sample_rate * milliseconds / 1000 + 1e-6)


def fft_length(window: int) -> int:
    """The smallest power of two that is not below `window` (samples)."""
    return 1 << (window - 1).bit_length()


def num_frames(num_samples: int, *, window: int, hop: int) -> int:
    """How many whole windows fit: 1 + (num_samples - window) // hop.

    Args:
      num_samples: length of the audio in samples.
      window: length of a frame in samples.
      hop: distance between the starts of two frames in samples.

    Raises:
      UserError: if `window` or `hop` is not positive, or the audio is shorter than
        one window.
    """
    if window < 1 or hop < 1:
        raise UserError(
            f"A front end needs a window and a hop of at least one sample; window_ms "
            f"and hop_ms give {window} and {hop}. Use larger values."
        )
    if num_samples < window:
        raise UserError(
            f"The audio has {num_samples} samples, the front end's window {window}. "
            "Use a smaller window_ms or longer audio."
        )
    return 1 + (num_samples - window) // hop


def frame(
    audio: Float[Array, "b s"], *, window: int, hop: int
) -> Float[Array, "b t w"]:
    """Cuts audio into overlapping frames, without padding.

    Frame i holds samples i·hop … i·hop + window - 1.

    Args:
      audio: waveforms [b, s].
      window: length w of a frame in samples.
      hop: distance between the starts of two frames in samples.

    Returns:
      Frames [b, t, w] with t = 1 + (s - window) // hop.

    Raises:
      UserError: if no frame fits.
    """
    batch, num_samples = audio.shape
    frames = num_frames(num_samples, window=window, hop=hop)
    # A gather of single samples takes longer on a CPU than the FFT of all frames;
    # blocks of one hop, laid side by side, are plain copies.
    blocks = -(-window // hop)
    needed = (frames + blocks - 1) * hop
    padded = jnp.pad(audio, ((0, 0), (0, max(0, needed - num_samples))))
    hops = padded[:, :needed].reshape(batch, frames + blocks - 1, hop)
    shifted = [hops[:, i : i + frames] for i in range(blocks)]
    return jnp.concatenate(shifted, axis=-1)[..., :window]


def power_spectrum(frames: Float[Array, "b t w"]) -> Float[Array, "b t n"]:
    """|DFT|² of each frame, zero-padded to the next power of two N.

    Args:
      frames: windowed frames [b, t, w].

    Returns:
      Power [b, t, N/2 + 1] at the frequencies k·sample_rate/N.
    """
    spectrum = jnp.fft.rfft(frames, fft_length(frames.shape[-1]))
    return jnp.square(spectrum.real) + jnp.square(spectrum.imag)


@functools.cache
def mel_matrix(
    *, num_mel: int, window: int, sample_rate: int, low_hz: float, high_hz: float
) -> np.ndarray:
    """Triangular filters of height 1, evenly spaced and linear in mel.

    mel(f) = 1127 ln(1 + f/700). The factor 1127 (Kaldi) or 2595/ln 10 (HTK, TensorFlow)
    cancels, so one matrix serves both conventions.

    Args:
      num_mel: number of filters.
      window: length of a frame in samples; the spectrum has fft_length(window)/2 + 1
        bins.
      sample_rate: in Hz.
      low_hz: lower edge of the first filter.
      high_hz: upper edge of the last filter.

    Returns:
      float32 [bins, num_mel], read-only: spectrum @ matrix gives the mel energies.

    Raises:
      UserError: if the band is empty or leaves 0 … sample_rate/2, or if a filter is so
        narrow that no bin of the spectrum falls into it.
    """
    if num_mel < 1 or not 0 <= low_hz < high_hz <= sample_rate / 2:
        raise UserError(
            f"Mel filters need num_mel >= 1 and 0 <= low_hz < high_hz <= "
            f"{sample_rate / 2:g}; got num_mel={num_mel}, low_hz={low_hz:g}, "
            f"high_hz={high_hz:g}. Change these settings of the front end."
        )
    mel = _mel(np.linspace(0, sample_rate / 2, fft_length(window) // 2 + 1))[:, None]
    edges = np.linspace(_mel(low_hz), _mel(high_hz), num_mel + 2)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (mel - left) / (centre - left), (right - mel) / (right - centre)
    matrix = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
    if not matrix.any(axis=0).all():
        raise UserError(
            f"num_mel={num_mel} filters between {low_hz:g} and {high_hz:g} Hz are "
            f"narrower than the {sample_rate / fft_length(window):g} Hz between two "
            "bins of the spectrum. Use fewer filters or a longer window_ms."
        )
    matrix.setflags(write=False)
    return matrix


def _mel(hertz):
    return 1127.0 * np.log1p(np.asarray(hertz, np.float64) / 700.0)
