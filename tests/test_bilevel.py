"""The search step on quadratic problems whose gradients have a closed form.

L_train(w, α) = ½ wᵀ H w + wᵀ M α        L_val(w, α) = ½ |w − c|² + dᵀ α
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kws_jax.search.bilevel import architecture_gradient, make_search_step
from kws_jax.training.state import ARCHITECTURE, WEIGHTS, create_train_state

RNG = np.random.default_rng(0)
A = RNG.normal(size=(4, 4))
HESSIAN, MIXED = A @ A.T / 4 + np.eye(4), RNG.normal(size=(4, 3))
C, D = RNG.normal(size=4), RNG.normal(size=3)
W0, ALPHA0 = RNG.normal(size=4), RNG.normal(size=3)
KEYS = (jax.random.key(1), jax.random.key(2))


def loss_fn(trees, batch_stats, batch, key):
    del key
    w, alpha = trees[WEIGHTS], trees[ARCHITECTURE]
    train = (
        w @ HESSIAN.astype(np.float32) @ w / 2 + w @ MIXED.astype(np.float32) @ alpha
    )
    val = jnp.sum((w - C.astype(np.float32)) ** 2) / 2 + D.astype(np.float32) @ alpha
    loss = jnp.where(batch["train"], train, val)
    seen = batch_stats + jnp.where(batch["train"], 1.0, 100.0)
    return loss, ({"half": loss / 2}, seen)


TRAIN, VAL = {"train": jnp.array(True)}, {"train": jnp.array(False)}


def state_of(weight_transformation, architecture_transformation=None):
    architecture_transformation = architecture_transformation or optax.sgd(0.01)
    transformations = {
        WEIGHTS: weight_transformation,
        ARCHITECTURE: architecture_transformation,
    }
    trees = {WEIGHTS: jnp.float32(W0), ARCHITECTURE: jnp.float32(ALPHA0)}
    state = create_train_state(trees, jnp.zeros(()), transformations)
    return state, transformations


def gradient_of(state, transformation, order, **settings):
    return architecture_gradient(
        loss_fn,
        state,
        TRAIN,
        VAL,
        KEYS,
        order=order,
        weight_transformation=transformation,
        **settings,
    )


def test_first_order_is_the_partial_derivative():
    transformation = optax.sgd(0.1)
    state, _ = state_of(transformation)
    gradient, metrics = gradient_of(state, transformation, 1)
    np.testing.assert_allclose(gradient, D, rtol=1e-5)
    expected = np.sum((W0 - C) ** 2) / 2 + D @ ALPHA0
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-5)
    assert float(metrics["half"]) == pytest.approx(expected / 2, rel=1e-5)


def test_second_order_has_the_hessian_term():
    xi = 0.1
    transformation = optax.sgd(xi)
    state, _ = state_of(transformation)
    gradient, _ = gradient_of(state, transformation, 2)
    stepped = W0 - xi * (HESSIAN @ W0 + MIXED @ ALPHA0)
    # ∇_α L_val − ξ ∇²_αw L_train ∇_w' L_val (DARTS, Eq. 7)
    expected = D - xi * MIXED.T @ (stepped - C)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4)


def test_second_order_is_the_first_where_the_weights_do_not_move():
    transformation = optax.sgd(0.0)
    state, _ = state_of(transformation)
    gradient, _ = gradient_of(state, transformation, 2)
    np.testing.assert_allclose(gradient, D, rtol=1e-5)


def unrolled_loss(alpha, momentum, lr, decay, velocity):
    gradient = HESSIAN @ W0 + MIXED @ alpha + decay * W0
    w = W0 - lr * (momentum * velocity + gradient)
    return np.sum((w - C) ** 2) / 2 + D @ alpha


def test_second_order_unrolls_momentum_decay_and_the_current_rate():
    momentum, decay = 0.9, 0.05
    rates = [0.2, 0.07]
    transformation = optax.chain(
        optax.add_decayed_weights(decay),
        optax.sgd(lambda count: jnp.array(rates)[count], momentum=momentum),
    )
    state, transformations = state_of(transformation)
    # one step at the first rate, from zero weights' velocity, then back to W0
    step = make_search_step(loss_fn, transformations, update_architecture=False)
    moved, _ = step(state, TRAIN, VAL, jax.random.key(0))
    moved = moved.replace(trees=state.trees)
    velocity = HESSIAN @ W0 + MIXED @ ALPHA0 + decay * W0

    gradient, _ = gradient_of(moved, transformation, 2)
    eps = 1e-6
    expected = [
        (
            unrolled_loss(ALPHA0 + eps * e, momentum, rates[1], decay, velocity)
            - unrolled_loss(ALPHA0 - eps * e, momentum, rates[1], decay, velocity)
        )
        / (2 * eps)
        for e in np.eye(3)
    ]
    np.testing.assert_allclose(gradient, expected, rtol=1e-4)


def test_second_order_of_a_curved_problem_agrees_with_finite_differences():
    def curved(trees, batch_stats, batch, key):
        del key
        w, alpha = trees[WEIGHTS], trees[ARCHITECTURE]
        hidden = jnp.tanh(batch["x"] * w[:3] * jax.nn.sigmoid(alpha)) @ w[1:]
        return (hidden - 1.0) ** 2, ({}, batch_stats)

    transformation = optax.sgd(0.3)
    with jax.enable_x64(True):
        state, _ = state_of(transformation)
        state = state.replace(
            trees={WEIGHTS: jnp.array(W0), ARCHITECTURE: jnp.array(ALPHA0)}
        )
        train, val = {"x": jnp.array(0.7)}, {"x": jnp.array(-1.2)}

        def stepped_val(alpha):
            def train_loss(w):
                return curved({WEIGHTS: w, ARCHITECTURE: alpha}, 0.0, train, None)[0]

            w = state.trees[WEIGHTS]
            eps = 1e-6
            slope = jnp.stack(
                [
                    (train_loss(w + eps * e) - train_loss(w - eps * e)) / (2 * eps)
                    for e in jnp.eye(4)
                ]
            )
            trees = {WEIGHTS: w - 0.3 * slope, ARCHITECTURE: alpha}
            return curved(trees, 0.0, val, None)[0]

        gradient, _ = architecture_gradient(
            curved,
            state,
            train,
            val,
            KEYS,
            order=2,
            weight_transformation=transformation,
        )
        alpha, eps = state.trees[ARCHITECTURE], 1e-4
        expected = [
            (stepped_val(alpha + eps * e) - stepped_val(alpha - eps * e)) / (2 * eps)
            for e in jnp.eye(3)
        ]
    np.testing.assert_allclose(gradient, np.array(expected), rtol=1e-4)


def test_regulariser_is_added_to_the_validation_loss():
    transformation = optax.sgd(0.1)
    state, _ = state_of(transformation)
    gradient, metrics = gradient_of(
        state, transformation, 1, regulariser=lambda alpha: 3.0 * jnp.sum(alpha**2)
    )
    np.testing.assert_allclose(gradient, D + 6 * ALPHA0, rtol=1e-5)
    expected = np.sum((W0 - C) ** 2) / 2 + D @ ALPHA0 + 3 * np.sum(ALPHA0**2)
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("order", [1, 2])
def test_step_moves_the_architecture_first_then_the_weights(order):
    state, transformations = state_of(optax.sgd(0.1), optax.sgd(0.5))
    step = jax.jit(make_search_step(loss_fn, transformations, order=order))
    moved, metrics = step(state, TRAIN, VAL, jax.random.key(0))
    slope = D
    if order == 2:
        stepped = W0 - 0.1 * (HESSIAN @ W0 + MIXED @ ALPHA0)
        slope = D - 0.1 * MIXED.T @ (stepped - C)
    alpha = ALPHA0 - 0.5 * slope
    by_weights = HESSIAN @ W0 + MIXED @ alpha
    w = W0 - 0.1 * by_weights
    np.testing.assert_allclose(moved.trees[ARCHITECTURE], alpha, rtol=1e-4)
    np.testing.assert_allclose(moved.trees[WEIGHTS], w, rtol=1e-4)
    assert int(moved.step) == 1
    assert float(moved.batch_stats) == 1.0, "statistics come from the training batch"
    expected = W0 @ HESSIAN @ W0 / 2 + W0 @ MIXED @ alpha
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-4)
    assert {"half", "architecture_loss", "architecture_half"} < set(metrics)
    for name, gradient in {"": by_weights, "architecture_": slope}.items():
        norm = pytest.approx(np.linalg.norm(gradient), rel=1e-4)
        assert float(metrics[f"{name}gradient_norm"]) == norm


def test_without_architecture_updates_only_the_weights_learn():
    state, transformations = state_of(optax.sgd(0.1))
    step = make_search_step(loss_fn, transformations, update_architecture=False)
    moved, metrics = step(state, TRAIN, VAL, jax.random.key(0))
    chex.assert_trees_all_equal(moved.trees[ARCHITECTURE], state.trees[ARCHITECTURE])
    chex.assert_trees_all_equal(
        moved.opt_state[ARCHITECTURE], state.opt_state[ARCHITECTURE]
    )
    w = W0 - 0.1 * (HESSIAN @ W0 + MIXED @ ALPHA0)
    np.testing.assert_allclose(moved.trees[WEIGHTS], w, rtol=1e-4)
    assert "architecture_loss" not in metrics


def test_one_key_serves_every_step():
    def noisy(trees, batch_stats, batch, key):
        loss, (_, batch_stats) = loss_fn(trees, batch_stats, batch, key)
        return loss, ({"drawn": jax.random.uniform(key)}, batch_stats)

    state, transformations = state_of(optax.sgd(0.1))
    step, key = make_search_step(noisy, transformations), jax.random.key(5)
    for number in range(3):
        state, metrics = step(state, TRAIN, VAL, key)
        both = jax.random.split(jax.random.fold_in(key, number))
        found = [metrics["drawn"], metrics["architecture_drawn"]]
        np.testing.assert_array_equal(found, [jax.random.uniform(k) for k in both])


def test_wrong_orders_are_refused():
    state, _ = state_of(optax.sgd(0.1))
    with pytest.raises(ValueError, match="order"):
        gradient_of(state, optax.sgd(0.1), 3)
    with pytest.raises(ValueError, match="transformation"):
        gradient_of(state, None, 2)
