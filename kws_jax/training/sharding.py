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


def keep_whole(tree: Any, mesh: Mesh) -> Any:
    """Inside a jitted function: what each device makes all of, for itself.

    For small draws by rejection, whose loops would else ask all devices at each turn
    whether theirs are done.
    """
    if mesh.size == 1:
        return tree
    place = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(
        lambda value: jax.lax.with_sharding_constraint(value, place), tree
    )


def by_rows(function: Callable[..., Any], mesh: Mesh, *, whole: int = 0) -> Callable:
    """A function that works on each row alone, of each device on its own rows.

    XLA does not divide Fourier transforms (openxla/xla issue 24): without this, every
    device gets the frames of all clips, and transforms them all.

    Args:
      function: its arguments and results are arrays, or trees of them, with rows
        [b, …].
      mesh: where it does not divide b, the function is left as it is. What is given
        lies on it, or on no device in particular: JAX refuses what was put on one.
      whole: how many of the first arguments are the same for all rows instead.
    """
    if mesh.size == 1:
        return function
    rows = PartitionSpec(_AXIS)

    def apart(*arguments: Any) -> Any:
        sizes = {len(leaf) for leaf in jax.tree.leaves(arguments[whole:])}
        if any(size % mesh.size for size in sizes):
            return function(*arguments)
        places = (PartitionSpec(),) * whole + (rows,) * (len(arguments) - whole)
        return jax.shard_map(
            function, mesh=mesh, in_specs=places, out_specs=rows, check_vma=False
        )(*arguments)

    return apart


def on_own_rows(apply: Callable[..., tuple[jax.Array, Any]], mesh: Mesh) -> Callable:
    """A network's `apply` in training, of each device on its own rows of a batch.

    Nothing that it computes over rows, as batch norms do, then sees those of other
    devices, and each device draws with keys of its own.

    Args:
      apply: (variables, features [b, …], rngs, more …) -> (outputs [b, …], statistics).
      mesh: b must be a multiple of its size n.

    Returns:
      The same function, of all rows; statistics are the mean of those of the devices.
    """

    def alone(variables: Any, features: jax.Array, rngs: Any, *more: Any) -> Any:
        number = jax.lax.axis_index(_AXIS)
        own = jax.tree.map(lambda key: jax.random.fold_in(key, number), rngs)
        outputs, statistics = apply(variables, features, own, *more)
        return outputs, jax.lax.pmean(statistics, _AXIS)

    def all_rows(variables: Any, features: jax.Array, *more: Any) -> Any:
        whole, split = PartitionSpec(), PartitionSpec(_AXIS)
        mapped = jax.shard_map(
            alone,
            mesh=mesh,
            in_specs=(whole, split, *(whole,) * len(more)),
            out_specs=(split, whole),
            # It would want the zeros that loops start with to be marked as varying.
            check_vma=False,
        )
        return mapped(variables, features, *more)

    return all_rows


def _split_along(axis: int, mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, _AXIS))
