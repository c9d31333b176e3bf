"""Where in a recording of noise a crop may begin: where it has sound to be mixed."""

import numpy as np

# 40 dB under the recording's mean power: what is fainter is its silence, which nothing
# brings to a signal-to-noise ratio, or in which a recorder's hiss would be the noise.
FLOOR = 1e-4
_CHUNK = 1 << 20  # samples that are looked at together: some 16 MB of sums


def sounding_ranges(audio: np.ndarray, length: int) -> np.ndarray:
    """Ranges of first samples whose crop has at least `FLOOR` of the mean power.

    Args:
      audio: int16 [samples], not silent; samples >= length.
      length: samples of a crop.

    Returns:
      int64 [r, 2], r >= 1: the first sample of each range and what comes behind its
      last; in order, with gaps between them.
    """
    energy = sum(
        int(np.square(audio[begin : begin + _CHUNK], dtype=np.int64).sum())
        for begin in range(0, len(audio), _CHUNK)
    )
    # The loudest crop has half of the mean power at least, so one is always left.
    least = FLOOR * energy * length / len(audio)
    starts = len(audio) - length + 1
    sounds = np.zeros(starts + 2, np.int8)
    for begin in range(0, starts, _CHUNK):
        piece = audio[begin : min(begin + _CHUNK, starts) + length - 1]
        total = np.cumsum(np.square(piece, dtype=np.int64))
        crops = total[length - 1 :].copy()
        crops[1:] -= total[:-length]
        sounds[1 + begin : 1 + begin + len(crops)] = crops >= least
    border = np.diff(sounds)
    return np.stack([np.flatnonzero(border == 1), np.flatnonzero(border == -1)], axis=1)
