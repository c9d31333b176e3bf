"""Synthetic words beside the recorded ones in the unknown class of training.

Where recordings know only a few other words, a network takes most words that it never
heard for keywords. A few hundred words spoken by espeak-ng, most of them near in sound
to a keyword (`vocabulary`), widen the class; validation and test stay as they are.
"""

import hashlib
import json
import math
import os
from collections.abc import Sequence

import numpy as np

from kws_jax import runtime
from kws_jax.data import espeak, store, synthetic
from kws_jax.data.corpus import TRAIN, Corpus, Split
from kws_jax.data.vocabulary import WORDS
from kws_jax.errors import UserError

_VERSION = 1  # to be raised when the same settings give other samples
HIGHEST_RATE = 0.9


def check_rate(rate: float) -> None:
    """Raises UserError for a share that the clips cannot have."""
    if not 0 <= rate <= HIGHEST_RATE:
        raise UserError(
            f"config.data.synthetic_unknown.rate = {rate}: give 0 (none) to "
            f"{HIGHEST_RATE}, the share of the unknown training clips."
        )


def homophones(words: Sequence[str], targets: Sequence[str]) -> dict[str, str]:
    """Those of `words` that sound exactly like one of `targets`, and like which.

    Words sound alike that espeak-ng gives the same phonemes in one of the accents, such
    as know and no, write and right; a target is its own homophone.

    Raises:
      UserError: espeak-ng is not usable.
    """
    found: dict[str, str] = {}
    if not targets:
        return found
    for spelled in espeak.pronounce([*targets, *words], synthetic.ACCENTS):
        sound = dict(zip(spelled[: len(targets)], targets))
        for word, phonemes in zip(words, spelled[len(targets) :]):
            if phonemes in sound:
                found.setdefault(word, sound[phonemes])
    return found


def choose_words(
    given: Sequence[str], keywords: Sequence[str], unheard: Sequence[str]
) -> tuple[str, ...]:
    """The words to be spoken: those given, or the built-in ones, none a homophone.

    Args:
      given: `config.data.synthetic_unknown.words`; empty for the built-in list, from
        which homophones are left out.
      keywords: words that must not be trained as unknown, nor what sounds like them.
      unheard: words that training must not hear, in the same way.

    Raises:
      UserError: a given word sounds like one of the others, or cannot be said.
    """
    words = tuple(dict.fromkeys(given)) or WORDS
    synthetic.check_words((*words, *keywords, *unheard))
    alike = homophones(words, (*keywords, *unheard))
    if given and alike:
        shown = ", ".join(f"{word!r} (like {other!r})" for word, other in alike.items())
        raise UserError(
            "config.data.synthetic_unknown.words names words that sound like keywords "
            f"or unheard words, and would teach to miss them: {shown}; take them out"
        )
    return tuple(word for word in words if word not in alike)


def open_words(
    words: Sequence[str],
    wanted: int,
    *,
    seed: int = 0,
    cache_dir: str = "",
    progress: store.Progress | None = None,
) -> Corpus:
    """Makes (or finds in the cache) at least `wanted` clips, as many of each word.

    The voices are the training voices of synthetic speech under the same seed, so that
    they are no speakers of its validation and test. Rows are in turns: one clip of each
    word, then the next of each.

    Raises:
      UserError: see `synthetic.training_clips`; the disk is full.
    """
    each = max(1, math.ceil(wanted / len(words)))
    settings = {
        "version": _VERSION,
        "espeak": espeak.version(),
        "words": list(words),
        "each": each,
        "seed": seed,
    }
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    path = runtime.cache_root(cache_dir) / f"synthetic-unknown-{key}"
    if not os.path.exists(path):
        clips = list(
            synthetic.training_clips(dict.fromkeys(words, each), seed, progress)
        )
        turns = np.arange(len(clips)).reshape(len(words), each).T.ravel()
        renamed = (
            (f"synthetic_unknown/{name}", word, speaker, split, audio)
            for name, word, speaker, split, audio in (clips[i] for i in turns.tolist())
        )
        store.write_store(path, renamed, {}, {}, settings)
    return store.open_store(path)


def clips_for(unknown: int, rate: float) -> int:
    """How many clips are `rate` of all when they are added to `unknown` others."""
    return round(unknown * rate / (1 - rate))


def with_words(train: Split, spoken: Corpus, count: int, label: int) -> Split:
    """The training split, then the first `count` spoken clips under `label`."""
    rows = np.arange(count)
    added = Split(
        name=TRAIN,
        labels=np.full(count, label, np.int32),
        names=spoken.names[rows],
        speakers=spoken.speakers[rows],
        read=spoken.read,
    )
    return train.joined(added)
