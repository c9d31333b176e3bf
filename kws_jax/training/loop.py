"""The loop that every stage runs: steps, logs, validation, checkpoints, resumption."""

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from kws_jax import together
from kws_jax.errors import Interrupted, UserError
from kws_jax.training import finiteness, preemption
from kws_jax.training.checkpoints import StageCheckpoints
from kws_jax.training.logs import JsonLines
from kws_jax.training.state import TrainState, without_optimizers
from kws_jax.training.stopping import LENGTH, Rule

Metrics = dict[str, float]

# Notes of a state that was saved on request: metrics that no log line has told yet, and
# whether its validation is still to be made.
_UNTOLD, _UNVALIDATED = "untold", "unvalidated"
# So many calls may wait for the devices: who asks a run to stop waits for them.
_CALLS_AHEAD = 2
# What is measured of a state after a step, not in the step.
_OF_STATES = (_VALIDATION_LOSS, _SUM_OF_WEIGHTS) = ("validation loss", "sum of weights")


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
    logs: Sequence[JsonLines] = (),
    later_stages: tuple[str, ...] = (),
) -> tuple[TrainState, dict[str, Any]]:
    """Runs a stage from its last checkpoint, or from `state`, to its end.

    Asked to stop (`preemption`), it saves the state after the step that is being made,
    with what is needed to go on as if nothing had happened.

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
      logs: rewound to the step at which the stage is taken up, and flushed before a
        state is saved.
      later_stages: names whose log lines a restart drops.

    Returns:
      The last state, and notes: "best_accuracy" and "best_step" (of the best state),
      "seconds", and those of the rule.

    Raises:
      NotFiniteError: when a loss, a gradient's norm or the state is not finite, naming
        step, learning rate and the last good checkpoint.
      UserError: when a checkpoint cannot be written.
      Interrupted: asked to stop, after the state was saved.
    """
    notes: dict[str, Any] = {"best_accuracy": -1.0, "best_step": -1, "seconds": 0.0}
    notes |= rule.first_notes
    restored = checkpoints.restore_last(state)
    if restored is not None:
        state, notes = restored
    elif rule.starts_from_best:
        checkpoints.save_best(int(state.step), without_optimizers(state), notes)
    start = int(state.step)
    unvalidated, untold = notes.pop(_UNVALIDATED, False), notes.pop(_UNTOLD, None)
    if together.is_first():
        for log in logs:
            log.rewind(plan.name, start, later_stages, unvalidated=unvalidated)
    if not unvalidated and (start >= plan.total_steps or notes.get("stopped")):
        return state, notes
    window = _Window(plan, checkpoints, learning_rate, untold)
    began = time.monotonic() - notes["seconds"]
    batches = iter(batches_from(start))
    # A call of no steps goes straight to the validation that is still to be made.
    first = [range(start, start)] if unvalidated else []

    def save_last(step: int, state: TrainState, notes: dict[str, Any]) -> None:
        for log in logs:
            log.flush()
        checkpoints.save_last(step, state, notes)

    def save_on_request(step: int, state: TrainState, **more: Any) -> None:
        window.check_weights(step, state)
        seconds = time.monotonic() - began
        save_last(step, state, {**notes, **more, "seconds": seconds})

    def saved(step: int) -> str:
        return f"step {step} of stage {plan.name!r} is saved"

    between = preemption.answered_between_steps()
    with between, _flushed(logs), reporter(start) as report:
        for call in itertools.chain(first, plan.calls(start)):
            if call:
                state, metrics = step_fn(state, next(batches))
                window.add(call, metrics)
            step = call.stop
            validation = step % plan.eval_every == 0 or step == plan.total_steps
            if validation or step % plan.log_every == 0:
                window.flush(report)
            if validation:
                try:
                    with preemption.answered_at_once():
                        # What follows from them must not differ between processes.
                        measures = together.agreed(validate(state))
                except Interrupted:
                    if call:
                        save_on_request(step, state, **{_UNVALIDATED: True})
                    preemption.stop(saved(step))
                # The loss of a step is that before its update: weights that this
                # update broke must not become the last good checkpoint.
                window.check(step, measures["loss"], _VALIDATION_LOSS)
                window.check_weights(step, state)
                verdict = rule.judge(notes, measures)
                report.write(step, "validation", measures | verdict.measures)
                after_validation(step, state)
                notes |= {**verdict.notes, "seconds": time.monotonic() - began}
                if verdict.best:
                    notes |= {"best_accuracy": measures["accuracy"], "best_step": step}
                    checkpoints.save_best(step, without_optimizers(state), notes)
                save_last(step, state, notes)
                if verdict.ends:
                    break
                window.restart_clock()
            if preemption.asked_to_stop():
                if not validation:
                    save_on_request(step, state, **window.untold())
                preemption.stop(saved(step))
    return state, notes


