"""Bilevel search: min_α L_val(w*(α), α) with w*(α) = argmin_w L_train(w, α).

Reference: Liu et al., "DARTS", ICLR 2019 (arXiv 1806.09055), Algorithm 1, Eq. 5 to 7.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kws_jax.training.state import (
    ARCHITECTURE,
    WEIGHTS,
    TrainState,
    apply_gradients,
)
from kws_jax.training.step import LossFn

PyTree = Any
Trees = dict[str, PyTree]
SearchStep = Callable[
    [TrainState, PyTree, PyTree, jax.Array], tuple[TrainState, dict[str, jax.Array]]
]


def architecture_gradient(
    loss_fn: LossFn,
    state: TrainState,
    train_batch: PyTree,
    val_batch: PyTree,
    keys: tuple[jax.Array, jax.Array],
    *,
    order: int = 1,
    weight_transformation: optax.GradientTransformation | None = None,
    regulariser: Callable[[PyTree], jax.Array] | None = None,
) -> tuple[PyTree, dict[str, jax.Array]]:
    """Gradient of the validation loss by the architecture α.

    First order: ∇_α [L_val(w, α) + R(α)]. Second order: ∇_α [L_val(w'(α), α) + R(α)]
    where w'(α) is w after the step that `weight_transformation` would make on
    ∇_w L_train(w, α). The step is differentiated as it is, with its momentum, weight
    decay, clipping and current learning rate; for plain SGD it is
    w' = w − ξ ∇_w L_train(w, α).

    Args:
      loss_fn: loss of trees on a batch.
      state: weights w, architecture α, optimiser states and batch statistics.
      train_batch: what w' is made on (order 2 only).
      val_batch: what L_val is measured on.
      keys: randomness of the loss on `train_batch` and on `val_batch`.
      order: 1 or 2.
      weight_transformation: that of the weights (order 2 only).
      regulariser: R; none where omitted.

    Returns:
      The gradient, shaped like α, and metrics: "loss" (L_val + R) and those of loss_fn.
    """
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, got {order}")
    if order == 2 and weight_transformation is None:
        raise ValueError("order 2 needs the transformation of the weights")
    train_key, val_key = keys
    trees = state.trees

    def stepped_weights(architecture: PyTree) -> PyTree:
        if order == 1 or weight_transformation is None:
            return trees[WEIGHTS]

        def train_loss(weights: PyTree) -> jax.Array:
            moved = {**trees, WEIGHTS: weights, ARCHITECTURE: architecture}
            return loss_fn(moved, state.batch_stats, train_batch, train_key)[0]

        updates, _ = weight_transformation.update(
            jax.grad(train_loss)(trees[WEIGHTS]),
            state.opt_state[WEIGHTS],
            trees[WEIGHTS],
        )
        return optax.apply_updates(trees[WEIGHTS], updates)

    def validation_loss(architecture: PyTree) -> tuple[jax.Array, dict]:
        moved = {
            **trees,
            WEIGHTS: stepped_weights(architecture),
            ARCHITECTURE: architecture,
        }
        loss, (metrics, _) = loss_fn(moved, state.batch_stats, val_batch, val_key)
        if regulariser is not None:
            loss = loss + regulariser(architecture)
        return loss, metrics

    (loss, metrics), gradient = jax.value_and_grad(validation_loss, has_aux=True)(
        trees[ARCHITECTURE]
    )
    return gradient, {"loss": loss, **metrics}


def make_search_step(
    loss_fn: LossFn,
    transformations: Mapping[str, optax.GradientTransformation],
    *,
    order: int = 1,
    update_architecture: bool = True,
    regulariser: Callable[[PyTree], jax.Array] | None = None,
) -> SearchStep:
    """One step of Algorithm 1: the architecture with current weights, then the weights.

    Args:
      loss_fn: (trees, batch_stats, batch, key) -> (loss, (metrics, new batch_stats)).
      transformations: of WEIGHTS and of ARCHITECTURE; schedules, weight decay and
        clipping are theirs.
      order: of the architecture gradient, 1 or 2.
      update_architecture: False for the epochs in which only the weights learn; the
        validation batch is then unused.
      regulariser: added to the validation loss, a function of the architecture.

    Returns:
      step(state, train_batch, val_batch, key) -> (state, metrics), pure, to be jitted.
      Metrics are "loss" and those of `loss_fn` on the training batch and, with prefix
      "architecture_", on the validation batch. Batch statistics come from the training
      batch alone; `state.step` counts the weight updates.
    """
    transformations = dict(transformations)

    def step(
        state: TrainState, train_batch: PyTree, val_batch: PyTree, key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        keys = train_key, _ = tuple(jax.random.split(key))
        metrics = {}
        if update_architecture:
            gradient, found = architecture_gradient(
                loss_fn,
                state,
                train_batch,
                val_batch,
                keys,
                order=order,
                weight_transformation=transformations[WEIGHTS],
                regulariser=regulariser,
            )
            state = apply_gradients(state, {ARCHITECTURE: gradient}, transformations)
            metrics = {f"{ARCHITECTURE}_{name}": value for name, value in found.items()}

        def train_loss(weights: PyTree):
            trees = {**state.trees, WEIGHTS: weights}
            return loss_fn(trees, state.batch_stats, train_batch, train_key)

        (loss, (found, batch_stats)), gradient = jax.value_and_grad(
            train_loss, has_aux=True
        )(state.trees[WEIGHTS])
        state = apply_gradients(state, {WEIGHTS: gradient}, transformations)
        state = state.replace(
            step=state.step + jnp.ones((), state.step.dtype), batch_stats=batch_stats
        )
        return state, {**metrics, "loss": loss, **found}

    return step
