"""Lightweight convolution as a front filter: few taps over time, which sum to one.

Reference: Wu et al., "Pay Less Attention with Lightweight and Dynamic Convolutions",
ICLR 2019 (arXiv 1901.10430), Fig. 2 and Eq. 1.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from kws_jax.ops.depthwise import depthwise_conv


class LightConv(nn.Module):
    """y[t, c] = Σ_i softmax_i(w[head of c, i]) · x[t + i − k//2, c] over time.

    Neighbouring channels form a head and share their taps. As in the paper the
    convolution stands between a gated linear unit, x = X₁ ⊙ σ(X₂) with both from one
    linear layer, and a linear layer.

    It is probably what Kim et al. compare their dynamic filter with; they say neither
    where it stands nor how large it is. Here it filters the features: 4,976 parameters
    for 40 of them, about as many as the dynamic filter has.

    Attributes:
      kernel_size: frames k; odd.
      heads: into which the features are divided.
      gated: with the linear layers; False is the convolution alone.
      residual: adds the features.
    """

    kernel_size: int = 7
    heads: int = 8
    gated: bool = True
    residual: bool = True

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "b t f"],
        *,
        train: bool,
        epoch: Float[Array, ""] | None = None,
    ) -> Float[Array, "b t f"]:
        """Filtered features. The same in training; `epoch` is not asked."""
        del train, epoch
        bands, init = features.shape[-1], nn.initializers.glorot_uniform()
        x = features
        if self.gated:
            expanded = nn.Dense(2 * bands, kernel_init=init, name="expand")(x)
            value, gate = jnp.split(expanded, 2, axis=-1)
            x = value * nn.sigmoid(gate)
        taps = nn.softmax(self.param("taps", init, (self.heads, self.kernel_size)))
        kernel = jnp.repeat(taps, bands // self.heads, axis=0).T[:, None]
        x = depthwise_conv(x, kernel)
        if self.gated:
            x = nn.Dense(bands, kernel_init=init, name="project")(x)
        return x + features if self.residual else x
