"""Mixup of waveforms: two clips heard at once, and a label that is both, in shares."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, PRNGKeyArray

from kws_jax.frontends.registry import as_float
from kws_jax.training import sharding

# Folded into a stage's key for the draws made here. No step has this number, so they
# are independent of all that is drawn by the key of a step.
_STREAM = 2**32 - 1


def mixup(
    key: PRNGKeyArray,
    batch: Mapping[str, jax.Array],
    *,
    num_labels: int,
    probability: float | jax.Array,
    alpha: float,
    mesh: Mesh,
) -> dict[str, Array]:
    """Mixes some clips of a batch with others of it: λ·a + (1 - λ)·b, λ ~ Beta(α, α).

    Rows 2i and 2i + 1 are partners, and the last of an odd number is alone. Batches are
    pieces of a random permutation, so a partner is a clip that is drawn at random, as
    in the paper; and devices that have an even number of rows need none of the others'.
    Padding neither mixes nor is mixed in.

    Args:
      key: PRNG key.
      batch: `audio` int16 or float [b, s], `label` int32 [b], `mask` bool [b], …
      num_labels: k.
      probability: of each clip, to be mixed.
      alpha: of Beta(α, α); at 10, λ lies mostly in 0.3 … 0.7.
      mesh: over which the batch is split.

    Returns:
      The batch with `audio` float32 [b, s] in [-1, 1], with `target` float32 [b, k],
      the same mixture of the labels, and in `label` that of the louder clip.

    Reference: Zhang et al. 2018, arXiv 1710.09412; on waveforms as in Ng et al. 2022,
    arXiv 2201.05863.
    """
    coin_key, share_key = jax.random.split(key)
    label, mask = batch["label"], batch["mask"]
    mixed = jax.random.bernoulli(coin_key, probability, label.shape)
    mixed = mixed & mask & _partners(mask)
    share = jax.random.beta(share_key, alpha, alpha, label.shape)
    share = sharding.keep_whole(share, mesh)
    share = jnp.where(mixed, share, 1)[:, None]
    audio = as_float(batch["audio"])
    target = (label[:, None] == jnp.arange(num_labels)[None]).astype(jnp.float32)
    return {
        **batch,
        "audio": share * audio + (1 - share) * _partners(audio),
        "target": share * target + (1 - share) * _partners(target),
        "label": jnp.where(share[:, 0] >= 0.5, label, _partners(label)),
    }


def _partners(values: jax.Array) -> jax.Array:
    """Rows [b, …], each in the place of its partner."""
    pairs = len(values) // 2
    rows = values[: 2 * pairs]
    swapped = rows.reshape(pairs, 2, *values.shape[1:])[:, ::-1].reshape(rows.shape)
    return jnp.concatenate([swapped, values[2 * pairs :]])


def with_mixup(
    step: Callable[..., Any],
    *,
    num_labels: int,
    probability: float,
    alpha: float,
    until_step: int,
    mesh: Mesh,
) -> Callable[..., Any]:
    """A step (state, batch, key) that mixes its batch before `step` sees it.

    From `until_step` on (counted from 0, within the stage) no clip is mixed; the
    program stays the same.
    """

    def mixing_step(state: Any, batch: Mapping[str, jax.Array], key: jax.Array) -> Any:
        mixing_key = jax.random.fold_in(jax.random.fold_in(key, _STREAM), state.step)
        chance = jnp.where(state.step < until_step, probability, 0.0)
        mixed = mixup(
            mixing_key,
            batch,
            num_labels=num_labels,
            probability=chance,
            alpha=alpha,
            mesh=mesh,
        )
        return step(state, mixed, key)

    return mixing_step
