"""ProxylessNAS: binary gates, their architecture gradient, and who is updated.

Reference: Cai, Zhu and Han, "ProxylessNAS: Direct Neural Architecture Search on Target
Task and Hardware", ICLR 2019 (arXiv 1812.00332), section 3; the objective as Peter,
Roth and Pernkopf use it (arXiv 2012.10138, 2104.06666).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from kws_jax.models.mbconv import SKIP
from kws_jax.search.architecture import Architecture
from kws_jax.search.mbconv_space import (
    Cost,
    MBConvSpace,
    expected_macs,
)
from kws_jax.training import finiteness
from kws_jax.training.state import ARCHITECTURE, WEIGHTS, TrainState

PyTree = Any
# Names of a PathNet's layers, before their number.
LAYER = "layers_"
# (trees, batch_stats, batch, key, path, gates) -> (loss, (metrics, new batch_stats))
PathLoss = Callable[..., tuple[jax.Array, tuple[dict[str, jax.Array], PyTree]]]


@dataclasses.dataclass(frozen=True)
class Objective:
    """What the architecture is chosen by: scale · CE · (ln E[ops] / ln reference)^β.

    Attributes:
      costs: of the candidates of each layer.
      fixed_macs: of all that is not searched.
      reference_macs: operations at which the second factor is 1.
      beta: how much operations count; 0 is not at all.
      scale: the factor a.
    """

    costs: tuple[Cost, ...]
    fixed_macs: int
    reference_macs: float
    beta: float
    scale: float = 1.0

    def __call__(
        self, cross_entropy: Float[Array, ""], architecture: Architecture
    ) -> Float[Array, ""]:
        """The loss of the architecture."""
        expected = expected_macs(architecture, self.costs, self.fixed_macs)
        ratio = jnp.log(expected) / jnp.log(self.reference_macs)
        return self.scale * cross_entropy * ratio**self.beta


def sample_path(key: jax.Array, architecture: Architecture) -> Int[Array, " l"]:
    """One candidate of each layer, drawn with the probabilities softmax(α)."""
    keys = jax.random.split(key, len(architecture))
    drawn = [
        jax.random.categorical(key, alphas)
        for key, alphas in zip(keys, architecture, strict=True)
    ]
    return jnp.stack(drawn)


def likeliest_path(architecture: Architecture) -> Int[Array, " l"]:
    """The most probable candidate of each layer."""
    return jnp.stack([jnp.argmax(alphas) for alphas in architecture])


def binary_gates(
    architecture: Architecture, path: Int[Array, " l"]
) -> tuple[Float[Array, " o"], ...]:
    """One-hot gates of a path, with the derivative of p = softmax(α) in their place.

    So ∂L/∂α_i = Σ_j (∂L/∂g_j) p_j (δ_ij − p_i), Eq. 4.
    """
    gates = []
    for alphas, choice in zip(architecture, path):
        p = jax.nn.softmax(alphas)
        hard = jax.nn.one_hot(choice, len(alphas), dtype=p.dtype)
        gates.append(hard + p - jax.lax.stop_gradient(p))
    return tuple(gates)


def entropies(architecture: Architecture) -> list[float]:
    """−Σ p ln p of each layer's choice, over that of an even one: 1 is undecided."""
    found = []
    for alphas in architecture:
        logs = jax.nn.log_softmax(jnp.asarray(alphas))
        entropy = -jnp.sum(jnp.exp(logs) * logs)
        found.append(float(entropy / jnp.log(max(len(alphas), 2))))
    return found


def used_weights(params: PyTree, space: MBConvSpace, path: Int[Array, " l"]) -> PyTree:
    """Which entries of a PathNet's parameters a path uses: a bool for each.

    `params` may hold the PathNet's below other names (`WithFrontend`); what belongs to
    no layer is always used.
    """
    if not isinstance(params, Mapping):
        return jnp.ones((), bool)
    used = {}
    for name, tree in params.items():
        if name.startswith(LAYER):
            used[name] = space.layout.used(tree, path[int(name.removeprefix(LAYER))])
        else:
            used[name] = used_weights(tree, space, path)
    return used


def masked_update(
    transformation: optax.GradientTransformation,
    gradient: PyTree,
    state: PyTree,
    tree: PyTree,
    used: PyTree,
) -> tuple[PyTree, PyTree]:
    """The tree and the optimiser's state after a step, as before where not `used`.

    So neither momentum nor weight decay moves what had no part in the loss. Counters
    of steps are common to the whole tree and always advance.
    """
    updates, new = transformation.update(gradient, state, tree)
    flags = optax.tree_map_params(
        transformation,
        lambda value, used: used,
        new,
        used,
        transform_non_params=lambda value: True,
    )
    kept = jax.tree.map(jnp.where, flags, new, state)
    moved = optax.apply_updates(tree, updates)
    return jax.tree.map(jnp.where, used, moved, tree), kept


