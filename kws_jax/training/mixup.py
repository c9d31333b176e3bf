"""Mixup of waveforms: two clips heard at once, and a label that is both, in shares."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from kws_jax.frontends.registry import as_float

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
) -> dict[str, Array]:
    """Mixes some clips of a batch with others of it: λ·a + (1 - λ)·b, λ ~ Beta(α, α).

    Partners are given by a random permutation of the batch, where the paper draws them
    from the whole set; a clip may be its own partner. Padding neither mixes nor is
    mixed in.

    Args:
      key: PRNG key.
      batch: `audio` int16 or float [b, s], `label` int32 [b], `mask` bool [b], …
      num_labels: k.
      probability: of each clip, to be mixed.
      alpha: of Beta(α, α); at 10, λ lies mostly in 0.3 … 0.7.

    Returns:
      The batch with `audio` float32 [b, s] in [-1, 1], with `target` float32 [b, k],
      the same mixture of the labels, and in `label` that of the louder clip.

    Reference: Zhang et al. 2018, arXiv 1710.09412; on waveforms as in Ng et al. 2022,
    arXiv 2201.05863.
    """
    coin_key, share_key, partner_key = jax.random.split(key, 3)
    label, mask = batch["label"], batch["mask"]
    partner = jax.random.permutation(partner_key, len(label))
    mixed = jax.random.bernoulli(coin_key, probability, label.shape)
    mixed = mixed & mask & mask[partner]
    share = jax.random.beta(share_key, alpha, alpha, label.shape)
    share = jnp.where(mixed, share, 1)[:, None]
    audio = as_float(batch["audio"])
    target = (label[:, None] == jnp.arange(num_labels)[None]).astype(jnp.float32)
    return {
        **batch,
        "audio": share * audio + (1 - share) * audio[partner],
        "target": share * target + (1 - share) * target[partner],
        "label": jnp.where(share[:, 0] >= 0.5, label, label[partner]),
    }


def with_mixup(
    step: Callable[..., Any],
    *,
    num_labels: int,
    probability: float,
    alpha: float,
    until_step: int,
) -> Callable[..., Any]:
    """A step (state, batch, key) that mixes its batch before `step` sees it.

    From `until_step` on (counted from 0, within the stage) no clip is mixed; the
    program stays the same.
    """

    def mixing_step(state: Any, batch: Mapping[str, jax.Array], key: jax.Array) -> Any:
        mixing_key = jax.random.fold_in(jax.random.fold_in(key, _STREAM), state.step)
        chance = jnp.where(state.step < until_step, probability, 0.0)
        mixed = mixup(
            mixing_key, batch, num_labels=num_labels, probability=chance, alpha=alpha
        )
        return step(state, mixed, key)

    return mixing_step
