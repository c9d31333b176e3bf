"""A layer of inverted bottlenecks of which one is computed, forwards and backwards.

A bottleneck of expansion e is the sum of e groups, each as wide as its input: depthwise
convolution, batch norms and activations treat channels apart, and the projection adds
them up. So a loop of e rounds over one group's program computes any
expansion at its own cost, and a layer is a program for each kernel size, where one for
each of its candidates would take many minutes to compile.

Images lie as [c, f, t, b] here: a group has 10 to 40 channels, too few for loops over
channels to be fast.

Reference: Cai, Zhu and Han, "ProxylessNAS", ICLR 2019 (arXiv 1812.00332), section 3.2.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kws_jax.models.layers import PYTORCH_MOMENTUM, symmetric_padding
from kws_jax.models.mbconv import BATCH_NORM_EPSILON
from kws_jax.ops import batch_last
from kws_jax.ops.depthwise import depthwise_conv
from kws_jax.search.layout import Layout

PyTree = Any
# of a layer, as Layout lays them out
Trees = dict[str, PyTree]


class Candidates(NamedTuple):
    """What a layer chooses from: e × k, in this order, and then, if `skip`, SKIP."""

    expansions: tuple[int, ...]
    kernels: tuple[int, ...]
    skip: bool
    channels: int
    stride: int
    activation: str = "relu6"
    momentum: float = PYTORCH_MOMENTUM
    nested: bool = False
    train: bool = False

    @property
    def layout(self) -> Layout:
        """Where their weights stand."""
        return Layout(self.expansions, self.kernels, self.nested)


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
            total, moved = _groups(candidates, at, which, own, own_stats, x)
            y, moved = _finish(candidates, which, own, moved, total, x)
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
            by_own, dx = _pull(
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


def _groups(
    candidates: Candidates,
    at: int,
    which: jax.Array | int,
    params: PyTree,
    stats: PyTree,
    x: jax.Array,
) -> tuple[jax.Array, PyTree]:
    """The sum of a candidate's projections, and the statistics of its groups moved."""
    first, count = _range(candidates, which)
    group = _group(candidates, at, count)
    shape = jax.eval_shape(group, *_group_at(params, stats, 0), x)[0]

    def one(g: jax.Array, carry: tuple[Any, ...]) -> tuple[Any, ...]:
        total, new, own = carry
        y, moved = group(*own, x)
        new = {**new, "groups": _put(new["groups"], moved, first + g)}
        return total + y, new, _group_at(params, stats, first + g + 1)

    start = jnp.zeros(shape.shape, shape.dtype), stats, _group_at(params, stats, first)
    return jax.lax.fori_loop(0, count, one, start)[:2]


def _pull(
    candidates: Candidates,
    at: int,
    which: jax.Array,
    params: PyTree,
    stats: PyTree,
    total: jax.Array,
    x: jax.Array,
    dy: jax.Array,
    constant: bool,
) -> tuple[PyTree, jax.Array]:
    """Gradients of a candidate by its arrays (not where `constant`) and by x."""
    first, count = _range(candidates, which)
    group = _group(candidates, at, count)

    def finish(norms: PyTree, total: jax.Array, x: jax.Array) -> jax.Array:
        own = {**params, "norms": norms}
        return _finish(candidates, which, own, stats, total, x)[0]

    by_norms, by_total, dx = jax.vjp(finish, params["norms"], total, x)[1](dy)

    def one(g: jax.Array, carry: tuple[Any, ...]) -> tuple[Any, ...]:
        by_groups, dx, (own, own_stats) = carry
        following = _group_at(params, stats, first + g + 1)
        if constant:
            pull = jax.vjp(lambda x: group(own, own_stats, x)[0], x)[1]
            return by_groups, dx + pull(by_total)[0], following
        pull = jax.vjp(lambda p, x: group(p, own_stats, x)[0], own, x)[1]
        by_own, by_x = pull(by_total)
        return _put(by_groups, by_own, first + g), dx + by_x, following

    zeros = None if constant else jax.tree.map(jnp.zeros_like, params["groups"])
    start = zeros, dx, _group_at(params, stats, first)
    by_groups, dx, _ = jax.lax.fori_loop(0, count, one, start)
    return {"groups": by_groups, "norms": by_norms}, dx


def _by_gates(
    candidates: Candidates, params: Trees, stats: Trees, x: jax.Array, dy: jax.Array
) -> Float[Array, " o"]:
    """⟨dy, o_j(x)⟩ of all candidates, one computed after the other."""
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
        total, _ = _groups(candidates, at, which, params, stats, x)
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
    first, count = _range(candidates, expansions.index(largest))
    group = _group(candidates, at, count)
    # At each number of groups, the expansion that has as many, if one has.
    places = [expansions.index(e) if e in expansions else 0 for e in range(largest + 1)]

    def one(carry: tuple[Any, ...], g: jax.Array) -> tuple[tuple[Any, ...], jax.Array]:
        total, own = carry
        total = total + group(*own, x)[0]
        which = jnp.asarray(places)[g + 1]
        product = _product(candidates, which, params, stats, total, x, dy)
        return (total, _group_at(params, stats, first + g + 1)), product

    start = jnp.zeros_like(dy), _group_at(params, stats, first)
    products = jax.lax.scan(one, start, jnp.arange(largest))[1]
    products = products[np.array(expansions) - 1]
    if 1 in expansions:
        which = expansions.index(1)
        total, _ = _groups(candidates, at, which, params, stats, x)
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
    y, _ = _finish(candidates, which, params, stats, total, x)
    return jnp.sum((dy * y).astype(jnp.float32))


