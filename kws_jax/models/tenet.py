"""TENet: inverted bottlenecks along time, with branches that can be fused.

Reference: Li et al., "Small-Footprint Keyword Spotting with Multi-Scale Temporal
Convolution", Interspeech 2020 (code: Interlagos/TENet-kws).
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kws_jax.models.blocks import (
    BATCH_NORM_EPSILON,
    Head,
    Stem,
    batch_norm,
    conv,
    time_pool,
)
from kws_jax.models.layers import DepthwiseConv

PyTree = Any
BATCH_NORM_MOMENTUM = 0.99
BLOCKS = 3
EXPANSION = 3
KERNEL = 9
# Branches of MTConv; the largest is the kernel of the network without.
MTCONV_KERNELS = (3, 5, 7, KERNEL)


class TemporalConv(nn.Module):
    """Σ_k BN_k(depthwise_k(x)): k = 9 alone, or with MTConv the kernels 3, 5, 7, 9."""

    stride: int = 1
    mtconv: bool = False
    batch_norm_momentum: float = BATCH_NORM_MOMENTUM

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t c"], *, train: bool
    ) -> Float[Array, "b s c"]:
        """Same channels, ⌈t / stride⌉ frames."""
        outputs = []
        for kernel in MTCONV_KERNELS if self.mtconv else (KERNEL,):
            filtered = DepthwiseConv((kernel,), (self.stride,), name=f"conv{kernel}")(x)
            norm = batch_norm(
                train=train,
                scale=False,
                momentum=self.batch_norm_momentum,
                name=f"bn{kernel}",
            )
            outputs.append(norm(filtered))
        return sum(outputs[1:], start=outputs[0])


class InvertedBottleneck(nn.Module):
    """1×1 to 3c → BN → ReLU → temporal conv → ReLU → 1×1 to c → BN → + shortcut.

    The shortcut is the identity at stride 1, else 1×1 (stride) → BN. There is no
    activation after the sum.
    """

    stride: int = 1
    mtconv: bool = False
    batch_norm_momentum: float = BATCH_NORM_MOMENTUM

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t c"], *, train: bool
    ) -> Float[Array, "b s c"]:
        """Same channels, ⌈t / stride⌉ frames."""
        channels, momentum = x.shape[-1], self.batch_norm_momentum

        def norm(y: jax.Array, name: str) -> jax.Array:
            return batch_norm(train=train, scale=False, momentum=momentum, name=name)(y)

        y = conv(EXPANSION * channels, 1, name="expand")(x)
        y = nn.relu(norm(y, "expand_bn"))
        temporal = TemporalConv(self.stride, self.mtconv, momentum, name="temporal")
        y = nn.relu(temporal(y, train=train))
        y = norm(conv(channels, 1, name="project")(y), "project_bn")
        if self.stride != 1:
            x = conv(channels, 1, self.stride, name="shortcut_conv")(x)
            x = norm(x, "shortcut_bn")
        return x + y


class TENet(nn.Module):
    """Stem, three blocks of inverted bottlenecks, mean over time, linear layer.

    Attributes:
      num_labels: number of classes k.
      channels: c of all layers; 32, or 16 in the narrow variants.
      depth: inverted bottlenecks, a third of them in each block; 6 or 12.
      mtconv: whether temporal convolutions have four branches, which answer as one
        when they are trained (`fusion`).
      dropout: share of embedding entries dropped in training.
      batch_norm_momentum: what the running statistics keep at each step.
    """

    num_labels: int
    channels: int = 32
    depth: int = 12
    mtconv: bool = False
    dropout: float = 0.5
    batch_norm_momentum: float = BATCH_NORM_MOMENTUM

    def setup(self) -> None:
        """Names the layers; the first of each block halves the frames."""
        momentum = self.batch_norm_momentum
        self.stem = Stem(self.channels, scale=False, batch_norm_momentum=momentum)
        strides = [2] + [1] * (self.depth // BLOCKS - 1)
        self.layers = [
            InvertedBottleneck(stride, self.mtconv, momentum)
            for stride in strides * BLOCKS
        ]
        self.head = Head(self.num_labels, self.dropout)

    def embed(
        self, features: Float[Array, "b t f"], *, train: bool
    ) -> Float[Array, "b d"]:
        """Embedding of each clip: the last layer's output, mean over time."""
        x = self.stem(features, train=train)
        for layer in self.layers:
            x = layer(x, train=train)
        return time_pool(x)

    def __call__(
        self, features: Float[Array, "b t f"], *, train: bool
    ) -> Float[Array, "b k"]:
        """Logits; needs a "dropout" key and mutable batch_stats when training."""
        return self.head(self.embed(features, train=train), train=train)


def fuse_mtconv(variables: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """Variables of the network without MTConv that infers as this one with it does.

    `variables` are those ("params", "batch_stats") of a TENet with `mtconv=True`, or of
    a network that holds one; the result fits the same with `mtconv=False`. Each branch
    is scaled by 1 / sqrt(var + ε), its kernel centred among nine taps, and all are
    summed. Further training would differ, since the fused batch norm has no statistics
    of its own.

    Raises:
      ValueError: the variables are of a network without MTConv.
    """
    params, stats = _fused_within(variables["params"], variables["batch_stats"])
    if params is variables["params"]:
        raise ValueError(f"no layers with MTConv in {sorted(params)}")
    return {**variables, "params": params, "batch_stats": stats}


def _fused_within(params: PyTree, stats: PyTree) -> tuple[PyTree, PyTree]:
    """Both with each "temporal" in them fused; the same ones where there is none."""
    for name, inner in params.items():
        if name not in stats or not isinstance(inner, Mapping):
            continue
        fuse = _fuse if name == "temporal" else _fused_within
        fused = fuse(inner, stats[name])
        if fused[0] is not inner:
            params, stats = params | {name: fused[0]}, stats | {name: fused[1]}
    return params, stats


def _fuse(params: PyTree, stats: PyTree) -> tuple[PyTree, PyTree]:
    if any(f"conv{k}" not in params for k in MTCONV_KERNELS):
        raise ValueError(f"not the branches of MTConv: {sorted(params)}")
    branches = [_folded(params, stats, k) for k in MTCONV_KERNELS]
    kernel = jnp.sum(jnp.stack([kernel for kernel, _ in branches]), axis=0)
    bias = jnp.sum(jnp.stack([bias for _, bias in branches]), axis=0)
    # Statistics under which the remaining batch norm only adds its bias.
    unit = {
        "mean": jnp.zeros_like(bias),
        "var": jnp.full_like(bias, 1 - BATCH_NORM_EPSILON),
    }
    fused = {f"conv{KERNEL}": {"kernel": kernel}, f"bn{KERNEL}": {"bias": bias}}
    return fused, {f"bn{KERNEL}": unit}


def _folded(params: PyTree, stats: PyTree, k: int) -> tuple[jax.Array, jax.Array]:
    """Kernel, widened to nine taps, and bias of the branch of kernel k."""
    scale = jax.lax.rsqrt(stats[f"bn{k}"]["var"] + BATCH_NORM_EPSILON)
    edge = (KERNEL - k) // 2
    taps = jnp.pad(params[f"conv{k}"]["kernel"], ((edge, edge), (0, 0), (0, 0)))
    return taps * scale, params[f"bn{k}"]["bias"] - stats[f"bn{k}"]["mean"] * scale
