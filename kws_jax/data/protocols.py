"""Protocols: which words are labels, what unknown and silence are, and how much.

The ten-keyword protocols follow the script of TensorFlow's `speech_commands` example:
in each split, of n keyword clips, ceil(n · 10 %) further clips of other words are
"unknown" and as many rows of silence are added. On the official archives that gives

    protocol   train   validation  test
    v1-12      22,246  3,093       3,081   (1,854 / 258 / 257 unknown, silence the same)
    v2-12      36,923  4,445       4,890   (3,077 / 371 / 408 unknown, silence the same)
    tfds-12    85,511  10,102      4,890   (unknown not reduced, silence as clips)
    v1-30      51,088  6,798       6,835   (every word is a label)
    v2-35      84,843  9,981       11,005  (every word is a label)

References: Warden 2018 (arXiv 1804.03209); `input_data.py` of the TensorFlow example.
"""

import dataclasses
import hashlib
import math

import numpy as np

from kws_jax.data.corpus import (
    CLIP_SAMPLES,
    SILENCE,
    SPLITS,
    UNKNOWN,
    Corpus,
    Split,
    Task,
)
from kws_jax.errors import UserError, nearest

GOOGLE_TEN = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
ALL_WORDS = ("*",)
ZEROS, BACKGROUND = "zeros", "background"
# The protocol whose words and shares the config gives.
CUSTOM = "custom"
# Shares of unknown and silence that are as good as not given.
_PERCENT = 10.0


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a task is cut from a corpus.

    Attributes:
      keywords: the words to be told apart; `ALL_WORDS` for every word of the corpus.
      unknown_percent: clips of other words, in percent of the keyword clips of a split;
        None takes all of them, 0 leaves the label out.
      silence_percent: rows of silence, in the same way; 0 leaves the label out.
      silence: what a row of silence is: "zeros" (in training the mixing then adds
        background, as to any clip), or "background": a crop of the split's own
        background recordings times a volume from U(0, 1), as in TensorFlow's script,
        fixed for each row.
      prepared: unknown and silence are clips of the corpus already.
      builders: the TFDS builders that it is defined on, the usual one first; empty for
        any (see `tfds_source.open_tfds`).
    """

    keywords: tuple[str, ...] = GOOGLE_TEN
    unknown_percent: float | None = _PERCENT
    silence_percent: float = _PERCENT
    silence: str = ZEROS
    prepared: bool = False
    builders: tuple[str, ...] = ()


_ALL = Protocol(ALL_WORDS, unknown_percent=0.0, silence_percent=0.0)
PROTOCOLS = {
    "v1-12": Protocol(builders=("speech_commands_v1",)),
    "v2-12": Protocol(builders=("speech_commands_v2",)),
    "tfds-12": Protocol(
        prepared=True,
        builders=("speech_commands", "speech_commands_v2_12", "speech_commands_v1_12"),
    ),
    "v1-30": dataclasses.replace(_ALL, builders=("speech_commands_v1",)),
    "v2-35": dataclasses.replace(_ALL, builders=("speech_commands_v2",)),
    "all": _ALL,
    CUSTOM: Protocol(silence=BACKGROUND),
}


def get_protocol(name: str) -> Protocol:
    """The protocol of this name.

    Raises:
      UserError: there is none; the nearest name is given.
    """
    if name not in PROTOCOLS:
        raise UserError(
            f"unknown protocol {name!r} in config.data.protocol; "
            f"{nearest(name, PROTOCOLS)}"
        )
    return PROTOCOLS[name]


def build_task(
    corpus: Corpus,
    *,
    protocol: str = CUSTOM,
    keywords: tuple[str, ...] = (),
    unknown_percent: float | None = _PERCENT,
    silence_percent: float = _PERCENT,
    silence: str = "",
    seed: int = 0,
) -> Task:
    """Cuts the three labelled splits of a protocol from a corpus.

    Labels are the keywords in their order, then "_unknown_", then "_silence_"; rows are
    in the order of the corpus, then unknown, then silence. Which clips are unknown
    depends on `seed` and their names alone.

    Args:
      corpus: the clips.
      protocol: a name in `PROTOCOLS`.
      keywords: for "custom" only, the words to be told apart.
      unknown_percent: for "custom" only, see `Protocol`.
      silence_percent: for "custom" only, see `Protocol`.
      silence: "zeros" or "background", "" for what the protocol has; for protocols that
        make silence only.
      seed: seed of the choice of unknown clips and of the crops of silence.

    Raises:
      UserError: an unknown protocol or keyword, a field that does not go with the
        protocol, a split without clips of a label, or too few clips of other words.
    """
    rule = get_protocol(protocol)
    if protocol == CUSTOM:
        rule = dataclasses.replace(
            rule,
            keywords=tuple(keywords),
            unknown_percent=unknown_percent,
            silence_percent=silence_percent,
        )
    elif keywords and rule.keywords not in (ALL_WORDS, tuple(keywords)):
        raise UserError(
            f"config.data.keywords does not go with config.data.protocol={protocol!r}, "
            "which has its own words. Set --config.data.protocol=custom"
        )
    else:
        shares = {
            "unknown_percent": unknown_percent,
            "silence_percent": silence_percent,
        }
        _check_unread(rule, protocol, shares, silence)
    rule = dataclasses.replace(rule, silence=silence or rule.silence)
    _check(rule, corpus, protocol)
    words = rule.keywords if rule.keywords != ALL_WORDS else _spoken(corpus)
    labels = words
    if rule.prepared or rule.unknown_percent != 0:
        labels += (UNKNOWN,)
    if rule.prepared or rule.silence_percent:
        labels += (SILENCE,)
    train, validation, test = (
        _build_split(corpus, name, rule, words, labels, seed) for name in SPLITS
    )
    return Task(protocol, labels, train, validation, test)


def _check_unread(
    rule: Protocol, protocol: str, shares: dict[str, float | None], silence: str
) -> None:
    """Refuses what a protocol with shares of its own would not read."""
    for field, percent in shares.items():
        if percent not in (_PERCENT, getattr(rule, field)):
            raise UserError(
                f"config.data.{field} does not go with config.data.protocol="
                f"{protocol!r}, which has its own shares. Leave it at {_PERCENT:g}, or "
                f"set --config.data.protocol={CUSTOM}"
            )
    if silence and (rule.prepared or not rule.silence_percent):
        has = "takes silence from the source" if rule.prepared else "has no silence"
        raise UserError(
            f"config.data.silence = {silence!r} does not go with config.data.protocol="
            f"{protocol!r}, which {has}. Leave it empty, or set "
            f"--config.data.protocol={CUSTOM}"
        )


def _check(rule: Protocol, corpus: Corpus, protocol: str) -> None:
    """Raises what is wrong with the fields, before any clip is counted."""
    known = _spoken(corpus)
    if not rule.keywords:
        raise UserError(
            "config.data.keywords is empty. Name the words to be told apart; this "
            f"source has {', '.join(known)}"
        )
    if len(set(rule.keywords)) < len(rule.keywords):
        raise UserError(f"config.data.keywords names a word twice: {rule.keywords}")
    missing = [
        w for w in rule.keywords if w not in known and rule.keywords != ALL_WORDS
    ]
    if missing:
        hints = "; ".join(f"{word!r}: {nearest(word, known)}" for word in missing)
        raise UserError(
            f"the source has no clips of these keywords of protocol {protocol!r} "
            f"(config.data.keywords): {hints}"
        )
    for field in ("unknown_percent", "silence_percent"):
        percent = getattr(rule, field)
        if percent is not None and not 0 <= percent <= 1000:
            raise UserError(f"config.data.{field} must be 0 to 1000, not {percent}")
    if rule.silence not in (ZEROS, BACKGROUND):
        raise UserError(
            f"config.data.silence must be {ZEROS!r} or {BACKGROUND!r}, "
            f"not {rule.silence!r}"
        )


def _spoken(corpus: Corpus) -> tuple[str, ...]:
    return tuple(sorted(set(corpus.words.tolist()) - {UNKNOWN, SILENCE}))


def _build_split(
    corpus: Corpus,
    split: str,
    rule: Protocol,
    words: tuple[str, ...],
    labels: tuple[str, ...],
    seed: int,
) -> Split:
    """The rows of one split: of the keywords, of the unknown, of silence."""
    here = corpus.splits == split
    named = labels if rule.prepared else words
    rows = np.flatnonzero(here & np.isin(corpus.words, named))
    of_word = {word: i for i, word in enumerate(labels)}
    row_labels = [of_word[word] for word in corpus.words[rows].tolist()]
    empty = sorted(set(named) - set(corpus.words[rows].tolist()))
    if rule.prepared and {UNKNOWN, SILENCE} & set(empty):
        raise UserError(
            f"this protocol takes {UNKNOWN} and {SILENCE} from the source, but its "
            f"{split} split has no {', '.join(empty)}. Set --config.data.source=tfds, "
            f"or another config.data.protocol: {', '.join(PROTOCOLS)}"
        )
    if empty:
        raise UserError(
            f"the {split} split has no clips of {', '.join(empty)}. Every label needs "
            "at least one clip in every split: add clips, change config.data.keywords, "
            "or change the lists or fractions that make the splits"
        )
    if rule.prepared:
        return _make_split(corpus, split, rows, row_labels, 0, rule.silence, seed)
    count = len(rows)
    if UNKNOWN in labels:
        others = np.flatnonzero(here & ~np.isin(corpus.words, (*words, SILENCE)))
        chosen = _choose_unknown(
            corpus.names, others, count, rule.unknown_percent, split, seed
        )
        rows = np.concatenate([rows, chosen])
        row_labels += [of_word[UNKNOWN]] * len(chosen)
    silent = _share(count, rule.silence_percent) if SILENCE in labels else 0
    row_labels += [of_word.get(SILENCE, 0)] * silent
    return _make_split(corpus, split, rows, row_labels, silent, rule.silence, seed)


def _share(count: int, percent: float) -> int:
    """ceil(count · percent / 100), the arithmetic of TensorFlow's script."""
    return math.ceil(count * percent / 100)


