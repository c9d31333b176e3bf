"""TC-ResNet8 and TC-ResNet14 with width multiplier.

Reference: Choi et al., "Temporal Convolution for Real-time Keyword Spotting on Mobile
Devices", Interspeech 2019 (code: hyperconnect/TC-ResNet).
"""

import flax.linen as nn
from jaxtyping import Array, Float

from kws_jax.models.blocks import BATCH_NORM_MOMENTUM, Head, Stem, TCBlock, time_pool

KERNEL = 9
STEM_CHANNELS = 16
# depth -> (channels, strides) of the blocks at width 1
BLOCKS = {
    8: ((24, 32, 48), (2, 2, 2)),
    14: ((24, 24, 32, 32, 48, 48), (2, 1, 2, 1, 2, 1)),
}


class TCResNet(nn.Module):
    """Stem, three (depth 8) or six (depth 14) TC blocks, mean over time, linear layer.

    Attributes:
      num_labels: number of classes k.
      depth: 8 or 14.
      width: multiplier of all channel counts, rounded down.
      dropout: share of embedding entries dropped in training.
      se: squeeze-and-excitation in every block (not in the paper).
      se_reduction: channels per hidden unit of squeeze-and-excitation.
      batch_norm_momentum: what the running statistics keep at each step.
    """

    num_labels: int
    depth: int = 8
    width: float = 1.0
    dropout: float = 0.5
    se: bool = False
    se_reduction: int = 4
    batch_norm_momentum: float = BATCH_NORM_MOMENTUM

    def setup(self) -> None:
        """Names the layers."""
        channels, strides = BLOCKS[self.depth]
        self.stem = Stem(
            int(STEM_CHANNELS * self.width),
            batch_norm_momentum=self.batch_norm_momentum,
        )
        self.blocks = [
            TCBlock(
                KERNEL,
                int(c * self.width),
                stride,
                se=self.se,
                se_reduction=self.se_reduction,
                batch_norm_momentum=self.batch_norm_momentum,
            )
            for c, stride in zip(channels, strides, strict=True)
        ]
        self.head = Head(self.num_labels, self.dropout)

    def embed(
        self, features: Float[Array, "b t f"], *, train: bool
    ) -> Float[Array, "b d"]:
        """Embedding of each clip: the last block's output, mean over time."""
        x = self.stem(features, train=train)
        for block in self.blocks:
            x = block(x, train=train)
        return time_pool(x)

    def __call__(
        self, features: Float[Array, "b t f"], *, train: bool
    ) -> Float[Array, "b k"]:
        """Logits; needs a "dropout" key and mutable batch_stats when training."""
        return self.head(self.embed(features, train=train), train=train)
