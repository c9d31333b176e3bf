"""The layers that can be quantised, watched from outside of the network.

A network is run as it is, inside of `watch`: what goes into each layer with a kernel,
what comes out of it, and every batch norm are given to a `Watcher`, which may change
them. No model knows of it. Of a layer right behind dropout the input is what dropout
gets, so that in training too a value that is kept is one that inference has.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from kws_jax.models.conv_mixer import FrequencyBranch
from kws_jax.models.layers import DepthwiseConv, DilatedConv
from kws_jax.ops.depthwise import depthwise_conv

# Layers of one input whose output is linear in their parameter "kernel", of which the
# last axis are the channels of the output.
_KINDS: dict[type[nn.Module], str] = {
    nn.Dense: "dense",
    nn.Conv: "conv",
    DepthwiseConv: "depthwise",
    DilatedConv: "dilated",
}
# Kernels of a frequency branch, which are three such layers in one.
_BRANCH = {"expand": "conv", "depthwise": "depthwise", "project": "dense"}


class Layer(NamedTuple):
    """A layer with a kernel.

    Attributes:
      name: its path, such as "blocks_0/conv1".
      kind: "dense", "conv", "depthwise" or "dilated".
      path: of its kernel among the parameters.
    """

    name: str
    kind: str
    path: tuple[str, ...]


class Watcher(Protocol):
    """What is done at each layer and batch norm."""

    def input(self, layer: Layer, x: jax.Array) -> jax.Array:
        """What the layer gets in place of x."""

    def output(self, layer: Layer, y: jax.Array) -> jax.Array:
        """What the layer gives in place of y."""

    def norm(
        self, module: nn.BatchNorm, x: jax.Array, call: Callable[..., Any]
    ) -> jax.Array:
        """What a batch norm gives for x; `call(x)` is the network's own."""


def name_of(path: tuple[str, ...]) -> str:
    """The name of a layer, or of a batch norm, from its path among the modules."""
    return "/".join(path)


@contextlib.contextmanager
def watch(watcher: Watcher) -> Iterator[None]:
    """Networks that are applied inside give their layers to the watcher."""
    dropouts = _Dropouts()

    def intercept(
        call: Callable[..., Any],
        arguments: tuple[Any, ...],
        settings: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        module = context.module
        if context.method_name != "__call__":
            return call(*arguments, **settings)
        if isinstance(module, nn.BatchNorm):
            x, *rest = arguments
            return watcher.norm(module, x, lambda x: call(x, *rest, **settings))
        if isinstance(module, nn.Dropout):
            return dropouts.drop(module, call, *arguments, **settings)
        if type(module) is FrequencyBranch:
            return _watched_branch(module, arguments[0], watcher)
        if type(module) in _KINDS:
            path = module.path
            layer = Layer(name_of(path), _KINDS[type(module)], (*path, "kernel"))
            before, factors = dropouts.behind(arguments[0])
            x = watcher.input(layer, before)
            x = x if factors is None else x * factors
            y = call(x, *arguments[1:], **settings)
            return watcher.output(layer, y)
        return call(*arguments, **settings)

    with nn.intercept_methods(intercept):
        yield


class _Dropouts:
    """What dropout was given, by what it made of it."""

    def __init__(self) -> None:
        # With each value itself, so that no other gets its id.
        self._made: dict[int, tuple[jax.Array, jax.Array, jax.Array]] = {}

    def drop(
        self,
        module: nn.Dropout,
        call: Callable[..., jax.Array],
        x: jax.Array,
        deterministic: bool | None = None,
        rng: jax.Array | None = None,
    ) -> jax.Array:
        """What dropout gives: x times factors that it draws, 0 or 1 / (1 − rate)."""
        still = nn.merge_param("deterministic", module.deterministic, deterministic)
        if still or module.rate == 0:
            return x
        factors = call(jnp.ones_like(x), deterministic, rng)
        y = x * factors
        self._made[id(y)] = y, x, factors
        return y

    def behind(self, y: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """(x, factors) of a value that dropout made, (y, None) of any other."""
        _, x, factors = self._made.get(id(y), (y, y, None))
        return x, factors


def _watched_branch(
    module: FrequencyBranch, x: jax.Array, watcher: Watcher
) -> jax.Array:
    """A frequency branch layer by layer, since its own operation hides what is inside.

    Slower and with m times the memory; the same numbers.
    """
    kernels = module.variables["params"]

    def run(part: str, x: jax.Array, apply: Callable[..., jax.Array]) -> jax.Array:
        path = (*module.path, part)
        layer = Layer(name_of(path), _BRANCH[part], path)
        return watcher.output(layer, apply(watcher.input(layer, x), kernels[part]))

    def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    maps = nn.swish(run("expand", x[..., None], conv))
    maps = nn.swish(run("depthwise", maps, depthwise_conv))
    return run("project", maps, jnp.matmul)[..., 0]
