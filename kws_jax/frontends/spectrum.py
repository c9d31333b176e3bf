"""Frames and power spectra: what the front ends share."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from kws_jax.errors import UserError
from kws_jax.ops.tables import fft_length

# Clips of a tile: the frames and spectra of a second each fill 6 MB.
_TILE = 16


def by_tiles(
    features: Callable[[Float[Array, "b s"]], Float[Array, "b t f"]],
    audio: Float[Array, "b s"],
) -> Float[Array, "b t f"]:
    """Gives features(audio); on CPUs a few clips at a time.

    Frames overlap and spectra are longer than frames, so those of a large batch, step
    after step, are measured by the memory that they pass through.

    Args:
      features: a function of each clip by itself.
      audio: waveforms [b, s].
    """
    clips = audio.shape[0]

    def tiled(audio: jax.Array) -> jax.Array:
        whole = clips // _TILE * _TILE
        out = lax.map(features, audio[:whole].reshape(-1, _TILE, audio.shape[1]))
        out = out.reshape(whole, *out.shape[2:])
        rest = [features(audio[whole:])] if whole < clips else []
        return jnp.concatenate([out, *rest])

    # An exported program's batch of any size is a symbol, which has no order.
    if not isinstance(clips, int) or clips <= _TILE:
        return features(audio)
    return lax.platform_dependent(audio, cpu=tiled, default=features)


def samples_of(milliseconds: float, sample_rate: int) -> int:
    """The number of whole samples in `milliseconds` at `sample_rate` (Hz)."""
    return int(sample_rate * milliseconds / 1000 + 1e-6)


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
