"""ConvMixer: separable convolutions along time and frequency, mixed by small MLPs.

Reference: Ng et al., "ConvMixer: Feature Interactive Convolution with Curriculum
Learning for Small Footprint and Noisy Far-field Keyword Spotting", ICASSP 2022 (arXiv
2201.05863), Fig. 1 and equations (1) to (4).
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kws_jax.models.blocks import Head, batch_norm
from kws_jax.models.layers import (
    PYTORCH_EPSILON,
    PYTORCH_MOMENTUM,
    DepthwiseConv,
    pytorch_init,
    symmetric_padding,
)
from kws_jax.ops.frequency_branch import frequency_branch
from kws_jax.ops.pointwise import pointwise

CHANNELS = 64
STEM_KERNEL, PRE_KERNEL = 5, 7
# (time kernel, frequency kernel, maps of the frequency branch)
BLOCKS = ((9, 5, 64), (11, 5, 32), (13, 7, 16), (15, 7, 8))
# (time kernel, dilation)
POST = ((17, 1), (19, 2), (1, 1))

_dense = functools.partial(nn.Dense, kernel_init=pytorch_init, dot_general=pointwise)
_batch_norm = functools.partial(batch_norm, epsilon=PYTORCH_EPSILON)


@jax.jit
def exact_gelu(x: jax.Array) -> jax.Array:
    """GELU, x Φ(x): a call of its own, so that exporters find it whole."""
    return nn.gelu(x, approximate=False)


class SeparableLayer(nn.Module):
    """depthwise over time → 1×1 to `channels` → BN → swish."""

    channels: int
    kernel: int
    dilation: int = 1
    batch_norm_momentum: float = PYTORCH_MOMENTUM

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t c"], *, train: bool
    ) -> Float[Array, "b t d"]:
        """`channels` channels at the rate of the input."""
        depthwise = DepthwiseConv(
            (self.kernel,),
            dilation=(self.dilation,),
            padding=symmetric_padding((self.kernel,), (self.dilation,)),
            kernel_init=pytorch_init,
            name="depthwise",
        )
        x = _dense(self.channels, use_bias=False, name="pointwise")(depthwise(x))
        norm = _batch_norm(train=train, momentum=self.batch_norm_momentum, name="bn")
        return nn.swish(norm(x))


class PreBlock(nn.Module):
    """x + dropout(layer(layer(x))), the second layer without reach in time."""

    dropout: float = 0.0
    batch_norm_momentum: float = PYTORCH_MOMENTUM

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t c"], *, train: bool
    ) -> Float[Array, "b t c"]:
        """Same shape."""
        y = x
        for i, kernel in enumerate((PRE_KERNEL, 1)):
            y = SeparableLayer(
                x.shape[-1],
                kernel,
                batch_norm_momentum=self.batch_norm_momentum,
                name=f"layer{i}",
            )(y, train=train)
        return x + nn.Dropout(self.dropout, deterministic=not train)(y)


class FrequencyBranch(nn.Module):
    """3×3 to m maps → swish → depthwise along f → swish → 1×1 to one map: Eq. (1).

    Without the batch norm after it, so no value depends on another clip of the batch.
    """

    maps: int
    kernel: int

    @nn.compact
    def __call__(self, x: Float[Array, "b t f"]) -> Float[Array, "b t f"]:
        """Same shape; there is no batch norm inside."""
        shapes = {
            "expand": (3, 3, 1, self.maps),
            "depthwise": (1, self.kernel, 1, self.maps),
            "project": (self.maps, 1),
        }
        kernels = {
            name: self.param(name, pytorch_init, shape)
            for name, shape in shapes.items()
        }
        return frequency_branch(x, **kernels)


class ResidualMLP(nn.Module):
    """x + W₂ GELU(W₁ LN(x) + b₁) + b₂ along the last axis."""

    hidden: int

    @nn.compact
    def __call__(self, x: Float[Array, "b s n"]) -> Float[Array, "b s n"]:
        """Same shape."""
        y = nn.LayerNorm(epsilon=PYTORCH_EPSILON, name="norm")(x)
        y = exact_gelu(_dense(self.hidden, name="dense1")(y))
        return x + _dense(x.shape[-1], name="dense2")(y)


class ConvMixerBlock(nn.Module):
    """x + y₁ + y₃: frequency branch y₁, time branch y₂ on it, mixer y₃ on that.

    The mixer's first MLP goes along time, so its parameters fit one number of frames.
    """

    time_kernel: int
    frequency_kernel: int
    maps: int
    dropout: float = 0.0
    batch_norm_momentum: float = PYTORCH_MOMENTUM

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t c"], *, train: bool
    ) -> Float[Array, "b t c"]:
        """Same shape; equations (1) to (4)."""
        frames, channels = x.shape[1:]
        dropout = nn.Dropout(self.dropout, deterministic=not train)
        norm = _batch_norm(train=train, momentum=self.batch_norm_momentum, name="bn")

        y1 = FrequencyBranch(self.maps, self.frequency_kernel, name="frequency")(x)
        y1 = dropout(nn.swish(norm(y1[..., None])[..., 0]))
        y2 = SeparableLayer(
            channels,
            self.time_kernel,
            batch_norm_momentum=self.batch_norm_momentum,
            name="time",
        )(y1, train=train)
        y3 = jnp.swapaxes(dropout(y2), 1, 2)
        y3 = jnp.swapaxes(ResidualMLP(frames // 4, name="mix_time")(y3), 1, 2)
        y3 = nn.swish(ResidualMLP(channels // 2, name="mix_frequency")(y3))
        return x + y1 + y3


class ConvMixer(nn.Module):
    """Separable layer, pre block, four ConvMixer blocks, three layers, maximum, linear.

    The paper's features are 98 frames of 64 log-mel bands. Trained variables fit the
    number of frames they were initialised with.

    Attributes:
      num_labels: number of classes k.
      channels: c of the blocks; the embedding has 2c entries.
      dropout: share dropped in training after the pre block and the branches of blocks.
      batch_norm_momentum: what the running statistics keep at each step.
    """

    num_labels: int
    channels: int = CHANNELS
    dropout: float = 0.0
    batch_norm_momentum: float = PYTORCH_MOMENTUM

    def setup(self) -> None:
        """Names the layers."""
        layer = functools.partial(
            SeparableLayer, batch_norm_momentum=self.batch_norm_momentum
        )
        self.stem = layer(self.channels, STEM_KERNEL)
        self.pre = PreBlock(self.dropout, self.batch_norm_momentum)
        self.blocks = [
            ConvMixerBlock(*sizes, self.dropout, self.batch_norm_momentum)
            for sizes in BLOCKS
        ]
        self.post = [
            layer(2 * self.channels, kernel, dilation) for kernel, dilation in POST
        ]
        self.head = Head(
            self.num_labels, dropout=0.0, use_bias=True, kernel_init=pytorch_init
        )

    def embed(
        self, features: Float[Array, "b t f"], *, train: bool
    ) -> Float[Array, "b d"]:
        """Embedding of each clip: the last layer's output, maximum over time."""
        x = features
        for layer in (self.stem, self.pre, *self.blocks, *self.post):
            x = layer(x, train=train)
        return jnp.max(x, axis=-2)

    def __call__(
        self, features: Float[Array, "b t f"], *, train: bool
    ) -> Float[Array, "b k"]:
        """Logits; needs mutable batch_stats and, to drop, a "dropout" key."""
        return self.head(self.embed(features, train=train), train=train)
