"""Recordings of noise in one flat array, from which crops are cut cheaply."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from kws_jax.data.corpus import CLIP_SAMPLES, SAMPLE_RATE, Recording
from kws_jax.data.sounding import is_silent, sounding_ranges
from kws_jax.errors import UserError

_FADE = SAMPLE_RATE // 100  # samples: 10 ms hide the seam of a loop
# Of an offset's power to that of the sound: 0.01 dB of a signal-to-noise ratio.
_LEAST_OFFSET = 10**0.001 - 1


@dataclasses.dataclass(frozen=True)
class NoiseBank:
    """Recordings laid end to end; a crop never crosses from one into the next.

    Attributes:
      audio: int16 [samples], all recordings one after the other.
      starts: int64 [r], where each recording begins in `audio`.
      lengths: int64 [r], its samples, at least `CLIP_SAMPLES`.
      repeats: bool [r], whether it is a shorter one again and again.
      ranges: of each recording, the first samples in it that a crop may begin at, as
        those of `sounding_ranges`: a silent one would leave a clip without noise.
      names: of the recordings.
    """

    audio: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    repeats: np.ndarray
    ranges: tuple[np.ndarray, ...]
    names: tuple[str, ...]

    @classmethod
    def from_recordings(
        cls, recordings: Sequence[Recording], where: str = ""
    ) -> "NoiseBank":
        """A bank of int16 recordings at 16 kHz.

        A recording shorter than a clip is looped with a cross-fade to twice the length
        of a clip, so that it too has more than one crop. The offset of a recorder is
        taken away, of which a signal-to-noise ratio would count the power as noise.

        Args:
          recordings: at least one.
          where: the field and the folder that they came from, for errors.

        Raises:
          UserError: there is no recording, or one is silent, in the part of it that
            this is too, or empty.
        """
        if not recordings:
            raise UserError(
                "There are no noise recordings to mix with; give a folder with at least"
                " one audio file, or a condition without noise and background."
            )
        check_sound(recordings, where)
        parts = [_looped(_without_offset(r.audio)) for r in recordings]
        lengths = np.array([len(part) for part in parts], np.int64)
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
        ranges = tuple(map(_ranges, recordings, parts))
        silent = [r.name for r, own in zip(recordings, ranges) if not len(own)]
        if silent:
            raise _silent_error(silent, where)
        names = tuple(recording.name for recording in recordings)
        repeats = np.array([len(r.audio) < CLIP_SAMPLES for r in recordings])
        audio = np.concatenate(parts)
        return cls(audio, starts, lengths, repeats, ranges, names)

    def __len__(self) -> int:
        return len(self.lengths)

    def first_samples(self, recording: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Where in `audio` crops of one clip's length begin, chosen by uniform draws.

        The recording is uniform over recordings (not over their seconds: a long one
        does not drown the short kinds), then the start is uniform over those in its
        `ranges`.

        Args:
          recording: float [b] in [0, 1), choose the recording.
          start: float [b] in [0, 1), choose the first sample.

        Returns:
          int64 [b], for `cut`.
        """
        row = (np.asarray(recording) * len(self)).astype(np.int64)
        place = (np.asarray(start) * self.choices[row]).astype(np.int64)
        first, before, ranges_before = self._places
        # The ranges of all recordings are one sequence, in which `place` counts on from
        # the first of the recording's own.
        place += before[ranges_before[row]]
        at = np.searchsorted(before, place, side="right") - 1
        return first[at] + place - before[at]

    @functools.cached_property
    def choices(self) -> np.ndarray:
        """How many crops each recording has to choose from, int64 [r]."""
        return np.array([np.diff(own).sum() for own in self.ranges], np.int64)

    @property
    def silent_shares(self) -> np.ndarray:
        """The share of each recording's crops that are left out as silent, [r]."""
        return 1 - self.choices / (self.lengths - CLIP_SAMPLES + 1)

    @functools.cached_property
    def _places(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where ranges begin in `audio`, the choices before each, the first by row."""
        first = [start + own[:, 0] for start, own in zip(self.starts, self.ranges)]
        widths = np.concatenate([own[:, 1] - own[:, 0] for own in self.ranges])
        numbers = np.cumsum([len(own) for own in self.ranges])
        return (
            np.concatenate(first),
            np.cumsum(widths) - widths,
            np.concatenate([[0], numbers[:-1]]),
        )

    def cut(self, first: np.ndarray) -> np.ndarray:
        """Crops int16 [b, CLIP_SAMPLES] of `audio` from the samples `first` [b] on."""
        crops = np.empty((len(first), CLIP_SAMPLES), np.int16)
        for crop, begin in zip(crops, first, strict=True):
            crop[:] = self.audio[begin : begin + CLIP_SAMPLES]
        return crops


def check_sound(recordings: Sequence[Recording], where: str = "") -> None:
    """Raises UserError with the names of those that are silent (constant) or empty."""
    silent = [r.name for r in recordings if is_silent(r.audio)]
    if silent:
        raise _silent_error(silent, where)


def sounds(recording: Recording) -> bool:
    """Whether a bank can have it: a clip of it sounds, as loud as its whole goes."""
    if is_silent(recording.audio):
        return False
    return len(_ranges(recording, _looped(recording.audio))) > 0


def _ranges(recording: Recording, looped: np.ndarray) -> np.ndarray:
    return sounding_ranges(looped, CLIP_SAMPLES, recording.power)


def _silent_error(names: Sequence[str], where: str) -> UserError:
    return UserError(
        f"{where + ': ' if where else ''}silent or empty noise recordings: "
        f"{', '.join(names)}. Noise at a given SNR needs sound; replace or remove "
        "these files."
    )


def _without_offset(audio: np.ndarray) -> np.ndarray:
    """Int16 `audio` about 0; itself where its mean is too small to matter."""
    samples = np.asarray(audio, np.int16)
    mean = float(np.mean(samples))
    if mean**2 < _LEAST_OFFSET * float(np.var(samples)):
        return samples
    return np.clip(samples - np.rint(mean), -32768, 32767).astype(np.int16)


def _looped(audio: np.ndarray) -> np.ndarray:
    """`audio` itself, or if shorter than a clip, repeated to two clips' length."""
    if len(audio) >= CLIP_SAMPLES:
        return audio
    fade = min(_FADE, len(audio) // 4)
    period = len(audio) - fade
    # sin² + cos² = 1: two copies at a seam keep the mean power of uncorrelated noise.
    rise = np.sin(np.pi / 2 * (np.arange(fade) + 0.5) / max(fade, 1))
    copy = audio.astype(np.float64)
    copy[:fade] *= rise
    copy[len(audio) - fade :] *= rise[::-1]
    repeats = -(-2 * CLIP_SAMPLES // period) + 1
    loop = np.zeros(period * repeats + fade)
    for first in range(0, period * repeats, period):
        loop[first : first + len(audio)] += copy
    # The ends lack their neighbour's half of the cross-fade.
    loop = loop[fade : period * repeats]
    return np.clip(np.rint(loop), -32768, 32767).astype(np.int16)
