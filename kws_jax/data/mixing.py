"""Time shift, rooms, background by volume and noise at an exact SNR, in whole batches.

Shifts and crops only move whole samples and are done in NumPy, rooms with SciPy's FFT;
the other arithmetic is done in TensorFlow, in float32 with samples in [-1, 1]. The
order is shift, room, background, noise.
"""

import dataclasses

import numpy as np
import tensorflow as tf
from scipy import fft

from kws_jax.data.conditions import Condition
from kws_jax.data.corpus import CLIP_SAMPLES, FULL_SCALE, SAMPLE_RATE
from kws_jax.errors import UserError

REFERENCE_RMS = 0.05  # of a keyword clip where the training set's median is not given
PEAK = 32767 / FULL_SCALE  # the largest int16
# The uniform draws a clip needs, in the order of the columns given to `draw`.
DRAWS = (
    "shift",
    "background_coin",
    "background_volume",
    "background_recording",
    "background_start",
    "noise_coin",
    "noise_snr",
    "noise_recording",
    "noise_start",
    "room_coin",
    "room",
)
# The last columns, which came later: drawn from a stream of their own, so that the
# others stay what they were.
ROOM_DRAWS = 2


@dataclasses.dataclass(frozen=True)
class Disturbance:
    """What is done to each clip of a batch.

    Attributes:
      shift: int64 [b], samples; positive moves the clip to later.
      background_gain: float32 [b], factor of the background crop, 0 for none.
      noise_level: float32 [b], 10^(-snr/20), rms of noise over rms of speech; 0 for
        no noise.
      reverberant: bool [b], whether the clip is heard through a room.
    """

    shift: np.ndarray
    background_gain: np.ndarray
    noise_level: np.ndarray
    reverberant: np.ndarray


def check_condition(condition: Condition) -> None:
    """Raises a UserError that names the field of `condition` that makes no sense."""
    longest = 1000 * CLIP_SAMPLES / SAMPLE_RATE
    ranges = {
        "shift_ms": (condition.shift_ms, 0.0, longest),
        "background_probability": (condition.background_probability, 0.0, 1.0),
        "background_volume": (condition.background_volume, 0.0, np.inf),
        "clean_fraction": (condition.clean_fraction, 0.0, 1.0),
        "reverberant_fraction": (condition.reverberant_fraction, 0.0, 1.0),
    }
    for field, (value, low, high) in ranges.items():
        if not low <= value <= high:
            raise UserError(
                f"The condition's {field} is {value}; give a number from {low:g} to"
                f" {high:g}."
            )
    if not all(np.isfinite(snr) and abs(snr) <= 100 for snr in condition.snr_db):
        raise UserError(
            f"The condition's snr_db is {condition.snr_db}; give numbers from -100 to"
            " 100 (dB), or none for no noise."
        )


def draw(condition: Condition, uniforms: np.ndarray) -> Disturbance:
    """The disturbance that uniform draws mean under a condition.

    Args:
      condition: the condition.
      uniforms: float64 [b, len(DRAWS)] in [0, 1), one column for each name in `DRAWS`.

    Returns:
      Shift uniform over the integers in ±shift_ms; background gain U(0, volume) with
      the condition's probability, else 0; SNR uniform over `snr_db`, none with
      probability `clean_fraction`; reverberant with probability `reverberant_fraction`.
    """
    column = dict(zip(DRAWS, uniforms.T, strict=True))
    furthest = round(condition.shift_ms * SAMPLE_RATE / 1000)
    shift = (column["shift"] * (2 * furthest + 1)).astype(np.int64) - furthest
    gain = np.where(
        column["background_coin"] < condition.background_probability,
        column["background_volume"] * condition.background_volume,
        0.0,
    )
    level = np.zeros(len(uniforms))
    if condition.snr_db:
        # Powers of plain floats: a vectorised power rounds differently in the tail of
        # an array, so that a clip's level would depend on its place in the batch.
        levels = np.array([10.0 ** (-snr / 20.0) for snr in condition.snr_db])
        choice = (column["noise_snr"] * len(levels)).astype(np.int64)
        noisy = column["noise_coin"] >= condition.clean_fraction
        level = np.where(noisy, levels[choice], 0.0)
    return Disturbance(
        shift,
        gain.astype(np.float32),
        level.astype(np.float32),
        column["room_coin"] < condition.reverberant_fraction,
    )