@contextlib.contextmanager
def _flushed(logs: Sequence[JsonLines]) -> Iterator[None]:
    """Has the logs written where a stage ends by an error, which they may explain."""
    try:
        yield
    except Exception:
        for log in logs:
            with contextlib.suppress(UserError):
                log.flush()
        raise


class _Window:
    """Metrics of the steps since the last log line, fetched all at once."""

    def __init__(
        self,
        plan: StagePlan,
        checkpoints: StageCheckpoints,
        learning_rate: Callable[[int], float],
        untold: Mapping[str, Any] | None,
    ) -> None:
        self._plan, self._checkpoints, self._rate = plan, checkpoints, learning_rate
        self._pending: list[tuple[range, Mapping[str, Any]]] = []
        self._since = time.monotonic()
        if untold:
            metrics = {
                name: np.array(values, dtype)
                for name, (dtype, values) in untold["metrics"].items()
            }
            self._pending.append((range(*untold["steps"]), metrics))

    def add(self, call: range, metrics: Mapping[str, jax.Array]) -> None:
        self._pending.append((call, metrics))
        if len(self._pending) > _CALLS_AHEAD:
            jax.block_until_ready(self._pending[-1 - _CALLS_AHEAD][1])

    def flush(self, report: Reporter) -> None:
        if not self._pending:
            return
        steps, values = self._fetch()
        count, step = len(steps), steps.stop
        elapsed = time.monotonic() - self._since
        means = {name: float(np.mean(each)) for name, each in values.items()}
        means["learning_rate"] = float(self._rate(step - 1))
        means["clips_per_second"] = count * self._plan.clips_per_step / elapsed
        report.write(step, "train", means)
        report.advance(count, **means)
        self._pending = []
        self.restart_clock()

    def untold(self) -> dict[str, Any]:
        """For the notes of a state: the metrics since the last log line, as JSON."""
        if not self._pending:
            return {}
        steps, values = self._fetch()
        metrics = {
            name: (str(each.dtype), each.tolist()) for name, each in values.items()
        }
        return {_UNTOLD: {"steps": (steps.start, steps.stop), "metrics": metrics}}

    def _fetch(self) -> tuple[range, dict[str, np.ndarray]]:
        """The steps since the last log line, counted from 0, and their metrics."""
        fetched = jax.device_get([metrics for _, metrics in self._pending])
        values = {
            name: np.concatenate([np.atleast_1d(part[name]) for part in fetched])
            for name in fetched[0]
        }
        steps = range(self._pending[0][0].start, self._pending[-1][0].stop)
        for (call, _), part in zip(self._pending, fetched):
            told = {name: np.atleast_1d(each) for name, each in part.items()}
            for measured in finiteness.watched([made + 1 for made in call], told):
                self.check(*measured)
        return steps, values

    def restart_clock(self) -> None:
        self._since = time.monotonic()

    def check_weights(self, step: int, state: TrainState) -> None:
        """Refuses a state that its last update has broken.

        Its validation need not show it: it takes no data parameters, and of a path's
        architecture only which is largest.
        """
        leaves = jax.tree.leaves(jax.device_get((state.trees, state.batch_stats)))
        broken = [leaf for leaf in leaves if not np.isfinite(leaf).all()]
        self.check(step, float(broken[0].sum()) if broken else 0.0, _SUM_OF_WEIGHTS)

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
            in_validation=name in _OF_STATES,
        )
