"""A quantised network as integers and scales: all that an exporter needs of it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from kws_jax.quantization.network import (
    QuantizedNetwork,
    folded_bias,
    kernels_of,
    norms_of,
    weight_bound,
)
from kws_jax.quantization.straight_through import top_level

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Activation:
    """How the input of a layer is rounded: q = clip(round(x / scale), −h or 0, h).

    h is `highest`, below it is −h where q is signed. Its value is then scale · q: the
    integer of zero is 0. One bit signed has no zero: q = 1 where x ≥ 0, else −1.

    Attributes:
      name: of the first layer with this input; layers of one name share one input.
      bits: number of bits.
      signed: whether q may be negative.
      scale: value of the integer 1.
    """

    name: str
    bits: int
    signed: bool
    scale: float

    @property
    def highest(self) -> int:
        """The largest integer."""
        return top_level(self.bits, signed=self.signed)


@dataclasses.dataclass(frozen=True)
class IntegerLayer:
    """A layer in integers; it adds Σ weights · scale · input + bias to each channel.

    Attributes:
      name: its path, such as "blocks_0/conv1".
      kind: "dense", "conv", "depthwise" or "dilated".
      weights: int8, in the shape of the layer's kernel, channels of the output last.
      scale: float32, value of the integer 1: of the axes of the kernel, [1, …, 1], or
        [1, …, c] where each channel has its own, as with every batch norm. The size
        of its γ / √(var + ε) is in the scale (0 where γ is), its sign in the weights:
        `weights * scale` are the quantised weights with the batch norm in them.
      bits: of the weights, whose integers lie in −top … top, top = 2^(bits−1) − 1; for
        one bit they are −1 and 1.
      bias: float32 [c], the layer's own and that of its batch norm; None without.
      norm: the batch norm that is folded in, or None.
      activation: how its input is rounded.
    """

    name: str
    kind: str
    weights: np.ndarray
    scale: np.ndarray
    bits: int
    bias: np.ndarray | None
    norm: str | None
    activation: Activation


@dataclasses.dataclass(frozen=True)
class FloatNorm:
    """A batch norm that folds into no layer: x · scale + shift by channel, float32."""

    scale: np.ndarray
    shift: np.ndarray


@dataclasses.dataclass(frozen=True)
class IntegerNetwork:
    """What is quantised in a network, and what norms are left.

    Attributes:
      layers: name -> layer, in the order in which the network calls them.
      norms: name -> batch norm that stays. Norms that are folded only pass on.
      kept: names of the layers that stay in float.
    """

    layers: Mapping[str, IntegerLayer]
    norms: Mapping[str, FloatNorm]
    kept: tuple[str, ...]


def to_integers(
    network: QuantizedNetwork, trees: Mapping[str, PyTree], batch_stats: PyTree
) -> IntegerNetwork:
    """The integers, scales and biases of a trained quantised network.

    Args:
      network: how it is quantised, as `stages.quantize.restore_quantized` gives it.
      trees: its trained trees.
      batch_stats: its running statistics.
    """
    sites = network.sites
    norms = norms_of(sites, trees["weights"], batch_stats)
    kernels = kernels_of(sites, trees["weights"])
    values = network.quantized_kernels(trees)
    bits = network.bits_of(trees, "weights")
    layers = {}
    for name, site in sites.layers.items():
        bound = weight_bound(kernels[name], network.bits.per_channel)
        scale = np.asarray(network.step_of(bound, bits[name], signed=True))
        # The values are such integers times the step, so rounding finds them.
        integers = np.round(np.asarray(values[name]) / scale)
        if site.norm:
            factor = np.asarray(norms[site.norm].scale)
            integers, scale = (
                integers * np.where(factor < 0, -1, 1),
                scale * abs(factor),
            )
        bias = folded_bias(site, trees["weights"], norms)
        layers[name] = IntegerLayer(
            name=name,
            kind=site.kind,
            weights=integers.astype(np.int8),
            scale=scale,
            bits=int(bits[name]),
            bias=None if bias is None else np.asarray(bias),
            norm=site.norm,
            activation=_activation(network, trees, site.activation),
        )
    left = {
        name: FloatNorm(np.asarray(norms[name].scale), np.asarray(norms[name].shift))
        for name in sites.unfolded
    }
    return IntegerNetwork(layers, left, sites.kept)


def _activation(
    network: QuantizedNetwork, trees: Mapping[str, PyTree], name: str
) -> Activation:
    bits, signed = network.bits_of(trees, "activations")[name], network.signed[name]
    bound = network.activation_bound(trees, name)
    scale = network.step_of(bound, bits, signed=signed)
    return Activation(name, int(bits), signed, float(scale))
