"""How far a stage is, told to the networks that change with it."""

from typing import Any

import flax.linen as nn

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
    encoder = model.encoder if isinstance(model, WithFrontend) else model
    if not isinstance(encoder, FilteredNetwork):
        return step

    def told(state: TrainState, *inputs: Any) -> tuple[TrainState, Any]:
        *batches, key = inputs
        epoch = state.step / plan.steps_per_epoch
        return step(state, *({**batch, EPOCH: epoch} for batch in batches), key)

    return told
