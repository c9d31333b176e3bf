"""Schedules and weight decay against the formulas they stand for."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from kws_jax.errors import UserError
from kws_jax.training import optimizers
from kws_jax.training.optimizers import create_optimizer, create_schedule

STEPS = 90


def settings(**changes):
    return {
        "name": "sgd",
        "learning_rate": 0.1,
        "schedule": "constant",
        "final_learning_rate": 0.001,
        "step_at": (1 / 3, 2 / 3),
        "step_factor": 0.1,
        "warmup_fraction": 0.0,
        "momentum": 0.9,
        "nesterov": False,
        "b1": 0.9,
        "b2": 0.999,
        "weight_decay": 0.0,
        "decay_all": False,
        "clip_norm": 0.0,
    } | changes


def rates(**changes):
    schedule = create_schedule(settings(**changes), STEPS, steps_per_epoch=1.0)
    return np.array([float(schedule(step)) for step in range(STEPS + 1)])


def test_constant_schedule_keeps_the_rate():
    np.testing.assert_allclose(rates(), 0.1, rtol=1e-6)


def test_cosine_schedule_falls_from_the_rate_to_the_final_rate():
    t = np.arange(STEPS + 1) / STEPS
    expected = 0.001 + (0.1 - 0.001) * (1 + np.cos(np.pi * t)) / 2
    np.testing.assert_allclose(rates(schedule="cosine"), expected, rtol=1e-5)


def test_step_schedule_divides_the_rate_after_each_third():
    expected = np.repeat([0.1, 0.01, 0.001], [30, 30, 31])
    np.testing.assert_allclose(rates(schedule="step"), expected, rtol=1e-5)


def test_step_fractions_that_round_to_one_step_each_count():
    fractions = settings(schedule="step", step_at=(0.49, 0.51))
    schedule = create_schedule(fractions, 4, steps_per_epoch=1.0)
    found = [float(schedule(step)) for step in range(4)]
    np.testing.assert_allclose(found, [0.1, 0.1, 0.001, 0.001], rtol=1e-5)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_warmup_rises_linearly_from_zero_times_the_schedule(schedule):
    plain = rates(schedule=schedule)
    ramp = np.minimum(np.arange(STEPS + 1) / 9, 1)
    warmed = rates(schedule=schedule, warmup_fraction=0.1)
    np.testing.assert_allclose(warmed, plain * ramp, rtol=1e-5)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 30])
def test_step_fractions_outside_the_stage_are_refused(fraction):
    with pytest.raises(UserError, match=r"optimizer\.step_at"):
        rates(schedule="step", step_at=(fraction,))


def test_unknown_schedule_names_the_nearest():
    with pytest.raises(UserError, match=r"'cosin' is unknown: did you mean 'cosine'"):
        rates(schedule="cosin")


def test_unknown_optimizer_names_the_nearest():
    with pytest.raises(UserError, match=r"'adamw' is unknown: did you mean 'adam'"):
        create_optimizer(settings(name="adamw"), STEPS, steps_per_epoch=1.0)


PARAMS = {"kernel": np.array([[2.0, -4.0]], np.float32), "bias": np.float32([8.0])}
GRADIENTS = {"kernel": np.array([[0.5, 0.25]], np.float32), "bias": np.float32([-1.0])}


def steps_of(changes, count=2):
    """Updates of `count` steps on the same gradient, the parameters standing still."""
    transformation, _ = create_optimizer(
        settings(**changes), STEPS, steps_per_epoch=1.0
    )
    params, gradients = (
        {k: jnp.asarray(v) for k, v in t.items()} for t in (PARAMS, GRADIENTS)
    )
    state = transformation.init(params)
    found = []
    for _ in range(count):
        updates, state = transformation.update(gradients, state, params)
        found.append(updates)
    return found


def test_sgd_adds_the_decay_of_kernels_to_the_gradient_before_momentum():
    decayed = GRADIENTS | {"kernel": GRADIENTS["kernel"] + 0.01 * PARAMS["kernel"]}
    first, second = steps_of({"weight_decay": 0.01})
    chex.assert_trees_all_close(first, {k: -0.1 * g for k, g in decayed.items()})
    chex.assert_trees_all_close(
        second, {k: -0.1 * (0.9 * g + g) for k, g in decayed.items()}, rtol=1e-6
    )


def test_nesterov_looks_one_step_ahead():
    first, _ = steps_of({"nesterov": True})
    chex.assert_trees_all_close(
        first, {k: -0.1 * (g + 0.9 * g) for k, g in GRADIENTS.items()}, rtol=1e-6
    )


def test_a_bias_with_a_row_for_each_kernel_is_no_kernel():
    tree = {"filter": {"kernel": np.ones((4, 3, 2, 2)), "bias": np.ones((4, 2))}}
    kernels = optimizers._is_kernel(tree)
    assert kernels == {"filter": {"kernel": True, "bias": False}}


def test_decay_all_takes_the_biases_too():
    first, _ = steps_of({"weight_decay": 0.01, "decay_all": True})
    expected = {k: -0.1 * (g + 0.01 * PARAMS[k]) for k, g in GRADIENTS.items()}
    chex.assert_trees_all_close(first, expected, rtol=1e-6)


def test_adam_scales_the_decayed_gradient():
    # Adam's first step is -rate·sign(g): only decay inside the gradient can turn it.
    first, _ = steps_of({"name": "adam", "weight_decay": 1.0, "b1": 0.5})
    assert np.sign(GRADIENTS["kernel"]).tolist() == [[1.0, 1.0]]
    np.testing.assert_allclose(first["kernel"], [[-0.1, 0.1]], rtol=1e-5)
    np.testing.assert_allclose(first["bias"], [0.1], rtol=1e-5)


def test_adam_takes_its_betas():
    b1, b2 = 0.5, 0.9
    gradient = GRADIENTS["kernel"]
    _, second = steps_of({"name": "adam", "b1": b1, "b2": b2})
    m = (b1 * (1 - b1) + (1 - b1)) * gradient / (1 - b1**2)
    v = (b2 * (1 - b2) + (1 - b2)) * gradient**2 / (1 - b2**2)
    np.testing.assert_allclose(
        second["kernel"], -0.1 * m / (np.sqrt(v) + 1e-8), rtol=1e-5
    )


def test_clipping_limits_the_global_norm_of_the_gradient():
    norm = np.sqrt(sum((g**2).sum() for g in GRADIENTS.values()))
    first, _ = steps_of({"clip_norm": 0.5})
    chex.assert_trees_all_close(
        first, {k: -0.1 * g * 0.5 / norm for k, g in GRADIENTS.items()}, rtol=1e-5
    )


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_differentiable_clipping_makes_the_same_updates(name):
    rng = np.random.default_rng(0)
    tree = {"a": jnp.float32(rng.normal(size=(3, 2))), "b": jnp.float32([4.0, -1.0])}
    changed = settings(name=name, clip_norm=0.5, weight_decay=0.1)
    updates = []
    for differentiable in (False, True):
        tx, _ = create_optimizer(
            changed, STEPS, differentiable=differentiable, steps_per_epoch=1.0
        )
        update, state = tx.update(tree, tx.init(tree), tree)
        updates.append((update, tx.update(tree, state, tree)[0]))
    chex.assert_trees_all_close(*updates, rtol=1e-5)
