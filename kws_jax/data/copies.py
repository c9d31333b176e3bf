"""Which recordings hold the same sound, whatever their files are called.

Two recordings are taken for copies where they share a mark: the first second of sound,
or half a second around a sample that is the largest in it. Such half seconds are found
in a copy too that begins later, ends earlier or has other sound before it, as long as
its samples are the same, but for an offset: one at another rate or level, or from a
lossy format, is not recognised. Half a second in common may do, but only two are nearly
always enough.
"""

import hashlib
from collections.abc import Iterator, Mapping, Set

import numpy as np

from kws_jax.data.corpus import CLIP_SAMPLES, SAMPLE_RATE
from kws_jax.data.sounding import FLOOR

_AROUND = SAMPLE_RATE // 4  # samples on either side of a largest one
# Samples of a mark that differ from the one before: 25 ms of sound.
_LEAST_CHANGES = SAMPLE_RATE // 40


def marks(audio: np.ndarray) -> frozenset[bytes]:
    """What tells int16 [samples >= 1] from other sound; a copy shares some of it."""
    whole = audio[int(np.argmax(audio != 0)) :]
    windows = [whole[:CLIP_SAMPLES], *_windows(audio)]
    powers = [float(np.var(window)) for window in windows]
    least = FLOOR * sum(powers) / len(powers)
    # Silence with a click in it, or with a recorder's dither, may be in any recording.
    telling = [
        window
        for window, power in zip(windows, powers, strict=True)
        if power >= least and np.count_nonzero(np.diff(window)) >= _LEAST_CHANGES
    ]
    # By its steps: banks take the offset of a recording away, or of a part of one.
    return frozenset(
        hashlib.sha256(np.diff(w).tobytes()).digest() for w in telling or [whole]
    )


def same_sound(marks_of: Mapping[str, Set[bytes]]) -> dict[str, str]:
    """Each name -> the first that it shares marks with, directly or by others."""
    first = {name: name for name in marks_of}

    def root(name: str) -> str:
        while first[name] != name:
            name = first[name]
        return name

    place = {name: i for i, name in enumerate(marks_of)}
    holder: dict[bytes, str] = {}
    for name, own in marks_of.items():
        for mark in own:
            pair = root(name), root(holder.setdefault(mark, name))
            first[max(pair, key=place.__getitem__)] = min(pair, key=place.__getitem__)
    return {name: root(name) for name in marks_of}


def _windows(audio: np.ndarray) -> Iterator[np.ndarray]:
    """Every [2 _AROUND + 1] of which the middle is the largest, and the first such."""
    blocks = len(audio) // _AROUND
    # Two of them are more than a block apart, so it is the largest of its block too.
    places = audio[: blocks * _AROUND].reshape(blocks, _AROUND).argmax(1)
    for middle in (places + _AROUND * np.arange(blocks)).tolist():
        before = audio[max(middle - _AROUND, 0) : middle]
        behind = audio[middle + 1 : middle + 1 + _AROUND]
        if (
            len(before) == len(behind) == _AROUND
            and before.max() < audio[middle] >= behind.max()
        ):
            yield audio[middle - _AROUND : middle + 1 + _AROUND]
