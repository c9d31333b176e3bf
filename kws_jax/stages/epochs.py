"""How far a stage is, told to the networks that change with it."""

import sys
from typing import Any

import flax.linen as nn

from kws_jax import together
from kws_jax.models.front_filter import FilteredNetwork
from kws_jax.models.learned_frontend import WithFrontend
from kws_jax.stages.feeding import Step
from kws_jax.training.loop import StagePlan
from kws_jax.training.state import TrainState

# Of a batch: the epochs made, float32 [].
EPOCH = "epoch"


def with_epoch(step: Step, model: nn.Module, plan: StagePlan) -> Step:
    """The step with the epochs of its stage so far in each of its batches.

    For networks behind a front filter, which may change with them; the losses of the
    stages hand `batch.get(EPOCH)` on. Other networks' steps stay as they are.
    """
    if _front_filter(model) is None:
        return step

    def told(state: TrainState, *inputs: Any) -> tuple[TrainState, Any]:
        *batches, key = inputs
        epoch = state.step / plan.steps_per_epoch
        return step(state, *({**batch, EPOCH: epoch} for batch in batches), key)

    return told


def tell_of_temperature(model: nn.Module, plan: StagePlan) -> None:
    """Tells where a stage ends before the temperature of its front filter is at 1.

    Filters that have one are validated and tested at 1, whatever they were trained at.
    """
    front = _front_filter(model)
    falls = getattr(front, "temperature_epochs", 0.0)
    epochs = plan.total_steps / plan.steps_per_epoch
    start = getattr(front, "temperature", 1.0)
    if epochs >= falls or start == 1 or not together.is_first():
        return
    reached = start + (1 - start) * epochs / falls
    print(
        f"note: the {epochs:.3g} epochs of stage {plan.name!r} are fewer than "
        f"config.front_filter.temperature_epochs = {falls:g}: the temperature falls to "
        f"{reached:.3g} alone, and networks are validated and tested at 1. Train "
        f"longer, or set it to at most {epochs:.3g}.",
        file=sys.stderr,
    )


def _front_filter(model: nn.Module) -> nn.Module | None:
    encoder = model.encoder if isinstance(model, WithFrontend) else model
    return encoder.front_filter if isinstance(encoder, FilteredNetwork) else None
