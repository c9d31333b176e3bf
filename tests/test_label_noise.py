import numpy as np
import pytest
from tiny_parts import LABELS, random_split, tiny_config

from kws_jax import config as configs
from kws_jax.data.label_noise import flip_labels
from kws_jax.errors import UserError

SPLIT = random_split("train", 80, 0)


def test_the_share_is_flipped_to_other_labels_but_never_from_or_to_silence():
    flipped, rows = flip_labels(SPLIT, LABELS, 0.2, seed=3)
    changed = np.flatnonzero(flipped.labels != SPLIT.labels)
    np.testing.assert_array_equal(rows, changed)
    assert len(rows) == 12  # of 60 that are not silence
    silence = LABELS.index("_silence_")
    assert not (SPLIT.labels[rows] == silence).any()
    assert not (flipped.labels[rows] == silence).any()
    pairs = set(zip(SPLIT.labels[rows].tolist(), flipped.labels[rows].tolist()))
    assert len(pairs) > 3
    np.testing.assert_array_equal(flipped.names, SPLIT.names)


def test_the_choice_depends_on_seed_and_names_alone():
    _, rows = flip_labels(SPLIT, LABELS, 0.2, seed=3)
    order = np.random.default_rng(0).permutation(len(SPLIT))
    moved, moved_rows = flip_labels(SPLIT.subset(order), LABELS, 0.2, seed=3)
    assert set(moved.names[moved_rows]) == set(SPLIT.names[rows])
    _, others = flip_labels(SPLIT, LABELS, 0.2, seed=4)
    assert set(others.tolist()) != set(rows.tolist())


def test_none_are_flipped_by_default():
    assert tiny_config().data.flip_labels == 0
    same, rows = flip_labels(SPLIT, LABELS, 0.0, seed=3)
    assert same is SPLIT
    assert not len(rows)


def test_wrong_shares_and_too_few_labels_are_told():
    with pytest.raises(UserError, match=r"flip_labels = 1\.0: give a share"):
        flip_labels(SPLIT, LABELS, 1.0, seed=3)
    with pytest.raises(UserError, match="needs two labels"):
        flip_labels(SPLIT, ("up", "_silence_"), 0.2, seed=3)
    config = tiny_config()
    config.data.flip_labels = -0.1
    with pytest.raises(UserError, match="flip_labels"):
        configs.check(config)