def _choose_unknown(
    names: np.ndarray,
    others: np.ndarray,
    keyword_count: int,
    percent: float | None,
    split: str,
    seed: int,
) -> np.ndarray:
    """Rows of other words: shuffled, then the first of them taken, as the script does.

    Shuffled means ordered by a hash of (seed, name), which no version of a random
    number library and no order of the files can change.
    """
    wanted = len(others) if percent is None else _share(keyword_count, percent)
    if not len(others) or wanted > len(others):
        raise UserError(
            f"the {split} split has {len(others)} clips of words that are no keywords, "
            f"but {max(wanted, 1)} are wanted as {UNKNOWN}. Add clips of other words, "
            "lower config.data.unknown_percent, or set it to 0 to do without the label"
        )
    if percent is None:
        return others
    order = [digest(seed, names[row]) for row in others]
    return others[np.argsort(order, kind="stable")[:wanted]]


def _make_split(
    corpus: Corpus,
    split: str,
    rows: np.ndarray,
    labels: list[int],
    silent: int,
    silence: str,
    seed: int,
) -> Split:
    names = [*corpus.names[rows].tolist()]
    names += [f"{SILENCE}/{split}/{i}" for i in range(silent)]
    speakers = [*corpus.speakers[rows].tolist(), *[SILENCE] * silent]
    crops = None
    if silent and silence == BACKGROUND:
        crops = _SilenceCrops(corpus, split, seed)
    return Split(
        name=split,
        labels=np.array(labels, np.int32),
        names=np.array(names, str),
        speakers=np.array(speakers, str),
        read=_SplitReader(corpus, rows, silent, crops),
    )


