"""The supernet: all networks of a search space at once, with shared weights.

Reference: Liu et al., "DARTS", ICLR 2019 (arXiv 1806.09055), as AutoKWS uses it.
"""

from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from kws_jax.models.blocks import BATCH_NORM_MOMENTUM, Head, Stem, time_pool
from kws_jax.models.searched import MixedLayer
from kws_jax.search.merged import MergedLayer
from kws_jax.search.space import SearchSpace


class SuperNet(nn.Module):
    """Stem, layers of weighted candidates, mean over time, linear layer.

    Attributes:
      num_labels: number of classes k.
      space: the candidates of each layer.
      dropout: share of embedding entries dropped in training.
      skip_noise: NoisyDARTS' noise on SKIP, relative to its input's deviation.
      batch_norm_momentum: what the running statistics keep at each step.
    """

    num_labels: int
    space: SearchSpace = SearchSpace()
    dropout: float = 0.5
    skip_noise: float = 0.0
    batch_norm_momentum: float = BATCH_NORM_MOMENTUM
    # MixedLayer computes the same, one candidate after the other.
    layer: ClassVar[type[MixedLayer]] = MergedLayer

    def setup(self) -> None:
        """Names the layers."""
        space = self.space
        self.stem = Stem(
            space.stem_channels, batch_norm_momentum=self.batch_norm_momentum
        )
        self.layers = [
            self.layer(
                operations,
                channels,
                stride,
                shortcut=space.shortcut,
                se_reduction=space.se_reduction,
                skip_noise=self.skip_noise,
                batch_norm_momentum=self.batch_norm_momentum,
            )
            for operations, channels, stride in zip(
                space.candidates, space.channels, space.strides, strict=True
            )
        ]
        self.head = Head(self.num_labels, self.dropout)

    def __call__(
        self,
        features: Float[Array, "b t f"],
        op_weights: Sequence[Float[Array, " o"]],
        *,
        train: bool,
    ) -> Float[Array, "b k"]:
        """Logits. `op_weights` weighs each layer's candidates, in the space's order.

        Training needs mutable batch_stats, a "dropout" key and, with `skip_noise`, a
        "noise" key.
        """
        x = self.stem(features, train=train)
        for layer, weights in zip(self.layers, op_weights, strict=True):
            x = layer(x, weights, train=train)
        return self.head(time_pool(x), train=train)
