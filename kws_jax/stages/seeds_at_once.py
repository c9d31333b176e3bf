"""A stage "train" of several seeds at once: one program trains all their networks.

The states of the seeds are stacked, a step is that of one seed under `jax.vmap`, and
all see the same batches; weights, dropout and masks are each seed's own. Each seed's
folder ends with what a run of its own would have left there.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kws_jax import together
from kws_jax.errors import UserError
from kws_jax.parts import Parts
from kws_jax.stages import feeding, networks, runner, train, training_run, validation
from kws_jax.stages.epochs import with_epoch
from kws_jax.stages.learner import create_learner
from kws_jax.training import loop, sharding
from kws_jax.training.checkpoints import StageCheckpoints, saving, write_json
from kws_jax.training.finiteness import NotFiniteError
from kws_jax.training.logs import JsonLines
from kws_jax.training.optimizers import updates_made
from kws_jax.training.state import WEIGHTS, TrainState, variables_of
from kws_jax.training.stopping import Notes, Verdict

PyTree = Any
# Which leaves of a state have the seeds as their first axis.
_AXES: dict[str, Any] = {"step": None, "trees": 0, "opt_state": 0, "batch_stats": 0}
_STACKED = TrainState(**_AXES)
# Notes of the loop.
_BEST, _IMPROVED = "best_accuracies", "improved"


@dataclasses.dataclass(frozen=True)
class Member:
    """One of the seeds: its parts, which share their data, and its workdir."""

    parts: Parts
    folder: Path


def obstacle(parts: Parts, index: int) -> str:
    """Why stage `index` cannot train all seeds at once; "" where it can."""
    stage = parts.config.stages[index]
    if stage.kind != "train":
        return f"it is of kind {stage.kind!r}, and one of kind 'train' is wanted"
    if networks.finds_genotype(parts):
        return "each seed searches for a network of its own"
    if stage.stop.rule != "length":
        return f"stop.rule = {stage.stop.rule!r} ends seeds at different steps"
    if stage.data_parameters.mode != "none":
        return "each seed has data parameters of its own"
    return ""


def run(members: Sequence[Member], index: int, folder: Path) -> None:
    """Trains stage `index` of all members, unless it is done.

    `folder` is the workdir of the whole, where the stacked states are kept meanwhile.

    Raises:
      UserError: for numbers that are not finite, or what cannot be written.
    """
    done = [_done_file(member, index) for member in members]
    if together.agreed(all(path.exists() for path in done)):
        return
    first, count = members[0].parts, len(members)
    stage = first.config.stages[index]
    model = networks.create_network(first, members[0].folder)
    plan = runner.plan_of(first, index, len(first.task.train))
    learner = create_learner(first, stage, model, plan)
    starts = [
        train.starting_state(m.parts, index, m.folder, model, learner.transformations)
        for m in members
    ]
    updates = updates_made(starts[0].opt_state[WEIGHTS])
    step = learner.step
    if not runner.follows_training(first, index):
        step = with_epoch(step, model, plan)
    stepped = first.once(("of each seed", step), lambda: step_of_each(step))
    keys = jnp.stack([runner.stage_key(member.parts, index) for member in members])
    feed = feeding.create_feed(
        first, stage, plan, keys, [first.task.train], lambda number: stepped
    )
    checkpoints = _Checkpoints(members, index, folder)
    log = JsonLines(folder / "metrics.jsonl")
    later = tuple(stage.name for stage in first.config.stages[index + 1 :])
    measure = validation.make_validation(
        first, learner.logits_of, stage, of_each=_of_each
    )
    try:
        state, notes = loop.train_stage(
            plan,
            sharding.replicate(stacked(starts), first.mesh),
            step_fn=feed.step_fn,
            batches_from=feed.batches_from,
            validate=lambda state: _told(measure(state)),
            checkpoints=checkpoints,
            reporter=lambda start: runner.reporter(
                plan, f"{plan.name} ({count} seeds)", start, folder, log
            ),
            learning_rate=lambda step: float(learner.schedule(updates + step)),
            rule=_EachHighest(count),
            logs=(log,),
            later_stages=later,
        )
    except NotFiniteError as error:
        raise UserError(
            f"{error} It is so in one of {count} seeds or more; with "
            "config.seeds_at_once=no, in a new --workdir, its cause is told."
        ) from error
    checkpoints.keep_last(state, notes)
    checkpoints.close()
    for number, member in enumerate(members):
        _keep_log(log, member, number, plan.name, later)
        own = _own_notes(notes, number)
        trained = training_run.TrainingRun(
            member.parts, stage, plan, _of_member(state, number), own
        )
        size = networks.size_of(member.parts, model, variables_of(trained.state))
        rows = trained.rows({**size, **trained.speed})
        if together.is_first():
            write_json(done[number], rows)
    together.wait(f"end of stage {plan.name!r}")


def _done_file(member: Member, index: int) -> Path:
    where = runner.stage_folder(member.parts, index, member.folder)
    return where / runner.DONE_FILE


def stacked(states: Sequence[TrainState]) -> TrainState:
    """The states [n] of n seeds in one, at the step of the first."""
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    return state.replace(step=states[0].step)


def _of_member(state: TrainState, number: int) -> TrainState:
    """One seed's state out of the stacked ones, on the host."""
    own = jax.tree.map(lambda leaf: np.asarray(leaf)[number], state.replace(step=()))
    return own.replace(step=np.asarray(state.step))


