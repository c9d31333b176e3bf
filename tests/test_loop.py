"""The training loop on a toy: what it saves, logs, takes up again and refuses."""

import contextlib
import dataclasses
import itertools
import json
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_parts import Killed

from kws_jax.errors import UserError
from kws_jax.training import loop
from kws_jax.training.checkpoints import StageCheckpoints
from kws_jax.training.logs import JsonLines
from kws_jax.training.state import WEIGHTS, create_train_state, without_optimizers
from kws_jax.training.step import make_train_step
from kws_jax.training.stopping import LENGTH

TRANSFORMATIONS = {WEIGHTS: optax.sgd(0.05, 0.9)}
PLAN = loop.StagePlan(
    name="toy",
    total_steps=10,
    steps_per_epoch=4.0,
    eval_every=3,
    log_every=2,
    clips_per_step=8,
)
# Train lines where a log or a validation is due, validation lines every third step and
# at the end.
TRAIN_STEPS, VALIDATION_STEPS = [2, 3, 4, 6, 8, 9, 10], [3, 6, 9, 10]


def loss_fn(trees, batch_stats, batch, key):
    noise = jax.random.normal(key, ())
    error = trees[WEIGHTS]["w"] - batch + 0.1 * noise
    loss = jnp.mean(error**2)
    return loss, ({"loss": loss, "accuracy": -loss}, batch_stats + 1)


STEP = jax.jit(make_train_step(loss_fn, TRANSFORMATIONS))


class Run:
    """One start of the toy stage in `folder`, and what it saw."""

    def __init__(self, folder, **changes):
        self.folder, self.batches, self.closed = folder, [], 0
        self.log = JsonLines(folder / "metrics.jsonl")
        self.accuracies = changes.pop("accuracies", lambda step: step / 100)
        self.validation_loss = changes.pop("validation_loss", lambda step: 1.0)
        self.step_fn = changes.pop("step_fn", self._step)
        self.later = changes.pop("later", ())
        self.fall_at = changes.pop("fall_at", None)
        self.plan = changes.pop("plan", PLAN)
        self.rule = changes.pop("rule", LENGTH)
        assert not changes
        self.checkpoints = StageCheckpoints(folder / "stage")

    def _step(self, state, batch):
        return STEP(state, batch, jax.random.key(0))

    def _batches(self, start):
        for step in itertools.count(start):
            self.batches.append(step)
            yield jnp.float32(np.random.default_rng(step).normal(size=3))

    def _validate(self, state):
        step = int(state.step)
        return {"loss": self.validation_loss(step), "accuracy": self.accuracies(step)}

    @contextlib.contextmanager
    def _reporter(self, start):
        self.start = start
        try:
            yield self
        finally:
            self.closed += 1

    def advance(self, n=1, **fields):
        pass

    def write(self, step, split, metrics):
        self.log.append(stage="toy", step=step, split=split, **metrics)
        if (step, split) == self.fall_at:
            raise Killed

    def train(self):
        state = create_train_state(
            {WEIGHTS: {"w": jnp.zeros(3)}}, jnp.zeros(()), TRANSFORMATIONS
        )
        try:
            return loop.train_stage(
                self.plan,
                state,
                step_fn=self.step_fn,
                batches_from=self._batches,
                validate=self._validate,
                checkpoints=self.checkpoints,
                reporter=self._reporter,
                learning_rate=lambda step: 0.05 / (1 + step),
                rule=self.rule,
                logs=(self.log,),
                later_stages=self.later,
            )
        finally:
            self.checkpoints.close()

    def lines(self):
        return [json.loads(line) for line in self.log.path.read_text().splitlines()]

    def sequence(self):
        return [(line["step"], line["split"]) for line in self.lines()]

    def values(self):
        """The lines without what the clock says."""
        return [
            {k: v for k, v in line.items() if k != "clips_per_second"}
            for line in self.lines()
        ]


