"""What every source of speech delivers: a corpus, and the splits cut from it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

SAMPLE_RATE = 16_000
FULL_SCALE = 32768.0  # what an int16 is divided by to be in [-1, 1]
CLIP_SAMPLES = 16_000
TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)
UNKNOWN, SILENCE = "_unknown_", "_silence_"

# Reads clips by row: int [n] -> int16 [n, CLIP_SAMPLES] (short clips zero-padded at the
# end, long ones cut).
Reader = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Recording:
    """A long recording of noise: `audio` int16 [samples] at 16 kHz.

    `power` is that of the recording which this is a part of (`sounding.power`), None
    for a whole one: a part may hold nothing but what is silence in its recording.
    """

    name: str
    audio: np.ndarray
    power: float | None = None


@dataclasses.dataclass(frozen=True)
class Corpus:
    """All clips of a source, one row each; the audio is read on demand.

    `words`, `speakers`, `names` and `splits` are string arrays [n]; `names` are unique
    and say where a clip came from. `background` holds, for each split, the recordings
    from which silence and background noise are cut; `noise` holds recordings to be
    mixed at a given SNR, under "seen" those that training may hear, under "unseen"
    those for the test alone (empty where the source has none).
    """

    words: np.ndarray
    speakers: np.ndarray
    names: np.ndarray
    splits: np.ndarray
    read: Reader
    background: Mapping[str, Sequence[Recording]]
    noise: Mapping[str, Sequence[Recording]]
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class Split:
    """The labelled clips of one split under a protocol.

    `labels` int32 [n], `names` str [n], `speakers` str [n]; `read` takes positions
    0 … n-1 and gives int16 [m, CLIP_SAMPLES]. `origin` int [n] are the positions in the
    split that this one was cut from (by any number of cuts), None for a whole one.
    """

    name: str
    labels: np.ndarray
    names: np.ndarray
    speakers: np.ndarray
    read: Reader
    origin: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, positions: np.ndarray, name: str | None = None) -> "Split":
        """The clips at `positions` (int [m], 0 … n-1), renumbered 0 … m-1."""
        positions = np.asarray(positions)
        return Split(
            name=name or self.name,
            labels=self.labels[positions],
            names=self.names[positions],
            speakers=self.speakers[positions],
            read=lambda rows: self.read(positions[np.asarray(rows)]),
            origin=positions if self.origin is None else self.origin[positions],
        )

    def joined(self, other: "Split") -> "Split":
        """These clips, then those of `other`, under the name of this split."""
        here = len(self)

        def read(positions: np.ndarray) -> np.ndarray:
            rows = np.asarray(positions, np.int64)
            audio = np.empty((len(rows), CLIP_SAMPLES), np.int16)
            for split, chosen, first in (
                (self, rows < here, 0),
                (other, rows >= here, here),
            ):
                if chosen.any():
                    audio[chosen] = split.read(rows[chosen] - first)
            return audio

        return Split(
            name=self.name,
            labels=np.concatenate([self.labels, other.labels]),
            names=np.concatenate([self.names, other.names]),
            speakers=np.concatenate([self.speakers, other.speakers]),
            read=read,
        )


@dataclasses.dataclass(frozen=True)
class Task:
    """What a network is trained and tested on: label names and the three splits."""

    protocol: str
    labels: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
