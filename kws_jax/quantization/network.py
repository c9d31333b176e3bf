"""A network with quantised weights and activations, whatever network it is.

Batch norms are folded as inference folds them: the weights that are quantised are those
of the convolution and the norm behind it in one, W · γ / √(var + ε). The norms use the
running statistics that the float network ended with, in training too. Statistics of a
batch would make the quantised weights depend on it, and be others than those that
inference has: the choice of Jacob et al. (CVPR 2018) for the end of training, possible
from its start since the network begins trained. γ and β go on learning.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Float

from kws_jax.quantization import fixed, layers, learned
from kws_jax.quantization.sites import Site, Sites

PyTree = Any
Kind = Literal["weights", "activations"]
# Labels of the trees that are trained beside the weights.
BOUNDS, BITS = "quantization_bounds", "quantization_bits"
_WEIGHTS, _ACTIVATIONS = "weights", "activations"
_SPACE = "/"


@dataclasses.dataclass(frozen=True)
class Bits:
    """How many bits.

    Attributes:
      weights, activations: of each layer; where learned, those to begin with.
      learned: whether each layer learns its own numbers, from 2 to `most`.
      most: the limit of learned ones.
      per_channel: whether each channel of the output has a scale of its weights.
    """

    weights: int
    activations: int
    learned: bool = False
    most: int = fixed.MOST_BITS
    per_channel: bool = False


@dataclasses.dataclass(frozen=True)
class Norm:
    """A batch norm with running statistics: x · scale + shift, by channel."""

    scale: jax.Array
    shift: jax.Array


@dataclasses.dataclass(frozen=True)
class QuantizedNetwork:
    """A network, and how it is quantised. Its methods are pure.

    `trees` are label -> tree, as in a TrainState: "weights" (the float parameters),
    BOUNDS (activation -> ln of the end of its range) and, where bits are learned, BITS.

    Attributes:
      model: the network in float.
      sites: its layers and norms.
      bits: how many bits.
      signed: activation -> whether it may be negative.
    """

    model: nn.Module
    sites: Sites
    bits: Bits
    signed: Mapping[str, bool]

    def initial_trees(self, bounds: Mapping[str, float]) -> dict[str, PyTree]:
        """The trees beside "weights", for activations with these ends of ranges."""
        logs = {
            name: jnp.log(jnp.float32(bounds[name]))
            for name in self.sites.activation_counts
        }
        if not self.bits.learned:
            return {BOUNDS: logs}
        weights, activations = self.bits.weights, self.bits.activations
        offsets = {
            _WEIGHTS: {n: learned.offset_of(weights) for n in self.sites.layers},
            _ACTIVATIONS: {
                n: learned.offset_of(activations) for n in self.sites.activation_counts
            },
        }
        return {BOUNDS: logs, BITS: offsets}

    def bits_of(self, trees: Mapping[str, PyTree], kind: Kind) -> dict[str, Any]:
        """Bits by layer ("weights") or by activation: numbers, or arrays if learned."""
        counts = self._counts(kind)
        if not self.bits.learned:
            return dict.fromkeys(counts, getattr(self.bits, kind))
        offsets = trees[BITS][kind]
        return {n: learned.bit_width(offsets[n], self.bits.most) for n in counts}

    def mean_bits(self, trees: Mapping[str, PyTree], kind: Kind) -> Any:
        """Mean bits of a weight, or of an activation of a clip."""
        return learned.mean_bits(self.bits_of(trees, kind), self._counts(kind))

    def _counts(self, kind: Kind) -> dict[str, int]:
        sites = self.sites
        return sites.weight_counts if kind == _WEIGHTS else sites.activation_counts

    def weights_of(
        self, trees: Mapping[str, PyTree], batch_stats: PyTree
    ) -> dict[str, jax.Array]:
        """Layer -> its folded kernel, quantised."""
        kernels = folded_kernels(self.sites, trees["weights"], batch_stats)
        bits = self.bits_of(trees, "weights")
        return {
            name: self._quantize(
                kernel, weight_bound(kernel, self.bits.per_channel), bits[name], True
            )
            for name, kernel in kernels.items()
        }

    def activation_bound(self, trees: Mapping[str, PyTree], name: str) -> jax.Array:
        """The end of the range of an activation, a scalar."""
        return jnp.exp(trees[BOUNDS][name])

    def step_of(self, bound: jax.Array, bits: Any, *, signed: bool) -> jax.Array:
        """The value of the integer 1 of a range that ends at `bound`."""
        step = learned.step if self.bits.learned else fixed.step
        return step(bound, bits, signed=signed)

    def infer(
        self,
        trees: Mapping[str, PyTree],
        batch_stats: PyTree,
        features: Float[Array, "b t f"],
        **settings: Any,
    ) -> Float[Array, "b k"]:
        """Logits; `settings` (train, rngs) are those of `model.apply`."""
        bits = self.bits_of(trees, "activations")

        def quantize(site: Site, x: jax.Array) -> jax.Array:
            name = site.activation
            bound = jnp.full((1,) * x.ndim, self.activation_bound(trees, name))
            return self._quantize(x, bound, bits[name], self.signed[name])

        return run_folded(
            self.model,
            self.sites,
            trees["weights"],
            batch_stats,
            features,
            kernels=self.weights_of(trees, batch_stats),
            on_input=quantize,
            **settings,
        )

    def _quantize(
        self, x: jax.Array, bound: jax.Array, bits: Any, signed: bool
    ) -> jax.Array:
        quantize = learned.quantize if self.bits.learned else fixed.quantize
        return quantize(x, bound, bits=bits, signed=signed)


def weight_bound(kernel: jax.Array, per_channel: bool) -> jax.Array:
    """The largest |w| of a kernel, or of each channel of its output; 1 where all are 0.

    No gradient goes through it. It has the axes of the kernel.
    """
    axes = tuple(range(kernel.ndim - per_channel))
    largest = jnp.abs(jax.lax.stop_gradient(kernel)).max(axes, keepdims=True)
    return jnp.where(largest > 0, largest, 1.0)


def norms_of(sites: Sites, params: PyTree, batch_stats: PyTree) -> dict[str, Norm]:
    """Each batch norm as scale and shift: γ / √(var + ε) and β − mean · scale."""
    learned_parts = traverse_util.flatten_dict(params, sep=_SPACE)
    statistics = traverse_util.flatten_dict(batch_stats, sep=_SPACE)
    norms = {}
    for name, epsilon in sites.norms.items():
        scale = jax.lax.rsqrt(statistics[f"{name}/var"] + epsilon)
        scale = scale * learned_parts.get(f"{name}/scale", 1.0)
        bias = learned_parts.get(f"{name}/bias", 0.0)
        norms[name] = Norm(scale, bias - statistics[f"{name}/mean"] * scale)
    return norms


def folded_kernels(
    sites: Sites, params: PyTree, batch_stats: PyTree
) -> dict[str, jax.Array]:
    """Layer -> kernel with its batch norm in it, in float."""
    norms = norms_of(sites, params, batch_stats)
    flat = traverse_util.flatten_dict(params)
    return {
        name: flat[site.path] * (norms[site.norm].scale if site.norm else 1.0)
        for name, site in sites.layers.items()
    }


def folded_bias(
    site: Site, params: PyTree, norms: Mapping[str, Norm]
) -> jax.Array | None:
    """What a layer adds to each channel: its own bias and the shift of its norm."""
    bias = traverse_util.flatten_dict(params).get((*site.path[:-1], "bias"))
    if site.norm is None:
        return bias
    norm = norms[site.norm]
    return norm.shift if bias is None else bias * norm.scale + norm.shift


def run_folded(
    model: nn.Module,
    sites: Sites,
    params: PyTree,
    batch_stats: PyTree,
    features: Float[Array, "b t f"],
    *,
    kernels: Mapping[str, jax.Array],
    on_input: Callable[[Site, jax.Array], jax.Array] = lambda site, x: x,
    train: bool = False,
    rngs: Any = None,
) -> Float[Array, "b k"]:
    """Logits of the network with other kernels and inputs of its layers.

    Args:
      model: the network.
      sites: its layers and norms.
      params: its parameters.
      batch_stats: its running statistics.
      features: what it hears.
      kernels: layer -> kernel, its batch norm in it.
      on_input: (layer, input) -> the input it gets.
      train: whether dropout drops; batch norms use running statistics either way.
      rngs: keys of dropout.
    """
    norms = norms_of(sites, params, batch_stats)
    flat = dict(traverse_util.flatten_dict(params))
    for name, site in sites.layers.items():
        flat[site.path] = kernels[name]
        bias = (*site.path[:-1], "bias")
        if site.norm and bias in flat:
            flat[bias] = flat[bias] * norms[site.norm].scale
    variables = {"params": traverse_util.unflatten_dict(flat)}
    if batch_stats:
        variables["batch_stats"] = batch_stats
    with layers.watch(_Folded(sites, norms, on_input)):
        logits = model.apply(variables, features, train=train, rngs=rngs)
    return cast(jax.Array, logits)


class _Folded(layers.Watcher):
    """Changes inputs, and applies what is left of each batch norm."""

    def __init__(
        self,
        sites: Sites,
        norms: Mapping[str, Norm],
        on_input: Callable[[Site, jax.Array], jax.Array],
    ) -> None:
        self._sites, self._norms, self._on_input = sites, norms, on_input
        self._folded = sites.folded

    def input(self, layer: layers.Layer, x: jax.Array) -> jax.Array:
        site = self._sites.layers.get(layer.name)
        return self._on_input(site, x) if site else x

    def output(self, layer: layers.Layer, y: jax.Array) -> jax.Array:
        return y

    def norm(self, module: nn.BatchNorm, x: jax.Array, call: Any) -> jax.Array:
        name = layers.name_of(module.path)
        norm = self._norms[name]
        return x + norm.shift if name in self._folded else x * norm.scale + norm.shift
