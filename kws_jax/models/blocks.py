"""The parts TC-ResNet and the searched networks are built from.

Reference: Choi et al., "Temporal Convolution for Real-time Keyword Spotting on Mobile
Devices", Interspeech 2019; squeeze-and-excitation: Hu et al., CVPR 2018.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kws_jax.models.genotype import SHORTCUTS
from kws_jax.ops.pointwise import pointwise_conv

BATCH_NORM_MOMENTUM, BATCH_NORM_EPSILON = 0.997, 1e-3
STEM_KERNEL = 3


def conv(channels: int, kernel: int, stride: int = 1, *, name: str) -> nn.Conv:
    """A convolution over time: SAME padding, no bias, Glorot-uniform weights."""
    return nn.Conv(
        channels,
        (kernel,),
        strides=(stride,),
        padding="SAME",
        use_bias=False,
        kernel_init=nn.initializers.glorot_uniform(),
        conv_general_dilated=pointwise_conv if kernel == 1 else None,
        name=name,
    )


def batch_norm(
    *,
    train: bool,
    affine: bool = True,
    scale: bool = True,
    momentum: float = BATCH_NORM_MOMENTUM,
    epsilon: float = BATCH_NORM_EPSILON,
    name: str,
) -> nn.BatchNorm:
    """Batch norm over all axes but the channels.

    `affine` adds the learned scale and shift, of which `scale=False` leaves the shift.
    `momentum` is what the running statistics keep at each training step.
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=momentum,
        epsilon=epsilon,
        use_scale=affine and scale,
        use_bias=affine,
        name=name,
    )


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from its mean over time.

    y = x · σ(W₂ ReLU(W₁ mean_t(x) + b₁) + b₂), with c / `reduction` hidden units.
    """

    reduction: int = 4

    @nn.compact
    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b t c"]:
        """Gated input, same shape."""
        channels = x.shape[-1]
        init = nn.initializers.glorot_uniform()
        hidden = nn.Dense(
            max(1, channels // self.reduction), kernel_init=init, name="squeeze"
        )(x.mean(axis=-2))
        gate = nn.Dense(channels, kernel_init=init, name="excite")(nn.relu(hidden))
        return x * nn.sigmoid(gate)[..., None, :]


class TCBlock(nn.Module):
    """Residual block of two temporal convolutions (papers: TC-ResNet; AutoKWS, Fig. 2).

    conv (stride) → BN → ReLU → conv → BN → [SE] → + shortcut → ReLU. The shortcut is
    the identity where shape allows it, else conv (stride) → BN → ReLU, whose kernel is
    1 ("1x1", as in TC-ResNet) or the block's own ("jx1", as AutoKWS draws it).
    """

    kernel: int
    channels: int
    stride: int = 1
    se: bool = False
    se_reduction: int = 4
    shortcut: str = "1x1"
    batch_norm_momentum: float = BATCH_NORM_MOMENTUM

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t c"], *, train: bool
    ) -> Float[Array, "b s d"]:
        """Output of `channels` channels and ⌈t / stride⌉ frames."""
        if self.shortcut not in SHORTCUTS:
            raise ValueError(f"shortcut must be in {SHORTCUTS}, got {self.shortcut!r}")

        def norm(y: jax.Array, name: str) -> jax.Array:
            return batch_norm(
                train=train,
                momentum=self.batch_norm_momentum,
                name=name,
            )(y)

        y = conv(self.channels, self.kernel, self.stride, name="conv1")(x)
        y = nn.relu(norm(y, "bn1"))
        y = norm(conv(self.channels, self.kernel, name="conv2")(y), "bn2")
        if self.se:
            y = SqueezeExcite(self.se_reduction, name="se")(y)
        if self.stride != 1 or x.shape[-1] != self.channels:
            kernel = 1 if self.shortcut == "1x1" else self.kernel
            x = conv(self.channels, kernel, self.stride, name="shortcut_conv")(x)
            x = nn.relu(norm(x, "shortcut_bn"))
        return nn.relu(x + y)


class Stem(nn.Module):
    """conv (3 frames) → BN → ReLU, from features to channels."""

    channels: int
    scale: bool = True
    batch_norm_momentum: float = BATCH_NORM_MOMENTUM

    @nn.compact
    def __call__(
        self, features: Float[Array, "b t f"], *, train: bool
    ) -> Float[Array, "b t c"]:
        """`channels` channels at the rate of the features."""
        x = conv(self.channels, STEM_KERNEL, name="conv")(features)
        norm = batch_norm(
            train=train,
            scale=self.scale,
            momentum=self.batch_norm_momentum,
            name="bn",
        )
        return nn.relu(norm(x))


class Head(nn.Module):
    """Dropout and a linear layer, from embedding to logits."""

    num_labels: int
    dropout: float = 0.5
    use_bias: bool = False
    kernel_init: nn.initializers.Initializer = nn.initializers.glorot_uniform()

    @nn.compact
    def __call__(
        self, embedding: Float[Array, "b d"], *, train: bool
    ) -> Float[Array, "b k"]:
        """Logits; dropout draws from the "dropout" key stream when training."""
        x = nn.Dropout(self.dropout, deterministic=not train)(embedding)
        return nn.Dense(
            self.num_labels,
            use_bias=self.use_bias,
            kernel_init=self.kernel_init,
            name="linear",
        )(x)


def time_pool(x: Float[Array, "b t c"]) -> Float[Array, "b c"]:
    """Mean over time: the embedding of a clip."""
    return jnp.mean(x, axis=-2)
