"""Front filters by name, for configs, and the network that has one before it.

A front filter is a Flax module that takes features [b, t, f] and gives features of the
same size: `__call__(features, *, train, epoch=None)`. In training, `epoch` tells how
many epochs were made, as a real number; None stands for the end of training.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from kws_jax.errors import UserError, nearest
from kws_jax.models.dynamic_conv import DynamicConv
from kws_jax.models.dynamic_filter import DynamicFilter
from kws_jax.models.light_conv import LightConv

NONE = "none"
FILTERS: dict[str, type[nn.Module]] = {
    "dynamic": DynamicFilter,
    "dynamic_conv": DynamicConv,
    "light_conv": LightConv,
}
_SWITCH = "True or False", lambda value: isinstance(value, bool)
# setting -> (what is expected of it, its test)
RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "din": _SWITCH,
    "gated": _SWITCH,
    "residual": _SWITCH,
    "kernels": ("a whole number of at least 1", lambda value: value >= 1),
    "kernel_size": (
        "an odd number of frames",
        lambda value: value >= 1 and value % 2 == 1,
    ),
    "temperature": ("a number of at least 1", lambda value: value >= 1),
    "temperature_epochs": ("a number of at least 0", lambda value: value >= 0),
}
# Settings that divide the features into parts of one size.
DIVISIONS = ("groups", "heads")


class FilteredNetwork(nn.Module):
    """A network behind a front filter; parameters of each under its attribute's name.

    Attributes:
      front_filter: what the features go through first.
      network: any network that takes features, a supernet among them.
    """

    front_filter: nn.Module
    network: nn.Module

    @property
    def head(self) -> nn.Module:
        """The network's own."""
        return self.network.head

    def embed(
        self,
        features: Float[Array, "b t f"],
        *,
        train: bool,
        epoch: Float[Array, ""] | None = None,
    ) -> Float[Array, "b d"]:
        """Embedding of each clip, that of the network for the filtered features."""
        filtered = self.front_filter(features, train=train, epoch=epoch)
        return self.network.embed(filtered, train=train)

    def __call__(
        self,
        features: Float[Array, "b t f"],
        *arguments: Any,
        train: bool,
        epoch: Float[Array, ""] | None = None,
    ) -> Float[Array, "b k"]:
        """Logits; further arguments are those of the network."""
        filtered = self.front_filter(features, train=train, epoch=epoch)
        return self.network(filtered, *arguments, train=train)


def filter_settings(name: str) -> tuple[str, ...]:
    """Names of the settings that `create_filter(name, …)` takes.

    Raises:
      UserError: no front filter of this name.
    """
    if name not in FILTERS:
        raise UserError(
            f"no front filter is named {name!r}: {nearest(name, (NONE, *FILTERS))}"
        )
    fields = dataclasses.fields(FILTERS[name])
    return tuple(f.name for f in fields if f.name not in ("parent", "name"))


def create_filter(name: str, bands: int, **settings: Any) -> nn.Module:
    """The front filter `name` for features [b, t, bands].

    Raises:
      UserError: unknown name or setting, or a setting that does not fit.
    """
    known = filter_settings(name)
    for setting, value in settings.items():
        if setting not in known:
            raise UserError(
                f"front filter {name!r} has no setting {setting!r}: "
                f"{nearest(setting, known)}"
            )
        if setting in RANGES:
            _check(name, setting, value, *RANGES[setting])
    made = FILTERS[name](**settings)
    for setting in DIVISIONS:
        if setting in known:
            _check(
                name,
                setting,
                getattr(made, setting),
                f"a divisor of the {bands} features of a frame",
                lambda value: value >= 1 and bands % value == 0,
            )
    return made


def filtered(network: nn.Module, name: str, bands: int, **settings: Any) -> nn.Module:
    """The network behind the front filter `name`; with 'none' the network itself.

    Raises:
      UserError: as `create_filter`, and for settings of 'none'.
    """
    if name != NONE:
        return FilteredNetwork(create_filter(name, bands, **settings), network)
    if settings:
        raise UserError(
            f"front filter {NONE!r} has no settings, got {', '.join(settings)}: name "
            f"one of {', '.join(FILTERS)}, or leave them out."
        )
    return network


def _check(
    name: str, setting: str, value: Any, expected: str, holds: Callable[[Any], bool]
) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if (number or expected == _SWITCH[0]) and holds(value):
        return
    raise UserError(
        f"setting {setting!r} of front filter {name!r} must be {expected}, "
        f"got {value!r}."
    )
