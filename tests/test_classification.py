import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import scipy.special

from kws_jax.objectives.classification import per_example, softmax_cross_entropy

pytestmark = pytest.mark.usefixtures("strict_ranks")

LOGITS = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32) * 3
LABELS = np.array([0, 3, 2, 2, 1], np.int32)
SOFT = np.random.default_rng(1).dirichlet(np.ones(4), 5).astype(np.float32)


def literal(logits, targets):
    """-Σ y ln softmax(logits) of each example, in float64."""
    return -(targets * scipy.special.log_softmax(logits.astype(float), axis=1)).sum(1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("labels", [LABELS, SOFT], ids=["hard", "soft"])
def test_per_example_equals_the_formula(labels, smoothing):
    targets = np.eye(4)[labels] if labels.ndim == 1 else labels
    targets = (1 - smoothing) * targets + smoothing / 4
    losses = per_example(
        jnp.asarray(LOGITS), jnp.asarray(labels), label_smoothing=smoothing
    )
    np.testing.assert_allclose(losses, literal(LOGITS, targets), rtol=1e-5)


def test_loss_is_the_mean_over_all_examples():
    loss = softmax_cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS))
    np.testing.assert_allclose(
        loss, literal(LOGITS, np.eye(4)[LABELS]).mean(), rtol=1e-5
    )


def test_masked_examples_add_nothing_even_if_they_are_nan():
    logits = LOGITS.copy()
    logits[[1, 4]] = np.nan
    labels = LABELS.copy()
    labels[4] = -1
    mask = np.array([True, False, True, True, False])
    loss, gradient = jax.jit(jax.value_and_grad(softmax_cross_entropy))(
        jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(mask)
    )
    kept, targets = LOGITS[mask], np.eye(4)[LABELS[mask]]
    np.testing.assert_allclose(loss, literal(kept, targets).mean(), rtol=1e-5)
    expected = np.zeros((5, 4))
    expected[mask] = (scipy.special.softmax(kept, axis=1) - targets) / 3
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_batch_of_padding_alone_gives_zero():
    loss, gradient = jax.value_and_grad(softmax_cross_entropy)(
        jnp.asarray(LOGITS), jnp.asarray(SOFT), jnp.zeros(5, bool), label_smoothing=0.1
    )
    assert float(loss) == 0
    np.testing.assert_array_equal(gradient, np.zeros((5, 4)))


def test_annotations_are_checked_in_tests():
    with pytest.raises(jaxtyping.TypeCheckError, match="labels"):
        softmax_cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS[:3]))