class _SplitReader:
    """Reads clips and rows of silence together: int [m] -> int16 [m, CLIP_SAMPLES]."""

    def __init__(
        self,
        corpus: Corpus,
        rows: np.ndarray,
        silent: int,
        crops: "_SilenceCrops | None",
    ):
        self._read, self._rows, self._crops = corpus.read, rows, crops
        self._count = len(rows) + silent

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        positions = np.asarray(positions, np.int64)
        if positions.size and not 0 <= positions.min() <= positions.max() < self._count:
            raise IndexError(f"positions must be in 0 … {self._count - 1}")
        spoken = positions < len(self._rows)
        if spoken.all():
            return self._read(self._rows[positions])
        audio = np.zeros((len(positions), CLIP_SAMPLES), np.int16)
        if spoken.any():
            audio[spoken] = self._read(self._rows[positions[spoken]])
        if self._crops:
            for i in np.flatnonzero(~spoken):
                audio[i] = self._crops(int(positions[i]) - len(self._rows))
        return audio


class _SilenceCrops:
    """Crops of a split's background times U(0, 1): a function of (seed, split, row)."""

    def __init__(self, corpus: Corpus, split: str, seed: int):
        self._recordings = [r for r in corpus.background[split] if len(r.audio)]
        self._key = f"{seed}/{split}"
        if not self._recordings:
            raise UserError(
                f"the {split} split has no background recordings to cut silence from. "
                "Add recordings in _background_noise_, or choose "
                "--config.data.silence=zeros or --config.data.silence_percent=0"
            )

    def __call__(self, row: int) -> np.ndarray:
        which, where, volume = (
            digest(self._key, f"{row}/{draw}") / 2**64 for draw in range(3)
        )
        audio = self._recordings[int(which * len(self._recordings))].audio
        start = int(where * max(len(audio) - CLIP_SAMPLES + 1, 1))
        # A recording shorter than a clip is repeated.
        crop = audio[(start + np.arange(CLIP_SAMPLES)) % len(audio)]
        return np.rint(crop * volume).astype(np.int16)


def digest(seed: int | str, name: str) -> int:
    """A uniform 64-bit number that depends on its arguments alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big")
