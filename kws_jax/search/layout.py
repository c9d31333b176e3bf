"""Where the weights of a searched layer's candidates stand, shared or each its own.

A bottleneck of expansion e is the sum of e groups of hidden channels, each as wide as
its input (see `bottleneck`). Nested candidates share them: one of expansion e is the
first e groups of the largest, and its kernel the middle of the largest, after
"Once-for-All" (Cai et al., ICLR 2020, arXiv 1908.09791), without what that adds
(kernels transformed, channels sorted). A step then trains a part of nearly all
candidates, and of eighteen apart only one.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

PyTree = Any
SHARED, GROUPS, NORMS = "shared", "groups", "norms"
# What follows the depthwise convolution sees other values for each kernel size.
_AFTER_DEPTHWISE = "depthwise_norm"


class Layout(NamedTuple):
    """How the arrays of a layer's candidates e × k are laid out.

    The arrays of a kernel size are {"groups": arrays with an entry for each group,
    "norms": those of the last batch norm, with an entry for each expansion}. A layer
    has them under the names of its kernel sizes, "K5"; where `nested`, all but the
    batch norms behind the depthwise convolution stand under "shared" once for all.

    Batch norms treat channels apart, so that the statistics of shared groups agree as
    well. An expansion of 1 expands nothing, its depthwise convolution sees other
    values: it always has a group of its own.
    """

    expansions: tuple[int, ...]
    kernels: tuple[int, ...]
    nested: bool = False

    @property
    def kernel_names(self) -> tuple[str, ...]:
        """Under which the arrays of each kernel size stand."""
        return tuple(f"K{kernel}" for kernel in self.kernels)

    @property
    def names(self) -> tuple[str, ...]:
        """Under which all of a layer's arrays stand."""
        return (SHARED, *self.kernel_names) if self.nested else self.kernel_names

    @property
    def owners(self) -> tuple[int, ...]:
        """For each group, the largest expansion that it is part of."""
        owners: list[int] = []
        for e in self._wholes:
            owners += [e] * (e if e not in owners else 0)
        return tuple(owners)

    @property
    def first(self) -> tuple[int, ...]:
        """The place of the first group of each expansion e, which has e of them."""
        return tuple(self.owners.index(e) for e in self._wholes)

    @property
    def _wholes(self) -> tuple[int, ...]:
        """The expansion whose groups each expansion uses."""
        largest = max(self.expansions)
        return tuple(largest if self.nested and e > 1 else e for e in self.expansions)

    def own(self, tree: PyTree, at: int) -> PyTree:
        """The arrays of the kernel size at a place, cut out of a layer's.

        Of g groups, kernels are [g, …], and vectors strung together, [g · c].
        """
        own = tree[self.kernel_names[at]]
        if not self.nested:
            return own
        groups = {**tree[SHARED], _AFTER_DEPTHWISE: own[_AFTER_DEPTHWISE]}
        if "depthwise" in groups:
            margin = (max(self.kernels) - self.kernels[at]) // 2
            middle = slice(margin, margin + self.kernels[at])
            groups["depthwise"] = groups["depthwise"][:, middle, middle]
        return {GROUPS: groups, NORMS: own[NORMS]}

    def laid_out(self, owns: list[PyTree]) -> PyTree:
        """A layer's arrays from those of each kernel size; shared are the largest's."""
        names = self.kernel_names
        if not self.nested:
            return dict(zip(names, owns, strict=True))
        largest = owns[int(np.argmax(self.kernels))]
        shared = {k: v for k, v in largest[GROUPS].items() if k != _AFTER_DEPTHWISE}
        return {SHARED: shared} | {
            name: {
                _AFTER_DEPTHWISE: own[GROUPS][_AFTER_DEPTHWISE],
                NORMS: own[NORMS],
            }
            for name, own in zip(names, owns, strict=True)
        }

    def with_statistics(self, tree: PyTree, at: int, own: PyTree) -> PyTree:
        """A layer's statistics with those of a kernel size exchanged."""
        name = self.kernel_names[at]
        if not self.nested:
            return {**tree, name: own}
        laid_out = self.laid_out([own] * len(self.kernels))
        return {**tree, SHARED: laid_out[SHARED], name: laid_out[name]}

    def spread(self, tree: PyTree, at: int, own: PyTree) -> PyTree:
        """Zeros like a layer's arrays, with the kernel size's `own` in their places."""
        (found,) = jax.linear_transpose(lambda tree: self.own(tree, at), tree)(own)
        return found

    def used(self, tree: PyTree, choice: Int[Array, ""]) -> PyTree:
        """Which entries of a layer's arrays a candidate uses: a bool for each.

        The expanding part of an expansion of 1 counts as used.
        """
        count = len(self.kernels)
        which, column = choice // count, choice % count
        places = np.arange(len(self.owners))
        # SKIP stands behind all expansions, and is none of them.
        of_groups = [
            (places >= first) & (places < first + e)
            for first, e in zip(self.first, self.expansions)
        ] + [np.zeros(len(places), bool)]
        rows = {
            GROUPS: jnp.asarray(np.stack(of_groups))[which],
            NORMS: which == jnp.arange(len(self.expansions)),
        }

        def mark(row: jax.Array, leaf: jax.Array) -> jax.Array:
            marks = row.reshape(-1, *(1,) * (leaf.ndim - 1))
            if leaf.ndim == 1:
                marks = jnp.repeat(row, leaf.size // row.size)
            return jnp.broadcast_to(marks, leaf.shape).astype(leaf.dtype)

        def marked(at: int) -> PyTree:
            own = self.own(tree, at)
            here = {part: row & (column == at) for part, row in rows.items()}
            marks = {
                part: jax.tree.map(functools.partial(mark, here[part]), own[part])
                for part in here
            }
            return self.spread(tree, at, marks)

        total = functools.reduce(
            lambda a, b: jax.tree.map(jnp.add, a, b), map(marked, range(count))
        )
        return jax.tree.map(lambda marks: marks > 0, total)
