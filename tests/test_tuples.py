"""Batches of tuples: who meets whom, how often, and that any part can be made alone."""

import collections

import numpy as np
import pytest

from kws_jax.data import pipeline
from kws_jax.data.conditions import Condition
from kws_jax.data.corpus import CLIP_SAMPLES, Split
from kws_jax.data.draws import Recipe
from kws_jax.data.mixing import DRAWS
from kws_jax.data.tuples import tuple_selection
from kws_jax.errors import UserError

# Clips of each label, very unequal; two is the least.
SIZES = (2, 3, 40, 7, 5)
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(5), SIZES))
NAMES = ("a", "b", "c", "d", "e")
TUPLES = 4


def selection(labels=LABELS, names=NAMES, **more):
    settings = {"tuples_per_batch": TUPLES, "seed": 3, **more}
    return tuple_selection(labels, names, **settings)


def rows(select, steps, roles=6):
    """Rows of the split [tuples, roles]."""
    taken = [select(step).positions for step in range(steps)]
    return np.concatenate(taken).reshape(-1, roles)


@pytest.mark.parametrize("classes", [0, 2, 3, 4, 5])
def test_a_tuple_is_an_anchor_a_positive_and_one_negative_of_each_other_class(classes):
    n = classes or len(NAMES)
    tuples = rows(selection(classes=classes), 100, n + 1)
    assert (tuples[:, 0] != tuples[:, 1]).all()
    for labels in LABELS[tuples]:
        assert labels[0] == labels[1]
        assert len(set(labels[1:])) == n == len(labels) - 1


@pytest.mark.parametrize("classes", [0, 2, 3])
def test_classes_and_the_clips_of_a_class_are_seen_equally_often(classes):
    n = classes or len(NAMES)
    blocks = 24
    tuples = rows(selection(classes=classes), blocks * len(NAMES) // TUPLES, n + 1)
    anchors = np.bincount(LABELS[tuples[:, 0]])
    np.testing.assert_array_equal(anchors, blocks)
    np.testing.assert_array_equal(np.bincount(LABELS[tuples.ravel()]), blocks * (n + 1))
    times = np.bincount(tuples.ravel(), minlength=len(LABELS))
    for label in range(len(NAMES)):
        assert np.ptp(times[label == LABELS]) <= 1


def test_every_pair_of_classes_meets_about_equally_often_in_smaller_tuples():
    tuples = LABELS[rows(selection(classes=2), 1000, 3)]
    met = collections.Counter(map(tuple, tuples[:, [0, 2]].tolist()))
    assert len(met) == 20
    # 200 of each are expected; five deviations of a binomial are 68.
    assert 132 < min(met.values()) <= max(met.values()) < 268


def test_each_epoch_of_a_class_has_an_order_of_its_own():
    clips = rows(selection(), 200).ravel()
    epochs = clips[LABELS[clips] == 2][: 10 * SIZES[2]].reshape(10, -1)
    assert len(np.unique(epochs, axis=0)) == 10
    assert len(np.unique(np.sort(epochs, 1), axis=0)) == 1


def test_any_step_can_be_made_alone_and_other_seeds_differ():
    select, fresh = selection(), selection()
    in_order = [select(step) for step in range(9)]
    alone = fresh(8)
    np.testing.assert_array_equal(alone.positions, in_order[8].positions)
    np.testing.assert_array_equal(alone.uniforms, in_order[8].uniforms)
    other = selection(seed=4)(8)
    assert (other.positions != alone.positions).any()
    assert (other.uniforms != alone.uniforms).all()
    assert alone.uniforms.shape == (len(alone.positions), len(DRAWS))
    assert len(np.unique(np.concatenate([s.uniforms for s in in_order]))) == (
        9 * alone.uniforms.size
    )


def test_processes_share_the_batch_by_whole_tuples():
    whole = selection()(5)
    parts = [selection(process_index=i, process_count=2)(5) for i in range(2)]
    for field in ("positions", "mask", "uniforms"):
        joined = np.concatenate([getattr(part, field) for part in parts])
        np.testing.assert_array_equal(joined, getattr(whole, field))
    assert len(parts[0].positions) == TUPLES // 2 * (len(NAMES) + 1)


def test_the_pipeline_makes_batches_of_tuples_from_any_step():
    audio = np.random.default_rng(1).integers(-99, 99, (len(LABELS), CLIP_SAMPLES))
    names = LABELS.astype(str)
    split = Split("train", LABELS.astype(np.int32), names, names, lambda r: audio[r])
    recipe = Recipe(split, Condition(shift_ms=100))
    batches = list(pipeline.selected_batches(recipe, selection(), num_steps=3))
    later = next(pipeline.selected_batches(recipe, selection(), start_step=2))
    for batch, step in zip(batches, range(3), strict=True):
        positions = selection()(step).positions
        np.testing.assert_array_equal(batch["index"], positions)
        np.testing.assert_array_equal(batch["label"], LABELS[positions])
    assert batches[2].keys() == {"audio", "label", "index", "mask", "noise_level"}
    for field, value in batches[2].items():
        np.testing.assert_array_equal(value, later[field])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": np.array([0, 0, 1])}, "'b' has 1 training clip"),
        ({"labels": np.array([0, 0, 0])}, "'b' has 0 training clip"),
        ({"classes": 3}, "Tuples of 3 classes cannot be made of 2 labels"),
        ({"classes": 1}, "Tuples of 1 classes"),
        ({"names": ("a",)}, "of 1 labels"),
        ({"tuples_per_batch": 0}, "number of tuples is 0"),
        ({"tuples_per_batch": 3, "process_count": 2}, "number of tuples is 3"),
    ],
)
def test_what_cannot_be_made_is_refused(settings, message):
    given = {"labels": np.array([0, 0, 1, 1]), "names": ("a", "b"), **settings}
    with pytest.raises(UserError, match=message):
        selection(**given)
