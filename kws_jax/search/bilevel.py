"""Bilevel search: min_α L_val(w*(α), α) with w*(α) = argmin_w L_train(w, α).

Reference: Liu et al., "DARTS", ICLR 2019 (arXiv 1806.09055), Algorithm 1, Eq. 5 to 8.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kws_jax.training import finiteness
from kws_jax.training.state import (
    ARCHITECTURE,
    WEIGHTS,
    TrainState,
    apply_gradients,
)
from kws_jax.training.step import LossFn

PyTree = Any
# How far Eq. 8 moves the weights, as a norm.
_DISTANCE = 0.01
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

    First order: ∇_α [L_val(w, α) + R(α)]. Second order: the total derivative of
    L_val(w'(α), α) + R(α), where w'(α) is w after the step that `weight_transformation`
    would make on ∇_w L_train(w, α), with its momentum, weight decay, clipping and
    current learning rate; for plain SGD it is w' = w − ξ ∇_w L_train(w, α), Eq. 7.

    With u the gradient of L_val(w', α) by ∇_w L_train, the second-order term is
    ∇_α ⟨∇_w L_train(w, α), u⟩. As in Eq. 8 it is taken from two first-order gradients,
    [∇_α L_train(w + εu, α) − ∇_α L_train(w − εu, α)] / 2ε with ε = 0.01 / ‖u‖: a
    gradient of a gradient of a whole supernet is too large a program.

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
    weights, architecture = state.trees[WEIGHTS], state.trees[ARCHITECTURE]

    def validation_loss(weights: PyTree, architecture: PyTree) -> Any:
        moved = {**state.trees, WEIGHTS: weights, ARCHITECTURE: architecture}
        loss, (metrics, _) = loss_fn(moved, state.batch_stats, val_batch, val_key)
        if regulariser is not None:
            loss = loss + regulariser(architecture)
        return loss, metrics

    def train_loss(weights: PyTree, architecture: PyTree) -> jax.Array:
        moved = {**state.trees, WEIGHTS: weights, ARCHITECTURE: architecture}
        return loss_fn(moved, state.batch_stats, train_batch, train_key)[0]

    if order == 1 or weight_transformation is None:
        (loss, metrics), gradient = jax.value_and_grad(
            validation_loss, argnums=1, has_aux=True
        )(weights, architecture)
        return gradient, {"loss": loss, **metrics}

    update = functools.partial(_update, weight_transformation, state)
    updates, pull = jax.vjp(update, jax.grad(train_loss)(weights, architecture))
    stepped = optax.apply_updates(weights, updates)
    (loss, metrics), (by_weights, gradient) = jax.value_and_grad(
        validation_loss, argnums=(0, 1), has_aux=True
    )(stepped, architecture)
    term = _mixed_derivative(train_loss, weights, architecture, pull(by_weights)[0])
    return jax.tree.map(jnp.add, gradient, term), {"loss": loss, **metrics}


def _update(
    transformation: optax.GradientTransformation, state: TrainState, gradient: PyTree
) -> PyTree:
    """What the transformation makes of a gradient of the weights, at this state."""
    return transformation.update(
        gradient, state.opt_state[WEIGHTS], state.trees[WEIGHTS]
    )[0]


def _mixed_derivative(
    loss: Callable[[PyTree, PyTree], jax.Array],
    weights: PyTree,
    architecture: PyTree,
    direction: PyTree,
) -> PyTree:
    """∇_α ⟨∇_w loss(w, α), u⟩ for a direction u of the weights, by Eq. 8."""
    norm = optax.global_norm(direction)
    distance = _DISTANCE / jnp.where(norm > 0, norm, 1.0)

    def gradient_at(sign: jax.Array) -> PyTree:
        moved = jax.tree.map(lambda w, u: w + sign * distance * u, weights, direction)
        return jax.grad(loss, argnums=1)(moved, architecture)

    # one after the other, so that one program and one set of activations serve both
    both = jax.lax.map(gradient_at, jnp.array([1.0, -1.0], norm.dtype))
    return jax.tree.map(lambda g: (g[0] - g[1]) / (2 * distance), both)


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
      Metrics are "loss", "gradient_norm" and those of `loss_fn` on the training batch
      and, with prefix "architecture_", on the validation batch. Batch statistics come
      from the training batch alone; `state.step` counts the weight updates, and is
      folded into `key`, so the same key may be passed at every step.
    """
    transformations = dict(transformations)

    def step(
        state: TrainState, train_batch: PyTree, val_batch: PyTree, key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(key, state.step)
        keys = train_key, _ = tuple(jax.random.split(key))
        metrics, gradients = {}, {}
        if update_architecture:
            gradients[ARCHITECTURE], found = architecture_gradient(
                loss_fn,
                state,
                train_batch,
                val_batch,
                keys,
                order=order,
                weight_transformation=transformations[WEIGHTS],
                regulariser=regulariser,
            )
            state = apply_gradients(state, gradients, transformations)
            found["gradient_norm"] = optax.global_norm(gradients)
            metrics = {f"{ARCHITECTURE}_{name}": value for name, value in found.items()}

        def train_loss(weights: PyTree):
            trees = {**state.trees, WEIGHTS: weights}
            return loss_fn(trees, state.batch_stats, train_batch, train_key)

        (loss, (found, batch_stats)), gradients[WEIGHTS] = jax.value_and_grad(
            train_loss, has_aux=True
        )(state.trees[WEIGHTS])
        by_weights = {WEIGHTS: gradients[WEIGHTS]}
        state = apply_gradients(state, by_weights, transformations)
        found = {**found, "gradient_norm": optax.global_norm(by_weights)}
        found |= finiteness.observed(gradients)
        state = state.replace(
            step=state.step + jnp.ones((), state.step.dtype), batch_stats=batch_stats
        )
        return state, {**metrics, "loss": loss, **found}

    return step
