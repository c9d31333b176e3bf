"""What the stages that train have in common: length, keys, logs, checkpoints."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from kws_jax.data.conditions import CLEAN, Condition
from kws_jax.data.tuples import tuple_classes
from kws_jax.errors import UserError
from kws_jax.evaluation.metrics import result, wilson_interval
from kws_jax.objectives.registry import OBJECTIVES, Objective
from kws_jax.parts import Parts, Setup, condition_of
from kws_jax.report.terminal import progress_bar
from kws_jax.training import loop, sharding
from kws_jax.training.checkpoints import StageCheckpoints
from kws_jax.training.logs import JsonLines
from kws_jax.training.state import TrainState, without_optimizers
from kws_jax.training.stopping import HIGHEST_SCORE, LENGTH, Notes, Rule, create_rule
from kws_jax.training.tensorboard import TensorBoard

DONE_FILE = "done.json"
# Conditions as results.json names them.
CLEAN_NAME, TRAINING_NAME = "clean", "as in training"
# Kinds of stages that train the network's own weights.
_TRAINS_NETWORK = ("train", "embed")
# (state, features [b, t, f], …) -> logits [b, k]
LogitsOf = Callable[..., Float[Array, "b k"]]
ContextOf = Callable[[TrainState], tuple[Any, ...]]
# (state, measures of validation) -> how good the state is
Score = Callable[[TrainState, dict[str, float]], float]


def stage_folder(parts: Setup, index: int, folder: Path) -> Path:
    """Where a stage keeps its checkpoints."""
    return folder / "stages" / f"{index}-{parts.config.stages[index].name}"


def plan_of(parts: Parts, index: int, clips: int) -> loop.StagePlan:
    """Lengths in steps for a stage that goes over `clips` clips."""
    stage = parts.config.stages[index]
    batch_size = clips_per_step(parts, stage)
    per_epoch = clips / batch_size
    total = stage.steps if stage.steps > 0 else math.ceil(stage.epochs * per_epoch)
    return loop.StagePlan(
        name=stage.name,
        total_steps=total,
        steps_per_epoch=per_epoch,
        eval_every=max(1, round(stage.eval_every_epochs * per_epoch)),
        log_every=parts.config.log_every_steps,
        clips_per_step=batch_size,
        steps_per_call=parts.config.steps_per_call,
    )


def clips_per_step(parts: Setup, stage: ConfigDict) -> int:
    """Clips in a batch of the stage; tuples of N classes have N + 1."""
    if stage.kind != "embed":
        return stage.batch_size
    classes = tuple_classes(stage.classes, parts.labels)
    return stage.tuples_per_batch * (classes + 1)


def stage_key(parts: Parts, index: int) -> jax.Array:
    """The key of a stage's own draws (dropout, masks, noise)."""
    return jax.random.fold_in(jax.random.key(parts.config.seed), index + 1)


