"""The layer of a supernet with candidates of one kernel size computed together."""

import itertools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kws_jax.models.blocks import BATCH_NORM_EPSILON
from kws_jax.models.genotype import SHORTCUTS, SKIP, parse_operation
from kws_jax.models.searched import MixedLayer
from kws_jax.ops.norm_relu import Norm, norm_relu, residual_sum
from kws_jax.ops.side_by_side import own_conv, shared_conv
from kws_jax.search.declared import (
    Block,
    BlockValues,
    ConvNormValues,
    NormValues,
    SqueezeExciteValues,
)


class MergedLayer(MixedLayer):
    """What MixedLayer computes, from the same variables, in fewer operations.

    The n blocks of one kernel size stand side by side in arrays [b, t, n, c]: their
    first convolutions are one convolution; batch norms, gates, residual sums and the
    weighted sum act on all at once. All sizes in one array, short kernels among zeros,
    was no faster, and multiplies with the zeros.
    """

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t c"],
        weights: Float[Array, " o"] | None = None,
        *,
        train: bool,
    ) -> Float[Array, "b s d"]:
        """The weighted sum, or the plain sum where `weights` is None."""
        if self.shortcut not in SHORTCUTS:
            raise ValueError(f"shortcut must be in {SHORTCUTS}, got {self.shortcut!r}")
        if weights is None:
            weights = jnp.ones(len(self.operations))
        places = {name: place for place, name in enumerate(self.operations)}
        parts = []
        if SKIP in places:
            skip = weights[places[SKIP]] * self._skip(x, train=train)
            parts.append(skip.astype(x.dtype))
        for group in _by_kernel(self.operations):
            blocks = [self._declare(name, x.shape[-1]) for name in group]
            share = weights[jnp.array([places[name] for name in group])]
            parts.append(self._blocks(blocks, x, share, train=train))
        return sum(parts[1:], start=parts[0])

    def _declare(self, operation: str, inputs: int) -> BlockValues:
        kernel, se = parse_operation(operation)
        shortcut = None
        if self.stride != 1 or inputs != self.channels:
            shortcut = 1 if self.shortcut == "1x1" else kernel
        return Block(
            kernel,
            inputs,
            self.channels,
            se=se,
            se_reduction=self.se_reduction,
            shortcut_kernel=shortcut,
            name=operation,
        )()

    def _blocks(
        self,
        blocks: list[BlockValues],
        x: jax.Array,
        weights: Float[Array, " n"],
        *,
        train: bool,
    ) -> Float[Array, "b s d"]:
        """Weighted sum of the outputs of blocks of one kernel size."""
        y = self._conv_norm_relu([block.first for block in blocks], x, train=train)
        y = own_conv(y, [block.second.kernel for block in blocks])
        norm = self._norm([block.second.norm for block in blocks], y, train=train)
        values = [block.se for block in blocks if block.se is not None]
        if values:
            norm = _gated(norm, values, y)
        shortcuts = [block.shortcut for block in blocks if block.shortcut is not None]
        if shortcuts:
            shortcut = self._conv_norm_relu(shortcuts, x, train=train)
        else:
            shortcut = x[:, :, None]
        return residual_sum(y, norm, shortcut, weights)

    def _conv_norm_relu(
        self, values: Sequence[ConvNormValues], x: jax.Array, *, train: bool
    ) -> Float[Array, "b s n d"]:
        y = shared_conv(x, [value.kernel for value in values], self.stride)
        norm = self._norm([value.norm for value in values], y, train=train)
        return norm_relu(y, norm)

    def _norm(self, norms: Sequence[NormValues], x: jax.Array, *, train: bool) -> Norm:
        """flax.linen.BatchNorm of x [b, t, n, c], with its moving statistics."""
        scale = jnp.stack([norm.scale for norm in norms])
        bias = jnp.stack([norm.bias for norm in norms])
        if train:
            # at least in float32; over time first, as squeeze-and-excitation wants
            x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
            mean = x.mean(axis=1).mean(axis=0)
            var = jnp.maximum(0.0, (x * x).mean(axis=1).mean(axis=0) - mean * mean)
            if not self.is_initializing():
                self._move(norms, mean, var)
        else:
            mean = jnp.stack([norm.mean.value for norm in norms])
            var = jnp.stack([norm.var.value for norm in norms])
        scale = scale * jax.lax.rsqrt(var + BATCH_NORM_EPSILON)
        return Norm(mean, scale, bias.astype(scale.dtype))

    def _move(
        self, norms: Sequence[NormValues], mean: jax.Array, var: jax.Array
    ) -> None:
        keep = self.batch_norm_momentum
        for n, norm in enumerate(norms):
            norm.mean.value = keep * norm.mean.value + (1 - keep) * mean[n]
            norm.var.value = keep * norm.var.value + (1 - keep) * var[n]


def _by_kernel(operations: Sequence[str]) -> list[list[str]]:
    """The blocks of each kernel size, those with squeeze-and-excitation last."""
    blocks = [name for name in operations if name != SKIP]
    ordered = sorted(blocks, key=parse_operation)
    groups = itertools.groupby(ordered, lambda name: parse_operation(name)[0])
    return [list(names) for _, names in groups]


def _gated(
    norm: Norm, values: Sequence[SqueezeExciteValues], y: Float[Array, "b t n c"]
) -> Norm:
    """A batch norm of `y`, with squeeze-and-excitation behind the last of n blocks."""
    b, plain, channels = len(y), y.shape[2] - len(values), y.shape[3]
    # the mean over time of what the norm makes of y
    pooled = (y.mean(axis=1) - norm.mean) * norm.scale + norm.bias
    gates = _gates(values, pooled[:, plain:].astype(y.dtype))
    gate = jnp.concatenate([jnp.ones((b, plain, channels), y.dtype), gates], axis=1)
    return Norm(norm.mean, norm.scale * gate, norm.bias * gate)


def _gates(
    values: Sequence[SqueezeExciteValues], pooled: Float[Array, "b n c"]
) -> Float[Array, "b n c"]:
    """σ(W₂ ReLU(W₁ x + b₁) + b₂) of each block."""
    squeeze, excite = jax.tree.map(lambda *leaves: jnp.stack(leaves), *values)
    hidden = jnp.einsum("bnc,nch->bnh", pooled, squeeze.kernel) + squeeze.bias
    gate = jnp.einsum("bnh,nhc->bnc", nn.relu(hidden), excite.kernel) + excite.bias
    return nn.sigmoid(gate)
