"""Carries the variables of the project's networks over into their twins, by name."""

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from flax import traverse_util
from torch import nn

from benchmarks.twins.conv_mixer import ConvMixer
from benchmarks.twins.mbconv import MBConvNet
from benchmarks.twins.res15 import LAYERS, Res15
from benchmarks.twins.supernet import SuperNet
from benchmarks.twins.tc_resnet import TCResNet
from benchmarks.twins.tenet import TENet

PyTree = Any
Path = tuple[str, ...]
Convert = Callable[[np.ndarray], np.ndarray]


class Leaf(NamedTuple):
    """The path of one parameter, where a module of Flax does not hold it alone."""

    path: str
    convert: Convert


def _same(values: np.ndarray) -> np.ndarray:
    return values


def _channels_first(kernel: np.ndarray) -> np.ndarray:
    """A kernel [taps…, inputs, outputs] as [outputs, inputs, taps…]."""
    return np.moveaxis(kernel, (-1, -2), (0, 1))


def _frequency_first(kernel: np.ndarray) -> np.ndarray:
    """A kernel [time, frequency, inputs, outputs] as [outputs, inputs, f, t]."""
    return np.transpose(kernel, (3, 2, 1, 0))


# Pattern of a twin's module -> where its variables stand in Flax.
Names = dict[str, str | Leaf]


def _inside(pattern: str, path: str, names: Names) -> Names:
    """`names` of the modules inside the one that `pattern` finds."""
    found: Names = {}
    for inner, place in names.items():
        name = rf"{pattern}\.{inner}"
        if isinstance(place, Leaf):
            found[name] = place._replace(path=f"{path}/{place.path}")
        else:
            found[name] = f"{path}/{place}"
    return found


_CONV_NORM: Names = {"0": "conv", "1": "bn"}
_STEM: Names = _inside("stem", "stem", _CONV_NORM)
_CLASSIFIER: Names = {r"classifier\.3": "head/linear"}
_OUTPUT: Names = {"output": "head/linear"}
_TC_BLOCK: Names = {
    r"body\.0": "conv1",
    r"body\.1": "bn1",
    r"body\.3": "conv2",
    r"body\.4": "bn2",
    r"body\.5\.fc1": "se/squeeze",
    r"body\.5\.fc2": "se/excite",
    r"shortcut\.0": "shortcut_conv",
    r"shortcut\.1": "shortcut_bn",
}
_BOTTLENECK: Names = {
    r"expand\.0": "expand",
    r"expand\.1": "expand_bn",
    r"filters\.([3579])\.0": r"temporal/conv\2",
    r"filters\.([3579])\.1": r"temporal/bn\2",
    r"project\.0": "project",
    r"project\.1": "project_bn",
    r"shortcut\.0": "shortcut_conv",
    r"shortcut\.1": "shortcut_bn",
}
_SEPARABLE: Names = {"0": "depthwise", "1": "pointwise", "2": "bn"}
_MLP: Names = {"norm": "norm", "fc1": "dense1", "fc2": "dense2"}
_MIXER_BLOCK: Names = {
    r"frequency\.0": Leaf("frequency/expand", _frequency_first),
    r"frequency\.2": Leaf("frequency/depthwise", _frequency_first),
    r"frequency\.4": Leaf("frequency/project", _channels_first),
    r"frequency\.5": "bn",
    **_inside("time", "time", _SEPARABLE),
    **_inside("mix_time", "mix_time", _MLP),
    **_inside("mix_frequency", "mix_frequency", _MLP),
}
NAMES: dict[type[nn.Module], Names] = {
    TCResNet: {
        **_STEM,
        **_inside(r"blocks\.(\d+)", r"blocks_\1", _TC_BLOCK),
        **_CLASSIFIER,
    },
    SuperNet: {
        **_STEM,
        **_inside(r"layers\.(\d+)\.candidates\.(\w+)", r"layers_\1/\2", _TC_BLOCK),
        **_CLASSIFIER,
    },
    TENet: {
        **_STEM,
        **_inside(r"layers\.(\d+)", r"layers_\1", _BOTTLENECK),
        **_CLASSIFIER,
    },
    Res15: {
        "first": Leaf("body/conv0/kernel", _frequency_first),
        **{
            rf"convs\.{i}": Leaf(f"body/conv{i + 1}/kernel", _frequency_first)
            for i in range(LAYERS)
        },
        **{rf"norms\.{i}": f"body/bn{i + 1}" for i in range(LAYERS)},
        **_OUTPUT,
    },
    ConvMixer: {
        **_inside("stem", "stem", _SEPARABLE),
        **_inside(r"pre\.(\d+)", r"pre/layer\1", _SEPARABLE),
        **_inside(r"blocks\.(\d+)", r"blocks_\1", _MIXER_BLOCK),
        **_inside(r"post\.(\d+)", r"post_\1", _SEPARABLE),
        **_OUTPUT,
    },
    MBConvNet: {
        **_STEM,
        **_inside(r"blocks\.(\d+)\.(\w+)", r"blocks_\1/\2", _CONV_NORM),
        **_inside("last", "last", _CONV_NORM),
        **_OUTPUT,
    },
}