def _range(
    candidates: Candidates, which: jax.Array | int
) -> tuple[jax.Array, jax.Array]:
    """First group and number of groups of the expansion at a place."""
    expansions = jnp.asarray(candidates.expansions, jnp.int32)
    first = jnp.asarray(candidates.layout.first, jnp.int32)
    return first[which], expansions[which]


def _group(candidates: Candidates, at: int, expansion: jax.Array) -> Callable[..., Any]:
    """A group: (its params, its stats, x) -> (projection [d, g, s, b], moved stats)."""
    kernel, act = candidates.kernels[at], candidates.activation

    def expand(params: PyTree, stats: PyTree, x: jax.Array) -> Any:
        h = batch_last.pointwise(x, params["expand"])
        return _norm(candidates, params["expand_norm"], stats["expand_norm"], h, act)

    def keep(params: PyTree, stats: PyTree, x: jax.Array) -> Any:
        return x, stats["expand_norm"]

    def run(params: PyTree, stats: PyTree, x: jax.Array) -> Any:
        if 1 in candidates.expansions:
            h, first = jax.lax.cond(expansion == 1, keep, expand, params, stats, x)
        else:
            h, first = expand(params, stats, x)
        h = depthwise_conv(
            h,
            params["depthwise"],
            strides=(candidates.stride,) * 2,
            padding=symmetric_padding((kernel, kernel)),
            batch_last=True,
        )
        h, second = _norm(
            candidates, params["depthwise_norm"], stats["depthwise_norm"], h, act
        )
        moved = {"expand_norm": first, "depthwise_norm": second}
        return batch_last.pointwise(h, params["project"]), moved

    return run


def _finish(
    candidates: Candidates,
    which: jax.Array | int,
    params: PyTree,
    stats: PyTree,
    total: jax.Array,
    x: jax.Array,
) -> tuple[jax.Array, PyTree]:
    """The last batch norm and the shortcut; the statistics, of which its own moved."""
    count = len(candidates.expansions)
    own = _take(params["norms"], which, count)
    y, moved = _norm(candidates, own, _take(stats["norms"], which, count), total)
    if candidates.skip:
        y = y + x
    return y, {**stats, "norms": _put(stats["norms"], moved, which)}


def _norm(
    candidates: Candidates,
    params: PyTree,
    stats: PyTree,
    x: jax.Array,
    activation: str | None = None,
) -> tuple[jax.Array, PyTree]:
    """flax.linen.BatchNorm and an activation; the statistics moved by the batch's."""
    scale, bias, epsilon = params["scale"], params["bias"], BATCH_NORM_EPSILON
    if not candidates.train:
        scale = scale * jax.lax.rsqrt(stats["var"] + epsilon)
        y = batch_last.normalise(x, stats["mean"], scale, bias, activation)
        return y, stats
    y, (mean, var) = batch_last.batch_norm(x, scale, bias, epsilon, activation)
    keep = candidates.momentum
    new = {"mean": mean, "var": var}
    moved = jax.tree.map(lambda old, new: keep * old + (1 - keep) * new, stats, new)
    return y, moved


def _group_at(params: PyTree, stats: PyTree, g: Any) -> tuple[PyTree, PyTree]:
    """A group's arrays. Loops take them a round ahead, in what they carry.

    Taken in the round that needs them, they are looked up in the innermost loops of
    what XLA fuses, none of which is then vectorised.
    """
    count = params["groups"]["depthwise"].shape[0]
    return tuple(_take(tree["groups"], g, count) for tree in (params, stats))


def _take(tree: PyTree, index: Any, count: int) -> PyTree:
    """One of `count` entries of each array; in vectors they are strung together."""

    def take(leaf: jax.Array) -> jax.Array:
        rows = leaf.reshape(count, -1) if leaf.ndim == 1 else leaf
        return jax.lax.dynamic_index_in_dim(rows, index, keepdims=False)

    return jax.tree.map(take, tree)


def _put(tree: PyTree, entry: PyTree, index: Any) -> PyTree:
    """The arrays with one entry exchanged."""

    def put(leaf: jax.Array, value: jax.Array) -> jax.Array:
        value = value.astype(leaf.dtype)
        if leaf.ndim == 1:
            return jax.lax.dynamic_update_slice(leaf, value, (index * value.size,))
        return jax.lax.dynamic_update_index_in_dim(leaf, value, index, 0)

    return jax.tree.map(put, tree, entry)
