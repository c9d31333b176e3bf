"""Background that training and test would both hear, and what is silent in it."""

import dataclasses

import numpy as np
import pytest
import soundfile
from rich.console import Console
from test_protocols import make_corpus
from tiny_parts import tiny_config
from words import on_words, write_words

from kws_jax import opening
from kws_jax.condition_names import SEEN
from kws_jax.data.background import without_copies
from kws_jax.data.corpus import SAMPLE_RATE, TEST, TRAIN, VALIDATION, Recording
from kws_jax.data.splits import divide_background
from kws_jax.errors import UserError


def sound(seed, seconds=4.0):
    noise = np.random.default_rng(seed).normal(0, 1000, round(seconds * SAMPLE_RATE))
    return noise.astype(np.int16)


def divided(**sounds):
    """A corpus with these recordings as its background."""
    parts = divide_background([Recording(*each) for each in sounds.items()])
    corpus = make_corpus({split: ["yes"] for split in parts}, parts)
    return dataclasses.replace(corpus, noise={SEEN: parts[TRAIN]})


def names(recordings):
    return [recording.name for recording in recordings]


def test_background_without_copies_stays_as_it_is(capsys):
    corpus = divided(a=sound(0), b=sound(1), c=sound(2), d=sound(3))
    assert without_copies(corpus) is corpus
    assert capsys.readouterr().err == ""


def test_silent_recordings_are_no_copies(capsys):
    silent = np.zeros(SAMPLE_RATE, np.int16)
    corpus = divided(a=silent, b=silent, c=sound(2), d=sound(3))
    assert names(corpus.background[TEST]) == ["b"]
    assert without_copies(corpus) is corpus
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("begin", [0, SAMPLE_RATE])
def test_a_copy_of_what_a_test_hears_is_left_out_of_training(capsys, begin):
    # Of five, the second is for the test and the fourth for validation.
    sounds = {name: sound(seed) for seed, name in enumerate("abcde")}
    sounds["e"] = sounds["b"][begin:]
    corpus = without_copies(divided(**sounds))
    assert names(corpus.background[TEST]) == ["b"]
    assert names(corpus.background[VALIDATION]) == ["d"]
    assert names(corpus.background[TRAIN]) == names(corpus.noise[SEEN]) == ["a", "c"]
    told = capsys.readouterr().err
    assert "are left out of training: 1" in told


def test_training_keeps_what_is_all_it_has(capsys):
    corpus = divided(loop=np.tile(sound(0, 1.5), 20))
    assert all(len(part) == 1 for part in corpus.background.values())
    corpus = without_copies(corpus)
    assert names(corpus.background[TRAIN]) == names(corpus.noise[SEEN]) == ["loop"]
    assert corpus.background[VALIDATION] == corpus.background[TEST] == ()
    assert "left out of validation and test: 2" in capsys.readouterr().err


def open_background(tmp_path, **sounds):
    write_words(tmp_path / "words")
    folder = tmp_path / "words/_background_noise_"
    for file in folder.glob("*"):
        file.unlink()
    for name, audio in sounds.items():
        soundfile.write(folder / f"{name}.wav", audio, SAMPLE_RATE)
    config = tiny_config()
    on_words(config, tmp_path)
    config.data.update(noise_seen="", noise_unseen="", rooms="")
    return opening.open_data(config, Console(quiet=True))


def test_a_silent_third_is_no_background_and_told(tmp_path, capsys):
    late = np.append(np.zeros(2 * SAMPLE_RATE, np.int16), sound(0))
    data = open_background(tmp_path, late=late, noise=sound(1))
    assert data.background.names == ("noise.wav",)
    assert "the first third of late.wav is silent" in capsys.readouterr().err


def test_where_no_other_is_left_the_silent_third_is_named(tmp_path):
    late = np.append(np.zeros(2 * SAMPLE_RATE, np.int16), sound(0))
    with pytest.raises(UserError, match=r"first third of late\.wav.* is silent.*Cut"):
        open_background(tmp_path, late=late)
