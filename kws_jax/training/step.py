"""One training step as a pure function, and the accuracy of a batch."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kws_jax.training import finiteness
from kws_jax.training.state import (
    DATA_PARAMETERS,
    WEIGHTS,
    TrainState,
    apply_gradients,
)

PyTree = Any
Batch = Mapping[str, jax.Array]
# (trees, batch_stats, batch, key) -> (loss, (metrics, new batch_stats))
LossFn = Callable[
    [dict[str, PyTree], PyTree, Batch, jax.Array],
    tuple[jax.Array, tuple[dict[str, jax.Array], PyTree]],
]


def make_train_step(
    loss_fn: LossFn,
    transformations: Mapping[str, optax.GradientTransformation],
    *,
    trained: tuple[str, ...] = (WEIGHTS,),
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """A step that updates the trees named in `trained` and leaves the others.

    The step folds the state's own counter into `key`, so the same key may be passed at
    every step. Its metrics are those of `loss_fn`, the gradient's global norm, and that
    of the data parameters after the update, where they are trained.
    """

    def step(
        state: TrainState, batch: Batch, key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(key, state.step)

        def loss_of(part: dict[str, PyTree]) -> tuple[jax.Array, Any]:
            return loss_fn({**state.trees, **part}, state.batch_stats, batch, key)

        part = {label: state.trees[label] for label in trained}
        gradients, (metrics, batch_stats) = jax.grad(loss_of, has_aux=True)(part)
        new = apply_gradients(state, gradients, dict(transformations))
        metrics = {**metrics, "gradient_norm": optax.global_norm(gradients)}
        if DATA_PARAMETERS in gradients:
            # Of a clip they are seen again an epoch later, and in no validation.
            norm = optax.global_norm(new.trees[DATA_PARAMETERS])
            metrics[f"{DATA_PARAMETERS}_norm"] = norm
        metrics |= finiteness.observed(gradients)
        return new.replace(step=state.step + 1, batch_stats=batch_stats), metrics

    return step


def accuracy(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
    """Share of unmasked clips [b] whose largest logit [b, k] is the label's."""
    right = (jnp.argmax(logits, -1) == labels) & mask
    return right.sum() / jnp.maximum(mask.sum(), 1)