def make_path_step(
    weights_loss: PathLoss,
    architecture_loss: PathLoss,
    transformations: Mapping[str, optax.GradientTransformation],
    space: MBConvSpace,
    objective: Objective,
    *,
    every: int,
    start: int = 0,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """A weight step on a path drawn anew; after each `every`-th, one for α.

    Args:
      weights_loss: of a training batch.
      architecture_loss: of a validation batch; its cross-entropy enters `objective`.
      transformations: of WEIGHTS and ARCHITECTURE.
      space: what the paths go through.
      objective: of the architecture.
      every: weight steps for each step of the architecture; 0 is none ever.
      start: weight steps before the architecture is trained.

    Returns:
      step(state, train_batch[, architecture_batch], key) -> (state, metrics), pure.
      Batch statistics come from the training batch alone. Among the metrics are
      "gradient_norm" and "architecture_gradient_norm", 0 where the architecture rests.
    """

    def weight_step(state: TrainState, batch: Any, key: jax.Array) -> Any:
        path_key, key = jax.random.split(key)
        path = sample_path(path_key, state.trees[ARCHITECTURE])

        def loss_of(weights: PyTree) -> Any:
            trees = {**state.trees, WEIGHTS: weights}
            return weights_loss(trees, state.batch_stats, batch, key, path, None)

        weights = state.trees[WEIGHTS]
        gradient, (metrics, stats) = jax.grad(loss_of, has_aux=True)(weights)
        used = used_weights(weights, space, path)
        state = _moved(state, WEIGHTS, gradient, used, transformations)
        metrics["gradient_norm"] = optax.global_norm(gradient)
        moved = state.replace(step=state.step + 1, batch_stats=stats)
        return moved, metrics, gradient

    def architecture_step(
        state: TrainState, batch: Any, key: jax.Array
    ) -> tuple[TrainState, Architecture]:
        path_key, key = jax.random.split(key)
        alphas = state.trees[ARCHITECTURE]
        path = sample_path(path_key, alphas)

        def loss_of(alphas: Architecture) -> jax.Array:
            gates = binary_gates(alphas, path)
            loss, _ = architecture_loss(
                state.trees, state.batch_stats, batch, key, path, gates
            )
            return objective(loss, alphas)

        gradient = jax.grad(loss_of)(alphas)
        used = active_layers(space, path)
        return _moved(state, ARCHITECTURE, gradient, used, transformations), gradient

    def stand_still(
        state: TrainState, batch: Any, key: jax.Array
    ) -> tuple[TrainState, Architecture]:
        return state, jax.tree.map(jnp.zeros_like, state.trees[ARCHITECTURE])

    def step(
        state: TrainState, train_batch: Any, *rest: Any
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        *others, key = rest
        key = jax.random.fold_in(key, state.step)
        weights_key, architecture_key = jax.random.split(key)
        state, metrics, gradient = weight_step(state, train_batch, weights_key)
        gradients = {WEIGHTS: gradient}
        if every:
            due = (state.step % every == 0) & (state.step > start)
            state, gradient = jax.lax.cond(
                due, architecture_step, stand_still, state, others[0], architecture_key
            )
            # What broken weights make of it is told of the weights alone.
            whole = jnp.isfinite(metrics["gradient_norm"])
            gradient = jax.tree.map(lambda g: jnp.where(whole, g, 0), gradient)
            metrics["architecture_gradient_norm"] = optax.global_norm(gradient)
            gradients[ARCHITECTURE] = gradient
        metrics |= finiteness.observed(gradients)
        metrics["expected_macs"] = expected_macs(
            state.trees[ARCHITECTURE], objective.costs, objective.fixed_macs
        )
        return state, metrics

    return step


def active_layers(space: MBConvSpace, path: Int[Array, " l"]) -> tuple[jax.Array, ...]:
    """Which layers' α a step moves: not those where the path takes SKIP ("Zero")."""
    return tuple(
        choice != names.index(SKIP) if SKIP in names else jnp.ones((), bool)
        for choice, names in zip(path, space.candidates)
    )


def _moved(
    state: TrainState,
    label: str,
    gradient: PyTree,
    used: PyTree,
    transformations: Mapping[str, optax.GradientTransformation],
) -> TrainState:
    tree, opt_state = masked_update(
        transformations[label],
        gradient,
        state.opt_state[label],
        state.trees[label],
        used,
    )
    return state.replace(
        trees={**state.trees, label: tree},
        opt_state={**state.opt_state, label: opt_state},
    )