def saved(folder, kind="last"):
    """The kept state of a stage, and its notes."""
    state = create_train_state(
        {WEIGHTS: {"w": jnp.zeros(3)}}, jnp.zeros(()), TRANSFORMATIONS
    )
    kept = StageCheckpoints(folder / "stage", read_only=True)
    if kind == "best":
        found = kept.restore_best(without_optimizers(state))
    else:
        found = kept.restore_last(state)
    kept.close()
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("undisturbed"))
    run.state, run.notes = run.train()
    return run


def test_steps_are_the_optimizers_own(undisturbed):
    w, momentum = np.zeros(3), np.zeros(3)
    for step in range(PLAN.total_steps):
        key = jax.random.fold_in(jax.random.key(0), step)
        batch = np.float32(np.random.default_rng(step).normal(size=3))
        gradient = 2 / 3 * (w - batch + 0.1 * float(jax.random.normal(key, ())))
        momentum = 0.9 * momentum + gradient
        w = w - 0.05 * momentum
    np.testing.assert_allclose(undisturbed.state.trees[WEIGHTS]["w"], w, rtol=1e-5)
    assert int(undisturbed.state.step) == PLAN.total_steps
    assert float(undisturbed.state.batch_stats) == PLAN.total_steps


def test_lines_are_written_when_due_and_average_their_steps(undisturbed):
    lines = undisturbed.lines()
    steps = {
        split: [line["step"] for line in lines if line["split"] == split]
        for split in ("train", "validation")
    }
    assert steps == {"train": TRAIN_STEPS, "validation": VALIDATION_STEPS}
    assert lines[0]["learning_rate"] == pytest.approx(0.05 / 2)
    # Each step's loss, from single steps, averaged over the steps of a line.
    state = create_train_state(
        {WEIGHTS: {"w": jnp.zeros(3)}}, jnp.zeros(()), TRANSFORMATIONS
    )
    losses = []
    for step in range(PLAN.total_steps):
        batch = jnp.float32(np.random.default_rng(step).normal(size=3))
        state, metrics = STEP(state, batch, jax.random.key(0))
        losses.append(float(metrics["loss"]))
    expected = [
        np.mean(losses[start:end]) for start, end in zip([0, *TRAIN_STEPS], TRAIN_STEPS)
    ]
    found = [line["loss"] for line in lines if line["split"] == "train"]
    assert found == pytest.approx(expected, rel=1e-6)
    assert undisturbed.closed == 1


def test_the_last_state_is_kept_and_the_best_named(undisturbed):
    last, notes = saved(undisturbed.folder)
    chex.assert_trees_all_equal(last, undisturbed.state)
    assert (notes["best_step"], notes["best_accuracy"]) == (10, 0.1)


def test_the_first_of_the_best_validations_is_kept(tmp_path, undisturbed):
    run = Run(tmp_path, accuracies={3: 0.5, 6: 0.9, 9: 0.9, 10: 0.7}.get)
    _, notes = run.train()
    best, at_best = saved(tmp_path, "best")
    assert int(best.step) == at_best["best_step"] == notes["best_step"] == 6
    assert notes["best_accuracy"] == 0.9
    assert best.opt_state == {}


