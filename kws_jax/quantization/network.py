"""A network with quantised weights and activations, whatever network it is.

The weights that are quantised are the convolution's own. A batch norm behind it is
trained as ever, on the batch's statistics, and folded in inference: its γ / √(var + ε)
goes into the scale of each channel's integers, its shift into the bias. Quantising the
product W · γ / √(var + ε) with the float network's statistics instead, as Jacob et al.
(CVPR 2018) do at the end of training, left few bits without a chance: with the range
of the largest channel most weights of others are 0, and what they add up to is far from
the statistics that stand still.
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
      per_channel: whether each channel of the output has a scale of its weights, and
        not the whole kernel one.
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

    def quantized_kernels(self, trees: Mapping[str, PyTree]) -> dict[str, jax.Array]:
        """Layer -> its kernel, quantised, without its batch norm."""
        bits = self.bits_of(trees, "weights")
        return {
            name: self._quantize(
                kernel, weight_bound(kernel, self.bits.per_channel), bits[name], True
            )
            for name, kernel in kernels_of(self.sites, trees["weights"]).items()
        }

    def weights_of(
        self, trees: Mapping[str, PyTree], batch_stats: PyTree
    ) -> dict[str, jax.Array]:
        """Layer -> its kernel, quantised, with its batch norm in it."""
        norms = norms_of(self.sites, trees["weights"], batch_stats)
        return with_norms(self.sites, self.quantized_kernels(trees), norms)

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
        *,
        method: str = "__call__",
    ) -> Float[Array, "b k"]:
        """Logits, or what another method gives, with running statistics."""
        return run_folded(
            self.model,
            self.sites,
            trees["weights"],
            batch_stats,
            features,
            kernels=self.weights_of(trees, batch_stats),
            on_input=self._on_input(trees),
            method=method,
        )

    def apply(
        self, variables: PyTree, features: Float[Array, "b t f"], **settings: Any
    ) -> Any:
        """`model.apply` with quantised weights and activations, for training.

        Args:
          variables: those of the model, with `trees` in place of its "params".
          features: what it hears.
          **settings: train, mutable, rngs and others of `model.apply`.
        """
        trees = variables["params"]
        flat = dict(traverse_util.flatten_dict(trees["weights"]))
        for name, kernel in self.quantized_kernels(trees).items():
            flat[self.sites.layers[name].path] = kernel
        variables = {**variables, "params": traverse_util.unflatten_dict(flat)}
        with layers.watch(_Quantized(self.sites, self._on_input(trees))):
            return self.model.apply(variables, features, **settings)

    def _on_input(
        self, trees: Mapping[str, PyTree]
    ) -> Callable[[Site, jax.Array], jax.Array]:
        bits = self.bits_of(trees, "activations")

        def quantize(site: Site, x: jax.Array) -> jax.Array:
            name = site.activation
            bound = jnp.full((1,) * x.ndim, self.activation_bound(trees, name))
            return self._quantize(x, bound, bits[name], self.signed[name])

        return quantize

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
    return with_norms(sites, kernels_of(sites, params), norms)


def kernels_of(sites: Sites, params: PyTree) -> dict[str, jax.Array]:
    """Layer -> its kernel."""
    flat = traverse_util.flatten_dict(params)
    return {name: flat[site.path] for name, site in sites.layers.items()}


def with_norms(
    sites: Sites, kernels: Mapping[str, jax.Array], norms: Mapping[str, Norm]
) -> dict[str, jax.Array]:
    """Layer -> kernel times the scale of its batch norm, if it has one."""
    folded = {}
    for name, kernel in kernels.items():
        norm = sites.layers[name].norm
        folded[name] = kernel * norms[norm].scale if norm else kernel
    return folded


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
    method: str = "__call__",
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
      method: of the network, whose outputs are given in the place of logits.
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
        outputs = model.apply(variables, features, train=False, method=method)
    return cast(jax.Array, outputs)


class _Quantized(layers.Watcher):
    """Changes inputs; batch norms do what they do in the network."""

    def __init__(
        self, sites: Sites, on_input: Callable[[Site, jax.Array], jax.Array]
    ) -> None:
        self._sites, self._on_input = sites, on_input

    def input(self, layer: layers.Layer, x: jax.Array) -> jax.Array:
        site = self._sites.layers.get(layer.name)
        return self._on_input(site, x) if site else x

    def output(self, layer: layers.Layer, y: jax.Array) -> jax.Array:
        return y

    def norm(self, module: nn.BatchNorm, x: jax.Array, call: Any) -> jax.Array:
        return cast(jax.Array, call(x))


class _Folded(_Quantized):
    """Changes inputs, and applies what is left of each batch norm."""

    def __init__(
        self,
        sites: Sites,
        norms: Mapping[str, Norm],
        on_input: Callable[[Site, jax.Array], jax.Array],
    ) -> None:
        super().__init__(sites, on_input)
        self._norms, self._folded = norms, sites.folded

    def norm(self, module: nn.BatchNorm, x: jax.Array, call: Any) -> jax.Array:
        name = layers.name_of(module.path)
        norm = self._norms[name]
        return x + norm.shift if name in self._folded else x * norm.scale + norm.shift
