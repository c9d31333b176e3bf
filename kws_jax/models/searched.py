"""Networks of the AutoKWS space: the searched network and the layers it is made of.

Reference: Zhang et al., "AutoKWS: Keyword Spotting with Differentiable Architecture
Search", ICASSP 2021 (arXiv 2009.03658), Fig. 2 and 3.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kws_jax.models.blocks import BATCH_NORM_MOMENTUM, Head, Stem, TCBlock, time_pool
from kws_jax.models.genotype import SKIP, Genotype, parse_operation


class MixedLayer(nn.Module):
    """Σ_o w_o · o(x) over the operations o of a layer.

    A searched network sums the few operations it has kept; a supernet weighs all
    candidates. Parameters of operation o stand under its name in both.

    Attributes:
      operations: names such as "C5SE" or "SKIP".
      channels, stride, shortcut, se_reduction, batch_norm_momentum: those of
        TCBlock.
      skip_noise: in training, the output of SKIP gets Gaussian noise whose standard
        deviation is this many times that of the layer's input (NoisyDARTS).
    """

    operations: tuple[str, ...]
    channels: int
    stride: int = 1
    shortcut: str = "1x1"
    se_reduction: int = 4
    skip_noise: float = 0.0
    batch_norm_momentum: float = BATCH_NORM_MOMENTUM

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t c"],
        weights: Float[Array, " o"] | None = None,
        *,
        train: bool,
    ) -> Float[Array, "b s d"]:
        """The weighted sum, or the plain sum where `weights` is None."""
        outputs = [self._apply(o, x, train=train) for o in self.operations]
        if weights is not None:
            # The weights differ little: only their products may be rounded.
            outputs = [
                (w * y).astype(y.dtype) for w, y in zip(weights, outputs, strict=True)
            ]
        return sum(outputs[1:], start=outputs[0])

    def _apply(self, operation: str, x: jax.Array, *, train: bool) -> jax.Array:
        if operation == SKIP:
            return self._skip(x, train=train)
        kernel, se = parse_operation(operation)
        return TCBlock(
            kernel,
            self.channels,
            self.stride,
            se=se,
            se_reduction=self.se_reduction,
            shortcut=self.shortcut,
            batch_norm_momentum=self.batch_norm_momentum,
            name=operation,
        )(x, train=train)

    def _skip(self, x: jax.Array, *, train: bool) -> jax.Array:
        if not train or not self.skip_noise:
            return x
        scale = self.skip_noise * jax.lax.stop_gradient(jnp.std(x))
        return x + scale * jax.random.normal(self.make_rng("noise"), x.shape, x.dtype)


class SearchedTCNet(nn.Module):
    """The network that a genotype describes: stem, its layers, mean over time, linear.

    Attributes:
      num_labels: number of classes k.
      genotype: operations, strides and channels of the layers.
      dropout: share of embedding entries dropped in training.
      batch_norm_momentum: what the running statistics keep at each step.
    """

    num_labels: int
    genotype: Genotype
    dropout: float = 0.5
    batch_norm_momentum: float = BATCH_NORM_MOMENTUM

    def setup(self) -> None:
        """Names the layers."""
        genotype = self.genotype
        self.stem = Stem(
            genotype.stem_channels, batch_norm_momentum=self.batch_norm_momentum
        )
        self.layers = [
            MixedLayer(
                operations,
                channels,
                stride,
                shortcut=genotype.shortcut,
                se_reduction=genotype.se_reduction,
                batch_norm_momentum=self.batch_norm_momentum,
            )
            for operations, channels, stride in zip(
                genotype.layers, genotype.channels, genotype.strides, strict=True
            )
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
