"""Data parameters: the papers' formulas, the regulariser, and their optimiser."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kws_jax.errors import UserError
from kws_jax.objectives import data_parameters as dp
from kws_jax.objectives.classification import softmax_cross_entropy
from kws_jax.training.optimizers import keep_within
from kws_jax.training.sparse_momentum import sparse_momentum

LABELS, INDEX = np.array([2, 0, 2, 1]), np.array([4, 1, 0, 4])
VARIANT, MASK = np.array([0, 1, 0, 1]), np.array([True, True, True, False])


def table(mode, seed=0):
    made = dp.create_table(mode, labels=3, clips=5, variants=2)
    rng = np.random.default_rng(seed)
    return {k: jnp.asarray(rng.normal(0, 0.7, v.shape)) for k, v in made.items()}


def places():
    return tuple(jnp.asarray(a, jnp.int32) for a in (LABELS, INDEX, VARIANT))


@pytest.mark.parametrize("mode", dp.MODES)
def test_gradients_are_the_papers(mode):
    with jax.enable_x64(True):
        logits = jnp.asarray(np.random.default_rng(1).normal(0, 3, (4, 3)))
        given = table(mode)
        labels, index, variant = places()

        def loss(logits, given):
            sigma = dp.temperatures(given, labels, index, variant)
            return softmax_cross_entropy(dp.scale(logits, sigma), labels)

        by_logits, by_table = jax.grad(loss, (0, 1))(logits, given)
    s_class = np.zeros(3) - np.inf if "class" not in given else given["class"]
    s_inst = np.zeros((5, 2)) - np.inf if "instance" not in given else given["instance"]
    expected_logits = np.zeros((4, 3))
    expected = {"class": np.zeros(3), "instance": np.zeros((5, 2))}
    z_all = np.asarray(logits)
    for i, y in enumerate(LABELS):
        place = (INDEX[i], VARIANT[i])
        sigma = np.exp(s_class[y]) + np.exp(s_inst[place])
        p = np.exp(z_all[i] / sigma) / np.exp(z_all[i] / sigma).sum()
        expected_logits[i] = (p - np.eye(3)[y]) / sigma / 4
        others = [j for j in range(3) if j != y]
        rivals = sum(p[j] / (1 - p[y]) * z_all[i, j] for j in others)
        by_sigma = (1 - p[y]) / sigma**2 * (z_all[i, y] - rivals) / 4
        # dσ/ds = σ, since s = ln σ.
        expected["class"][y] += by_sigma * np.exp(s_class[y])
        expected["instance"][place] += by_sigma * np.exp(s_inst[place])
    np.testing.assert_allclose(by_logits, expected_logits, rtol=1e-12, atol=1e-14)
    for kind, gradient in by_table.items():
        assert gradient.dtype == np.float64
        np.testing.assert_allclose(gradient, expected[kind], rtol=1e-12, atol=1e-14)
    if "instance" in by_table:
        assert (np.asarray(by_table["instance"]) != 0).sum() == 4


def test_what_is_taken_for_something_else_gets_a_larger_temperature():
    given = dp.create_table("instance", labels=2, clips=2, variants=1)
    logits, zeros = jnp.array([[3.0, -3.0], [3.0, -3.0]]), jnp.zeros(2, jnp.int32)
    labels, index = jnp.array([0, 1]), jnp.array([0, 1])

    def loss(given):
        sigma = dp.temperatures(given, labels, index, zeros)
        return softmax_cross_entropy(dp.scale(logits, sigma), labels)

    right, wrong = jax.grad(loss)(given)["instance"][:, 0]
    assert right > 0 > wrong


def test_initial_values_are_those_of_the_code():
    joint = dp.create_table("joint", labels=3, clips=5, instance_initial=0.001)
    assert {k: v.shape for k, v in joint.items()} == {
        "class": (3,),
        "instance": (5, 1),
    }
    sigma = dp.temperatures(joint, *places()[:2], jnp.zeros(4, jnp.int32))
    np.testing.assert_allclose(sigma, 1.001, rtol=1e-6)
    assert set(dp.create_table("class", labels=3, clips=5)) == {"class"}
    alone = dp.create_table("instance", labels=3, clips=5, variants=2)
    assert set(alone) == {"instance"}
    np.testing.assert_array_equal(alone["instance"], np.zeros((5, 2)))


def test_the_regulariser_sums_over_the_batch_alone():
    given, decays = table("joint"), {"class_decay": 0.3, "instance_decay": 0.02}
    s_class, s_inst = np.asarray(given["class"]), np.asarray(given["instance"])
    found = dp.penalty(given, *places(), jnp.asarray(MASK), **decays)
    # Label 2 twice; the last example is padding.
    expected = 0.3 * (2 * s_class[2] ** 2 + s_class[0] ** 2)
    expected += 0.02 * (s_inst[4, 0] ** 2 + s_inst[1, 1] ** 2 + s_inst[0, 0] ** 2)
    assert float(found) == pytest.approx(expected / 2, rel=1e-5)
    gradient = jax.grad(
        lambda g: dp.penalty(g, *places(), jnp.asarray(MASK), **decays)
    )(given)
    assert float(gradient["class"][1]) == 0
    assert (np.asarray(gradient["instance"]) != 0).sum() == 3


def test_the_regulariser_of_higuchi_is_on_the_sum():
    given = table("joint")
    s_class, s_inst = np.asarray(given["class"]), np.asarray(given["instance"])
    found = dp.penalty(given, *places(), jnp.asarray(MASK), joint_decay=0.5)
    sums = np.exp(s_class[LABELS]) + np.exp(s_inst[INDEX, VARIANT])
    expected = 0.25 * (np.log(sums[:3]) ** 2).sum()
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_noise_chooses_the_variant():
    snr = np.array([np.inf, -5.0, 4.9, 5.0, 15.0, 40.0])
    level = (10 ** (-snr / 20)).astype(np.float32)
    np.testing.assert_array_equal(dp.variants_of(level), [0, 1, 1, 1, 1, 1])
    parted = dp.variants_of(level, (5.0, 15.0))
    np.testing.assert_array_equal(parted, [0, 1, 1, 2, 3, 3])


@pytest.mark.parametrize(("index", "variant"), [(5, 0), (-1, 0), (0, 2)])
def test_an_entry_outside_the_table_is_no_number(index, variant):
    given, one = table("instance"), jnp.zeros(1, jnp.int32)
    sigma = dp.temperatures(given, one, one + index, one + variant)
    assert np.isnan(np.asarray(sigma)).all()


def test_wrong_use_is_told():
    with pytest.raises(UserError, match=r"mode = 'jiont'.*'joint'"):
        dp.create_table("jiont", labels=3, clips=5)
    with pytest.raises(UserError, match="class_initial = 0"):
        dp.create_table("class", labels=3, clips=5, class_initial=0)
    with pytest.raises(UserError, match=r"Clips 0 … 5 .* with 5 clips"):
        dp.check_index(np.array([0, 5]), 5)
    dp.check_index(np.array([0, 4]), 5)
    with pytest.raises(UserError, match="one label for each clip"):
        dp.require_one_label(jnp.zeros((2, 3)))


def test_entries_without_gradient_rest_with_their_momentum():
    rng = np.random.default_rng(0)
    start = {"class": rng.normal(size=3), "instance": rng.normal(size=(5, 2))}
    rates, momentum = {"class": 0.1, "instance": 0.8}, 0.9
    gradients = []
    for _ in range(6):
        step = {k: rng.normal(size=v.shape) for k, v in start.items()}
        gradients.append({k: g * (rng.random(g.shape) < 0.5) for k, g in step.items()})
    # The parent's loop, entry by entry.
    values = {k: v.copy() for k, v in start.items()}
    sums = {k: np.zeros_like(v) for k, v in start.items()}
    for step in gradients:
        for kind, gradient in step.items():
            for place in np.ndindex(gradient.shape):
                if gradient[place] == 0:
                    continue
                sums[kind][place] = momentum * sums[kind][place] + gradient[place]
                values[kind][place] -= rates[kind] * sums[kind][place]
    with jax.enable_x64(True):
        transformation = sparse_momentum(rates, momentum)
        found = jax.tree.map(jnp.asarray, start)
        state = transformation.init(found)
        for step in gradients:
            updates, state = transformation.update(step, state, found)
            found = optax.apply_updates(found, updates)
    for kind in start:
        np.testing.assert_allclose(found[kind], values[kind], rtol=1e-12)
        np.testing.assert_allclose(state.momentum[kind], sums[kind], rtol=1e-12)


def test_one_rate_serves_a_whole_tree():
    transformation = sparse_momentum(0.5, 0.0)
    params = {"a": jnp.ones(2), "b": {"c": jnp.ones(1)}}
    updates, _ = transformation.update(params, transformation.init(params), params)
    np.testing.assert_array_equal(updates["a"], [-0.5, -0.5])
    np.testing.assert_array_equal(updates["b"]["c"], [-0.5])


def test_all_values_are_kept_within_bounds_moved_or_not():
    bound = np.log(20.0)
    transformation = optax.chain(sparse_momentum(1.0, 0.9), keep_within(-bound, bound))
    params = jnp.log(jnp.array([0.001, 19.0, 0.06, 1.0, 0.001]))
    gradient = jnp.array([0.0, -5.0, 5.0, 0.25, -0.5])
    updates, _ = transformation.update(gradient, transformation.init(params), params)
    found = np.exp(optax.apply_updates(params, updates))
    expected = [0.05, 20.0, 0.05, np.exp(-0.25), 0.05]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    with pytest.raises(ValueError, match="needs the parameters"):
        transformation.update(gradient, transformation.init(params))
