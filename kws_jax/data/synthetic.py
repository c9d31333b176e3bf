"""A corpus of words spoken by espeak-ng: many voices, accents, speeds and pitches.

It stands in for recorded speech in a demo and in tests, where there is no network; an
accuracy measured on it says nothing about Speech Commands. No voice (espeak-ng variant)
is in two splits.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from kws_jax import condition_names, runtime
from kws_jax.data import espeak, store
from kws_jax.data.corpus import (
    CLIP_SAMPLES,
    SAMPLE_RATE,
    SPLITS,
    TEST,
    TRAIN,
    VALIDATION,
    Corpus,
    Recording,
)
from kws_jax.data.protocols import GOOGLE_TEN
from kws_jax.data.synthetic_noise import SEEN, UNSEEN, make_noise
from kws_jax.errors import UserError

# The other words of Speech Commands v0.02.
# fmt: off
OTHER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
    "bed", "bird", "cat", "dog", "happy", "house", "marvin", "sheila", "tree",
    "wow", "backward", "forward", "follow", "learn", "visual",
)
# fmt: on
ACCENTS = (
    "en-us",
    "en",
    "en-gb-x-rp",
    "en-gb-scotland",
    "en-029",
    "en-us-nyc",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
)
# espeak-ng's variants without the robots, the whispers and the demon.
# fmt: off
VOICES = (
    "Alex", "Alicia", "Andrea", "Andy", "Annie", "Denis", "Diogo", "Gene",
    "Henrique", "Hugo", "Jacky", "Lee", "Marco", "Mario", "Michael", "Mike",
    "Nguyen", "Reed", "adam", "anika", "antonio", "aunty", "belinda", "benjamin",
    "boris", "caleb", "david", "ed", "edward", "f1", "f2", "f3", "f4", "f5",
    "grandma", "grandpa", "gustave", "ian", "iven", "john", "klatt2", "klatt3",
    "linda", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "marcelo", "max",
    "michel", "miguel", "norbert", "pablo", "paul", "pedro", "quincy", "rob",
    "robert", "sandro", "shelby", "steph", "travis", "victor", "zac",
)
# fmt: on
PITCHES = (30, 45, 60)
# Shares of the voices (in that order) and, for each training clip of a word, clips.
VOICE_SHARES = {TRAIN: 0.7, VALIDATION: 0.15, TEST: 0.15}
CLIP_SHARES = {TRAIN: 1.0, VALIDATION: 0.25, TEST: 0.25}
_OTHER_SHARE = 0.2  # clips of an other word for one clip of a keyword
_VERSION = 1  # to be raised when the same settings give other samples


@dataclasses.dataclass(frozen=True)
class _Clip:
    """One clip to be made."""

    name: str
    word: str
    speaker: str
    split: str
    utterance: espeak.Utterance


def synthesize_corpus(
    cache_dir: str | os.PathLike[str] = "",
    *,
    words: Sequence[str] = GOOGLE_TEN,
    other_words: Sequence[str] = OTHER_WORDS,
    clips_per_word: int = 150,
    seed: int = 0,
    progress: store.Progress | None = None,
) -> Corpus:
    """Makes (or finds in the cache) a corpus of synthetic speech.

    Each clip has one word, at a random place within its second, at a level of -32 to
    -14 dBFS, over the faint hiss of a microphone. Background recordings are of the
    kinds `SEEN`, drawn anew for each split; the corpus's "seen" noise is the training
    background, its "unseen" noise are the kinds `UNSEEN`, among them babble of the test
    voices.

    Args:
      cache_dir: where stores are kept, see `runtime.cache_root`.
      words: the keywords.
      other_words: words for the unknown class; a fifth as many clips of each. Those
        that are keywords are left out.
      clips_per_word: training clips of a keyword; a quarter as many more for validation
        and for test.
      seed: integer; the same settings give the same samples.
      progress: called with (clips done, all clips).

    Raises:
      UserError: a word that cannot be said, no words, a count below 1, espeak-ng is not
        usable, or the disk is full.
    """
    words = tuple(dict.fromkeys(words))
    others = tuple(w for w in dict.fromkeys(other_words) if w not in words)
    _check(words, others, clips_per_word)
    settings = {
        "version": _VERSION,
        "espeak": espeak.version(),
        "words": words,
        "other_words": others,
        "clips_per_word": clips_per_word,
        "seed": seed,
    }
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    path = runtime.cache_root(cache_dir) / f"synthetic-{key}"
    if not os.path.exists(path):
        counts = {word: clips_per_word for word in words}
        counts |= {
            word: max(1, round(clips_per_word * _OTHER_SHARE)) for word in others
        }
        streams = np.random.SeedSequence(seed % 2**64).spawn(3)
        rngs = [np.random.default_rng(stream) for stream in streams]
        plan = _plan(counts, rngs[0])
        audio = list(_render(plan, rngs[1], progress))
        babblers = [
            sound
            for clip, sound in zip(plan, audio)
            if clip.split == TEST and clip.word in others
        ]
        background, noise = _noises(rngs[2], babblers)
        clips = (
            (clip.name, clip.word, clip.speaker, clip.split, sound)
            for clip, sound in zip(plan, audio)
        )
        store.write_store(path, clips, background, noise, settings)
    return store.open_store(path)


def training_clips(
    counts: dict[str, int], seed: int, progress: store.Progress | None = None
) -> Iterator[store.Clip]:
    """Clips of words in the training voices that `synthesize_corpus` has for `seed`.

    Args:
      counts: how many clips of each word.
      seed: integer; the same counts and seed give the same samples.
      progress: called with (clips done, all clips).

    Raises:
      UserError: a word that cannot be said, or espeak-ng is not usable.
    """
    check_words(counts)
    streams = np.random.SeedSequence(seed % 2**64).spawn(3)
    rngs = [np.random.default_rng(stream) for stream in streams]
    plan = _plan(counts, rngs[0], splits=(TRAIN,))
    for clip, sound in zip(plan, _render(plan, rngs[1], progress)):
        yield clip.name, clip.word, clip.speaker, clip.split, sound


def check_words(words: Iterable[str]) -> None:
    """Raises UserError for what is no English word in letters."""
    for word in words:
        if not re.fullmatch(r"[A-Za-z][A-Za-z' -]*", word):
            raise UserError(
                f"The word {word!r} cannot be said: synthetic speech takes English"
                " words written in the letters a to z."
            )


def divide_voices(rng: np.random.Generator) -> dict[str, list[str]]:
    """The voices of each split: a random division by `VOICE_SHARES`."""
    voices = rng.permutation(VOICES).tolist()
    borders = np.rint(np.cumsum(list(VOICE_SHARES.values())) * len(voices)).astype(int)
    begins = [0, *borders[:-1].tolist()]
    return {s: voices[a:b] for s, a, b in zip(VOICE_SHARES, begins, borders.tolist())}


def _plan(
    counts: dict[str, int],
    rng: np.random.Generator,
    splits: Sequence[str] = SPLITS,
) -> list[_Clip]:
    """All clips of `splits`, given the number of training clips of each word."""
    voices = divide_voices(rng)
    plan = []
    for split in splits:
        speakers = [
            (voice, accent, pitch)
            for voice in voices[split]
            for accent in ACCENTS
            for pitch in PITCHES
        ]
        for word, count in counts.items():
            wanted = max(1, round(count * CLIP_SHARES[split]))
            # Every speaker once before any speaks again.
            rounds = -(-wanted // len(speakers))
            order = np.concatenate(
                [rng.permutation(len(speakers)) for _ in range(rounds)]
            )
            for number, row in enumerate(order[:wanted].tolist()):
                plan.append(_clip(split, word, number, speakers[row], rng))
    return plan


def _clip(
    split: str,
    word: str,
    number: int,
    speaker: tuple[str, str, int],
    rng: np.random.Generator,
) -> _Clip:
    voice, accent, pitch = speaker
    name = f"{voice}-{accent}-{pitch}"
    utterance = espeak.Utterance(
        word,
        accent,
        voice,
        rate=int(rng.integers(130, 211)),
        pitch=pitch + int(rng.integers(-6, 7)),
        pitch_range=int(rng.integers(30, 81)),
    )
    return _Clip(f"{word}/{name}_{split}_{number}", word, name, split, utterance)


def _render(
    plan: Sequence[_Clip], rng: np.random.Generator, progress: store.Progress | None
) -> Iterator[np.ndarray]:
    """The clips of the plan as int16 [CLIP_SAMPLES]."""
    speech = espeak.speak([clip.utterance for clip in plan])
    for done, (clip, samples) in enumerate(zip(plan, speech), 1):
        if not samples.any():
            raise UserError(f"espeak-ng gives no sound for the word {clip.word!r}.")
        yield _place(samples, rng)
        if progress is not None:
            progress(done, len(plan))


def _place(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One clip: a word, int16 at ESPEAK_RATE, placed, levelled and with hiss."""
    import soxr

    speech = soxr.resample(samples / 32768.0, espeak.ESPEAK_RATE, SAMPLE_RATE)
    loud = np.flatnonzero(np.abs(speech) > 0.01 * np.abs(speech).max())
    speech = speech[loud[0] : loud[-1] + 1][:CLIP_SAMPLES]
    begin = int(rng.integers(0, CLIP_SAMPLES - len(speech) + 1))
    gain = 10 ** (rng.uniform(-32, -14) / 20) / np.sqrt(np.mean(speech**2))
    clip = 10 ** rng.uniform(-4.5, -3.3) * rng.standard_normal(CLIP_SAMPLES)
    clip[begin : begin + len(speech)] += gain * speech
    clip /= max(1.0, np.abs(clip).max() / 0.99)
    return np.rint(clip * 32767).astype(np.int16)


def _noises(
    rng: np.random.Generator, babblers: Sequence[np.ndarray]
) -> tuple[dict[str, list[Recording]], dict[str, list[Recording]]]:
    """Background of each split, and the noises "seen" and "unseen" for tests."""
    background = {split: [make_noise(kind, rng) for kind in SEEN] for split in SPLITS}
    unseen = [make_noise(kind, rng, speech=babblers) for kind in UNSEEN]
    return background, {
        condition_names.SEEN: background[TRAIN],
        condition_names.UNSEEN: unseen,
    }


def _check(words: Sequence[str], others: Sequence[str], clips_per_word: int) -> None:
    if clips_per_word < 1:
        raise UserError(
            f"Synthetic speech needs at least 1 clip a word, not {clips_per_word}."
        )
    if not words or not others:
        raise UserError(
            "Synthetic speech needs at least one keyword, and one other word that is"
            " not a keyword."
        )
    check_words((*words, *others))
