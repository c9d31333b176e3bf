"""The networks that are measured, each with its front end."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import flax.linen as nn
    import torch

LABELS = 12


@dataclasses.dataclass(frozen=True)
class Case:
    """A network with its settings.

    Attributes:
      model: its name in the project's registry and among the twins.
      frontend: its front end's name in the project's registry.
      settings: of the network, the same for both.
      small: other settings for a quick trial.
    """

    model: str
    frontend: str = "mfcc"
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    small: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def create(self, *, small: bool = False) -> "nn.Module":
        """The project's own network."""
        from kws_jax.models.registry import create_model

        return create_model(self.model, LABELS, **self._settings(small))

    def create_twin(self, *, small: bool = False) -> "torch.nn.Module":
        """The same network in PyTorch, with weights of its own."""
        from benchmarks.twins.registry import create_twin

        return create_twin(self.model, LABELS, **self._settings(small))

    def _settings(self, small: bool) -> dict[str, Any]:
        return {**self.settings, **(self.small if small else {})}


_NARROW = {"width": 0.25}

CASES: dict[str, Case] = {
    "tc_resnet8": Case("tc_resnet8", small=_NARROW),
    "tc_resnet14": Case("tc_resnet14", small=_NARROW),
    "tc_resnet14-1.5": Case("tc_resnet14", settings={"width": 1.5}, small=_NARROW),
    "tenet6": Case("tenet6"),
    "tenet12": Case("tenet12"),
    "res15": Case("res15"),
    "conv_mixer": Case("conv_mixer", "log_mel", small={"channels": 8}),
    "mbconv": Case("mbconv", small={"layers": ("E1K3", "SKIP", "SKIP") * 2}),
}
