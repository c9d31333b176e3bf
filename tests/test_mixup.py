"""Mixup of waveforms against the formula, with its draws read off the result."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from kws_jax.training import sharding
from kws_jax.training.mixup import mixup, with_mixup
from kws_jax.training.state import create_train_state

CLIPS, LABELS, ALPHA = 400, 4, 10.0
MIX = jax.jit(mixup, static_argnames=("num_labels", "alpha", "mesh"))
MESH = sharding.data_mesh()
MASK = np.arange(CLIPS) % 10 != 3


def batch_of(audio):
    return {
        "audio": jnp.asarray(audio),
        "label": jnp.arange(CLIPS, dtype=jnp.int32) % LABELS,
        "index": jnp.arange(CLIPS, dtype=jnp.int32),
        "mask": jnp.asarray(MASK),
    }


def mixed(audio, probability=0.5):
    return MIX(
        jax.random.key(3),
        batch_of(audio),
        num_labels=LABELS,
        probability=probability,
        alpha=ALPHA,
        mesh=MESH,
    )


@pytest.fixture(scope="module")
def draws():
    """(λ, partner) of each clip: clip i is a single 1/2 at sample i."""
    impulses = (16384 * np.eye(CLIPS)).astype(np.int16)
    audio = 2 * np.asarray(mixed(impulses)["audio"], np.float64)
    share = audio.diagonal().copy()
    others = audio - np.diag(share)
    partner = np.where(others.any(1), others.argmax(1), np.arange(CLIPS))
    # In each row λ and 1 - λ, and nothing else.
    assert ((others != 0).sum(1) <= 1).all()
    np.testing.assert_allclose(audio.sum(1), 1, atol=1e-6)
    return share, partner


def test_shares_and_partners_are_distributed_as_asked(draws):
    share, partner = draws
    shares = share[share < 1]
    kept = MASK.sum()
    # Half of the clips, but for those whose partner is padding: 0.45 on average.
    assert abs(len(shares) / kept - 0.45) < 4 * np.sqrt(0.25 / kept)
    assert (share[~MASK] == 1).all()
    others = partner[share < 1]
    assert MASK[others].all()
    np.testing.assert_array_equal(others, np.flatnonzero(share < 1) ^ 1)
    assert len(set(shares)) == len(shares)


def test_shares_are_of_the_beta_distribution_that_is_asked_for():
    clips = 100_000
    batch = {
        "audio": jnp.zeros((clips, 1)),
        # Of another word than the partner, which is next to it.
        "label": jnp.arange(clips, dtype=jnp.int32) % 2,
        "index": jnp.arange(clips, dtype=jnp.int32),
        "mask": jnp.ones(clips, bool),
    }
    settings = {"num_labels": 2, "probability": 1.0, "alpha": ALPHA, "mesh": MESH}
    target = np.asarray(MIX(jax.random.key(5), batch, **settings)["target"])
    shares = target[np.arange(clips), np.arange(clips) % 2]

    def fit(alpha):
        return stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue

    assert fit(ALPHA) > 0.01
    # So many are told from those of an α near by.
    assert max(fit(0.9 * ALPHA), fit(1.1 * ALPHA)) < 1e-4


def test_audio_and_labels_are_mixed_by_the_formula(draws):
    share, partner = draws
    rng = np.random.default_rng(0)
    audio = rng.integers(-32768, 32768, (CLIPS, CLIPS)).astype(np.int16)
    batch = mixed(audio)
    wave, share = audio / 32768.0, share[:, None]
    expected = share * wave + (1 - share) * wave[partner]
    np.testing.assert_allclose(batch["audio"], expected, atol=1e-6)
    one_hot = np.eye(LABELS)[np.arange(CLIPS) % LABELS]
    target = share * one_hot + (1 - share) * one_hot[partner]
    np.testing.assert_allclose(batch["target"], target, atol=1e-6)
    louder = np.where(share[:, 0] >= 0.5, np.arange(CLIPS), partner)
    np.testing.assert_array_equal(batch["label"], louder % LABELS)
    chex.assert_type([batch["audio"], batch["target"]], jnp.float32)
    for name in ("index", "mask"):
        np.testing.assert_array_equal(batch[name], batch_of(audio)[name])


def test_the_last_of_an_odd_number_is_alone():
    batch = {
        "audio": jnp.eye(5),
        "label": jnp.arange(5),
        "index": jnp.arange(5),
        "mask": jnp.ones(5, bool),
    }
    settings = {"num_labels": 5, "alpha": ALPHA, "mesh": MESH}
    audio = MIX(jax.random.key(0), batch, probability=1.0, **settings)["audio"]
    assert (np.diag(audio) < 1).tolist() == [True] * 4 + [False]
    np.testing.assert_array_equal(audio[4], np.eye(5)[4])


def test_mixup_is_drawn_anew_each_step_and_ends_when_asked():
    def step(state, batch, key):
        return state.replace(step=state.step + 1), batch["target"]

    settings = {"num_labels": LABELS, "probability": 1.0, "alpha": 1.0}
    step = jax.jit(with_mixup(step, **settings, until_step=2, mesh=MESH))
    state = create_train_state({"weights": jnp.zeros(1)}, {}, {})
    batch, found = batch_of(np.zeros((CLIPS, 1), np.int16)), []
    for _ in range(3):
        state, target = step(state, batch, jax.random.key(0))
        found.append(np.asarray(target))
    assert step._cache_size() == 1
    assert (found[0] != found[1]).any()
    assert (found[0].max(1) < 1).any()
    np.testing.assert_array_equal(found[2], np.eye(LABELS)[np.arange(CLIPS) % LABELS])
