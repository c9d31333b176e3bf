"""Which clips and which noise are for training, for validation and for testing."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

import numpy as np

from kws_jax.data.corpus import (
    CLIP_SAMPLES,
    SPLITS,
    TEST,
    TRAIN,
    VALIDATION,
    Recording,
)
from kws_jax.data.sounding import power
from kws_jax.errors import UserError

VALIDATION_LIST, TEST_LIST = "validation_list.txt", "testing_list.txt"

# The largest number of clips of one speaker that Google's rule provides for.
_MAX_CLIPS_PER_SPEAKER = 2**27 - 1


def speaker_of(name: str) -> str:
    """The speaker in a file name: what stands before `_nohash_`, else the stem."""
    return re.sub(r"_nohash_.*$", "", PurePosixPath(name).stem)


def which_set(name: str, *, validation_fraction: float, test_fraction: float) -> str:
    """The split of a clip by the hash of its speaker, as Google's `which_set` does it.

    percent = 100 · (sha1(speaker) mod M+1) / M, with M = 2^27 - 1; validation below
    100·`validation_fraction`, test in the next 100·`test_fraction`, else training. All
    clips of a speaker come into the same split. Names without `_nohash_` are hashed
    without their suffix, so that a converted file stays in its split.

    Reference: Warden 2018 (arXiv 1804.03209), section 7; README of the data set.
    """
    digest = hashlib.sha1(speaker_of(name).encode()).hexdigest()
    step = int(digest, 16) % (_MAX_CLIPS_PER_SPEAKER + 1)
    percent = step * (100.0 / _MAX_CLIPS_PER_SPEAKER)
    if percent < 100 * validation_fraction:
        return VALIDATION
    if percent < 100 * (validation_fraction + test_fraction):
        return TEST
    return TRAIN


def hash_order(keys: Iterable[str]) -> list[str]:
    """The different keys, in the order of their sha1: as good as at random."""
    return sorted(set(keys), key=lambda key: hashlib.sha1(key.encode()).hexdigest())


def held_out(keys: Iterable[str], fraction: float) -> set[str]:
    """The keys that the test gets: the share `fraction` with the smallest sha1.

    Of two keys or more, at least one is held out and one is not, unless the fraction is
    0 or 1.
    """
    ordered = hash_order(keys)
    count = round(fraction * len(ordered))
    if 0 < fraction < 1 and len(ordered) > 1:
        count = min(max(count, 1), len(ordered) - 1)
    return set(ordered[:count])


def divide_background(
    recordings: Sequence[Recording],
) -> dict[str, tuple[Recording, ...]]:
    """Gives each split background recordings of its own: no test hears training noise.

    With three recordings or more, ordered by name, one sixth of them (at least one)
    goes to testing from place n//3 on and as many to validation from place 2n//3 on.
    For the six of Speech Commands: validation has `running_tap` (as in TFDS), testing
    has `exercise_bike`. With fewer, every recording is cut into thirds in time: the
    first for training, the second for validation, the last for testing.
    """
    ordered = sorted(recordings, key=lambda recording: recording.name)
    n = len(ordered)
    if n < 3:
        thirds = [np.array_split(recording.audio, 3) for recording in ordered]
        return {
            split: tuple(
                Recording(recording.name, parts[i])
                for recording, parts in zip(ordered, thirds)
            )
            for i, split in enumerate((TRAIN, VALIDATION, TEST))
        }
    share = max(1, n // 6)
    test = ordered[n // 3 : n // 3 + share]
    validation = ordered[2 * n // 3 : 2 * n // 3 + share]
    held_out = {recording.name for recording in (*test, *validation)}
    train = [recording for recording in ordered if recording.name not in held_out]
    return {TRAIN: tuple(train), VALIDATION: tuple(validation), TEST: tuple(test)}


def powers_of_wholes(
    background: Mapping[str, Sequence[Recording]],
) -> dict[str, float]:
    """Name -> power of the recordings that `divide_background` has cut into thirds."""
    powers = {}
    for thirds in zip(*(background.get(split, ()) for split in SPLITS)):
        # In its order; where there are three and more, no name comes twice.
        if len(background[TRAIN]) < 3 and len({third.name for third in thirds}) == 1:
            whole = np.concatenate([third.audio for third in thirds])
            powers[thirds[0].name] = power(whole, CLIP_SAMPLES)
    return powers


def split_by_lists(
    names: Iterable[str], *, validation: str, test: str, where: str
) -> dict[str, str]:
    """The split of every name (WORD/FILE) by the text of the two lists.

    Suffixes do not count, so lists of .wav files fit .flac files. Entries without a
    file are no error (many use parts of the data set), as long as some have one.

    Raises:
      UserError: a list fits no file, or both lists name the same clip.
    """

    def stems(text: str) -> set[str]:
        return {_without_suffix(line.strip()) for line in text.splitlines()} - {""}

    listed = {VALIDATION: stems(validation), TEST: stems(test)}
    twice = sorted(listed[VALIDATION] & listed[TEST])
    if twice:
        raise UserError(
            f"{where}: {VALIDATION_LIST} and {TEST_LIST} both name {twice[0]} "
            f"({len(twice)} in all). A clip may be in one of them only"
        )
    splits = {}
    for name in names:
        stem = _without_suffix(name)
        splits[name] = next((s for s, known in listed.items() if stem in known), TRAIN)
    for split, file in ((VALIDATION, VALIDATION_LIST), (TEST, TEST_LIST)):
        if split not in splits.values():
            raise UserError(
                f"{where}: no clip is named by {file}. Expected lines of the form "
                "WORD/FILE.wav; mend the lists, or remove both"
            )
    return splits


def _without_suffix(name: str) -> str:
    return (
        name[: -len(PurePosixPath(name).suffix)] if PurePosixPath(name).suffix else name
    )
