"""The training of a stage, from its batches to its rows of results."""

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from kws_jax import together
from kws_jax.condition_names import CLEAN
from kws_jax.data.corpus import Split
from kws_jax.errors import UserError
from kws_jax.evaluation.metrics import result
from kws_jax.parts import Parts
from kws_jax.stages import cause, feeding, runner, validation
from kws_jax.training.finiteness import NotFiniteError
from kws_jax.training.loop import StagePlan
from kws_jax.training.state import TrainState

# Of the first running statistics, so much may be left in the end.
_KEPT = 1e-3


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """A training that has come to its end.

    Attributes:
      state: the last state.
      notes: what the loop has kept: seconds, where the best state was, …
    """

    parts: Parts
    stage: ConfigDict
    plan: StagePlan
    state: TrainState
    notes: dict[str, Any]

    @property
    def duration(self) -> dict[str, float]:
        """Seconds of the training."""
        return {"seconds": self.notes["seconds"]}

    @property
    def speed(self) -> dict[str, float]:
        """Seconds of the training, and clips in each of them."""
        clips = int(self.state.step) * self.plan.clips_per_step
        return {
            **self.duration,
            "clips_per_second": clips / self.notes["seconds"],
        }

    def rows(self, measures: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Rows of results.json: measures, where it ended, and its best validation."""
        return [
            *_train_rows(self.plan.name, measures),
            *_ending_rows(self.plan, int(self.state.step), self.notes),
            validation.validation_row(self.parts, self.stage, self.notes),
        ]


def run(
    parts: Parts,
    index: int,
    folder: Path,
    state: TrainState,
    *,
    plan: StagePlan,
    splits: Sequence[Split],
    step_at: Callable[[int], feeding.Step],
    repeats: Sequence[int] | None = None,
    **settings: Any,
) -> TrainingRun:
    """Trains stage `index` from `state` on batches of the splits.

    `splits`, `step_at` and `repeats` are as `feeding.create_feed` takes them, and
    `settings` (logits_of, schedule, …) as `runner.run_stage` does.

    Raises:
      UserError: as `runner.run_stage`; of numbers that are not finite it tells the
        cause too.
    """
    stage = parts.config.stages[index]
    tell_of_statistics(parts, index, plan)
    feed = feeding.create_feed(
        parts,
        stage,
        plan,
        runner.stage_key(parts, index),
        splits,
        step_at,
        repeats=repeats,
    )
    # Each step takes the memory of the state before it.
    initial = jax.tree.map(np.array, jax.device_get(state))
    try:
        state, notes = runner.run_stage(
            parts,
            index,
            folder,
            state,
            plan=plan,
            step_fn=feed.step_fn,
            batches_from=feed.batches_from,
            **settings,
        )
    except NotFiniteError as error:
        trained = cause.Training(parts, index, folder, plan, feed, initial, step_at)
        raise UserError(f"{error} {cause.explain(trained, error)}".strip()) from error
    return TrainingRun(parts, stage, plan, state, notes)


def tell_of_statistics(parts: Parts, index: int, plan: StagePlan) -> None:
    """Tells where a network starts anew and has too few steps for its batch norms.

    They begin with a variance of 1, beside which that of small activations is nothing,
    so even a hundredth of it decides what validation and tests see.
    """
    stage, steps = parts.config.stages[index], plan.total_steps
    anew = stage.kind != "quantize" and not runner.follows_training(parts, index)
    momentum = parts.config.network.get("batch_norm_momentum", 0.0)
    kept = momentum**steps
    if kept <= _KEPT or not anew or not together.is_first():
        return
    fitting = math.floor(1000 * _KEPT ** (1 / steps)) / 1000
    print(
        f"note: the {steps} steps of stage {stage.name!r} are few for "
        f"config.network.batch_norm_momentum = {momentum:g}: the running statistics, "
        f"with which networks are validated and tested, keep {kept:.1%} of their first "
        f"values. Train longer, or set it to {fitting:g} or less.",
        file=sys.stderr,
    )


def _train_rows(stage: str, measures: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        result(stage, "train", CLEAN, name, value, None, 1)
        for name, value in measures.items()
    ]


def _ending_rows(
    plan: StagePlan, steps: int, notes: dict[str, Any]
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
    return _train_rows(plan.name, values)
