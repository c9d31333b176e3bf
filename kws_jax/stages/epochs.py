"""How far a stage is, told to the networks that change with it."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn

from kws_jax import together
from kws_jax.models.front_filter import FilteredNetwork
from kws_jax.models.wrapped import nested
from kws_jax.parts import Parts
from kws_jax.stages import runner
from kws_jax.stages.feeding import Step
from kws_jax.training.loop import StagePlan
from kws_jax.training.state import TrainState

# Of a batch: the epochs made, float32 [].
EPOCH = "epoch"


def told_of_epochs(
    step: Step,
    parts: Parts,
    index: int,
    folder: Path,
    model: nn.Module,
    plan: StagePlan,
) -> Step:
    """The step of stage `index` with the epochs so far, if its network changes by them.

    They go on from those that were made in the stages before, where this one goes on
    from their weights: a temperature that a stage has not brought to its end falls
    further in the next. Where the last one ends before it too, it is told.
    """
    if parts.config.stages[index].get("trained_part", "all") == "head":
        # The frozen encoder infers, as at the end of training.
        return step
    before = 0.0
    if runner.follows_training(parts, index):
        falls = temperature_epochs(model)
        before = runner.epochs_before(parts, index, folder) if falls else 0.0
        if before >= falls:
            # All has come to its end; the step is one with those of other such stages.
            return step
    tell_of_temperature(model, plan, before, runner.plans_after(parts, index))
    return with_epoch(step, model, plan, before)


def with_epoch(
    step: Step, model: nn.Module, plan: StagePlan, before: float = 0.0
) -> Step:
    """The step with the epochs so far in each of its batches, `before` those of others.

    For networks behind a front filter, which may change with them; the losses of the
    stages hand `batch.get(EPOCH)` on. Other networks' steps stay as they are.
    """
    if _front_filter(model) is None:
        return step

    def told(state: TrainState, *inputs: Any) -> tuple[TrainState, Any]:
        *batches, key = inputs
        epoch = before + state.step / plan.steps_per_epoch
        return step(state, *({**batch, EPOCH: epoch} for batch in batches), key)

    return told


def tell_of_temperature(
    model: nn.Module,
    plan: StagePlan,
    before: float = 0.0,
    later: Sequence[StagePlan] = (),
) -> None:
    """Tells where training ends before the temperature of its front filter is at 1.

    Filters that have one infer at 1, whatever they were trained at. Epochs `before` the
    stage count too, and those of `later` stages that train the same weights.
    """
    falls = temperature_epochs(model)
    plans = (plan, *later)
    epochs = before + sum(each.total_steps / each.steps_per_epoch for each in plans)
    start = getattr(_front_filter(model), "temperature", 1.0)
    if epochs >= falls or start == 1 or not together.is_first():
        return
    reached = start + (1 - start) * epochs / falls
    until = "up to the end of stage" if before or later else "of stage"
    print(
        f"note: the {epochs:.3g} epochs {until} {plans[-1].name!r} are fewer than "
        f"config.front_filter.temperature_epochs = {falls:g}: the temperature falls to "
        f"{reached:.3g} alone, and is 1 in validation and inference. Train longer, or "
        f"set it to at most {epochs:.3g}.",
        file=sys.stderr,
    )


def temperature_epochs(model: nn.Module) -> float:
    """In which the temperature of the front filter falls; 0 where it has none."""
    return float(getattr(_front_filter(model), "temperature_epochs", 0.0))


def _front_filter(model: nn.Module) -> nn.Module | None:
    filters = (m.front_filter for m in nested(model) if isinstance(m, FilteredNetwork))
    return next(filters, None)
