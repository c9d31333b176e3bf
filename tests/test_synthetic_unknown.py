"""Synthetic words in the unknown class: which, how many, in whose voices."""

import os

import numpy as np
import pytest
from ml_collections import ConfigDict
from rich.console import Console
from test_protocols import small

from kws_jax import opening
from kws_jax.data import espeak, synthetic, synthetic_unknown
from kws_jax.data.corpus import TEST, TRAIN, VALIDATION
from kws_jax.data.protocols import GOOGLE_TEN, build_task
from kws_jax.data.speech_commands_builder import WORDS_V2
from kws_jax.data.vocabulary import FAR, NEAR, WORDS
from kws_jax.errors import UserError


def test_the_built_in_words_are_many_and_none_of_speech_commands():
    assert len(WORDS) > 250
    assert len(set(WORDS)) == len(WORDS)
    assert not set(WORDS) & set(WORDS_V2)
    assert set(NEAR) == set(GOOGLE_TEN)
    assert set(WORDS) == {w for words in NEAR.values() for w in words} | set(FAR)


def test_no_built_in_word_sounds_exactly_like_a_keyword():
    assert synthetic_unknown.homophones(WORDS, GOOGLE_TEN) == {}


def test_homophones_are_found_by_their_sound():
    words = ("know", "write", "rite", "note", "gone", "knot", "for", "tree")
    assert synthetic_unknown.homophones(words, ("no", "right", "four", "tree")) == {
        "know": "no",
        "write": "right",
        "rite": "right",
        "for": "four",
        "tree": "tree",
    }


def test_the_users_words_must_not_sound_like_a_keyword():
    with pytest.raises(UserError, match=r"'know' \(like 'no'\)"):
        synthetic_unknown.choose_words(("know", "banana"), ("no",), ())
    with pytest.raises(UserError, match=r"'tree' \(like 'tree'\)"):
        synthetic_unknown.choose_words(("tree",), ("no",), ("tree",))
    with pytest.raises(UserError, match="'n0' cannot be said"):
        synthetic_unknown.choose_words(("n0",), ("no",), ())


def test_built_in_words_that_are_keywords_here_are_left_out():
    words = synthetic_unknown.choose_words((), ("banana", "knight"), ("sight",))
    # Night and site sound like them.
    assert set(WORDS) - set(words) == {"night", "site"}


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    made = synthetic_unknown.open_words(("lift", "stock"), 5, cache_dir=str(cache))
    return made, cache


def test_clips_come_in_turns_with_training_voices_alone(spoken):
    made, _ = spoken
    assert made.words.tolist() == ["lift", "stock"] * 3
    assert set(made.splits.tolist()) == {TRAIN}
    streams = np.random.SeedSequence(0).spawn(3)
    voices = synthetic.divide_voices(np.random.default_rng(streams[0]))
    speaking = {speaker.split("-")[0] for speaker in made.speakers.tolist()}
    assert speaking <= set(voices[TRAIN])
    assert not speaking & {*voices[VALIDATION], *voices[TEST]}
    assert (np.abs(made.read(np.arange(6)).astype(int)).max(1) > 1000).all()


def test_they_are_made_once_and_the_same_again(spoken, tmp_path, monkeypatch):
    made, cache = spoken
    again = synthetic_unknown.open_words(("lift", "stock"), 5, cache_dir=str(tmp_path))
    assert again.fingerprint == made.fingerprint
    np.testing.assert_array_equal(again.read(np.arange(6)), made.read(np.arange(6)))

    def fail(*_):
        raise AssertionError("made again")

    monkeypatch.setattr(espeak, "speak", fail)
    synthetic_unknown.open_words(("lift", "stock"), 6, cache_dir=str(cache))
    assert len(os.listdir(cache)) == 1


@pytest.mark.parametrize(("rate", "expected"), [(0.5, 3), (0.25, 1), (0.6, 4)])
def test_the_rate_is_the_share_of_the_unknown_training_clips(spoken, rate, expected):
    made, _ = spoken
    task = build_task(small(), keywords=GOOGLE_TEN)
    label = task.labels.index("_unknown_")
    recorded = int((task.train.labels == label).sum())
    count = synthetic_unknown.clips_for(recorded, rate)
    assert count == expected
    train = synthetic_unknown.with_words(task.train, made, count, label)
    assert len(train) == len(task.train) + count
    assert (train.labels == label).sum() == recorded + count
    np.testing.assert_array_equal(train.labels[: len(task.train)], task.train.labels)
    everything = np.random.default_rng(0).permutation(len(train))
    audio = train.read(everything)
    for row, clip in zip(everything.tolist(), audio):
        if row < len(task.train):
            expected_clip = task.train.read(np.array([row]))[0]
        else:
            expected_clip = made.read(np.array([row - len(task.train)]))[0]
        np.testing.assert_array_equal(clip, expected_clip)


@pytest.mark.parametrize("rate", [-0.1, 0.95, 1.0])
def test_a_rate_that_cannot_be_is_named(rate):
    with pytest.raises(UserError, match=r"synthetic_unknown\.rate = "):
        synthetic_unknown.check_rate(rate)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"protocol": "all"}, "protocol to one with unknown words"),
        ({"keywords": GOOGLE_TEN, "unknown_percent": 0.0}, "unknown_percent above 0"),
    ],
)
def test_a_task_without_unknown_words_is_told_what_gives_it_some(settings, message):
    task = build_task(small(), **settings)
    data = ConfigDict({"synthetic_unknown": {"rate": 0.5, "words": ""}})
    with pytest.raises(UserError, match=f"no unknown class.*{message}"):
        opening._with_synthetic_unknown(task, data, (), Console(quiet=True))
