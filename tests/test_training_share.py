"""Small training sets: whole speakers, nested, the same for the same seed."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from configs import network
from kws_jax import config as configs
from kws_jax.data.corpus import SILENCE, SPLITS, UNKNOWN, Split, Task
from kws_jax.data.training_share import keep_speakers, told
from kws_jax.errors import UserError

LABELS = ("yes", "no", UNKNOWN, SILENCE)
SPEAKERS, CLIPS, SILENT = 200, 3_000, 300


def split(name, clips=CLIPS, silent=SILENT):
    rng = np.random.default_rng(len(name))
    # Some speak a lot.
    weights = rng.exponential(size=SPEAKERS)
    speakers = rng.choice(SPEAKERS, clips, p=weights / weights.sum())
    labels = np.concatenate([rng.integers(0, 3, clips), np.full(silent, 3)])
    return Split(
        name=name,
        labels=labels.astype(np.int32),
        names=np.array([f"{name}/{i}" for i in range(clips + silent)]),
        speakers=np.array([*map(str, speakers), *[SILENCE] * silent]),
        read=lambda rows: np.repeat(np.asarray(rows)[:, None], 16_000, axis=1),
    )


TASK = Task("custom", LABELS, *(split(name) for name in SPLITS))


def names(fraction, seed=0):
    return set(keep_speakers(TASK, fraction, seed).train.names.tolist())


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.9])
def test_share_of_clips_and_of_silence(fraction):
    counts = Counter(keep_speakers(TASK, fraction, 0).train.labels.tolist())
    # The last speaker who is taken may be one who speaks a lot.
    most = max(Counter(TASK.train.speakers[:CLIPS].tolist()).values())
    spoken = sum(counts[label] for label in range(3))
    assert fraction * CLIPS <= spoken < fraction * CLIPS + most
    assert counts[3] == np.ceil(fraction * SILENT)


def test_no_speaker_is_divided():
    train = keep_speakers(TASK, 0.3, 0).train
    kept = set(train.speakers.tolist()) - {SILENCE}
    for speaker in kept:
        assert (train.speakers == speaker).sum() == (
            TASK.train.speakers == speaker
        ).sum()
    assert 20 < len(kept) < 120


def test_whose_clips_were_kept_is_told():
    train = keep_speakers(TASK, 0.3, 0).train
    spoken = train.speakers[train.speakers != SILENCE]
    assert told(train, TASK.train) == (
        f"Training share: {len(spoken)} of 3,000 spoken clips, those of "
        f"{len(set(spoken.tolist()))} of {len(set(TASK.train.speakers.tolist())) - 1} "
        "speakers"
    )
    alone = dataclasses.replace(TASK.train, speakers=TASK.train.names)
    task = dataclasses.replace(TASK, train=alone)
    assert "drawn one by one" in told(keep_speakers(task, 0.3, 0).train, alone)


def test_smaller_shares_are_parts_of_larger_ones():
    assert names(0.1) < names(0.25) < names(0.5) < names(1.0)


def test_choice_follows_the_seed_alone():
    assert names(0.25) == names(0.25)
    assert names(0.25) != names(0.25, seed=1)


def test_choice_does_not_follow_the_order_of_the_clips():
    order = np.random.default_rng(0).permutation(CLIPS + SILENT)
    other = Task("custom", LABELS, TASK.train.subset(order), TASK.test, TASK.test)
    kept = keep_speakers(other, 0.25, 0).train
    assert set(kept.names.tolist()) == names(0.25)


def test_small_set_is_a_training_split_of_its_own_with_the_right_audio():
    task = keep_speakers(TASK, 0.25, 0)
    # Rows of the data on a device, and what clips are numbered by.
    assert task.train.origin is None
    assert (task.train.name, task.labels) == ("train", LABELS)
    rows = task.train.read(np.array([3, 0]))[:, 0]
    assert TASK.train.names[rows].tolist() == task.train.names[[3, 0]].tolist()


def test_validation_and_test_stay_whole():
    task = keep_speakers(TASK, 0.1, 0)
    assert task.validation is TASK.validation
    assert task.test is TASK.test
    assert keep_speakers(TASK, 1.0, 0) is TASK


def test_a_label_without_clips_is_an_error():
    said_by = {"yes": "a", "no": "b", UNKNOWN: "a"}
    labels = np.arange(3, dtype=np.int32)
    speakers = np.array([said_by[label] for label in LABELS[:3]])
    train = Split("train", labels, labels.astype(str), speakers, TASK.train.read)
    task = Task("custom", LABELS[:3], train, train, train)
    with pytest.raises(
        UserError, match=r"train_fraction = 0\.3 leaves no .* of (no|ye)"
    ):
        keep_speakers(task, 0.3, 0)


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5, float("nan")])
def test_other_shares_are_refused_with_the_name_of_the_field(fraction):
    config = network.get_config("")
    config.data.train_fraction = fraction
    with pytest.raises(UserError, match=r"config\.data\.train_fraction"):
        configs.check(config)
