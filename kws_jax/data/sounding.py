"""Where in a recording of noise a crop may begin: where it has sound to be mixed.

The power of a crop is its variance, so that a constant, an offset of the recorder, is
silent. The power of a recording is the mean over its crops.
"""

from collections.abc import Iterator

import numpy as np

# 40 dB under the recording's power: what is fainter is its silence, which nothing
# brings to a signal-to-noise ratio, or in which a recorder's hiss would be the noise.
FLOOR = 1e-4
_CHUNK = 1 << 20  # samples that are looked at together: some 32 MB of sums


def is_silent(audio: np.ndarray) -> bool:
    """Whether it has no sample, or the same again and again."""
    return not len(audio) or bool(audio.min() == audio.max())


def power(audio: np.ndarray, length: int) -> float:
    """The power of int16 [samples >= 1], in crops of at most `length` samples."""
    length = min(length, len(audio))
    total = sum(float(np.sum(crops, dtype=float)) for _, crops in _crops(audio, length))
    return total / (len(audio) - length + 1) / length**2


def sounding_ranges(
    audio: np.ndarray, length: int, whole_power: float | None = None
) -> np.ndarray:
    """Ranges of first samples whose crop has at least `FLOOR` of the power.

    Args:
      audio: int16 [samples], not silent; samples >= length.
      length: samples of a crop.
      whole_power: of the recording that this is a part of; by default its own.

    Returns:
      int64 [r, 2]: the first sample of each range and what comes behind its last; in
      order, with gaps between them. There is one at least, but for a part in which its
      recording is silent.
    """
    if whole_power is None:
        # The loudest crop has the mean at least.
        whole_power = power(audio, length)
    least = FLOOR * whole_power * length**2
    sounds = np.zeros(len(audio) - length + 3, np.int8)
    for begin, crops in _crops(audio, length):
        sounds[1 + begin : 1 + begin + len(crops)] = crops >= least
    border = np.diff(sounds)
    return np.stack([np.flatnonzero(border == 1), np.flatnonzero(border == -1)], axis=1)


def _crops(audio: np.ndarray, length: int) -> Iterator[tuple[int, np.ndarray]]:
    """Pieces of all crops: the first one's first sample, int64 [n] length² variances.

    As integers they are exact: length Σ x² - (Σ x)².
    """
    starts = len(audio) - length + 1
    for begin in range(0, starts, _CHUNK):
        piece = audio[begin : min(begin + _CHUNK, starts) + length - 1]
        squares = _sums(np.square(piece, dtype=np.int64), length)
        yield begin, length * squares - _sums(piece, length) ** 2


def _sums(values: np.ndarray, length: int) -> np.ndarray:
    """The sum of every `length` neighbours, int64."""
    total = np.cumsum(values, dtype=np.int64)
    sums = total[length - 1 :].copy()
    sums[1:] -= total[:-length]
    return sums
