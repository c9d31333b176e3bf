"""What the stages that train have in common: length, keys, logs, checkpoints."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kws_jax.data.conditions import CLEAN
from kws_jax.errors import UserError
from kws_jax.evaluation.metrics import result, wilson_interval
from kws_jax.objectives.classification import softmax_cross_entropy
from kws_jax.parts import Parts, Setup
from kws_jax.report.terminal import progress_bar
from kws_jax.training import loop, sharding
from kws_jax.training.checkpoints import StageCheckpoints
from kws_jax.training.logs import JsonLines
from kws_jax.training.state import TrainState, without_optimizers
from kws_jax.training.tensorboard import TensorBoard

DONE_FILE = "done.json"
LogitsOf = Callable[[TrainState, Float[Array, "b t f"]], Float[Array, "b k"]]


def stage_folder(parts: Setup, index: int, folder: Path) -> Path:
    """Where a stage keeps its checkpoints."""
    return folder / "stages" / f"{index}-{parts.config.stages[index].name}"


def plan_of(parts: Parts, index: int, clips: int) -> loop.StagePlan:
    """Lengths in steps for a stage that goes over `clips` clips."""
    stage = parts.config.stages[index]
    per_epoch = clips / stage.batch_size
    total = stage.steps if stage.steps > 0 else math.ceil(stage.epochs * per_epoch)
    return loop.StagePlan(
        name=stage.name,
        total_steps=total,
        steps_per_epoch=per_epoch,
        eval_every=max(1, round(stage.eval_every_epochs * per_epoch)),
        log_every=parts.config.log_every_steps,
        clips_per_step=stage.batch_size,
        steps_per_call=parts.config.steps_per_call,
    )


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
    logs: Iterable[JsonLines] = (),
    after_validation: Callable[[int, TrainState], None] = lambda step, state: None,
) -> tuple[TrainState, dict[str, Any]]:
    """Runs the loop with this project's logs, and returns the last state and notes."""
    stages = parts.config.stages
    checkpoints = StageCheckpoints(stage_folder(parts, index, folder))
    metrics_log = JsonLines(folder / "metrics.jsonl")
    state = sharding.replicate(state, parts.mesh)
    state, notes = loop.train_stage(
        plan,
        state,
        step_fn=step_fn,
        batches_from=batches_from,
        validate=make_validation(parts, logits_of),
        checkpoints=checkpoints,
        reporter=lambda start: _reporter(plan, start, folder, metrics_log),
        learning_rate=lambda step: float(schedule(step)),
        after_validation=after_validation,
        logs=(metrics_log, *logs),
        later_stages=tuple(stage.name for stage in stages[index + 1 :]),
    )
    checkpoints.close()
    return state, notes


def best_state(parts: Setup, index: int, folder: Path, like: TrainState) -> TrainState:
    """The best state of a stage, without optimisers; `like` gives the structure.

    Raises:
      UserError: where it has not been run to its end.
    """
    like = without_optimizers(like)
    return _finished_state(parts, index, folder, like, best=True)


def last_state(parts: Setup, index: int, folder: Path, like: TrainState) -> TrainState:
    """The state at the end of a stage; `like` gives the structure.

    Raises:
      UserError: where it has not been run to its end.
    """
    return _finished_state(parts, index, folder, like, best=False)


def _finished_state(
    parts: Setup, index: int, folder: Path, like: TrainState, *, best: bool
) -> TrainState:
    where = stage_folder(parts, index, folder)
    if not (where / DONE_FILE).exists():
        raise UserError(
            f"{folder}: stage {parts.config.stages[index].name!r} has not been run to "
            "its end; run kws_jax.main with this --workdir first."
        )
    checkpoints = StageCheckpoints(where, read_only=True)
    like = sharding.replicated_like(like, parts.mesh)
    restore = checkpoints.restore_best if best else checkpoints.restore_last
    restored = restore(like)
    checkpoints.close()
    if restored is None:
        raise UserError(f"{where} holds no checkpoint; run kws_jax.main again.")
    return restored[0]


def make_validation(
    parts: Parts, logits_of: LogitsOf
) -> Callable[[TrainState], dict[str, float]]:
    """A function from state to loss and accuracy over the clean validation split."""

    @jax.jit
    def measure(state: TrainState, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        logits = logits_of(state, parts.frontend(batch["audio"]))
        mask = batch["mask"]
        right = (jnp.argmax(logits, -1) == batch["label"]) & mask
        loss = softmax_cross_entropy(logits, batch["label"], mask)
        return {"loss": loss * mask.sum(), "right": right.sum(), "count": mask.sum()}

    def validate(state: TrainState) -> dict[str, float]:
        sums: dict[str, float] = {"loss": 0.0, "right": 0.0, "count": 0.0}
        for batch in parts.eval_batches(parts.task.validation, CLEAN):
            for name, value in jax.device_get(measure(state, batch)).items():
                sums[name] += float(value)
        return {
            "loss": sums["loss"] / sums["count"],
            "accuracy": sums["right"] / sums["count"],
        }

    return validate


def validation_row(parts: Parts, stage: str, notes: dict[str, Any]) -> dict[str, Any]:
    """The best validation accuracy of a stage as a row of results.json."""
    count = len(parts.task.validation)
    value = notes["best_accuracy"]
    interval = wilson_interval(round(value * count), count)
    return result(stage, "validation", "clean", "accuracy", value, interval, count)


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
    plan: loop.StagePlan, start: int, folder: Path, log: JsonLines
) -> Iterator[_Reporter]:
    board = TensorBoard(folder / "tensorboard")
    with progress_bar(plan.name, plan.total_steps, start) as progress:
        try:
            yield _Reporter(plan, log, board, progress)
        finally:
            board.close()
