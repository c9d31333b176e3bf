"""res15: dilated 3×3 convolutions over time and frequency, with residual sums.

Reference: Tang and Lin, "Deep Residual Learning for Small-Footprint Keyword Spotting",
ICASSP 2018 (code: castorini/honk). López-Espejo, Tan and Jensen train its embedding
with the (C_{N,2}+1)-pair loss, TASLP 29, 2021.
"""

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from kws_jax.models.blocks import Head, batch_norm
from kws_jax.models.layers import (
    PYTORCH_EPSILON,
    PYTORCH_MOMENTUM,
    DilatedConv,
    pytorch_init,
)

# of the convolutions after the first, in both axes
DILATIONS = (1, 1, 1, 2, 2, 2, 4, 4, 4, 8, 8, 8, 16)


class Res15Body(nn.Module):
    """conv 3×3 → ReLU, then 13 times: dilated conv 3×3 → ReLU [→ + residual] → BN.

    The residual is added at each second convolution; it is the last such sum (at first
    the output of the first convolution), before its batch norm. No layer has a bias
    and the batch norms learn nothing.
    """

    maps: int = 45
    batch_norm_momentum: float = PYTORCH_MOMENTUM

    @nn.compact
    def __call__(
        self, image: Float[Array, "b t f 1"], *, train: bool
    ) -> Float[Array, "b t f c"]:
        """`maps` maps of the size of the image."""
        x = residual = nn.relu(self._conv(1, "conv0")(image))
        for i, dilation in enumerate(DILATIONS, start=1):
            x = nn.relu(self._conv(dilation, f"conv{i}")(x))
            if i % 2 == 0:
                x = residual = x + residual
            x = self._norm(x, f"bn{i}", train=train)
        return x

    def _conv(self, dilation: int, name: str) -> DilatedConv:
        return DilatedConv(self.maps, dilation, kernel_init=pytorch_init, name=name)

    def _norm(self, x: jax.Array, name: str, *, train: bool) -> jax.Array:
        return batch_norm(
            train=train,
            affine=False,
            momentum=self.batch_norm_momentum,
            epsilon=PYTORCH_EPSILON,
            name=name,
        )(x)


class Res15(nn.Module):
    """Fourteen convolutions, mean over time and frequency, linear layer.

    Attributes:
      num_labels: number of classes k.
      maps: channels of all layers and entries d of the embedding; 45, narrow 19.
      batch_norm_momentum: what the running statistics keep at each step.
    """

    num_labels: int
    maps: int = 45
    batch_norm_momentum: float = PYTORCH_MOMENTUM

    def setup(self) -> None:
        """Names the layers."""
        self.body = Res15Body(self.maps, self.batch_norm_momentum)
        self.head = Head(
            self.num_labels, dropout=0.0, use_bias=True, kernel_init=pytorch_init
        )

    def embed(
        self, features: Float[Array, "b t f"], *, train: bool
    ) -> Float[Array, "b d"]:
        """Embedding of each clip: the body's mean over time and frequency."""
        return self.body(features[..., None], train=train).mean(axis=(1, 2))

    def __call__(
        self, features: Float[Array, "b t f"], *, train: bool
    ) -> Float[Array, "b k"]:
        """Logits; needs mutable batch_stats when training."""
        return self.head(self.embed(features, train=train), train=train)
