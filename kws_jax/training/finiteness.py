"""Numbers that are not finite: found in what a step has measured, named in a tree."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kws_jax.errors import UserError

PyTree = Any
# What stops a training where it is not finite, in the order in which a step makes it:
# what an architecture's step has broken shows in the loss of the weights too.
_WATCHED = (
    "architecture_loss",
    "architecture_gradient_norm",
    "loss",
    "gradient_norm",
    "data_parameters_norm",
)
_FLAGS = "gradient_is_finite"
_observing = False


class NotFiniteError(UserError):
    """Training cannot go on; `step` counts from 1, `in_validation` tells where."""

    def __init__(self, message: str, step: int, *, in_validation: bool):
        super().__init__(message)
        self.step, self.in_validation = step, in_validation


def watched(
    steps: Iterable[int], values: Mapping[str, np.ndarray]
) -> Iterator[tuple[int, float, str]]:
    """What must be finite, in the order in which it was measured: step, value, name.

    Args:
      steps: numbers [n] of the steps.
      values: by name, what each of the steps has measured [n].
    """
    names = [name for name in _WATCHED if name in values]
    for place, step in enumerate(steps):
        for name in names:
            yield step, float(values[name][place]), name.replace("_", " ")


def first_leaf(tree: PyTree) -> str:
    """The path of the first leaf with a number that is not finite; "" for none."""
    found = first_entry(tree)
    return found[0] if found else ""


def first_entry(tree: PyTree) -> tuple[str, tuple[int, ...]] | None:
    """Path and index of the first number that is not finite; None where all are."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(tree)):
        wrong = np.argwhere(~np.isfinite(np.asarray(leaf, np.float64)))
        if len(wrong):
            return _named(path), tuple(wrong[0].tolist())
    return None


@contextlib.contextmanager
def observing() -> Iterator[None]:
    """Steps that are traced here tell which leaves of their gradient are finite.

    Others do not, so that what is trained with is the same program with this module
    and without.
    """
    global _observing
    before, _observing = _observing, True
    try:
        yield
    finally:
        _observing = before


def observed(gradients: PyTree) -> dict[str, PyTree]:
    """Measures to be added to those of a step: bool [] for each leaf, or nothing."""
    if not _observing:
        return {}
    return {_FLAGS: jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), gradients)}


def first_gradient(metrics: Mapping[str, PyTree]) -> str:
    """The path of the first leaf whose gradient is not finite; "" where none is told.

    `metrics` are those of a step that was traced under `observing`.
    """
    flags = jax.device_get(metrics.get(_FLAGS, {}))
    for path, finite in jax.tree_util.tree_leaves_with_path(flags):
        if not finite:
            return _named(path)
    return ""


def is_finite(metrics: Mapping[str, PyTree]) -> bool:
    """Whether all that is watched is finite, and each leaf of an observed gradient."""
    measured = [metrics[name] for name in _WATCHED if name in metrics]
    numbers = all(np.isfinite(jax.device_get(measured)))
    return numbers and not first_gradient(metrics)


def _named(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
