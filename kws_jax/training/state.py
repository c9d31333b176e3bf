"""All that is learned, as one pytree."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

WEIGHTS, ARCHITECTURE = "weights", "architecture"
DATA_PARAMETERS = "data_parameters"
# Trees that training alone has use for.
_TRAINING_ONLY = (DATA_PARAMETERS,)

PyTree = Any


class TrainState(flax.struct.PyTreeNode):
    """Step, trainable trees by label, their optimiser states, and batch statistics.

    Attributes:
      step: int32 [], the number of weight updates made in this stage.
      trees: label -> trainable tree ("weights", "architecture", …).
      opt_state: label -> state of that tree's optax transformation.
      batch_stats: running statistics of the batch norms.
    """

    step: jax.Array
    trees: dict[str, PyTree]
    opt_state: dict[str, PyTree]
    batch_stats: PyTree


def create_train_state(
    trees: dict[str, PyTree],
    batch_stats: PyTree,
    transformations: dict[str, optax.GradientTransformation],
) -> TrainState:
    """A state at step 0; each tree gets the optimiser state of its own label."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trees=dict(trees),
        opt_state={
            label: tx.init(trees[label]) for label, tx in transformations.items()
        },
        batch_stats=batch_stats,
    )


def apply_gradients(
    state: TrainState,
    gradients: dict[str, PyTree],
    transformations: dict[str, optax.GradientTransformation],
) -> TrainState:
    """Updates the trees named in `gradients`, each by its own transformation."""
    trees, opt_state = dict(state.trees), dict(state.opt_state)
    for label, gradient in gradients.items():
        updates, opt_state[label] = transformations[label].update(
            gradient, state.opt_state[label], state.trees[label]
        )
        trees[label] = optax.apply_updates(state.trees[label], updates)
    return state.replace(trees=trees, opt_state=opt_state)


def without_optimizers(state: TrainState) -> TrainState:
    """The state as it is used after training, without data parameters too."""
    kept = {k: tree for k, tree in state.trees.items() if k not in _TRAINING_ONLY}
    return state.replace(trees=kept, opt_state={})


def variables_of(state: TrainState) -> dict[str, PyTree]:
    """The network's variables in a state, as Flax takes them."""
    return {"params": state.trees[WEIGHTS], "batch_stats": state.batch_stats}
