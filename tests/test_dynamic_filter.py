"""The dynamic filter against its equations, written out in NumPy's float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_values import QUICK, random_variables

from kws_jax.models.dynamic_filter import DynamicFilter
from kws_jax.stages.networks import initial_variables

B, T, F = 3, 11, 6
RNG = np.random.default_rng(0)
X = RNG.normal(size=(B, T, F)).astype(np.float32)
# Directions in which gradients are compared are weighed by it.
WEIGHTS = RNG.normal(size=(B, T, F))


def patches(x):
    """What the nine dilated taps meet [t, f, 9], zeros outside."""
    padded = np.pad(x, 2)
    places = itertools.product((0, 2, 4), repeat=2)
    return np.stack(
        [padded[i : i + x.shape[0], j : j + x.shape[1]] for i, j in places], axis=-1
    )


def literal(p, x, din):
    """Equations 1 to 12 for one clip [t, f]."""
    m = x.mean(axis=0)
    u = m @ p["context"]["kernel"] + p["context"]["bias"]
    h = (u - u.mean()) / np.sqrt(u.var() + 1e-3)
    h = p["context_norm_scale"] * h + p["context_norm_bias"]
    w_h = np.maximum(h, 0) @ p["taps"]["kernel"] + p["taps"]["bias"]
    q = patches(x) @ p["pixel_taps"].reshape(9)
    q = (q - q.mean(axis=0)) / np.sqrt(q.var(axis=0) + 1e-3)
    w_p = 1 / (1 + np.exp(-(p["pixel_norm_scale"] * q + p["pixel_norm_bias"])))
    w_d = w_p[:, :, None] * w_h
    filtered = (w_d * patches(x)).sum(axis=-1)
    if din:
        alpha, beta = h @ p["scale"]["kernel"], h @ p["shift"]["kernel"]
    else:
        alpha, beta = p["norm_scale"], p["norm_bias"]
    y = filtered - filtered.mean(axis=0)
    return alpha * y / (filtered.std(axis=0) + 1e-5) + beta + x


def literal_loss(p, din):
    clips = X.astype(np.float64)
    return sum(
        (w * literal(p, x, din)).sum() for w, x in zip(WEIGHTS, clips, strict=True)
    )


@pytest.fixture(scope="module", params=[True, False])
def case(request):
    """(din, variables, their outputs and gradients, jitted)."""
    model = DynamicFilter(din=request.param)
    variables = random_variables(model, X)

    def run(params, x):
        return model.apply({"params": params}, x, train=True)

    def loss(params, x):
        y = run(params, x)
        return (y * WEIGHTS.astype(np.float32)).sum(), y

    outputs = jax.jit(run, compiler_options=QUICK)
    gradients = jax.jit(jax.grad(loss, has_aux=True), compiler_options=QUICK)
    return request.param, variables["params"], outputs, gradients


def test_equals_the_literal_form_forward_and_in_every_gradient(case):
    din, params, _, gradients = case
    exact = jax.tree.map(np.float64, params)
    gradient, y = gradients(params, X)
    expected = [literal(exact, x, din) for x in X.astype(np.float64)]
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    for path, leaf in jax.tree.leaves_with_path(exact):
        direction = RNG.normal(size=leaf.shape)
        original, step = leaf.copy(), 1e-6
        sides = []
        for sign in (1, -1):
            leaf[...] = original + sign * step * direction
            sides.append(literal_loss(exact, din))
        leaf[...] = original
        numeric = (sides[0] - sides[1]) / (2 * step)
        found = gradient
        for key in path:
            found = found[key.key]
        analytic = (np.float64(found) * direction).sum()
        scale = np.linalg.norm(found) * np.linalg.norm(direction)
        assert scale > 0, path
        assert abs(analytic - numeric) < 2e-3 * scale, path


def test_clips_do_not_touch_each_other(case):
    _, params, outputs, _ = case
    together = np.array(outputs(params, X))
    others = X.copy()
    others[[0, 2]] = 100 * RNG.normal(size=(2, T, F))
    np.testing.assert_allclose(outputs(params, others)[1], together[1], rtol=1e-5)
    swapped = outputs(params, X[[2, 0, 1]])
    np.testing.assert_allclose(swapped, together[[2, 0, 1]], rtol=1e-5, atol=1e-6)


def test_scale_and_shift_come_from_the_context_before_its_relu(case):
    din, params, outputs, _ = case
    if not din:
        pytest.skip("has neither")
    # h = −1 everywhere: behind the ReLU nothing would be left of it.
    params = params | {
        "context_norm_scale": jnp.zeros(F),
        "context_norm_bias": -jnp.ones(F),
    }
    added = outputs(params, X) - X
    shift = -params["shift"]["kernel"].sum(axis=0)
    scale = -params["scale"]["kernel"].sum(axis=0)
    # A standardised map has mean 0 and deviation 1 in each feature over time.
    means, deviations = added.mean(axis=1), added.std(axis=1)
    np.testing.assert_allclose(means, np.tile(shift, (B, 1)), atol=1e-4)
    np.testing.assert_allclose(deviations, np.tile(abs(scale), (B, 1)), rtol=1e-3)


def test_silence_and_constant_features_give_finite_gradients(case):
    _, params, _, gradients = case
    x = np.zeros_like(X)
    x[1, :, 0] = -80.0
    gradient, y = gradients(params, x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((gradient, y)))


@pytest.mark.parametrize("din", [True, False])
def test_it_starts_as_next_to_nothing(din):
    model = DynamicFilter(din=din)
    x = RNG.normal(size=(2, 20, 40)).astype(np.float32)
    variables = initial_variables(model, jax.random.key(0), x)
    for leaf in jax.tree.leaves(variables):
        assert 0 < np.abs(leaf).max() <= 0.02
    # Of a normal distribution cut at two deviations.
    deviation = np.std(variables["params"]["context"]["kernel"])
    assert deviation == pytest.approx(0.0088, abs=4e-4)

    def run(x):
        return model.apply(variables, x, train=False, mutable=["intermediates"])

    y, seen = jax.jit(run, compiler_options=QUICK)(x)
    np.testing.assert_allclose(seen["intermediates"]["gate"][0], 0.5, atol=0.03)
    assert 0 < np.abs(y - x).max() < (0.01 if din else 0.1)
