"""A layer of inverted bottlenecks of which one is computed, forwards and backwards.

A layer is a program for each kernel size, whose loop over groups makes any expansion
(`bottleneck`); one for each of its candidates would take many minutes to compile.

Reference: Cai, Zhu and Han, "ProxylessNAS", ICLR 2019 (arXiv 1812.00332), section 3.2.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kws_jax.search.bottleneck import (
    Candidates,
    finish,
    group_at,
    group_of,
    pull,
    range_of,
    sum_of_groups,
)

PyTree = Any
# of a layer, as Layout lays them out
Trees = dict[str, PyTree]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def one_path(
    candidates: Candidates,
    params: Trees,
    stats: Trees,
    x: Float[Array, "c f t b"],
    choice: Int[Array, ""],
    gates: Float[Array, " o"] | None,
) -> tuple[jax.Array, Trees]:
    """o_i(x) of the candidate i = `choice`, and the statistics, of which its own moved.

    It has two derivatives in reverse mode, one at a time. Without `gates`: by `params`
    and x, where all but the chosen parameters get zeros. With `gates` g, which stand
    for m(x) = Σ_j g_j o_j(x) at g = one-hot i: by x and g, ∂L/∂g_j = ⟨∂L/∂m, o_j(x)⟩
    of all candidates, while the parameters are constants.

    The backward pass has x and the sum of the groups, and computes each group again.
    """
    outputs, _ = _forward(candidates, params, stats, x, choice, gates)
    return outputs


def _forward(
    candidates: Candidates,
    params: Trees,
    stats: Trees,
    x: jax.Array,
    choice: jax.Array,
    gates: jax.Array | None,
) -> tuple[tuple[jax.Array, Trees], tuple[Any, ...]]:
    layout = candidates.layout

    def block(at: int) -> Callable[..., Any]:
        def run(which: jax.Array, params: Trees, stats: Trees, x: jax.Array) -> Any:
            own, own_stats = layout.own(params, at), layout.own(stats, at)
            total, moved = sum_of_groups(candidates, at, which, own, own_stats, x)
            y, moved = finish(candidates, which, own, moved, total, x)
            return y, total, layout.with_statistics(stats, at, moved)

        return run

    def skip(which: jax.Array, params: Trees, stats: Trees, x: jax.Array) -> Any:
        return x, jnp.zeros_like(x), stats

    y, total, moved = _switch(candidates, block, skip, choice, params, stats, x)
    return (y, moved), (params, stats, x, choice, gates, total)


def _backward(
    candidates: Candidates, saved: tuple[Any, ...], cotangents: tuple[jax.Array, Any]
) -> tuple[Any, ...]:
    params, stats, x, choice, gates, total = saved
    dy, _ = cotangents
    constant, layout = gates is not None, candidates.layout

    def block(at: int) -> Callable[..., Any]:
        def run(which: jax.Array, total: jax.Array, x: jax.Array, dy: jax.Array) -> Any:
            own, own_stats = layout.own(params, at), layout.own(stats, at)
            by_own, dx = pull(
                candidates, at, which, own, own_stats, total, x, dy, constant
            )
            return None if constant else layout.spread(params, at, by_own), dx

        return run

    def skip(which: jax.Array, total: jax.Array, x: jax.Array, dy: jax.Array) -> Any:
        return None if constant else jax.tree.map(jnp.zeros_like, params), dy

    by_params, dx = _switch(candidates, block, skip, choice, total, x, dy)
    if gates is None:
        return by_params, None, dx, None, None
    by_gates = _by_gates(candidates, params, stats, x, dy).astype(gates.dtype)
    return None, None, dx, None, by_gates


one_path.defvjp(_forward, _backward)


def _switch(
    candidates: Candidates,
    block: Callable[[int], Callable[..., Any]],
    skip: Callable[..., Any],
    choice: jax.Array,
    *operands: Any,
) -> Any:
    """`block(k)` or `skip`, called with the place of the expansion and the operands."""
    count = len(candidates.kernels)
    branches = [block(at) for at in range(count)]
    which, kernel = choice // count, choice % count
    if candidates.skip:
        skipped = choice == len(candidates.expansions) * count
        kernel = jnp.where(skipped, count, kernel)
        branches.append(skip)
    return jax.lax.switch(kernel, branches, which, *operands)


def _by_gates(
    candidates: Candidates, params: Trees, stats: Trees, x: jax.Array, dy: jax.Array
) -> Float[Array, " o"]:
    """⟨dy, o_j(x)⟩ of all candidates, none of which is kept."""
    columns, layout = [], candidates.layout
    products_of = _products_of_nested if candidates.nested else _products
    for at in range(len(candidates.kernels)):
        own, own_stats = layout.own(params, at), layout.own(stats, at)
        columns.append(products_of(candidates, at, own, own_stats, x, dy))
    products = jnp.stack(columns, axis=1).reshape(-1)
    if not candidates.skip:
        return products
    return jnp.append(products, jnp.sum((dy * x).astype(jnp.float32)))


def _products(
    candidates: Candidates,
    at: int,
    params: PyTree,
    stats: PyTree,
    x: jax.Array,
    dy: jax.Array,
) -> Float[Array, " e"]:
    """⟨dy, o(x)⟩ of a kernel size with each expansion."""

    def product(which: jax.Array) -> jax.Array:
        total, _ = sum_of_groups(candidates, at, which, params, stats, x)
        return _product(candidates, which, params, stats, total, x, dy)

    return jax.lax.map(product, jnp.arange(len(candidates.expansions)))


def _products_of_nested(
    candidates: Candidates,
    at: int,
    params: PyTree,
    stats: PyTree,
    x: jax.Array,
    dy: jax.Array,
) -> Float[Array, " e"]:
    """`_products` where expansions are sums of the same groups: each once."""
    expansions, largest = candidates.expansions, max(candidates.expansions)
    first, count = range_of(candidates, expansions.index(largest))
    group = group_of(candidates, at, count)
    # At each number of groups, the expansion that has as many, if one has.
    places = [expansions.index(e) if e in expansions else 0 for e in range(largest + 1)]

    def one(carry: tuple[Any, ...], g: jax.Array) -> tuple[tuple[Any, ...], jax.Array]:
        total, own = carry
        total = total + group(*own, x)[0]
        which = jnp.asarray(places)[g + 1]
        product = _product(candidates, which, params, stats, total, x, dy)
        return (total, group_at(params, stats, first + g + 1)), product

    start = jnp.zeros_like(dy), group_at(params, stats, first)
    products = jax.lax.scan(one, start, jnp.arange(largest))[1]
    products = products[np.array(expansions) - 1]
    if 1 in expansions:
        which = expansions.index(1)
        total, _ = sum_of_groups(candidates, at, which, params, stats, x)
        alone = _product(candidates, which, params, stats, total, x, dy)
        products = products.at[which].set(alone)
    return products


def _product(
    candidates: Candidates,
    which: jax.Array | int,
    params: PyTree,
    stats: PyTree,
    total: jax.Array,
    x: jax.Array,
    dy: jax.Array,
) -> Float[Array, ""]:
    y, _ = finish(candidates, which, params, stats, total, x)
    return jnp.sum((dy * y).astype(jnp.float32))
