"""The twins by the names of the project's registry."""

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from benchmarks.twins.conv_mixer import ConvMixer
from benchmarks.twins.mbconv import MBConvNet
from benchmarks.twins.res15 import Res15
from benchmarks.twins.tc_resnet import TCResNet
from benchmarks.twins.tenet import TENet

TWINS: dict[str, Callable[..., nn.Module]] = {
    "tc_resnet8": functools.partial(TCResNet, 8),
    "tc_resnet14": functools.partial(TCResNet, 14),
    "tenet6": functools.partial(TENet, 6),
    "tenet12": functools.partial(TENet, 12),
    "res15": Res15,
    "conv_mixer": ConvMixer,
    "mbconv": MBConvNet,
}


def create_twin(model: str, num_labels: int, **settings: Any) -> nn.Module:
    """The twin of the network that `create_model(model, …)` makes."""
    return TWINS[model](num_labels, **settings)
