"""Binary cross-entropy: each label is a yes-or-no question of its own."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int


def sigmoid_cross_entropy(
    logits: Float[Array, "b k"],
    labels: Int[Array, " b"] | Float[Array, "b k"],
    mask: Bool[Array, " b"] | None = None,
    *,
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """The mean over outputs and unmasked examples of -y ln σ(x) - (1-y) ln(1-σ(x)).

    Args:
      logits: x [b, k].
      labels: int [b], or for each label the share of it that is heard, float [b, k].
      mask: bool [b]; False marks padding, which adds nothing to the value or to the
        gradient, whatever its logits are. None takes all examples.
      label_smoothing: α of y = (1 - α)·labels + α/k.

    Returns:
      A scalar (nats), 0 where every example is masked.

    Example:
      >>> sigmoid_cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3]))
      Array(0.6931472, dtype=float32)

    Reference: Ng et al. 2022, arXiv 2201.05863, whose head ends in k sigmoids.
    """
    num_labels = logits.shape[-1]
    if labels.ndim == 1:
        labels = (labels[:, None] == jnp.arange(num_labels)[None]).astype(logits.dtype)
    labels = optax.losses.smooth_labels(labels, label_smoothing)
    if mask is None:
        return optax.losses.sigmoid_binary_cross_entropy(logits, labels).mean()
    # Zeroing the losses alone would let NaN logits of padding through: 0·NaN = NaN.
    logits = jnp.where(mask[:, None], logits, 0)
    losses = optax.losses.sigmoid_binary_cross_entropy(logits, labels).mean(axis=-1)
    return jnp.where(mask, losses, 0).sum() / jnp.maximum(mask.sum(), 1)