def run_stage(
    parts: Parts,
    index: int,
    folder: Path,
    state: TrainState,
    *,
    plan: loop.StagePlan,
    step_fn: Callable[[TrainState, Any], tuple[TrainState, Any]],
    batches_from: Callable[[int], Iterable[Any]],
    logits_of: LogitsOf,
    schedule: Callable[[int], Any],
    context_of: ContextOf = lambda state: (),
    logs: Iterable[JsonLines] = (),
    after_validation: Callable[[int, TrainState], None] = lambda step, state: None,
    score: Score | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """Runs the loop with this project's logs, and returns the last state and notes.

    The stage says in its config how it is validated and when it ends, unless there is a
    `score`: then the best state is that with the highest one.
    """
    stages = parts.config.stages
    rule = _rule_of(parts, index, folder) if score is None else HIGHEST_SCORE
    checkpoints = StageCheckpoints(stage_folder(parts, index, folder))
    metrics_log = JsonLines(folder / "metrics.jsonl")
    title = f"{plan.name} (may end early)" if rule.may_end_early else plan.name
    state = sharding.replicate(state, parts.mesh)
    state, notes = loop.train_stage(
        plan,
        state,
        step_fn=step_fn,
        batches_from=batches_from,
        validate=make_validation(parts, logits_of, stages[index], context_of, score),
        checkpoints=checkpoints,
        reporter=lambda start: _reporter(plan, title, start, folder, metrics_log),
        learning_rate=lambda step: float(schedule(step)),
        rule=rule,
        after_validation=after_validation,
        logs=(metrics_log, *logs),
        later_stages=tuple(stage.name for stage in stages[index + 1 :]),
    )
    checkpoints.close()
    return state, notes


def best_state(
    parts: Setup,
    index: int,
    folder: Path,
    like: TrainState,
    *,
    finished: bool = True,
) -> TrainState:
    """The best state of a stage, without optimisers; `like` gives the structure.

    Raises:
      UserError: where it has not been run to its end, if it must be `finished`.
    """
    where = stage_folder(parts, index, folder)
    if finished and not (where / DONE_FILE).exists():
        raise UserError(
            f"{folder}: stage {parts.config.stages[index].name!r} has not been run to "
            "its end; run kws_jax.main with this --workdir first."
        )
    like = without_optimizers(like)
    return _restored(parts, where, like, StageCheckpoints.restore_best)


def last_state(parts: Setup, index: int, folder: Path, like: TrainState) -> TrainState:
    """The state at the end of a finished stage, with its optimisers."""
    where = stage_folder(parts, index, folder)
    return _restored(parts, where, like, StageCheckpoints.restore_last)


def follows_training(parts: Setup, index: int) -> bool:
    """Whether stage `index` goes on from the weights of the stage before."""
    return index > 0 and parts.config.stages[index - 1].kind in _TRAINS_NETWORK


def continues_optimizer(parts: Setup, index: int) -> bool:
    """Whether stage `index` goes on with the optimiser of the stage before."""
    start = parts.config.stages[index].get("optimizer_start", "restart")
    return start == "continue" and _follows_its_kind(parts, index)


def _follows_its_kind(parts: Setup, index: int) -> bool:
    stages = parts.config.stages
    return index > 0 and stages[index - 1].kind == stages[index].kind


def _rule_of(parts: Setup, index: int, folder: Path) -> Rule:
    """The stage's rule for its end; stages of a kind without a choice have a length."""
    stage = parts.config.stages[index]
    if "stop" not in stage:
        return LENGTH
    before: Notes = {}
    if not stage.stop.resets and _follows_its_kind(parts, index):
        where = stage_folder(parts, index - 1, folder)
        checkpoints = StageCheckpoints(where, read_only=True)
        before = checkpoints.last_notes()
        checkpoints.close()
    return create_rule(stage.stop, before)


def _restored(
    parts: Setup, where: Path, like: TrainState, restore: Callable[..., Any]
) -> TrainState:
    checkpoints = StageCheckpoints(where, read_only=True)
    restored = restore(checkpoints, sharding.replicated_like(like, parts.mesh))
    checkpoints.close()
    if restored is None:
        raise UserError(f"{where} holds no checkpoint; run kws_jax.main again.")
    return restored[0]


def objective_of(stage: ConfigDict) -> Objective:
    """The objective of a stage; cross-entropy for kinds of stages without a choice."""
    return OBJECTIVES[stage.get("objective", "cross_entropy")]


def validation_condition(stage: ConfigDict) -> Condition:
    """In what a stage is validated: clean, or the noise and the rooms it trains in.

    Shift and background by volume are left out: they augment, and do not disturb.
    """
    if stage.get("validation", "clean") == "clean":
        return CLEAN
    condition = condition_of(stage)
    if not condition.snr_db and not condition.reverberant_fraction:
        return CLEAN
    return dataclasses.replace(condition, shift_ms=0.0, background_probability=0.0)


def make_validation(
    parts: Parts,
    logits_of: LogitsOf,
    stage: ConfigDict,
    context_of: ContextOf = lambda state: (),
    score: Score | None = None,
) -> Callable[[TrainState], dict[str, float]]:
    """A function from state to loss and accuracy over the validation split.

    And to the "score" by which the best state is chosen, if it is given.

    Loss and condition are those of the stage. Every validation hears the same noise, of
    the training part, at the same places. What `context_of` makes of the state once,
    `logits_of` gets behind the features.
    """
    loss_of, condition = objective_of(stage).loss, validation_condition(stage)
    noise = parts.training_noise if condition.snr_db else None

    def measure(
        state: TrainState, batch: dict[str, jax.Array], *context: Any
    ) -> dict[str, jax.Array]:
        logits = logits_of(state, parts.frontend(batch["audio"]), *context)
        mask = batch["mask"]
        right = (jnp.argmax(logits, -1) == batch["label"]) & mask
        loss = loss_of(logits, batch["label"], mask)
        return {"loss": loss * mask.sum(), "right": right.sum(), "count": mask.sum()}

    jitted = parts.once(("validation", logits_of, loss_of), lambda: jax.jit(measure))

    def validate(state: TrainState) -> dict[str, float]:
        context = context_of(state)
        sums: dict[str, float] = {"loss": 0.0, "right": 0.0, "count": 0.0}
        for batch in parts.eval_batches(parts.task.validation, condition, noise):
            for name, value in jax.device_get(jitted(state, batch, *context)).items():
                sums[name] += float(value)
        measures = {
            "loss": sums["loss"] / sums["count"],
            "accuracy": sums["right"] / sums["count"],
        }
        return measures | ({"score": score(state, measures)} if score else {})

    return validate


def validation_row(
    parts: Parts, stage: str, notes: dict[str, Any], condition: str = CLEAN_NAME
) -> dict[str, Any]:
    """The best state's validation accuracy as a row of results.json."""
    count = len(parts.task.validation)
    value = notes["best_accuracy"]
    interval = wilson_interval(round(value * count), count)
    return result(stage, "validation", condition, "accuracy", value, interval, count)


def ending_rows(
    plan: loop.StagePlan, steps: int, notes: dict[str, Any]
) -> list[dict[str, Any]]:
    """Where a stage that may end early has ended, and where its best state was.

    None for a stage of a given length. Prints the same in words.
    """
    if "stopped" not in notes:
        return []
    epochs, best_epoch = (
        step / plan.steps_per_epoch for step in (steps, notes["best_step"])
    )
    why = (
        f"no new best in {notes['since_best']} validations"
        if notes["stopped"]
        else "its full length"
    )
    print(
        f"Stage {plan.name!r} ended after {epochs:.1f} epochs ({why}); its best state "
        f"is that of epoch {best_epoch:.1f}"
    )
    values = {
        "epochs": epochs,
        "best_epoch": best_epoch,
        "stopped_early": float(steps < plan.total_steps),
    }
    return [
        result(plan.name, "train", CLEAN_NAME, name, value, None, 1)
        for name, value in values.items()
    ]


class _Reporter:
    """Writes measures to metrics.jsonl and TensorBoard, and moves the progress bar."""

    def __init__(
        self, plan: loop.StagePlan, log: JsonLines, board: TensorBoard, progress: Any
    ) -> None:
        self._plan, self._log, self._board = plan, log, board
        self._progress = progress

    def advance(self, n: int = 1, **fields: Any) -> None:
        self._progress.advance(n, **fields)

    def write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        if jax.process_index() != 0:
            return
        epoch = step / self._plan.steps_per_epoch
        self._log.append(
            stage=self._plan.name, step=step, epoch=epoch, split=split, **metrics
        )
        self._board.write(f"{self._plan.name}/{split}", step, metrics)


@contextlib.contextmanager
def _reporter(
    plan: loop.StagePlan, title: str, start: int, folder: Path, log: JsonLines
) -> Iterator[_Reporter]:
    board = TensorBoard(folder / "tensorboard")
    with progress_bar(title, plan.total_steps, start) as progress:
        try:
            yield _Reporter(plan, log, board, progress)
        finally:
            board.close()
