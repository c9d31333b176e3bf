"""Where candidates' weights stand: their numbers, and round trips, in any order."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kws_jax.search.layout import Layout

INPUTS, CHANNELS = 4, 3
SPACES = [((6, 1, 2), (7, 3)), ((2, 3), (3,)), ((1,), (3, 5)), ((1, 2, 6), (3, 5, 7))]


def own_of(layout, kernel, first=0):
    """Arrays of a kernel size with the entries first, first + 1, …"""
    groups = len(layout.owners)
    shapes = {
        "groups": {
            "expand_norm": {"scale": (groups * INPUTS,)},
            "depthwise": (groups, kernel, kernel, 1, INPUTS),
            "depthwise_norm": {"scale": (groups * INPUTS,)},
            "project": (groups, 1, 1, INPUTS, CHANNELS),
        },
        "norms": {"bias": (len(layout.expansions) * CHANNELS,)},
    }
    counter = itertools.count(first)
    return jax.tree.map(
        lambda shape: np.array(
            [next(counter) for _ in range(np.prod(shape))], np.float32
        ).reshape(shape),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def laid_out(layout):
    owns = [
        own_of(layout, kernel, 10_000 * at) for at, kernel in enumerate(layout.kernels)
    ]
    return layout.laid_out(owns), owns


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("expansions", "kernels"), SPACES)
def test_used_entries_are_those_of_a_bottleneck(expansions, kernels, nested):
    layout = Layout(expansions, kernels, nested)
    tree, _ = laid_out(layout)
    for choice, (e, k) in enumerate(itertools.product(expansions, kernels)):
        used = layout.used(tree, jnp.array(choice))
        count = sum(int(np.sum(leaf)) for leaf in jax.tree.leaves(used))
        each = 2 * INPUTS + k**2 * INPUTS + INPUTS * CHANNELS
        assert count == e * each + CHANNELS, (e, k)
    skip = layout.used(tree, jnp.array(len(expansions) * len(kernels)))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(skip))


@pytest.mark.parametrize(("expansions", "kernels"), SPACES)
def test_nested_kernel_sizes_are_the_middle_of_the_largest(expansions, kernels):
    layout = Layout(expansions, kernels, True)
    tree, owns = laid_out(layout)
    largest = owns[kernels.index(max(kernels))]["groups"]
    for at, kernel in enumerate(kernels):
        own, margin = layout.own(tree, at), (max(kernels) - kernel) // 2
        middle = largest["depthwise"][
            :, margin : margin + kernel, margin : margin + kernel
        ]
        np.testing.assert_array_equal(own["groups"]["depthwise"], middle)
        np.testing.assert_array_equal(own["groups"]["project"], largest["project"])
        # what is not shared is what was laid out for this kernel size
        np.testing.assert_array_equal(own["norms"]["bias"], owns[at]["norms"]["bias"])
        np.testing.assert_array_equal(
            own["groups"]["depthwise_norm"]["scale"],
            owns[at]["groups"]["depthwise_norm"]["scale"],
        )


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("expansions", "kernels"), SPACES)
def test_spread_puts_entries_where_own_takes_them(expansions, kernels, nested):
    layout = Layout(expansions, kernels, nested)
    tree, _ = laid_out(layout)
    for at in range(len(kernels)):
        own = jax.tree.map(lambda leaf: leaf + 1, layout.own(tree, at))
        spread = layout.spread(tree, at, own)
        jax.tree.map(np.testing.assert_array_equal, layout.own(spread, at), own)
        total = sum(np.sum(np.float64(leaf)) for leaf in jax.tree.leaves(own))
        found = sum(np.sum(np.float64(leaf)) for leaf in jax.tree.leaves(spread))
        assert found == total
