"""Plain programs: constants computed, calls written out, platforms' defaults taken."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kws_jax.deploy.program import plain

X = np.linspace(-2, 2, 12, dtype=np.float32).reshape(3, 4)
W = np.linspace(0, 1, 8, dtype=np.float32).reshape(4, 2)


def primitives(function):
    return [e.primitive.name for e in jax.make_jaxpr(function)(X).jaxpr.eqns]


def test_what_does_not_depend_on_the_input_is_computed_at_once():
    def function(x):
        weights = jnp.sin(jnp.asarray(W)) * lax.rsqrt(jnp.float32(4))
        return x @ weights

    program = plain(function, X)
    assert primitives(program) == ["dot_general"]
    np.testing.assert_allclose(program(X), X @ (np.sin(W) / 2), rtol=1e-5)


def test_calls_and_rules_of_differentiation_are_written_out():
    @jax.custom_vjp
    def double(x):
        return 2 * x

    double.defvjp(lambda x: (double(x), None), lambda _, dy: (2 * dy,))
    program = plain(lambda x: jax.jit(double)(jax.nn.relu(x)), X)
    assert sorted(primitives(program)) == ["max", "mul"]
    np.testing.assert_array_equal(program(X), 2 * np.maximum(X, 0))


def test_of_the_platforms_the_default_is_taken_wherever_it_is_traced():
    def function(x):
        return lax.platform_dependent(x, cpu=jnp.cos, default=jnp.sin)

    program = plain(function, X)
    assert primitives(program) == ["sin"]
    np.testing.assert_allclose(program(X), np.sin(X), rtol=1e-6)


def test_results_that_nobody_asks_for_are_left_out():
    def function(x):
        total, steps = lax.scan(lambda c, r: (c + r, jnp.exp(r)), x[0], x[1:])
        lax.scan(lambda c, r: (c, r), total, steps, reverse=True)
        return total + 1

    program = plain(function, X)
    assert primitives(program).count("scan") == 1
    np.testing.assert_allclose(program(X), X.sum(0) + 1, atol=1e-6)


def test_primitives_and_named_calls_are_replaced():
    @jax.jit
    def named(x):
        return jnp.tan(x)

    replacements = {"named": jnp.abs, "exp": lambda x, **_: 2.0 + x}
    program = plain(lambda x: named(jnp.exp(x)), X, replacements)
    np.testing.assert_allclose(program(X), np.abs(2 + X), rtol=1e-6)
