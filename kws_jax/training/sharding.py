"""A 1-D mesh over all devices: batches are split over it, states are replicated."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kws_jax.errors import UserError

_AXIS = "data"


def data_mesh() -> Mesh:
    """The mesh over all devices of all processes, process by process.

    So the rows of a global batch are those of process 0, then those of process 1, ….
    """
    devices = sorted(jax.devices(), key=lambda one: (one.process_index, one.id))
    return Mesh(np.asarray(devices), (_AXIS,))


def check_batch_size(batch_size: int, mesh: Mesh, name: str = "batch_size") -> None:
    """Raises UserError unless every device gets the same share of a batch."""
    if batch_size % mesh.size:
        raise UserError(
            f"{name} = {batch_size} cannot be divided over {mesh.size} devices; "
            f"take a multiple, for example {-(-batch_size // mesh.size) * mesh.size}."
        )


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a whole copy of `tree` on every device; all processes have the same."""
    place = NamedSharding(mesh, PartitionSpec())
    if jax.process_count() == 1:
        return jax.device_put(tree, place)
    return jax.tree.map(lambda leaf: _on_all_devices(leaf, place), tree)


def _on_all_devices(leaf: Any, place: NamedSharding) -> jax.Array:
    # device_put would compare the leaf between the processes, each in a program.
    value = np.asarray(leaf)
    return jax.make_array_from_callback(value.shape, place, lambda index: value[index])


def jit_replicated(function: Callable, mesh: Mesh, **options: Any) -> Any:
    """`jax.jit` of a function of which every device, and process, gets all results.

    Without this, the compiler chooses where results lie.
    """
    if mesh.size > 1:
        options["out_shardings"] = NamedSharding(mesh, PartitionSpec())
    return jax.jit(function, **options)


def digest(tree: Any) -> str:
    """Tells trees of other values, to the bit, apart."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        value = np.asarray(leaf)
        found.update(f"{path} {value.dtype} {value.shape}".encode() + value.tobytes())
    return found.hexdigest()


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
