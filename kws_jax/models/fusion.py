"""Networks as they infer: branches that were trained apart become one."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from kws_jax.models.tenet import TENet, fuse_mtconv
from kws_jax.models.wrapped import holder_of

PyTree = Any


def at_inference(
    model: nn.Module, variables: Mapping[str, PyTree]
) -> tuple[nn.Module, Mapping[str, PyTree]]:
    """A network and its variables that infer as these, in fewer operations.

    Those of a TENet with MTConv, alone or behind filters, get one branch each; all
    others stay as they are.
    """
    fused = _without_branches(model)
    return (model, variables) if fused is model else (fused, fuse_mtconv(variables))


def _without_branches(model: nn.Module) -> nn.Module:
    """The same network with one branch each; itself where it has no more."""
    if isinstance(model, TENet):
        return model.clone(mtconv=False) if model.mtconv else model
    if (name := holder_of(model)) is None:
        return model
    held = getattr(model, name)
    single = _without_branches(held)
    changes: dict[str, Any] = {name: single}
    return model if single is held else model.clone(**changes)
