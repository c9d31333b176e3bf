import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kws_jax.errors import UserError
from kws_jax.frontends.spec_augment import spec_augment

pytestmark = pytest.mark.usefixtures("strict_ranks")


def runs(masked: np.ndarray) -> list[tuple[int, int]]:
    """(start, length) of each run of True in a bool [n]."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], masked, [0]])))
    return [(int(a), int(b - a)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def masked_lines(features, axis: int) -> np.ndarray:
    """bool [b, n]: lines along time (axis 1) or frequency (axis 2) that are all -7."""
    return np.all(np.asarray(features) == -7, axis=3 - axis)


def test_every_example_gets_one_stripe_of_an_allowed_width_per_axis():
    features = jnp.zeros((400, 30, 20))
    augment = jax.jit(
        lambda key: spec_augment(
            key, features, time_width=6, frequency_width=4, min_width=1, fill=-7.0
        )
    )
    augmented = augment(jax.random.key(0))
    assert set(np.unique(augmented)) == {-7.0, 0.0}
    in_time, in_frequency = masked_lines(augmented, 1), masked_lines(augmented, 2)
    expected = in_time[:, :, None] | in_frequency[:, None, :]
    np.testing.assert_array_equal(np.asarray(augmented) == -7, expected)
    for lines, size, widest in ((in_time, 30, 6), (in_frequency, 20, 4)):
        stripes = [runs(line) for line in lines]
        assert all(len(stripe) == 1 for stripe in stripes)
        starts, lengths = np.array(stripes)[:, 0].T
        assert set(starts) == set(range(size))
        inside = starts + widest <= size
        counts = np.bincount(lengths[inside], minlength=widest + 1)
        assert counts[0] == 0
        # Each width has probability 1/widest: within five standard deviations.
        share, n = 1 / widest, inside.sum()
        spread = 5 * np.sqrt(n * share * (1 - share))
        np.testing.assert_allclose(counts[1:], n * share, atol=spread)


def test_width_zero_leaves_some_examples_whole_and_stripes_can_be_several():
    features = jnp.ones((200, 50, 3))
    augmented = spec_augment(
        jax.random.key(1),
        features,
        time_masks=2,
        time_width=1,
        frequency_masks=0,
        fill=-7.0,
    )
    counts = masked_lines(augmented, 1).sum(axis=1)
    assert set(counts) == {0, 1, 2}


def test_draws_depend_on_the_key_alone():
    features = jnp.ones((8, 20, 20))
    first, again, other = (
        np.asarray(spec_augment(jax.random.key(seed), features)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_without_masks_features_are_unchanged():
    features = jax.random.normal(jax.random.key(2), (2, 5, 4))
    same = spec_augment(jax.random.key(0), features, time_masks=0, frequency_masks=0)
    np.testing.assert_array_equal(same, features)


def test_contradicting_widths_are_an_error():
    with pytest.raises(UserError, match="min_width=5"):
        spec_augment(jax.random.key(0), jnp.ones((1, 9, 9)), time_width=4, min_width=5)
