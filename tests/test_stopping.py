"""The rule of the curriculum, against Algorithm 1 of its paper taken literally."""

import dataclasses

import chex
import numpy as np
import pytest
from test_loop import PLAN, Run, saved
from tiny_parts import Killed

from kws_jax.training.stopping import LENGTH, Criterion, create_rule, criterion

SETTINGS = {"rule": "criterion", "patience": 3, "resets": True, "ties": False}


def algorithm_1(accuracies, losses, patience, best=0.0, seen=0):
    """Where the model is saved, and where the stage ends or None, line by line.

    The first `seen` validations belong to the stage before. The very first one cannot
    exceed anything, and is not counted.
    """
    saves, not_exceeded = [], 0 if seen else -1
    for m in range(seen, len(accuracies)):
        norms = []
        for a in (np.array(accuracies[: m + 1]), np.array(losses[: m + 1])):
            if m == 0 or a.max() == a.min():
                norms.append(0.0)
            else:
                norms.append((a[m] - a.min()) / (a.max() - a.min()))
        c = norms[0] - norms[1]
        not_exceeded = 0 if c > best else not_exceeded + 1
        best = max(best, c)
        if c == best:
            saves.append(m)
        if not_exceeded == patience:
            return saves, m
    return saves, None


def judged(rule, accuracies, losses):
    """The same from a rule, given one validation after the other, and its notes."""
    notes = {"best_accuracy": -1.0, "best_step": -1, **rule.first_notes}
    saves = []
    for m, (accuracy, loss) in enumerate(zip(accuracies, losses, strict=True)):
        verdict = rule.judge(notes, {"accuracy": accuracy, "loss": loss})
        notes |= verdict.notes
        if verdict.best:
            saves.append(m)
        if verdict.ends:
            return (saves, m), notes
    return (saves, None), notes


def sequences(seed, epochs=25):
    """Accuracies and losses that rise and fall, with ties and, at times, constant."""
    rng = np.random.default_rng(seed)
    steps = (3, 10, 1000)[seed % 3]
    trend = np.linspace(0, rng.uniform(-1, 1), epochs)
    accuracies = np.clip(rng.random(epochs) / 2 + 0.25 + trend / 4, 0, 1)
    losses = rng.random(epochs) * 2 - trend + 1
    if seed % 5 == 1:
        losses[:] = 0.7
    if seed % 5 == 2:
        accuracies[:] = 0.5
    if seed % 20 == 6:
        losses[:], accuracies[:] = 0.7, 0.5
    rounded = (np.round(a * steps) / steps for a in (accuracies, losses))
    return [a.tolist() for a in rounded]


def test_a_stage_that_gets_better_each_time_ends_to_the_letter_but_not_with_ties():
    accuracies, losses = np.linspace(0.1, 0.9, 20), np.linspace(2, 1, 20)
    (_, end), _ = judged(create_rule(SETTINGS, {}), accuracies, losses)
    assert end == 4
    with_ties = create_rule(SETTINGS | {"ties": True}, {})
    assert judged(with_ties, accuracies, losses)[0] == (list(range(20)), None)
    # Then it gets no better: three validations more.
    worse = [[*accuracies, 0.8, 0.8, 0.8], [*losses, 1.1, 1.1, 1.1]]
    assert judged(with_ties, *worse)[0][1] == 22
    # What never changes is no progress either.
    assert judged(with_ties, [0.5] * 9, [1.0] * 9)[0][1] == 3


@pytest.mark.parametrize("patience", [1, 3, 10])
def test_the_rule_is_algorithm_1(patience):
    ended = []
    for seed in range(60):
        accuracies, losses = sequences(seed)
        expected = algorithm_1(accuracies, losses, patience)
        rule = create_rule(SETTINGS | {"patience": patience}, {})
        assert judged(rule, accuracies, losses)[0] == expected
        assert expected[0][0] == 0
        ended.append(expected[1])
    assert len(set(ended)) > 1
    # Constant: no NaN, and the end after the first and `patience` more.
    assert ended[6] == patience


