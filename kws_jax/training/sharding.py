"""A 1-D mesh over all devices: batches are split over it, states are replicated."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kws_jax.errors import UserError

_AXIS = "data"


def data_mesh() -> Mesh:
    """The mesh over all devices of all processes."""
    return Mesh(np.asarray(jax.devices()), (_AXIS,))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises UserError unless every device gets the same share of a batch."""
    if batch_size % mesh.size:
        raise UserError(
            f"batch_size = {batch_size} cannot be divided over {mesh.size} devices; "
            f"take a multiple, for example {-(-batch_size // mesh.size) * mesh.size}."
        )


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a whole copy of `tree` on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def replicated_like(tree: Any, mesh: Mesh) -> Any:
    """The shapes, types and places of `replicate(tree, mesh)`, without its values."""
    place = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree
    )


def shard(
    batch: Mapping[str, np.ndarray], mesh: Mesh, *, axis: int = 0
) -> dict[str, jax.Array]:
    """The global batch, split along `axis`, from this process's share of it."""
    sharding = _split_along(axis, mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, value)
        for name, value in batch.items()
    }


def keep_split(batch: Mapping[str, jax.Array], mesh: Mesh) -> dict[str, jax.Array]:
    """Inside a jitted function: a batch that each device makes its own share of."""
    sharding = _split_along(0, mesh)
    return {
        name: jax.lax.with_sharding_constraint(value, sharding)
        for name, value in batch.items()
    }


def _split_along(axis: int, mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, _AXIS))
