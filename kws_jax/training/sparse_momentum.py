"""Momentum SGD for tables of which a step sees few entries."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

PyTree = Any


class SparseMomentumState(NamedTuple):
    """The sum of past gradients of each entry, of the parameters' shapes."""

    momentum: PyTree


def sparse_momentum(
    learning_rate: PyTree, momentum: float
) -> optax.GradientTransformation:
    """SGD with momentum in which an entry rests while its gradient is exactly 0.

    For entries with gradient g ≠ 0: m ← momentum · m + g, update -learning_rate · m.
    The others keep value and m. So the clips that a batch leaves out are not moved by
    what an earlier batch taught.

    Args:
      learning_rate: a number, or numbers in a tree that the parameters' tree begins
        with (a dict name -> rate for a dict of arrays).
      momentum: 0 for none. Neither Nesterov nor dampening.

    Reference: `SparseSGD` of Saxena et al., "Data Parameters", NeurIPS 2019.
    """

    def init(params: PyTree) -> SparseMomentumState:
        return SparseMomentumState(jax.tree.map(jnp.zeros_like, params))

    def update(
        gradients: PyTree, state: SparseMomentumState, params: PyTree = None
    ) -> tuple[PyTree, SparseMomentumState]:
        del params
        moved = jax.tree.map(
            lambda g, m: jnp.where(g != 0, momentum * m + g, m),
            gradients,
            state.momentum,
        )
        updates = jax.tree.map(
            lambda rate, part, sums: jax.tree.map(
                lambda g, m: jnp.where(g != 0, -rate * m, 0).astype(g.dtype), part, sums
            ),
            learning_rate,
            gradients,
            moved,
        )
        return updates, SparseMomentumState(moved)

    return optax.GradientTransformation(init, update)
