"""Layers and conventions that networks of several papers share."""

from collections.abc import Sequence

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from kws_jax.ops.depthwise import depthwise_conv
from kws_jax.ops.dilated import dilated_conv

# PyTorch's defaults, for the networks that were published in it. Its momentum 0.1 is
# the share of the new value.
PYTORCH_MOMENTUM, PYTORCH_EPSILON = 0.9, 1e-5
# Kernels U(−1/√n, 1/√n) with n inputs to each output; biases start at 0 here.
pytorch_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def symmetric_padding(
    kernel_size: Sequence[int], dilation: Sequence[int] | None = None
) -> tuple[tuple[int, int], ...]:
    """Zeros (before, after) each axis as PyTorch code pads: as many on both sides.

    At stride 1 this is "SAME" for odd kernels; at stride 2 the two differ by one place
    where the size is even.
    """
    dilation = dilation or (1,) * len(kernel_size)
    reach = [d * (k - 1) // 2 for k, d in zip(kernel_size, dilation, strict=True)]
    return tuple((zeros, zeros) for zeros in reach)


class DepthwiseConv(nn.Module):
    """Depthwise convolution without bias over one or two axes of space.

    Attributes:
      kernel_size: taps for each axis of space; parameter "kernel" [*kernel_size, 1, c].
      strides, dilation, padding: those of `kws_jax.ops.depthwise.depthwise_conv`.
      kernel_init: initialiser; the fan-in of a tap is prod(kernel_size).
    """

    kernel_size: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    dilation: tuple[int, ...] | None = None
    padding: str | Sequence[tuple[int, int]] = "SAME"
    kernel_init: nn.initializers.Initializer = nn.initializers.glorot_uniform()

    @nn.compact
    def __call__(self, x: Float[Array, "b *space c"]) -> jax.Array:
        """Filtered input, same channels."""
        shape = (*self.kernel_size, 1, x.shape[-1])
        kernel = self.param("kernel", self.kernel_init, shape)
        return depthwise_conv(
            x,
            kernel,
            strides=self.strides,
            dilation=self.dilation,
            padding=self.padding,
        )


class DilatedConv(nn.Module):
    """3×3 convolution without bias over images, "SAME" padding.

    Attributes:
      channels: of the output.
      dilation: distance of neighbouring taps along both axes.
      kernel_init: initialiser of parameter "kernel" [3, 3, c, channels].
    """

    channels: int
    dilation: int = 1
    kernel_init: nn.initializers.Initializer = nn.initializers.glorot_uniform()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        """Images of the same size."""
        shape = (3, 3, x.shape[-1], self.channels)
        return dilated_conv(
            x, self.param("kernel", self.kernel_init, shape), self.dilation
        )
