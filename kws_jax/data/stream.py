"""Continuous audio of known content: keywords, other words, noise and silence.

A stream is a plan, which clip begins at which sample, drawn from a seed alone, and is
rendered piece by piece, so that hours of it take no more memory than seconds. Words do
not overlap; the time between them is silence or a recording of background. Under all of
it may lie a bed of noise.
"""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from kws_jax.data.corpus import CLIP_SAMPLES, FULL_SCALE, SAMPLE_RATE, Split
from kws_jax.data.noise import NoiseBank
from kws_jax.data.sounding import FLOOR
from kws_jax.data.time_labels import Spoken
from kws_jax.errors import UserError

_LARGEST = 32767.0  # of int16
_LONGEST_PIECE = 10 * SAMPLE_RATE  # of one recording of background
_LONGEST_BED = 20 * SAMPLE_RATE  # of one recording of the bed
_FADE = SAMPLE_RATE // 100  # samples
# Draws of the plan, of the gaps and of the bed must not depend on one another.
_PLAN, _GAPS, _BED = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class StreamSettings:
    """What a stream is made of (`config.detection`).

    Attributes:
      hours: its length.
      keywords_per_hour: how many keywords are said.
      speech_share: share of the time in which a clip of a word is heard, keyword or
        other; each is a second long.
      noise_share: share of the gaps between words in which background is heard.
      seed: of all draws.

    Raises:
      UserError: for values that no stream can have.
    """

    hours: float
    keywords_per_hour: float
    speech_share: float
    noise_share: float
    seed: int

    def __post_init__(self) -> None:
        for field in ("speech_share", "noise_share"):
            if not 0 <= getattr(self, field) <= 1:
                raise UserError(
                    f"config.detection.{field} = {getattr(self, field)}: give a "
                    "number in 0 … 1."
                )
        if not 0 < self.hours <= 1000:
            raise UserError(
                f"config.detection.hours = {self.hours}: give a number above 0, at "
                "most 1000."
            )
        if self.keywords < 1:
            raise UserError(
                f"config.detection: {self.keywords_per_hour:g} keywords_per_hour in "
                f"{self.hours:g} hours make a stream without keywords; raise one of "
                "them."
            )
        if self.others < 0 or self.keywords * CLIP_SAMPLES > self.samples:
            raise UserError(
                f"config.detection.keywords_per_hour = {self.keywords_per_hour:g}, a "
                f"second each, do not fit into speech_share = {self.speech_share:g} of "
                "the time; lower the one or raise the other."
            )

    @property
    def samples(self) -> int:
        """Length of the stream."""
        return round(self.hours * 3600 * SAMPLE_RATE)

    @property
    def keywords(self) -> int:
        """How many keywords are said."""
        return round(self.hours * self.keywords_per_hour)

    @property
    def others(self) -> int:
        """How many other words are said; negative where the keywords do not fit."""
        words = round(self.speech_share * self.samples / CLIP_SAMPLES)
        return min(words, self.samples // CLIP_SAMPLES) - self.keywords


@dataclasses.dataclass(frozen=True)
class Stream:
    """Which clip is heard when.

    Attributes:
      words: the clips in the order of the stream, with labels 0 … k-1 for keywords and
        -1 for any other word.
      begins: int64 [n], the first sample of each.
      samples: length of the stream.
      noise_share: see `StreamSettings`.
      seed: of the draws of gaps and bed.
      rounds: how often the most used keyword and other word are said; above 1 where
        the stream is longer than the clips allow.
    """

    words: Split
    begins: np.ndarray
    samples: int
    noise_share: float
    seed: int
    rounds: tuple[int, int]

    @property
    def hours(self) -> float:
        """Length of the stream."""
        return self.samples / SAMPLE_RATE / 3600

    def spoken(self, keywords: tuple[str, ...]) -> Spoken:
        """When which keyword is said: the second of its clip."""
        here = self.words.labels >= 0
        begins = self.begins[here] / SAMPLE_RATE
        words = tuple(keywords[label] for label in self.words.labels[here].tolist())
        return Spoken(begins, begins + CLIP_SAMPLES / SAMPLE_RATE, words)


@dataclasses.dataclass(frozen=True)
class Bed:
    """Noise under the whole stream, at the root mean square `rms` (full scale 1)."""

    bank: NoiseBank
    rms: float


def plan_stream(words: Split, settings: StreamSettings) -> Stream:
    """Draws a stream.

    No clip comes twice before every other of its kind (keyword, other) has come once.
    Order and times are uniform draws: the gaps are those between random moments.

    Args:
      words: clips with labels as in `Stream`.
      settings: what the stream is made of.

    Raises:
      UserError: no clip of a keyword, or none of another word where they are wanted.
    """
    rng = np.random.default_rng([settings.seed, _PLAN])
    counts = (settings.keywords, settings.others)
    rows, rounds = [], []
    for kind, count in enumerate(counts):
        clips = np.flatnonzero((words.labels < 0) == bool(kind))
        if count and not len(clips):
            raise _no_clips(words.name, bool(kind), settings)
        times = -(-count // max(len(clips), 1))
        order = [rng.permutation(clips) for _ in range(times)]
        rows.append(np.concatenate([np.zeros(0, np.int64), *order])[:count])
        rounds.append(times)
    chosen = rng.permutation(np.concatenate(rows).astype(np.int64))
    spare = settings.samples - len(chosen) * CLIP_SAMPLES
    gaps = np.sort(rng.integers(0, spare + 1, len(chosen)))
    return Stream(
        words=words.subset(chosen),
        begins=gaps + np.arange(len(chosen)) * CLIP_SAMPLES,
        samples=settings.samples,
        noise_share=settings.noise_share,
        seed=settings.seed,
        rounds=(rounds[0], rounds[1]),
    )


def _no_clips(split: str, other: bool, settings: StreamSettings) -> UserError:
    if not other:
        return UserError(f"the {split} split has no clip of a keyword to be detected")
    share = settings.keywords * CLIP_SAMPLES / settings.samples
    return UserError(
        f"the {split} split has no clips of other words, but config.detection asks for "
        f"{settings.others} of them. Add clips of other words, or set "
        f"config.detection.speech_share to {share:.6g}, the keywords alone"
    )


def check_background(stream: Stream, background: NoiseBank | None) -> None:
    """Raises UserError where the gaps want background and there is none."""
    if stream.noise_share > 0 and background is None:
        raise UserError(
            f"the {stream.words.name} split has no recordings of background for the "
            "gaps of the stream. Add recordings in _background_noise_, or set "
            "config.detection.noise_share to 0"
        )


def render(
    stream: Stream,
    clips: Iterable[np.ndarray],
    *,
    background: NoiseBank | None = None,
    bed: Bed | None = None,
) -> Iterator[np.ndarray]:
    """The audio of a stream, in pieces.

    Args:
      stream: the plan.
      clips: int16 [CLIP_SAMPLES] for each clip of `stream.words`, in order: as they
        are, or as a room or another condition of the words has changed them.
      background: recordings for the gaps, each at a volume from U(0, 1).
      bed: noise under everything.

    Yields:
      int16 [n] of at most ten seconds. Where the peak of a piece exceeds full scale,
      the whole piece is scaled down; nothing is clipped.

    Raises:
      UserError: see `check_background`.
    """
    check_background(stream, background)
    under = _BedSound(bed, stream.seed) if bed else None
    gaps = _Gaps(background, stream.noise_share, stream.seed)
    here = 0
    for begin, clip in zip(stream.begins.tolist(), clips, strict=True):
        for piece in gaps.fill(begin - here):
            yield _mixed(piece, under)
        yield _mixed(clip.astype(np.float32), under)
        here = begin + CLIP_SAMPLES
    for piece in gaps.fill(stream.samples - here):
        yield _mixed(piece, under)


def _mixed(piece: np.ndarray, under: "_BedSound | None") -> np.ndarray:
    if under is not None:
        piece = piece + under.take(len(piece))
    peak = np.abs(piece).max(initial=0.0)
    if peak > _LARGEST:
        piece = piece * (_LARGEST / peak)
    return np.rint(piece).astype(np.int16)


def _faded(audio: np.ndarray) -> np.ndarray:
    """The audio as float32 with its ends faded in and out, against clicks."""
    faded = audio.astype(np.float32)
    length = min(_FADE, len(faded) // 2)
    ramp = (np.arange(length, dtype=np.float32) + 0.5) / max(length, 1)
    faded[:length] *= ramp
    faded[len(faded) - length :] *= ramp[::-1]
    return faded


def _crop(rng: np.random.Generator, audio: np.ndarray, at_most: int) -> np.ndarray:
    """A stretch of a recording: int16 [<= at_most]."""
    length = min(at_most, len(audio))
    begin = int(rng.integers(0, len(audio) - length + 1))
    return audio[begin : begin + length]


def _recording(rng: np.random.Generator, bank: NoiseBank) -> tuple[int, np.ndarray]:
    """One of the recordings, all alike: its number and its audio."""
    row = int(rng.integers(len(bank)))
    return row, bank.audio[bank.starts[row] :][: bank.lengths[row]]


def _sounding_part(
    rng: np.random.Generator, audio: np.ndarray, ranges: np.ndarray
) -> np.ndarray:
    """Of one of the `ranges` of a recording, by their lengths: all that its crops have.

    Every second of it sounds, as `NoiseBank.ranges` has it.
    """
    widths = np.diff(ranges)[:, 0]
    # Without silence there is nothing to draw, and what is drawn next stays.
    row = rng.choice(len(ranges), p=widths / widths.sum()) if len(ranges) > 1 else 0
    first, behind = ranges[row]
    return audio[first : behind - 1 + CLIP_SAMPLES]


def _without_silent_ends(crop: np.ndarray) -> np.ndarray:
    """From the first loud sample to the last, but not less than a second.

    The first and last seconds may sound in a few samples alone. Where crops follow each
    other, silence would add up at the seams; as long as the fades it may stay.
    """
    away = np.abs(crop - np.mean(crop, dtype=np.float64))
    loud = np.flatnonzero(away >= np.sqrt(FLOOR * np.mean(np.square(away))))
    begin = int(loud[0]) if loud[0] > _FADE else 0
    end = max(int(loud[-1]) + 1 + _FADE, begin + CLIP_SAMPLES)
    return crop[begin:end]


class _Gaps:
    """Fills the time between words with silence or background.

    Background is as it was recorded, its own silence too, as in a quiet room: unlike
    the bed it is promised no level.
    """

    def __init__(self, bank: NoiseBank | None, noise_share: float, seed: int):
        self._bank, self._share = bank, noise_share
        self._rng = np.random.default_rng([seed, _GAPS])

    def fill(self, samples: int) -> Iterator[np.ndarray]:
        """A gap as float32 pieces that are `samples` long together."""
        noisy = self._rng.random() < self._share
        while samples > 0:
            if noisy and self._bank is not None:
                _, audio = _recording(self._rng, self._bank)
                crop = _crop(self._rng, audio, min(samples, _LONGEST_PIECE))
                piece = _faded(crop) * np.float32(self._rng.random())
            else:
                piece = np.zeros(min(samples, _LONGEST_PIECE), np.float32)
            yield piece
            samples -= len(piece)


class _BedSound:
    """An endless bed: stretches where recordings sound, each brought to one level."""

    def __init__(self, bed: Bed, seed: int):
        self._bed = bed
        self._rng = np.random.default_rng([seed, _BED])
        self._left = np.zeros(0, np.float32)

    def take(self, samples: int) -> np.ndarray:
        """The next float32 [samples]."""
        parts, missing = [], samples
        while missing > 0:
            if not len(self._left):
                self._left = self._stretch()
            parts.append(self._left[:missing])
            self._left = self._left[missing:]
            missing -= len(parts[-1])
        return np.concatenate([np.zeros(0, np.float32), *parts])

    def _stretch(self) -> np.ndarray:
        row, audio = _recording(self._rng, self._bed.bank)
        part = _sounding_part(self._rng, audio, self._bed.bank.ranges[row])
        crop = _without_silent_ends(_crop(self._rng, part, _LONGEST_BED))
        sound = crop.astype(np.float32)
        level = float(np.sqrt(np.mean(np.square(sound, dtype=np.float64)))) / FULL_SCALE
        return _faded(sound * np.float32(self._bed.rms / level))
