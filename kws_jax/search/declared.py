"""The variables of TC blocks without the blocks: declared, and not computed with.

Names, shapes and initial values are those of `kws_jax.models.blocks.TCBlock`, so that
either finds its variables where the other has left them.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

_KERNEL_INIT = nn.initializers.glorot_uniform()
_ZEROS = nn.initializers.zeros_init()


class Kernel(nn.Module):
    """The weights of a convolution without bias."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self) -> jax.Array:
        """Kernel [*taps, inputs, outputs]."""
        return self.param("kernel", _KERNEL_INIT, self.shape, jnp.float32)


class DenseValues(NamedTuple):
    """The kernel [c, d] and bias [d] of a linear layer."""

    kernel: jax.Array
    bias: jax.Array


class Dense(nn.Module):
    """The weights of a linear layer."""

    inputs: int
    outputs: int

    @nn.compact
    def __call__(self) -> DenseValues:
        """Kernel and bias."""
        shape = (self.inputs, self.outputs)
        kernel = self.param("kernel", _KERNEL_INIT, shape, jnp.float32)
        bias = self.param("bias", _ZEROS, (self.outputs,), jnp.float32)
        return DenseValues(kernel, bias)


class NormValues(NamedTuple):
    """The scale and shift [c] of a batch norm, and its running statistics [c]."""

    scale: jax.Array
    bias: jax.Array
    mean: nn.Variable
    var: nn.Variable


class Norm(nn.Module):
    """The parameters and running statistics of a batch norm."""

    channels: int

    @nn.compact
    def __call__(self) -> NormValues:
        """All four."""
        what = (self.channels,), jnp.float32
        mean = self.variable("batch_stats", "mean", jnp.zeros, *what)
        var = self.variable("batch_stats", "var", jnp.ones, *what)
        scale = self.param("scale", nn.initializers.ones_init(), *what)
        bias = self.param("bias", _ZEROS, *what)
        return NormValues(scale, bias, mean, var)


class SqueezeExciteValues(NamedTuple):
    """The two linear layers of squeeze-and-excitation."""

    squeeze: DenseValues
    excite: DenseValues


class SqueezeExcite(nn.Module):
    """The weights of squeeze-and-excitation."""

    channels: int
    reduction: int

    @nn.compact
    def __call__(self) -> SqueezeExciteValues:
        """Both layers."""
        hidden = max(1, self.channels // self.reduction)
        squeeze = Dense(self.channels, hidden, name="squeeze")()
        return SqueezeExciteValues(
            squeeze, Dense(hidden, self.channels, name="excite")()
        )


class ConvNormValues(NamedTuple):
    """The kernel [k, c, d] of a convolution and the batch norm behind it."""

    kernel: jax.Array
    norm: NormValues


class BlockValues(NamedTuple):
    """The variables of a TC block; None for what it does without."""

    first: ConvNormValues
    second: ConvNormValues
    se: SqueezeExciteValues | None
    shortcut: ConvNormValues | None


class Block(nn.Module):
    """The variables of a TC block.

    Attributes:
      kernel, channels, se, se_reduction: those of TCBlock.
      inputs: channels of the input.
      shortcut_kernel: taps of the convolution beside the block; None without one.
    """

    kernel: int
    inputs: int
    channels: int
    se: bool
    se_reduction: int
    shortcut_kernel: int | None

    @nn.compact
    def __call__(self) -> BlockValues:
        """All variables."""
        c = self.channels
        se = SqueezeExcite(c, self.se_reduction, name="se")() if self.se else None
        shortcut = None
        if self.shortcut_kernel is not None:
            shape = (self.shortcut_kernel, self.inputs, c)
            shortcut = self._conv_norm(shape, "shortcut_conv", "shortcut_bn")
        return BlockValues(
            self._conv_norm((self.kernel, self.inputs, c), "conv1", "bn1"),
            self._conv_norm((self.kernel, c, c), "conv2", "bn2"),
            se,
            shortcut,
        )

    def _conv_norm(
        self, shape: tuple[int, int, int], conv: str, norm: str
    ) -> ConvNormValues:
        return ConvNormValues(
            Kernel(shape, name=conv)(), Norm(self.channels, name=norm)()
        )
