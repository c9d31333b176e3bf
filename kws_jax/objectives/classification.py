"""Cross-entropy over the labels, exact for batches with padding."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int


def softmax_cross_entropy(
    logits: Float[Array, "b k"],
    labels: Int[Array, " b"] | Float[Array, "b k"],
    mask: Bool[Array, " b"] | None = None,
    *,
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """The mean cross-entropy (nats) of the examples that are not masked.

    Args:
      logits: [b, k].
      labels: int [b], or a distribution over the labels, float [b, k].
      mask: bool [b]; False marks padding, which adds nothing to the value or to the
        gradient, whatever its logits are. None takes all examples.
      label_smoothing: α of (1 - α)·labels + α/k.

    Returns:
      A scalar, 0 where every example is masked.

    Example:
      >>> softmax_cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3]))
      Array(1.3862944, dtype=float32)
    """
    if mask is None:
        return per_example(logits, labels, label_smoothing=label_smoothing).mean()
    # Zeroing the losses alone would let NaN logits of padding through: 0·NaN = NaN.
    logits = jnp.where(mask[:, None], logits, 0)
    losses = per_example(logits, labels, label_smoothing=label_smoothing)
    return jnp.where(mask, losses, 0).sum() / jnp.maximum(mask.sum(), 1)


def per_example(
    logits: Float[Array, "b k"],
    labels: Int[Array, " b"] | Float[Array, "b k"],
    *,
    label_smoothing: float = 0.0,
) -> Float[Array, " b"]:
    """The cross-entropy -Σ_k y_k ln softmax(logits)_k (nats) of each example.

    Args:
      logits: [b, k].
      labels: int [b], or a distribution over the labels, float [b, k].
      label_smoothing: α of y = (1 - α)·labels + α/k.

    Returns:
      [b].

    Reference: Szegedy et al. 2016, arXiv 1512.00567, section 7, for label smoothing.
    """
    if labels.ndim == 1 and not label_smoothing:
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    if labels.ndim == 1:
        num_labels = logits.shape[-1]
        labels = (labels[:, None] == jnp.arange(num_labels)[None]).astype(logits.dtype)
    labels = optax.losses.smooth_labels(labels, label_smoothing)
    return optax.losses.softmax_cross_entropy(logits, labels)
