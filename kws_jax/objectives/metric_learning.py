"""Losses on the distances of embeddings of tuples: (C_{N,2}+1)-pair and its siblings.

A tuple of N classes has N + 1 embeddings: an anchor a and a positive p of one class,
and a negative of each other class. With a as the embedding of its class, E_1 … E_N are
one embedding for each class.

Reference: López-Espejo, Tan and Jensen, "A Novel Loss Function and Training Strategy
for Noise-Robust Keyword Spotting", IEEE/ACM TASLP 29, 2021.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Embeddings = Float[Array, "*batch d"]
# Two of them are broadcast against each other.
Others = Float[Array, "*#batch d"]
# tuples [m, N + 1, d], distance, λ or None, scale -> losses [m]
TupleLoss = Callable[..., Float[Array, " m"]]


def cn2_pair_loss(
    tuples: Float[Array, "m r d"],
    *,
    distance: str,
    weight: float | None = None,
    scale: float = 1.0,
) -> Float[Array, " m"]:
    """softplus(D(a, p) − λ Σ_{j<k} D(E_j, E_k)), the (C_{N,2}+1)-pair loss.

    All C(N, 2) distances between classes count, whichever class is the anchor's.

    What λ must be: let m of N classes lie in one heap whose clips are all about as far
    apart, since nothing tells the classes apart yet. The anchor is of the heap in m / N
    of the tuples, and then pulls with weight 1; C(m, 2) distances push with λ. Pushing
    wins, and the heap comes apart, where λ (m − 1) > 2 / N. Of λ = c / C(N, 2) that
    takes m > 1 + (N − 1) / c: with c = 1 every heap holds. Where c is large all tuples
    lie down the softplus' tail, and the few that do not have all of the gradient; a
    small `scale` keeps them in its linear part.

    Args:
      tuples: anchor, positive and N − 1 negatives of each of m tuples.
      distance: a name of `DISTANCES`.
      weight: λ; None is 1 / C(N, 2), so that the sum is a mean. 1 is the form without
        weight.
      scale: factor of all distances.

    Returns:
      The loss of each tuple.
    """
    classes = jnp.concatenate([tuples[:, :1], tuples[:, 2:]], axis=1)
    pairs = classes.shape[1] * (classes.shape[1] - 1) // 2
    between = DISTANCE_SUMS[distance](classes)
    nearer = _positive(tuples, distance) - between * _or(weight, pairs)
    return jax.nn.softplus(scale * nearer)


def n_pair_loss(
    tuples: Float[Array, "m r d"],
    *,
    distance: str,
    weight: float | None = None,
    scale: float = 1.0,
) -> Float[Array, " m"]:
    """softplus(D(a, p) − λ Σ_j D(a, n_j)): distances from the anchor alone.

    The (C_{N,2}+1)-pair loss without its distances between negatives; in what it
    compares, not in its form, the N-pair loss of Sohn (NeurIPS 2016). `weight` None is
    1 / (N − 1); arguments and result are otherwise those of `cn2_pair_loss`.
    """
    negatives = _negatives(tuples, distance)
    between = negatives.sum(-1) * _or(weight, negatives.shape[-1])
    return jax.nn.softplus(scale * (_positive(tuples, distance) - between))


def triplet_loss(
    tuples: Float[Array, "m r d"],
    *,
    distance: str,
    weight: float | None = None,
    scale: float = 1.0,
) -> Float[Array, " m"]:
    """mean_j softplus(D(a, p) − λ D(a, n_j)): each negative is in a triplet of its own.

    With one negative the other losses fall to this one. `weight` None is 1; arguments
    and result are otherwise those of `cn2_pair_loss`.
    """
    between = _negatives(tuples, distance) * _or(weight, 1)
    nearer = _positive(tuples, distance)[:, None] - between
    return jax.nn.softplus(scale * nearer).mean(-1)


def every_anchor(
    tuples: Float[Array, "m r d"], labels: Int[Array, "m r"]
) -> Float[Array, "n r d"]:
    """Further tuples from the same embeddings: each class lends the anchor in turn.

    The published tuple compares one pair of clips of a class, so of the clips of a
    batch few are ever drawn together. All clips are embedded by then, and the sum over
    the distances between classes is the same whichever class is the anchor's. So each
    tuple is followed by one for each of its classes, whose positive is the clip of that
    class in the next tuple of the batch (cyclically), and whose negatives are the
    tuple's own.

    Args:
      tuples: anchor, positive and N − 1 negatives of each of m ≥ 2 tuples.
      labels: of each, the same N classes in each tuple.

    Returns:
      m (N + 1) tuples, the given ones first.
    """
    classes = jnp.concatenate([tuples[:, :1], tuples[:, 2:]], axis=1)
    order = jnp.argsort(jnp.delete(labels, 1, axis=1, assume_unique_indices=True))
    classes = jnp.take_along_axis(classes, order[..., None], axis=1)
    positives = jnp.roll(classes, -1, axis=0)
    count = classes.shape[1]
    # Row i: i, then all others.
    members = np.array(
        [[i, *(j for j in range(count) if j != i)] for i in range(count)]
    )
    turned = classes[:, members]
    turned = jnp.concatenate(
        [turned[:, :, :1], positives[:, :, None], turned[:, :, 1:]], axis=2
    )
    return jnp.concatenate([tuples, turned.reshape(-1, *tuples.shape[1:])])


def normalise(x: Embeddings) -> Embeddings:
    """Gives x / ‖x‖₂ along the last axis; 0 stays 0, with a finite gradient."""
    length = norm(x)[..., None]
    return x / jnp.where(length > 0, length, 1.0)


def norm(x: Embeddings) -> Float[Array, "*batch"]:
    """‖x‖₂ along the last axis, with gradient 0 at 0."""
    square = (x * x).sum(-1)
    # The root's derivative at 0 is infinite, and infinity times 0 is NaN: the root must
    # not see the 0 in the branch that is not taken either.
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def euclid(x: Others, y: Others) -> Float[Array, "*batch"]:
    """‖x − y‖₂, with gradient 0 where x = y."""
    return norm(x - y)


def squared_euclid(x: Others, y: Others) -> Float[Array, "*batch"]:
    """‖x − y‖₂²."""
    return ((x - y) ** 2).sum(-1)


def cosine(x: Others, y: Others) -> Float[Array, "*batch"]:
    """1 − cos(x, y) = ½ ‖x/‖x‖ − y/‖y‖‖², without the difference of near numbers."""
    return 0.5 * squared_euclid(normalise(x), normalise(y))


def _euclid_sum(classes: Float[Array, "m n d"]) -> Float[Array, " m"]:
    # Not by the Gram matrix, whose differences lose the small distances.
    first, second = np.triu_indices(classes.shape[1], k=1)
    return euclid(classes[:, first], classes[:, second]).sum(-1)


def _squared_euclid_sum(classes: Float[Array, "m n d"]) -> Float[Array, " m"]:
    """Σ_{j<k} ‖E_j − E_k‖² = N Σ_j ‖E_j − Ē‖², with the mean Ē.

    For embeddings of length one it is N² (1 − ‖Ē‖²), and so is twice the sum of cosine
    distances: greatest wherever the mean is 0, for classes that are spread and for two
    opposite heaps alike. The sum of distances that are not squared prefers the former.
    """
    centred = classes - classes.mean(axis=1, keepdims=True)
    return classes.shape[1] * (centred**2).sum((-2, -1))


def _cosine_sum(classes: Float[Array, "m n d"]) -> Float[Array, " m"]:
    return 0.5 * _squared_euclid_sum(normalise(classes))


def _positive(tuples: jax.Array, distance: str) -> jax.Array:
    return DISTANCES[distance](tuples[:, 0], tuples[:, 1])


def _negatives(tuples: jax.Array, distance: str) -> jax.Array:
    """Distances [m, N − 1] of the anchor and each negative."""
    return DISTANCES[distance](tuples[:, :1], tuples[:, 2:])


def _or(weight: float | None, count: int) -> float:
    return 1 / count if weight is None else weight


LOSSES: dict[str, TupleLoss] = {
    "cn2": cn2_pair_loss,
    "npair": n_pair_loss,
    "triplet": triplet_loss,
}
DISTANCES = {"euclid": euclid, "sq_euclid": squared_euclid, "cosine": cosine}
# Σ_{j<k} D(E_j, E_k) of class embeddings [m, N, d], as [m]
DISTANCE_SUMS = {
    "euclid": _euclid_sum,
    "sq_euclid": _squared_euclid_sum,
    "cosine": _cosine_sum,
}