def shift_clips(clips: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Clips [b, t] moved by `shift` [b] samples (positive: later), zeros in the gap."""
    moved = np.zeros_like(clips)
    samples = clips.shape[1]
    for target, clip, by in zip(moved, clips, np.asarray(shift).tolist(), strict=True):
        if by >= 0:
            target[by:] = clip[: samples - by]
        else:
            target[:by] = clip[-by:]
    return moved


def reverberate(
    clips: np.ndarray, responses: np.ndarray, room: np.ndarray
) -> np.ndarray:
    """Each clip convolved with the response of its room, cut to the clip's length.

    y[n] = Σ_m h[m] x[n - m] for 0 ≤ n < t, by products of spectra in float32.

    Args:
      clips: int16 [b, t].
      responses: float32 [r, taps].
      room: int [b], row of `responses` of each clip.

    Returns:
      float32 [b, t], in units of full scale.
    """
    samples = clips.shape[1]
    # So long that the end of the convolution does not wrap around into its beginning.
    size = fft.next_fast_len(samples + responses.shape[1] - 1, real=True)
    heard = np.empty(clips.shape, np.float32)
    # Room by room and clip by clip: each room is transformed once, and what is worked
    # on stays in the cache.
    for which in np.unique(room):
        response = fft.rfft(responses[which], size)
        for row in np.flatnonzero(room == which):
            clip = clips[row].astype(np.float32) / np.float32(FULL_SCALE)
            spectrum = fft.rfft(clip, size) * response
            heard[row] = fft.irfft(spectrum, size)[:samples]
    return heard


def rms(audio: tf.Tensor) -> tf.Tensor:
    """Root mean square [b] of float32 [b, t] over the whole clip window."""
    power = tf.einsum("bt,bt->b", audio, audio) / tf.cast(
        tf.shape(audio)[1], tf.float32
    )
    return tf.sqrt(power)


def noise_gain(
    speech_rms: tf.Tensor, noise_rms: tf.Tensor, noise_level: tf.Tensor
) -> tf.Tensor:
    """Factor [b] that brings noise to an SNR: rms(speech)/rms(noise) · 10^(-snr/20).

    0 where the noise crop is silent, which no factor can bring to an SNR (a `NoiseBank`
    has none). `noise_level` is 10^(-snr/20).
    """
    return tf.math.divide_no_nan(speech_rms * noise_level, noise_rms)


def mix(
    speech: tf.Tensor,
    background: tf.Tensor | None,
    background_gain: tf.Tensor,
    noise: tf.Tensor | None,
    noise_level: tf.Tensor,
    speechless: tf.Tensor,
    reference_rms: float = REFERENCE_RMS,
) -> tf.Tensor:
    """Speech + background_gain · background + noise at an SNR against the speech.

    The SNR is that of the clip itself, without its background, to the noise, both over
    the whole clip window; a clip heard through a room counts as it arrives. An SNR
    against no speech is undefined: all-zero and `speechless` clips get the noise that a
    clip of `reference_rms` would get. Where the peak of the mixture exceeds full scale
    the whole mixture is scaled down, which keeps its SNR; nothing is ever clipped.

    Args:
      speech: int16 [b, t], the shifted clips, or float32 in units of full scale
        where some of them went through a room.
      background: int16 [b, t], or None for none.
      background_gain: float32 [b].
      noise: int16 [b, t], or None for none.
      noise_level: float32 [b], 10^(-snr/20), 0 for no noise.
      speechless: bool [b], clips that hold no speech (the silence class).
      reference_rms: root mean square of a usual keyword, samples in [-1, 1].

    Returns:
      int16 [b, t], rounded to the nearest.
    """
    clip = _to_float(speech)
    mixture = clip
    if background is not None:
        mixture += background_gain[:, None] * _to_float(background)
    if noise is not None:
        level = rms(clip)
        level = tf.where(speechless | (level == 0.0), reference_rms, level)
        crop = _to_float(noise)
        mixture += noise_gain(level, rms(crop), noise_level)[:, None] * crop
    peak = tf.maximum(tf.reduce_max(mixture, 1), -tf.reduce_min(mixture, 1))
    scale = FULL_SCALE * tf.minimum(1.0, tf.math.divide_no_nan(PEAK, peak))
    # A silent mixture has no peak; it is zero at any scale.
    return tf.cast(tf.round(mixture * scale[:, None]), tf.int16)


def _to_float(audio: tf.Tensor) -> tf.Tensor:
    return audio if audio.dtype.is_floating else tf.cast(audio, tf.float32) / FULL_SCALE
