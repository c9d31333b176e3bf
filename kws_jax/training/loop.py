"""The loop that every stage runs: steps, logs, validation, checkpoints, resumption."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from kws_jax import together
from kws_jax.training import finiteness
from kws_jax.training.checkpoints import StageCheckpoints
from kws_jax.training.logs import JsonLines
from kws_jax.training.state import TrainState, without_optimizers
from kws_jax.training.stopping import LENGTH, Rule

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
      total_steps: its length in weight updates, at most.
      steps_per_epoch: to convert steps to epochs in the logs.
      eval_every: steps between validations (each followed by a checkpoint).
      log_every: steps between log lines.
      clips_per_step: for the speed in clips/s.
      steps_per_call: how many steps one call makes, where nothing is due among them.
      breaks: steps that no call crosses, beside those at which something is due.
    """

    name: str
    total_steps: int
    steps_per_epoch: float
    eval_every: int
    log_every: int
    clips_per_step: int
    steps_per_call: int = 1
    breaks: tuple[int, ...] = ()

    def calls(self, start: int) -> Iterator[range]:
        """The steps that each call makes, counted from 0, from `start` to the end.

        A call crosses no step at which a log line, a validation or a break is due, so
        the calls after a checkpoint do not depend on where the stage was taken up.
        Where `steps_per_call` would cross one, a call makes a single step: each length
        is a program to be compiled, which takes longer than many a step.
        """
        while start < self.total_steps:
            stops = [(start // n + 1) * n for n in (self.log_every, self.eval_every)]
            stops += [stop for stop in self.breaks if stop > start]
            room = min(self.total_steps, *stops) - start
            length = self.steps_per_call if room >= self.steps_per_call else 1
            yield range(start, start + length)
            start += length


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
    rule: Rule = LENGTH,
    after_validation: Callable[[int, TrainState], None] = lambda step, state: None,
    logs: Iterable[JsonLines] = (),
    later_stages: tuple[str, ...] = (),
) -> tuple[TrainState, dict[str, Any]]:
    """Runs a stage from its last checkpoint, or from `state`, to its end.

    Args:
      plan: lengths and intervals.
      state: the state to start from where there is no checkpoint.
      step_fn: (state, batch) -> (state, metrics), jitted; "loss" must be in metrics.
        Makes the steps of one call; metrics are scalars, or arrays [steps].
      batches_from: start step -> what `step_fn` takes for each of `plan.calls(start)`;
        a pure function of the step.
      validate: state -> "loss" and "accuracy", and what else the rule judges.
      checkpoints: where states are kept.
      reporter: start step -> context manager that gives a `Reporter`.
      learning_rate: step -> rate, for logs and messages.
      rule: decides by the validations which state is the best, and whether the stage
        ends before its last step. It remembers by the notes alone, which are saved with
        each state, so a stage that is taken up again ends where it would have ended.
      after_validation: called with step and state after each validation.
      logs: rewound to the step at which the stage is taken up.
      later_stages: names whose log lines a restart drops.

    Returns:
      The last state, and notes: "best_accuracy" and "best_step" (of the best state),
      "seconds", and those of the rule.

    Raises:
      NotFiniteError: when the loss or the gradient's norm is not finite, naming step,
        learning rate and the last good checkpoint.
      UserError: when a checkpoint cannot be written.
    """
    notes: dict[str, Any] = {"best_accuracy": -1.0, "best_step": -1, "seconds": 0.0}
    notes |= rule.first_notes
    restored = checkpoints.restore_last(state)
    if restored is not None:
        state, notes = restored
    elif rule.starts_from_best:
        checkpoints.save_best(int(state.step), without_optimizers(state), notes)
    start = int(state.step)
    if together.is_first():
        for log in logs:
            log.rewind(plan.name, start, later_stages)
    if start >= plan.total_steps or notes.get("stopped"):
        return state, notes
    window = _Window(plan, checkpoints, learning_rate)
    began = time.monotonic() - notes["seconds"]
    batches = iter(batches_from(start))
    with reporter(start) as report:
        for call in plan.calls(start):
            state, metrics = step_fn(state, next(batches))
            window.add(call, metrics)
            step = call.stop
            validation = step % plan.eval_every == 0 or step == plan.total_steps
            if validation or step % plan.log_every == 0:
                window.flush(report)
            if validation:
                # What follows from them must not differ between processes.
                measures = together.agreed(validate(state))
                # The loss of a step is that before its update: weights that this
                # update broke must not become the last good checkpoint.
                window.check(step, measures["loss"], "validation loss")
                verdict = rule.judge(notes, measures)
                report.write(step, "validation", measures | verdict.measures)
                after_validation(step, state)
                notes |= {**verdict.notes, "seconds": time.monotonic() - began}
                if verdict.best:
                    notes |= {"best_accuracy": measures["accuracy"], "best_step": step}
                    checkpoints.save_best(step, without_optimizers(state), notes)
                checkpoints.save_last(step, state, notes)
                if verdict.ends:
                    break
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
        self._pending: list[tuple[range, Mapping[str, jax.Array]]] = []
        self._since = time.monotonic()

    def add(self, call: range, metrics: Mapping[str, jax.Array]) -> None:
        self._pending.append((call, metrics))

    def flush(self, report: Reporter) -> None:
        if not self._pending:
            return
        fetched = jax.device_get([metrics for _, metrics in self._pending])
        values = {
            name: np.concatenate([np.atleast_1d(part[name]) for part in fetched])
            for name in fetched[0]
        }
        steps = [made + 1 for call, _ in self._pending for made in call]
        for measured in finiteness.watched(steps, values):
            self.check(*measured)
        count, step = len(steps), steps[-1]
        elapsed = time.monotonic() - self._since
        means = {name: float(np.mean(each)) for name, each in values.items()}
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
        raise finiteness.NotFiniteError(
            f"The {name} became {loss} at step {step} of stage {self._plan.name!r} "
            f"(learning rate {rate:g}). The last good checkpoint is "
            f"{self._checkpoints.last_path()}. Lower the stage's learning rate or set "
            "optimizer.clip_norm, and start in a new --workdir.",
            step,
            in_validation=name.startswith("validation"),
        )
