"""Bottlenecks as sums of groups of hidden channels, computed one after the other.

A bottleneck of expansion e is the sum of e groups, each as wide as its input: depthwise
convolution, batch norms and activations treat channels apart, and the projection adds
them up. So a loop of e rounds over one group's program computes any expansion at its
own cost.

Reference: Cai, Zhu and Han, "ProxylessNAS", ICLR 2019 (arXiv 1812.00332); a bottleneck
is `models.mbconv.MBConv`.

Images lie as [c, f, t, b] here: a group has 10 to 40 channels, too few for loops over
channels to be fast.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kws_jax.models.layers import PYTORCH_MOMENTUM, symmetric_padding
from kws_jax.models.mbconv import BATCH_NORM_EPSILON
from kws_jax.ops import batch_last
from kws_jax.ops.depthwise import depthwise_conv
from kws_jax.search.layout import Layout

PyTree = Any


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


def sum_of_groups(
    candidates: Candidates,
    at: int,
    which: jax.Array | int,
    params: PyTree,
    stats: PyTree,
    x: jax.Array,
) -> tuple[jax.Array, PyTree]:
    """The sum of a candidate's projections, and the statistics of its groups moved.

    A candidate is told by the place `at` of its kernel size and `which` of its
    expansion; `params` and `stats` are those of its kernel size (`Layout.own`).
    """
    first, count = range_of(candidates, which)
    group = group_of(candidates, at, count)
    shape = jax.eval_shape(group, *group_at(params, stats, 0), x)[0]

    def one(g: jax.Array, carry: tuple[Any, ...]) -> tuple[Any, ...]:
        total, new, own = carry
        y, moved = group(*own, x)
        new = {**new, "groups": _put(new["groups"], moved, first + g)}
        return total + y, new, group_at(params, stats, first + g + 1)

    start = jnp.zeros(shape.shape, shape.dtype), stats, group_at(params, stats, first)
    return jax.lax.fori_loop(0, count, one, start)[:2]


def pull(
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
    first, count = range_of(candidates, which)
    group = group_of(candidates, at, count)

    def finished(norms: PyTree, total: jax.Array, x: jax.Array) -> jax.Array:
        own = {**params, "norms": norms}
        return finish(candidates, which, own, stats, total, x)[0]

    by_norms, by_total, dx = jax.vjp(finished, params["norms"], total, x)[1](dy)

    def one(g: jax.Array, carry: tuple[Any, ...]) -> tuple[Any, ...]:
        by_groups, dx, (own, own_stats) = carry
        following = group_at(params, stats, first + g + 1)
        if constant:
            back = jax.vjp(lambda x: group(own, own_stats, x)[0], x)[1]
            return by_groups, dx + back(by_total)[0], following
        back = jax.vjp(lambda p, x: group(p, own_stats, x)[0], own, x)[1]
        by_own, by_x = back(by_total)
        return _put(by_groups, by_own, first + g), dx + by_x, following

    zeros = None if constant else jax.tree.map(jnp.zeros_like, params["groups"])
    start = zeros, dx, group_at(params, stats, first)
    by_groups, dx, _ = jax.lax.fori_loop(0, count, one, start)
    return {"groups": by_groups, "norms": by_norms}, dx


def finish(
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


def range_of(
    candidates: Candidates, which: jax.Array | int
) -> tuple[jax.Array, jax.Array]:
    """First group and number of groups of the expansion at a place."""
    expansions = jnp.asarray(candidates.expansions, jnp.int32)
    first = jnp.asarray(candidates.layout.first, jnp.int32)
    return first[which], expansions[which]


def group_of(
    candidates: Candidates, at: int, expansion: jax.Array
) -> Callable[..., Any]:
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


def group_at(params: PyTree, stats: PyTree, g: Any) -> tuple[PyTree, PyTree]:
    """A group's arrays. Loops take them a round ahead, in what they carry.

    Taken in the round that needs them, they are looked up in the innermost loops of
    what XLA fuses, none of which is then vectorised.
    """
    count = params["groups"]["depthwise"].shape[0]
    return tuple(_take(tree["groups"], g, count) for tree in (params, stats))


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
