"""Dynamic convolution as a front filter: each clip mixes its own kernel from a few.

Reference: Chen et al., "Dynamic Convolution: Attention over Convolution Kernels", CVPR
2020 (arXiv 1912.03458).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Features per hidden unit of the attention.
SQUEEZE = 4


class DynamicConv(nn.Module):
    """Y = X ∗ W + b (+ X) over time, W = Σ_n π_n W_n and b = Σ_n π_n b_n.

    π = softmax(FC(ReLU(FC(mean_t(X)))) / τ). The temperature τ falls evenly from
    `temperature` to 1 over the first epochs, and is 1 at inference, so that all kernels
    learn at first. In its paper a batch norm and an activation follow; Kim et al.
    compare their dynamic filter with it and say neither where it stands nor how large
    it is. Here it filters the features in that filter's place, linear and with a
    residual as that is, and norm and activation come behind the first convolution of
    the network. Groups of 4 give 5,414 parameters for 40 features, about as many as
    the dynamic filter has.

    Attributes:
      kernels: how many, n.
      kernel_size: frames; odd.
      groups: into which the features are divided; each output depends on its own.
      residual: adds the features.
      temperature: τ at the start of training, 30 in the paper.
      temperature_epochs: in which it falls, 10 in the paper; 0 has τ = 1 throughout. It
        goes on over stages that follow each other, which should have no fewer, since
        validation and tests have τ = 1.
    """

    kernels: int = 4
    kernel_size: int = 3
    groups: int = 4
    residual: bool = True
    temperature: float = 30.0
    temperature_epochs: float = 10.0

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "b t f"],
        *,
        train: bool,
        epoch: Float[Array, ""] | None = None,
    ) -> Float[Array, "b t f"]:
        """Filtered features; without `epoch` those of a trained filter."""
        del train
        bands = features.shape[-1]
        init = nn.initializers.glorot_uniform(batch_axis=0)
        shape = (self.kernels, self.kernel_size, bands // self.groups, bands)
        kernel = self.param("kernel", init, shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.kernels, bands))
        weights = self._attention(features, epoch)
        mixed = jnp.tensordot(weights, kernel, 1)
        filtered = self._convolved(features, mixed) + (weights @ bias)[:, None]
        return filtered + features if self.residual else filtered

    def _attention(self, features: jax.Array, epoch: jax.Array | None) -> jax.Array:
        """π [b, n]."""
        init = nn.initializers.glorot_uniform()
        hidden = max(1, features.shape[-1] // SQUEEZE)
        squeezed = nn.Dense(hidden, kernel_init=init, name="squeeze")(
            features.mean(axis=1)
        )
        scores = nn.Dense(self.kernels, kernel_init=init, name="attend")(
            nn.relu(squeezed)
        )
        return nn.softmax(scores / self._temperature(epoch)).astype(features.dtype)

    def _temperature(self, epoch: jax.Array | None) -> jax.Array | float:
        if epoch is None or not self.temperature_epochs:
            return 1.0
        left = 1 - jnp.minimum(epoch / self.temperature_epochs, 1)
        return 1 + (self.temperature - 1) * left

    def _convolved(self, x: jax.Array, kernels: jax.Array) -> jax.Array:
        """Filters x [b, t, f] by the kernel [k, f/groups, f] of each example."""
        batch, frames, bands = x.shape
        reach = self.kernel_size // 2
        padded = jnp.pad(x, ((0, 0), (reach, reach), (0, 0)))
        padded = padded.reshape(batch, -1, self.groups, bands // self.groups)
        shifted = [padded[:, i : i + frames] for i in range(self.kernel_size)]
        kernels = kernels.reshape(*kernels.shape[:3], self.groups, -1)
        y = jnp.einsum("btkgi,bkigj->btgj", jnp.stack(shifted, axis=2), kernels)
        return y.reshape(x.shape)
