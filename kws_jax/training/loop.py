"""The loop that every stage runs: steps, logs, validation, checkpoints, resumption."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from kws_jax.errors import UserError
from kws_jax.training.checkpoints import StageCheckpoints
from kws_jax.training.logs import JsonLines
from kws_jax.training.state import TrainState, without_optimizers

Metrics = dict[str, float]


class Reporter(Protocol):
    """Where a stage tells what it measures (file, TensorBoard, progress bar)."""

    def advance(self, n: int = 1, **fields: Any) -> None:
        """`n` steps were made; `fields` are the newest measures."""

    def write(self, step: int, split: str, metrics: Metrics) -> None:
        """Measures of `split` at `step`."""


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """What the loop needs to know of a stage.

    Attributes:
      name: of the stage.
      total_steps: its length in weight updates.
      steps_per_epoch: to convert steps to epochs in the logs.
      eval_every: steps between validations (each followed by a checkpoint).
      log_every: steps between log lines.
      clips_per_step: for the speed in clips/s.
    """

    name: str
    total_steps: int
    steps_per_epoch: float
    eval_every: int
    log_every: int
    clips_per_step: int


def train_stage(
    plan: StagePlan,
    state: TrainState,
    *,
    step_fn: Callable[[TrainState, Any], tuple[TrainState, Mapping[str, jax.Array]]],
    batches_from: Callable[[int], Iterable[Any]],
    validate: Callable[[TrainState], Metrics],
    checkpoints: StageCheckpoints,
    reporter: Callable[[int], Any],
    learning_rate: Callable[[int], float],
    after_validation: Callable[[int, TrainState], None] = lambda step, state: None,
    logs: Iterable[JsonLines] = (),
    later_stages: tuple[str, ...] = (),
) -> tuple[TrainState, dict[str, Any]]:
    """Runs a stage from its last checkpoint, or from `state`, to its end.

    Args:
      plan: lengths and intervals.
      state: the state to start from where there is no checkpoint.
      step_fn: (state, batch) -> (state, metrics), jitted; "loss" must be in metrics.
      batches_from: start step -> endless batches; a pure function of the step.
      validate: state -> "loss" and "accuracy", which decides what state is the best.
      checkpoints: where states are kept.
      reporter: start step -> context manager that gives a `Reporter`.
      learning_rate: step -> rate, for logs and messages.
      after_validation: called with step and state after each validation.
      logs: rewound to the step at which the stage is taken up.
      later_stages: names whose log lines a restart drops.

    Returns:
      The last state, and notes: "best_accuracy", "best_step", "seconds".

    Raises:
      UserError: when the loss is not finite, naming step, learning rate and the last
        good checkpoint; or when a checkpoint cannot be written.
    """
    notes: dict[str, Any] = {"best_accuracy": -1.0, "best_step": -1, "seconds": 0.0}
    restored = checkpoints.restore_last(state)
    if restored is not None:
        state, notes = restored
    start = int(state.step)
    if jax.process_index() == 0:
        for log in logs:
            log.rewind(plan.name, start, later_stages)
    if start >= plan.total_steps:
        return state, notes
    window = _Window(plan, checkpoints, learning_rate)
    began = time.monotonic() - notes["seconds"]
    batches = iter(batches_from(start))
    with reporter(start) as report:
        for step in range(start + 1, plan.total_steps + 1):
            state, metrics = step_fn(state, next(batches))
            window.add(step, metrics)
            validation = step % plan.eval_every == 0 or step == plan.total_steps
            if validation or step % plan.log_every == 0:
                window.flush(report)
            if validation:
                measures = validate(state)
                # The loss of a step is that before its update: weights that this
                # update broke must not become the last good checkpoint.
                window.check(step, measures["loss"], "validation loss")
                report.write(step, "validation", measures)
                after_validation(step, state)
                notes["seconds"] = time.monotonic() - began
                if measures["accuracy"] > notes["best_accuracy"]:
                    notes |= {"best_accuracy": measures["accuracy"], "best_step": step}
                    checkpoints.save_best(step, without_optimizers(state), notes)
                checkpoints.save_last(step, state, notes)
                window.restart_clock()
    return state, notes


class _Window:
    """Metrics of the steps since the last log line, fetched all at once."""

    def __init__(
        self,
        plan: StagePlan,
        checkpoints: StageCheckpoints,
        learning_rate: Callable[[int], float],
    ) -> None:
        self._plan, self._checkpoints, self._rate = plan, checkpoints, learning_rate
        self._pending: list[tuple[int, Mapping[str, jax.Array]]] = []
        self._since = time.monotonic()

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        self._pending.append((step, metrics))

    def flush(self, report: Reporter) -> None:
        if not self._pending:
            return
        fetched = jax.device_get([metrics for _, metrics in self._pending])
        for (step, _), metrics in zip(self._pending, fetched):
            self.check(step, float(metrics["loss"]))
        count, step = len(fetched), self._pending[-1][0]
        elapsed = time.monotonic() - self._since
        means = {k: float(np.mean([m[k] for m in fetched])) for k in fetched[0]}
        means["learning_rate"] = float(self._rate(step - 1))
        means["clips_per_second"] = count * self._plan.clips_per_step / elapsed
        report.write(step, "train", means)
        report.advance(count, **means)
        self._pending = []
        self.restart_clock()

    def restart_clock(self) -> None:
        self._since = time.monotonic()

    def check(self, step: int, loss: float, name: str = "loss") -> None:
        if math.isfinite(loss):
            return
        rate = float(self._rate(step - 1))
        raise UserError(
            f"The {name} became {loss} at step {step} of stage {self._plan.name!r} "
            f"(learning rate {rate:g}). The last good checkpoint is "
            f"{self._checkpoints.last_path()}. Lower the stage's learning rate or set "
            "optimizer.clip_norm, and start in a new --workdir."
        )
