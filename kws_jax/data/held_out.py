"""Clips beside the splits of a task: other words, words never heard, background.

What the ordinary splits leave out and tests of continuous audio and of false accepts
want: every clip of a word that is no keyword, the words that are kept from training
(`config.data.unheard_words`), and each split's own recordings of background.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from kws_jax.data.corpus import (
    CLIP_SAMPLES,
    SILENCE,
    TEST,
    UNKNOWN,
    VALIDATION,
    Corpus,
    Recording,
    Split,
)
from kws_jax.data.noise import NoiseBank
from kws_jax.data.protocols import ALL_WORDS, get_protocol
from kws_jax.data.sounding import is_silent
from kws_jax.errors import UserError, nearest

# With fewer clips of test speakers than this, all speakers stand for an unheard word.
FEW_CLIPS = 20
# The name of each recording of background where the source has its silence alone.
CLIPS_OF_SILENCE = "silence"


@dataclasses.dataclass(frozen=True)
class WordClips:
    """Clips of words that are no label: `split.labels` are positions in `words`.

    `of_test_speakers` bool [n] tells the clips whose speakers training never heard.
    """

    words: tuple[str, ...]
    split: Split
    of_test_speakers: np.ndarray

    @property
    def rare(self) -> np.ndarray:
        """Words with fewer than FEW_CLIPS clips of test speakers, bool [words]."""
        strangers = self.split.labels[self.of_test_speakers]
        return np.bincount(strangers, minlength=len(self.words)) < FEW_CLIPS

    def told(self) -> str:
        """How many words and clips, and how many of speakers that training may hear."""
        clips, strangers = len(self.split), int(self.of_test_speakers.sum())
        return (
            f"Unheard: {len(self.words)} words, {clips:,} clips, {strangers:,} of them "
            f"of test speakers; in words with fewer than {FEW_CLIPS} of these, all "
            "speakers count"
        )


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """What a task leaves out.

    Attributes:
      unheard: clips of the words that training never hears, None where none were named.
      others: for "validation" and "test", all clips of that split's other words. Those
        of "test" include the unheard words.
      background: for "validation" and "test", the split's recordings of background;
        where it has none, its clips of silence. A split with neither is missing.
    """

    unheard: WordClips | None
    others: Mapping[str, WordClips]
    background: Mapping[str, NoiseBank]


NOTHING_HELD_OUT = HeldOut(None, {}, {})


def check_unheard(
    corpus: Corpus, protocol: str, keywords: Sequence[str], unheard: Sequence[str]
) -> None:
    """Raises UserError for unheard words that are keywords or have no clips."""
    if not unheard:
        return
    rule = get_protocol(protocol)
    words = tuple(keywords) if protocol == "custom" else rule.keywords
    if words == ALL_WORDS:
        raise UserError(
            f"config.data.unheard_words does not go with protocol {protocol!r}, in "
            "which every word is a keyword. Set it to '', or choose another "
            "config.data.protocol"
        )
    both = [word for word in unheard if word in words]
    if both:
        raise UserError(
            f"config.data.unheard_words names {', '.join(both)}, which are keywords; "
            "take them out of one of the two lists"
        )
    known = sorted(set(corpus.words.tolist()) - {UNKNOWN, SILENCE, *words})
    missing = [word for word in unheard if word not in known]
    if missing and not known:
        raise UserError(
            f"config.data.unheard_words = {','.join(unheard)}: this source does not "
            "tell its other words apart. Take a folder of words, or "
            "--config.data.source=tfds with --config.data.protocol=v1-12 or v2-12"
        )
    if missing:
        hints = "; ".join(f"{word!r}: {nearest(word, known)}" for word in missing)
        raise UserError(
            f"the source has no clips of these config.data.unheard_words: {hints}"
        )


def without(corpus: Corpus, words: Sequence[str]) -> Corpus:
    """The corpus without the clips of `words`; itself where there are none."""
    rows = np.flatnonzero(~np.isin(corpus.words, list(words)))
    if len(rows) == len(corpus.words):
        return corpus
    return dataclasses.replace(
        corpus,
        words=corpus.words[rows],
        speakers=corpus.speakers[rows],
        names=corpus.names[rows],
        splits=corpus.splits[rows],
        read=_Rows(corpus, rows),
    )


def collect(
    corpus: Corpus, labels: Sequence[str], unheard: Sequence[str] = ()
) -> HeldOut:
    """What a task with these labels leaves out of a corpus."""
    others = {}
    for split in (VALIDATION, TEST):
        unwanted = [*labels, SILENCE] if split == TEST else [*labels, SILENCE, *unheard]
        # Prepared sources call their other words unknown, a label.
        unwanted = [label for label in unwanted if label != UNKNOWN]
        here = (corpus.splits == split) & ~np.isin(corpus.words, unwanted)
        others[split] = _word_clips(corpus, np.flatnonzero(here), split)
    banks = {split: _background(corpus, split) for split in (VALIDATION, TEST)}
    return HeldOut(
        _unheard(corpus, unheard) if unheard else None,
        others,
        {split: bank for split, bank in banks.items() if bank is not None},
    )


def background_crops(bank: NoiseBank) -> Split:
    """Clips of background, one behind the other, at full volume.

    None overlap, and of a recording that is repeated there is one: intervals take them
    for independent.
    """
    # Where the last one may begin.
    last = np.where(bank.repeats, 0, bank.lengths - CLIP_SAMPLES)
    first = np.concatenate(
        [
            begin + np.arange(0, until + 1, CLIP_SAMPLES)
            for begin, until in zip(bank.starts.tolist(), last.tolist())
        ]
    )
    names = np.array([f"background/{sample}" for sample in first.tolist()])
    return Split(
        name=TEST,
        labels=np.zeros(len(first), np.int32),
        names=names,
        speakers=names,
        read=lambda rows: bank.cut(first[np.asarray(rows)]),
    )


class _Rows:
    """Reads some rows of a corpus: int [m] -> int16 [m, CLIP_SAMPLES]."""

    def __init__(self, corpus: Corpus, rows: np.ndarray):
        self._read, self._rows = corpus.read, rows

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        return self._read(self._rows[np.asarray(positions, np.int64)])


def _unheard(corpus: Corpus, words: Sequence[str]) -> WordClips:
    """The test speakers' clips of each word; of a word with few, those of everyone."""
    chosen = []
    for word in words:
        rows = np.flatnonzero(corpus.words == word)
        of_test = rows[corpus.splits[rows] == TEST]
        chosen.append(of_test if len(of_test) >= FEW_CLIPS else rows)
    return _word_clips(corpus, np.concatenate(chosen), "unheard")


def _word_clips(corpus: Corpus, rows: np.ndarray, name: str) -> WordClips:
    words, labels = np.unique(corpus.words[rows], return_inverse=True)
    split = Split(
        name=name,
        labels=labels.astype(np.int32),
        names=corpus.names[rows],
        speakers=corpus.speakers[rows],
        read=_Rows(corpus, rows),
    )
    return WordClips(tuple(words.tolist()), split, corpus.splits[rows] == TEST)


def _background(corpus: Corpus, split: str) -> NoiseBank | None:
    every = corpus.background.get(split, ())
    recordings = [r for r in every if not is_silent(r.audio)]
    if not recordings:
        silent = np.flatnonzero((corpus.words == SILENCE) & (corpus.splits == split))
        clips = corpus.read(silent)
        recordings = [Recording(CLIPS_OF_SILENCE, c) for c in clips if not is_silent(c)]
    return NoiseBank.from_recordings(recordings) if recordings else None