def _of_each(function: Callable) -> Callable:
    """A function of a state and a batch as one of the stacked states."""
    return jax.vmap(function, in_axes=(_STACKED, None))


def step_of_each(step: feeding.Step) -> feeding.Step:
    """A step of one seed as one of `stacked` states, with keys [n], on one batch.

    Its metrics are means, and NAME/NUMBER for each of the seeds.
    """

    def stepped(state: TrainState, *inputs: Any) -> tuple[TrainState, Any]:
        *batches, keys = inputs
        mapped = jax.vmap(
            step,
            in_axes=(_STACKED, *(None for _ in batches), 0),
            out_axes=(_STACKED, 0),
        )
        state, metrics = mapped(state, *batches, keys)
        return state, _told(metrics)

    return stepped


def _told(measures: Mapping[str, Any]) -> dict[str, Any]:
    """Measures [n] of n seeds as scalars: means, and NAME/NUMBER for each seed."""
    means = {name: sum(values) / len(values) for name, values in measures.items()}
    return means | {
        f"{name}/{number}": value
        for name, values in measures.items()
        for number, value in enumerate(values)
    }


class _EachHighest:
    """A `stopping.Rule`: of each seed the first state of its highest accuracy."""

    starts_from_best = False
    may_end_early = False

    def __init__(self, count: int) -> None:
        self._count = count
        self.first_notes: Notes = {_BEST: [-1.0] * count, _IMPROVED: []}

    def judge(self, notes: Notes, measures: Mapping[str, float]) -> Verdict:
        """See `stopping.Rule`."""
        now = [measures[f"accuracy/{number}"] for number in range(self._count)]
        before = notes[_BEST]
        improved = [n for n in range(self._count) if now[n] > before[n]]
        best = [max(pair) for pair in zip(before, now, strict=True)]
        return Verdict(bool(improved), notes={_BEST: best, _IMPROVED: improved})


class _Checkpoints(StageCheckpoints):
    """The last states lie stacked in the whole's workdir, the best in each seed's."""

    def __init__(self, members: Sequence[Member], index: int, folder: Path) -> None:
        super().__init__(runner.stage_folder(members[0].parts, index, folder))
        self._members = [
            StageCheckpoints(runner.stage_folder(m.parts, index, m.folder))
            for m in members
        ]

    def save_best(self, step: int, state: PyTree, notes: dict[str, Any]) -> None:
        """Saves the states of the seeds that got better."""
        for number in notes[_IMPROVED]:
            self._members[number].save_best(
                step, _of_member(state, number), _own_notes(notes, number)
            )

    def keep_last(self, state: TrainState, notes: dict[str, Any]) -> None:
        """Leaves each seed the state that its stage ended with."""
        for number, checkpoints in enumerate(self._members):
            own = _of_member(state, number)
            checkpoints.save_last(int(own.step), own, _own_notes(notes, number))

    def close(self) -> None:
        """Ends Orbax's background threads."""
        super().close()
        for checkpoints in self._members:
            checkpoints.close()


def _own_notes(notes: Mapping[str, Any], number: int) -> dict[str, Any]:
    """What the loop of one seed would note, the time being its share of that of all."""
    best = notes[_BEST]
    return {
        "best_accuracy": best[number],
        "seconds": notes["seconds"] / len(best),
    }


def _keep_log(
    log: JsonLines, member: Member, number: int, stage: str, later: tuple[str, ...]
) -> None:
    """Writes a seed's own lines of `stage` to its metrics.jsonl."""
    if not together.is_first():
        return
    own_log = JsonLines(member.folder / "metrics.jsonl")
    own_log.rewind(stage, -1, later)
    with saving(own_log.path):
        lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    for line in lines:
        if line["stage"] == stage:
            own = {name: value for name, value in line.items() if "/" not in name}
            for name in own:
                own[name] = line.get(f"{name}/{number}", own[name])
            own_log.append(**own)