def carry(variables: PyTree, twin: nn.Module) -> None:
    """Gives `twin` the parameters and batch statistics of a Flax network.

    Args:
      variables: "params" and "batch_stats" of the project's network.
      twin: the PyTorch module of the same architecture; changed in place.

    Raises:
      ValueError: a parameter or statistic is left over on either side, or differs in
        shape.
    """
    state = state_of(variables, twin)
    # PyTorch alone has counters of batches, and scales that are not learned.
    twin.load_state_dict({**twin.state_dict(), **state})


def state_of(variables: PyTree, twin: nn.Module) -> dict[str, torch.Tensor]:
    """The same values under PyTorch's names and in its layouts.

    `variables` may hold gradients in the place of "params". Raises as `carry`.
    """
    leaves = traverse_util.flatten_dict(dict(variables))
    shapes = {name: tuple(tensor.shape) for name, tensor in twin.state_dict().items()}
    state = {}
    for name, path, convert in _leaves(twin):
        if path not in leaves:
            raise ValueError(f"{name} of the twin needs {'/'.join(path)}: not there")
        values = convert(np.asarray(leaves.pop(path)))
        # A linear layer there can be a convolution of one tap here.
        missing = len(shapes[name]) - values.ndim
        values = values.reshape(values.shape + (1,) * missing)
        if values.shape != shapes[name]:
            raise ValueError(
                f"{name} has shape {shapes[name]} in the twin and {values.shape} in "
                "the project's network"
            )
        state[name] = torch.from_numpy(values.copy())
    if leaves:
        left = ", ".join("/".join(path) for path in leaves)
        raise ValueError(f"left over, with no place in the twin: {left}")
    return state


def _leaves(twin: nn.Module) -> Iterator[tuple[str, Path, Convert]]:
    """Of each value of the twin: its name, its path in Flax, how to convert it."""
    for module_name, module in twin.named_modules():
        own = [name for name, _ in module.named_parameters(recurse=False)]
        own += [name for name, _ in module.named_buffers(recurse=False)]
        for value in own:
            if value != "num_batches_tracked" and not _is_fixed(module, value):
                path, convert = _place(twin, module_name, module, value)
                yield f"{module_name}.{value}", path, convert


def _is_fixed(module: nn.Module, value: str) -> bool:
    """Whether it is the scale of a batch norm that learns a shift alone."""
    parameter = getattr(module, value)
    return isinstance(parameter, nn.Parameter) and not parameter.requires_grad


def _place(
    twin: nn.Module, module_name: str, module: nn.Module, value: str
) -> tuple[Path, Convert]:
    """Path in Flax, collection first, and change of layout."""
    place, path = _find(twin, module_name)
    if isinstance(place, Leaf):
        return ("params", *path), place.convert
    if value in ("running_mean", "running_var"):
        return ("batch_stats", *path, value.removeprefix("running_")), _same
    if value == "bias":
        return ("params", *path, "bias"), _same
    if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.LayerNorm):
        return ("params", *path, "scale"), _same
    return ("params", *path, "kernel"), _channels_first


def _find(twin: nn.Module, module_name: str) -> tuple[str | Leaf, Path]:
    """The entry of a module in NAMES, and its path with the numbers filled in."""
    for pattern, place in NAMES[type(twin)].items():
        if match := re.fullmatch(pattern, module_name):
            path = place.path if isinstance(place, Leaf) else place
            return place, tuple(match.expand(path).split("/"))
    raise ValueError(f"module {module_name} of {type(twin).__name__} has no name here")
