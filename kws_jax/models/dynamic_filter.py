"""The lightweight dynamic filter: features cleaned by a filter that each clip chooses.

Reference: Kim et al., "A Lightweight Dynamic Filter for Keyword Spotting", ICASSPW 2023
(arXiv 2109.11165; code: DDonghyeonKim/Lightweight-Dynamic-Filter).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kws_jax.ops.example_conv import example_conv

TAPS, DILATION = 3, 2
# Added to variances; and, by the code of the paper, to the deviation in DIN.
EPSILON, DIN_EPSILON = 1e-3, 1e-5
# Of every tensor, norms and biases too: at first the filter changes next to nothing.
_INIT = nn.initializers.truncated_normal(0.01)


class DynamicFilter(nn.Module):
    """Y = α ⊙ norm(w^P ⊙ (X ∗ w^H)) + β + X, of the size of the features X [t, f].

    h = norm(mean_t(X) W₃ + b₃) over the features of one clip (scale and shift learned).
    Instance level: nine taps w^H = ReLU(h) W₂ + b₂, dilated by two frames and two
    features. Pixel level: a gate for each position, w^P = σ(norm(X ∗ q)), q nine taps
    for all clips, dilated in the same way. Dynamic instance norm (DIN): α = h W₄ and
    β = h W₅, of h before its ReLU. The norms but the first are of each feature over
    time. The paper writes the filter as the sum over nine taps of W^D = w^P ⊗ w^H; that
    outer product [t, f, 9] need not be made.

    5,378 parameters for 40 features, 2,258 without DIN.

    Attributes:
      din: α and β come from the clip; False takes learned ones, the same for all clips
        (as the paper's ablation most likely does; its code does not show it).
    """

    din: bool = True

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
        bands = features.shape[-1]
        context = _dense(bands, name="context")(features.mean(axis=1))
        context = self._affine("context_norm", _standardised(context, axis=-1))
        taps = _dense(TAPS**2, name="taps")(nn.relu(context))
        filtered = self._gate(features) * example_conv(
            features, taps.reshape(-1, TAPS, TAPS), DILATION
        )
        filtered = standardised_by_deviation(filtered)
        if not self.din:
            return features + self._affine("norm", filtered)
        scale = _dense(bands, use_bias=False, name="scale")(context)
        shift = _dense(bands, use_bias=False, name="shift")(context)
        return features + scale[:, None] * filtered + shift[:, None]

    def _gate(self, features: jax.Array) -> jax.Array:
        """w^P, between 0 and 1."""
        taps = self.param("pixel_taps", _INIT, (TAPS, TAPS))
        q = example_conv(features, taps[None], DILATION)
        gate = nn.sigmoid(self._affine("pixel_norm", _standardised(q, axis=1)))
        self.sow("intermediates", "gate", gate)
        return gate

    def _affine(self, name: str, x: jax.Array) -> jax.Array:
        """A learned scale and shift of each feature."""
        shape = x.shape[-1:]
        scale = self.param(f"{name}_scale", _INIT, shape)
        return x * scale + self.param(f"{name}_bias", _INIT, shape)


def _dense(features: int, *, use_bias: bool = True, name: str) -> nn.Dense:
    return nn.Dense(
        features, use_bias=use_bias, kernel_init=_INIT, bias_init=_INIT, name=name
    )


def _standardised(x: jax.Array, axis: int) -> jax.Array:
    """(x − μ) / sqrt(σ² + 0.001) along `axis`; statistics in float32."""
    centred, variance = _centred(x, axis)
    return (centred * jax.lax.rsqrt(variance + EPSILON)).astype(x.dtype)


@jax.jit
def standardised_by_deviation(x: jax.Array) -> jax.Array:
    """(x − μ) / (σ + 0.00001) over time, with a gradient where x does not vary.

    A call of its own, so that exporters find it whole.
    """
    centred, variance = _centred(x, 1)
    # As in digital silence. The root's gradient at 0 would be infinite.
    varies = variance > 0
    deviation = jnp.where(varies, jnp.sqrt(jnp.where(varies, variance, 1.0)), 0.0)
    return (centred / (deviation + DIN_EPSILON)).astype(x.dtype)


def _centred(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    x = x.astype(jnp.float32)
    centred = x - x.mean(axis=axis, keepdims=True)
    return centred, jnp.square(centred).mean(axis=axis, keepdims=True)