@pytest.mark.parametrize(
    "fall_at",
    [(2, "train"), (3, "validation"), (4, "train"), (8, "train"), (9, "validation")],
)
def test_a_run_taken_up_again_ends_as_an_undisturbed_one(
    fall_at, tmp_path, undisturbed
):
    with pytest.raises(Killed):
        Run(tmp_path, fall_at=fall_at).train()
    again = Run(tmp_path)
    state, notes = again.train()
    expected_start = 3 * ((fall_at[0] - (fall_at[1] == "validation")) // 3)
    assert (again.start, again.batches[0]) == (expected_start, expected_start)
    chex.assert_trees_all_equal(state, undisturbed.state)
    chex.assert_trees_all_equal(saved(tmp_path)[0], undisturbed.state)
    assert again.values() == undisturbed.values()
    for name in ("best_accuracy", "best_step"):
        assert notes[name] == undisturbed.notes[name]


def test_a_fall_between_best_and_last_loses_neither(tmp_path, undisturbed, monkeypatch):
    def fall(self, step, *rest):
        raise Killed

    monkeypatch.setattr(StageCheckpoints, "save_last", fall)
    with pytest.raises(Killed):
        Run(tmp_path).train()
    monkeypatch.undo()
    assert saved(tmp_path) is None
    state, notes = Run(tmp_path, accuracies=lambda step: 1 / step).train()
    chex.assert_trees_all_equal(state, undisturbed.state)
    assert int(saved(tmp_path, "best")[0].step) == notes["best_step"] == 3


def test_a_finished_stage_makes_no_step(tmp_path, undisturbed):
    Run(tmp_path).train()
    again = Run(tmp_path, step_fn=lambda state, batch: pytest.fail("a step was made"))
    state, notes = again.train()
    chex.assert_trees_all_equal(state, undisturbed.state)
    assert notes["best_step"] == 10
    assert again.batches == []


def test_a_restart_drops_the_lines_of_later_stages(tmp_path):
    log = JsonLines(tmp_path / "metrics.jsonl")
    for stage in ("before", "toy", "after"):
        log.append(stage=stage, step=1, split="train")
    run = Run(tmp_path, later=("after",))
    run.train()
    stages = [line["stage"] for line in run.lines()]
    assert stages == ["before"] + ["toy"] * 11
    assert [line["step"] for line in run.lines()].count(1) == 1


def poisoned(at):
    """The toy's step, whose loss is not finite from step `at` on."""

    def step_fn(state, batch):
        new, metrics = STEP(state, batch, jax.random.key(0))
        bad = new.step >= at
        return new, metrics | {"loss": jnp.where(bad, jnp.nan, metrics["loss"])}

    return step_fn


@pytest.mark.parametrize(("at", "good"), [(4, 3), (7, 6), (9, 6), (10, 9)])
def test_a_loss_that_is_not_finite_stops_the_run(at, good, tmp_path):
    run = Run(tmp_path, step_fn=poisoned(at))
    with pytest.raises(UserError) as caught:
        run.train()
    message = str(caught.value)
    assert f"The loss became nan at step {at} of stage 'toy'" in message
    assert f"learning rate {0.05 / at:g}" in message
    assert str(tmp_path / "stage" / "last" / str(good)) in message
    assert int(saved(tmp_path)[0].step) == good
    assert int(saved(tmp_path, "best")[0].step) == good
    assert max(line["step"] for line in run.lines()) < at
    assert run.closed == 1


def test_a_loss_that_is_not_finite_before_any_checkpoint_says_so(tmp_path):
    with pytest.raises(UserError, match=r"nan at step 1 .*checkpoint is none yet"):
        Run(tmp_path, step_fn=poisoned(1)).train()
    assert saved(tmp_path) is None


def test_weights_broken_by_the_last_update_do_not_become_a_checkpoint(tmp_path):
    run = Run(tmp_path, validation_loss=lambda step: float("inf" if step == 6 else 1))
    with pytest.raises(UserError, match="The validation loss became inf at step 6"):
        run.train()
    assert int(saved(tmp_path)[0].step) == 3
    assert int(saved(tmp_path, "best")[0].step) == 3


@pytest.mark.parametrize("most", [1, 3, 4, 8, 64])
@pytest.mark.parametrize("breaks", [(), (0,), (13, 51)])
def test_calls_cross_no_step_at_which_something_is_due(most, breaks):
    plan = dataclasses.replace(
        PLAN,
        total_steps=53,
        eval_every=17,
        log_every=10,
        steps_per_call=most,
        breaks=breaks,
    )
    calls = list(plan.calls(0))
    assert [step for call in calls for step in call] == list(range(53))
    due = {s for s in range(1, 53) if s % 17 == 0 or s % 10 == 0 or s in breaks}
    for call in calls:
        assert not due & set(call[1:])
        # Each length is a program to be compiled.
        assert len(call) in (1, most)
    if most == 4 and not breaks:
        # Something is due at 34, 40, 50, 51 and 53.
        assert [len(call) for call in plan.calls(30)] == [
            *(4, 4, 1, 1, 4, 4, 1, 1),
            *(1, 1, 1),
        ]
    # From any validation on, a stage that is taken up makes the same calls.
    for start in (17, 34, 51):
        assert list(plan.calls(start)) == [c for c in calls if c.start >= start]
    assert list(plan.calls(53)) == []


@jax.jit
def call_of_steps(state, batches):
    def step(state, batch):
        return STEP(state, batch, jax.random.key(0))

    return jax.lax.scan(step, state, batches)


class RunOfCalls(Run):
    """Makes the steps of each call at once; its metrics are arrays [steps]."""

    def _step(self, state, batches):
        return call_of_steps(state, batches)

    def _batches(self, start):
        for call in self.plan.calls(start):
            steps = list(itertools.islice(super()._batches(call.start), len(call)))
            yield jnp.stack(steps)


OF_CALLS = dataclasses.replace(
    PLAN, total_steps=23, eval_every=9, log_every=6, steps_per_call=4
)


@pytest.fixture(scope="module")
def of_single_steps(tmp_path_factory):
    plan = dataclasses.replace(OF_CALLS, steps_per_call=1)
    run = Run(tmp_path_factory.mktemp("single"), plan=plan)
    run.state, run.notes = run.train()
    return run


def test_calls_of_several_steps_log_and_end_as_single_steps(tmp_path, of_single_steps):
    run = RunOfCalls(tmp_path, plan=OF_CALLS)
    state, _ = run.train()
    chex.assert_trees_all_close(state, of_single_steps.state, rtol=1e-5)
    assert run.sequence() == of_single_steps.sequence()
    for name in ("loss", "learning_rate", "gradient_norm"):
        found, expected = (
            [line[name] for line in r.values() if line["split"] == "train"]
            for r in (run, of_single_steps)
        )
        assert found == pytest.approx(expected, rel=1e-5)


def test_a_killed_run_of_calls_ends_bit_for_bit_as_an_undisturbed_one(tmp_path):
    undisturbed = RunOfCalls(tmp_path / "whole", plan=OF_CALLS)
    state, _ = undisturbed.train()
    with pytest.raises(Killed):
        RunOfCalls(tmp_path, plan=OF_CALLS, fall_at=(12, "train")).train()
    again = RunOfCalls(tmp_path, plan=OF_CALLS)
    resumed, _ = again.train()
    assert again.start == 9
    chex.assert_trees_all_equal(resumed, state)
    assert again.values() == undisturbed.values()


def test_speed_counts_the_steps_of_all_calls(tmp_path, monkeypatch):
    run = RunOfCalls(tmp_path, plan=dataclasses.replace(OF_CALLS, eval_every=100))
    clock = itertools.count(0, 2)
    time = SimpleNamespace(monotonic=lambda: float(next(clock)))
    monkeypatch.setattr(loop, "time", time)
    run.train()
    second = run.lines()[1]
    # Six steps of eight clips, and two seconds from one look at the clock to the next.
    assert second["step"] == 12
    assert second["clips_per_second"] == 6 * 8 / 2


def test_a_loss_that_is_not_finite_within_a_call_names_its_step(tmp_path):
    def step_fn(state, batches):
        state, metrics = call_of_steps(state, batches)
        steps = int(state.step) - len(batches) + 1 + np.arange(len(batches))
        return state, metrics | {"loss": jnp.where(steps >= 11, jnp.nan, 1.0)}

    with pytest.raises(UserError, match="nan at step 11 of stage 'toy'"):
        RunOfCalls(tmp_path, plan=OF_CALLS, step_fn=step_fn).train()
    assert int(saved(tmp_path)[0].step) == 9