def test_a_stage_worked_by_hand():
    accuracies, losses = [0.2, 0.6, 0.5, 1.0, 0.9], [2.0, 1.5, 1.0, 1.0, 1.0]
    values = [criterion(accuracies[:m], losses[:m]) for m in range(1, 6)]
    # 0 - 0; 1 - 0; 3/4 - 0; 1 - 0; 7/8 - 0
    assert values == pytest.approx([0, 1, 0.75, 1, 0.875])
    # Kept again where it equals the best; but only a rise ends the waiting.
    (saves, end), _ = judged(Criterion(3), accuracies, losses)
    assert (saves, end) == ([0, 1, 3], 4)


def test_history_and_best_go_on_where_they_are_not_reset():
    for seed in range(20):
        accuracies, losses = sequences(seed)
        _, before = judged(Criterion(99), accuracies[:10], losses[:10])
        rule = create_rule(SETTINGS | {"resets": False}, before)
        (saves, end), _ = judged(rule, accuracies[10:], losses[10:])
        saves = [10 + m for m in saves]
        expected = algorithm_1(
            accuracies, losses, 3, best=before["best_criterion"], seen=10
        )
        assert (saves, end if end is None else 10 + end) == expected
        assert rule.starts_from_best
        assert rule.first_notes["best_step"] == 0


def test_a_stage_without_anything_to_go_on_from_begins_anew():
    for before in ({}, {"best_accuracy": 0.5, "best_step": 3, "seconds": 1.0}):
        rule = create_rule(SETTINGS | {"resets": False}, before)
        assert not rule.starts_from_best
        assert rule.first_notes["accuracies"] == []
    assert create_rule(SETTINGS | {"rule": "length"}, {}) is LENGTH


# c = 0, 1, 1/2, 3/4, …: nothing above the best at steps 6 and 8.
PLAN_OF_FIVE = dataclasses.replace(PLAN, eval_every=2)
ACCURACIES = {2: 0.2, 4: 0.6, 6: 0.4, 8: 0.5, 10: 0.9}


def run_of_criterion(folder, rule=None, **changes):
    rule = rule or Criterion(2)
    return Run(
        folder, plan=PLAN_OF_FIVE, rule=rule, accuracies=ACCURACIES.get, **changes
    )


def test_a_stage_killed_at_its_early_end_ends_alike_and_once(tmp_path):
    run = run_of_criterion(tmp_path / "whole")
    state, notes = run.train()
    assert int(state.step) == 8
    assert (notes["best_step"], notes["best_accuracy"]) == (4, 0.6)
    assert notes["stopped"]
    values = [line["criterion"] for line in run.lines() if line["split"] != "train"]
    assert values == pytest.approx([0, 1, 0.5, 0.75])
    assert int(saved(tmp_path / "whole", "best")[0].step) == 4

    with pytest.raises(Killed):
        run_of_criterion(tmp_path, fall_at=(8, "validation")).train()
    again = run_of_criterion(tmp_path)
    resumed, resumed_notes = again.train()
    assert again.start == 6
    chex.assert_trees_all_equal(resumed, state)
    chex.assert_trees_all_equal(saved(tmp_path)[0], state)
    assert again.values() == run.values()
    for name in set(notes) - {"seconds"}:
        assert resumed_notes[name] == notes[name]

    ended = run_of_criterion(tmp_path, step_fn=lambda *_: pytest.fail("a step"))
    chex.assert_trees_all_equal(ended.train()[0], state)


def test_the_state_a_stage_starts_from_is_its_best_where_the_best_goes_on(tmp_path):
    _, before = judged(Criterion(9), [0.1, 1.0], [2.0, 1.0])
    run = run_of_criterion(tmp_path, Criterion(2, before | {"best_accuracy": 1.0}))
    state, notes = run.train()
    assert int(state.step) == 4
    assert (notes["best_step"], notes["best_accuracy"]) == (0, 1.0)
    best, _ = saved(tmp_path, "best")
    assert int(best.step) == 0
    np.testing.assert_array_equal(best.trees["weights"]["w"], np.zeros(3))
