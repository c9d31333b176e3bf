"""The background of a corpus, so that no test hears what training does.

Its recordings are divided by name or in time (`splits.divide_background`). Those that
hold one sound under two names, or the same again and again, would come to both sides.
"""

import dataclasses
import sys
from collections.abc import Iterable, Sequence, Set

from kws_jax.condition_names import SEEN
from kws_jax.data import copies
from kws_jax.data.corpus import TEST, TRAIN, VALIDATION, Corpus, Recording
from kws_jax.data.sounding import is_silent


def without_copies(corpus: Corpus) -> Corpus:
    """The corpus with no sound of its background both in training and elsewhere.

    What training shares with validation or test is left out of training; where that
    would leave it without any, of the two others. It is told on standard error.
    """
    parts = {**corpus.background}
    training = parts.get(TRAIN, ())
    held = _marks([*parts.get(VALIDATION, ()), *parts.get(TEST, ())])
    kept = _others(training, held)
    if len(kept) == len(training):
        return corpus
    noise = {**corpus.noise}
    if kept:
        parts[TRAIN] = kept
        # The same recordings, as noise.
        noise[SEEN] = _others(noise.get(SEEN, ()), held)
        left, where = len(training) - len(kept), "training"
    else:
        heard = _marks(training)
        for split in (VALIDATION, TEST):
            parts[split] = _others(parts.get(split, ()), heard)
        left = sum(map(len, corpus.background.values())) - sum(map(len, parts.values()))
        where = "validation and test"
    print(
        "note: recordings of background, or parts of them, that hold the same sound in "
        "training as in validation or test (copies, or what repeats itself) are left "
        f"out of {where}: {left}",
        file=sys.stderr,
    )
    return dataclasses.replace(corpus, background=parts, noise=noise)


def _others(
    recordings: Sequence[Recording], heard: Set[bytes]
) -> tuple[Recording, ...]:
    return tuple(r for r in recordings if not copies.marks(r.audio) & heard)


def _marks(recordings: Iterable[Recording]) -> frozenset[bytes]:
    # Silent ones are alike, and no copies; they are refused where they are used.
    sounding = (r.audio for r in recordings if not is_silent(r.audio))
    return frozenset().union(*map(copies.marks, sounding))
