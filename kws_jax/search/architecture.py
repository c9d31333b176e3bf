"""Architecture weights, by which layers of a supernet choose among candidates."""

from collections.abc import Sequence

import jax
from jaxtyping import Array, Float

# One vector a layer, in the order of the layer's candidates.
Architecture = tuple[Float[Array, " o"], ...]
# What they are at first, as a standard deviation.
_SCALE = 1e-3


def init_architecture(
    key: jax.Array, candidates: Sequence[Sequence[str]]
) -> Architecture:
    """Weights drawn from 0.001 · N(0, 1) for each layer's candidates."""
    return tuple(
        _SCALE * jax.random.normal(jax.random.fold_in(key, index), (len(names),))
        for index, names in enumerate(candidates)
    )
