"""What the stages that train have in common: length, keys, logs, checkpoints."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from kws_jax import config as configs
from kws_jax import stage_fields, together
from kws_jax.data.tuples import tuple_classes
from kws_jax.errors import UserError
from kws_jax.parts import Parts, Setup
from kws_jax.report.terminal import progress_bar
from kws_jax.stages.validation import (
    ContextOf,
    LogitsOf,
    Score,
    make_validation,
)
from kws_jax.training import loop, sharding
from kws_jax.training.checkpoints import StageCheckpoints
from kws_jax.training.logs import JsonLines
from kws_jax.training.state import TrainState, without_optimizers
from kws_jax.training.stopping import HIGHEST_SCORE, LENGTH, Notes, Rule, create_rule
from kws_jax.training.tensorboard import TensorBoard

DONE_FILE = "done.json"


def stage_folder(parts: Setup, index: int, folder: Path) -> Path:
    """Where a stage keeps its checkpoints."""
    return configs.stage_folder(parts.config, index, folder)


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
    if jax.process_count() > 1:
        together.check_same(f"a start of stage {plan.name!r}", sharding.digest(state))
    state = sharding.replicate(state, parts.mesh)
    state, notes = loop.train_stage(
        plan,
        state,
        step_fn=step_fn,
        batches_from=batches_from,
        validate=make_validation(parts, logits_of, stages[index], context_of, score),
        checkpoints=checkpoints,
        reporter=lambda start: reporter(plan, title, start, folder, metrics_log),
        learning_rate=lambda step: float(schedule(step)),
        rule=rule,
        after_validation=after_validation,
        logs=(metrics_log, *logs),
        later_stages=tuple(stage.name for stage in stages[index + 1 :]),
    )
    checkpoints.close()
    return state, notes


def last_finished(setup: Setup, folder: Path) -> int:
    """The number of the last stage, whose network is the experiment's.

    Raises:
      UserError: where it has not been run to its end.
    """
    last = len(setup.config.stages) - 1
    _check_finished(setup, last, folder)
    return last


def _check_finished(setup: Setup, index: int, folder: Path) -> None:
    if not (stage_folder(setup, index, folder) / DONE_FILE).exists():
        raise UserError(
            f"{folder}: stage {setup.config.stages[index].name!r} has not been run to "
            "its end; run kws_jax.main with this --workdir first."
        )


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
    if finished:
        _check_finished(parts, index, folder)
    where = stage_folder(parts, index, folder)
    like = without_optimizers(like)
    return _restored(parts, where, like, StageCheckpoints.restore_best)


def last_state(parts: Setup, index: int, folder: Path, like: TrainState) -> TrainState:
    """The state at the end of a finished stage, with its optimisers."""
    where = stage_folder(parts, index, folder)
    return _restored(parts, where, like, StageCheckpoints.restore_last)


def follows_training(parts: Setup, index: int) -> bool:
    """Whether stage `index` goes on from the weights of the stage before."""
    stages = parts.config.stages
    return index > 0 and stages[index - 1].kind in stage_fields.TRAINS_NETWORK


def epochs_before(parts: Parts, index: int, folder: Path) -> float:
    """Epochs that were made in the stages before that stage `index` goes on from.

    Those that they really made, where one has ended before its length, and all of
    them: the stage goes on from the best state of the one before, which may be some
    epochs older. Stages that train the head alone leave all else as it was, and do not
    count.
    """
    if not follows_training(parts, index):
        return 0.0
    before, stage = index - 1, parts.config.stages[index - 1]
    epochs = epochs_before(parts, before, folder)
    if stage.get("trained_part", "all") == "head":
        return epochs
    checkpoints = StageCheckpoints(stage_folder(parts, before, folder), read_only=True)
    steps = checkpoints.last_step() or 0
    checkpoints.close()
    return (
        epochs + steps / plan_of(parts, before, len(parts.task.train)).steps_per_epoch
    )


def plans_after(parts: Parts, index: int) -> list[loop.StagePlan]:
    """Of the stages that go on training all weights of stage `index`, in full length.

    Those that train the head alone are passed over, and any other kind ends the row.
    """
    plans = []
    for after in range(index + 1, len(parts.config.stages)):
        stage = parts.config.stages[after]
        if stage.kind not in stage_fields.TRAINS_NETWORK:
            break
        if stage.get("trained_part", "all") != "head":
            plans.append(plan_of(parts, after, len(parts.task.train)))
    return plans


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
        epoch = step / self._plan.steps_per_epoch
        self._log.append(
            stage=self._plan.name, step=step, epoch=epoch, split=split, **metrics
        )
        self._board.write(f"{self._plan.name}/{split}", step, metrics)


class _Silent:
    """Reports nothing: what another process than the first has to say."""

    def advance(self, n: int = 1, **fields: Any) -> None:
        pass

    def write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        pass


@contextlib.contextmanager
def reporter(
    plan: loop.StagePlan, title: str, start: int, folder: Path, log: JsonLines
) -> Iterator[loop.Reporter]:
    """Tells the measures of a stage from step `start` on; only process 0 speaks."""
    if not together.is_first():
        yield _Silent()
        return
    board = TensorBoard(folder / "tensorboard")
    with progress_bar(title, plan.total_steps, start) as progress:
        try:
            yield _Reporter(plan, log, board, progress)
        finally:
            board.close()
