"""ConvMixer's frequency branch as one operation.

3×3 to m maps → swish → depthwise along frequency → swish → 1×1 to one map: the branch
of Ng et al. (arXiv 2201.05863), Eq. (1), before its batch norm. Its maps are m times as
large as its input and its output: for a batch of 128 they fill 205 MB, so operation by
operation it is the memory that is measured. But no map reaches into another frame once
the 3×3 patches are cut. On CPUs a few frames are therefore taken through all of it
while they are in the cache, and once more for the gradient, so no map is ever kept.

In a tile the maps lie as [frames, f·m], so that loops run over f·m neighbouring numbers
however small m is, and a shift along frequency is one by m numbers. The tiles of the
gradient have their zeros between the frames, where no shift needs a copy to add them.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from kws_jax.ops.depthwise import depthwise_conv

# Frames · m of a tile: its arrays of float32 fill some 400 kB for 64 frequencies. Sums
# over the frames of a tile are written out, which more frames make slow to compile.
_TILE, _MOST_FRAMES = 1600, 49
_GRADIENT_FRAMES = 16  # of a tile of the gradient, whatever m is
_REACH = 3  # of the first convolution, along both axes


class Kernels(NamedTuple):
    """The branch's parameters: [3, 3, 1, m], [1, taps, 1, m] with odd taps, [m, 1]."""

    expand: jax.Array
    depthwise: jax.Array
    project: jax.Array


def frequency_branch(
    x: Float[Array, "b t f"],
    expand: Float[Array, "3 3 1 m"],
    depthwise: Float[Array, "1 taps 1 m"],
    project: Float[Array, "m 1"],
) -> Float[Array, "b t f"]:
    """Gives project · swish(depthwise ∗ swish(expand ∗ x)), all with zero padding.

    Differentiable in reverse mode, any number of times.

    Args:
      x: features, t frames of f frequencies.
      expand: 3×3 kernels of the m maps.
      depthwise: an odd number of taps along frequency for each map.
      project: weights of the sum over the maps.

    Returns:
      One map of the size of the input.

    Raises:
      ValueError: an even number of taps.
    """
    if depthwise.shape[1] % 2 == 0:
        raise ValueError(f"the taps must be odd in number, got {depthwise.shape[1]}")
    return _branch(x, Kernels(expand, depthwise, project))


@jax.custom_vjp
def _branch(x: jax.Array, kernels: Kernels) -> jax.Array:
    return lax.platform_dependent(x, kernels, cpu=_by_tiles, default=_by_layers)


def _forward(x, kernels):
    return _branch(x, kernels), (x, kernels)


def _backward(saved, dy):
    def of_layers(x, kernels, dy):
        return jax.vjp(_by_layers, x, kernels)[1](dy)

    return lax.platform_dependent(
        *saved, dy, cpu=_gradients_by_tiles, default=of_layers
    )


_branch.defvjp(_forward, _backward)


def _by_layers(x: jax.Array, kernels: Kernels) -> jax.Array:
    maps = lax.conv_general_dilated(
        x[..., None],
        kernels.expand,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    maps = jax.nn.swish(depthwise_conv(jax.nn.swish(maps), kernels.depthwise))
    return jnp.squeeze(maps @ kernels.project, -1)


def _by_tiles(x: jax.Array, kernels: Kernels) -> jax.Array:
    tile = _Tile(x, kernels)

    def run(patches: jax.Array) -> jax.Array:
        inner, _ = _swish(tile.expanded(patches))
        outer, _ = _swish(tile.filtered(inner))
        return outer.reshape(-1, tile.maps) @ kernels.project[:, 0]

    return tile.join(lax.map(run, tile.split(_patches(x))), x.shape)


def _gradients_by_tiles(
    x: jax.Array, kernels: Kernels, dy: jax.Array
) -> tuple[jax.Array, Kernels]:
    """Gradients by x and kernels; kernels' are summed in float32 or wider."""
    tile = _GradientTile(x, kernels)
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def run(sums, inputs):
        number, patches, dy = inputs
        inner, slope = _swish(tile.expanded(patches))
        outer, outer_slope = _swish(_stored(number, tile.filtered, inner))
        d_outer = _stored(number, tile.projection_transposed, dy, outer_slope)
        d_inner = tile.filter_transposed(d_outer) * tile.middle(slope)
        patches = patches[:, 2 * tile.reach : -2 * tile.reach or None]
        gradients = (
            jnp.matmul(patches, d_inner, preferred_element_type=wide),
            tile.tap_gradients(inner.astype(wide), d_outer.astype(wide)),
            jnp.matmul(dy, outer.reshape(-1, tile.maps), preferred_element_type=wide),
        )
        return jax.tree.map(jnp.add, sums, gradients), tile.expand @ d_inner.T

    zeros = (
        jnp.zeros_like(tile.expand, wide),
        tuple(jnp.zeros_like(tap, wide) for tap in tile.rows),
        jnp.zeros_like(kernels.project[:, 0], wide),
    )
    patches = tile.split(_patches(x))
    patches = jnp.pad(patches, ((0, 0), (0, 0), (tile.reach, tile.reach)))
    tiles = jnp.arange(len(patches)), patches, tile.split(dy[None])[:, 0]
    (d_expand, d_rows, d_project), d_patches = lax.scan(run, zeros, tiles)
    d_taps = jnp.stack(d_rows).reshape(len(d_rows), -1, tile.maps).sum(1)
    d_kernels = Kernels(
        d_expand.reshape(kernels.expand.shape),
        d_taps.reshape(kernels.depthwise.shape),
        d_project[:, None],
    )
    d_kernels = jax.tree.map(lambda d, k: d.astype(k.dtype), d_kernels, kernels)
    d_patches = jnp.pad(d_patches, ((0, 0), (0, 0), (tile.reach, tile.reach)))
    return _unpatch(tile.join(d_patches, x.shape)), d_kernels


def _stored(
    number: jax.Array, function: Callable[..., jax.Array], *operands: jax.Array
) -> jax.Array:
    """The function's result, computed once and written to memory.

    XLA computes what is as cheap as a filter again in each loop that uses it, four
    times here, and takes a barrier away before it does. It leaves a conditional whole,
    so there is one that it cannot foresee, on the number of the tile.
    """

    def never(*operands: jax.Array) -> jax.Array:
        result = jax.eval_shape(function, *operands)
        return jnp.zeros(result.shape, result.dtype)

    return lax.cond(number >= 0, function, never, *operands)


def _swish(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gives x σ(x) and its derivative; by tanh, which XLA computes faster than exp."""
    gate = 0.5 * jnp.tanh(0.5 * x) + 0.5
    value = x * gate
    return value, gate + value * (1 - gate)


class _Tile:
    """Sizes of a tile, and the linear maps of the branch on it."""

    def __init__(self, x: jax.Array, kernels: Kernels):
        self.maps = kernels.project.shape[0]
        self.frequencies = x.shape[-1]
        self.frames = max(1, min(_MOST_FRAMES, _TILE // self.maps))
        self.expand = kernels.expand.reshape(_REACH**2, self.maps)
        taps = kernels.depthwise.reshape(-1, self.maps)
        self.taps = tuple(jnp.tile(tap, self.frequencies) for tap in taps)

    def split(self, frames: jax.Array) -> jax.Array:
        """[p, b, t, f] -> [tiles, p, frames, f]; frames of zeros fill the last tile."""
        frames = frames.reshape(len(frames), -1, self.frequencies)
        # Not by the remainder, which could not be compared for a batch of any size.
        tiles = -(-frames.shape[1] // self.frames)
        missing = tiles * self.frames - frames.shape[1]
        frames = jnp.pad(frames, ((0, 0), (0, missing), (0, 0)))
        frames = frames.reshape(len(frames), tiles, self.frames, self.frequencies)
        return frames.swapaxes(0, 1)

    def join(self, tiles: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The inverse of `split`, of one map [tiles, frames · f] -> [b, t, f]."""
        frames = tiles.reshape(-1, self.frequencies)
        return frames[: shape[0] * shape[1]].reshape(shape)

    def expanded(self, patches: jax.Array) -> jax.Array:
        """The 3×3 convolution of patches [9, frames, f] -> [frames, f·m]."""
        flat = patches.reshape(_REACH**2, -1)
        return (flat.T @ self.expand).reshape(self.frames, -1)

    def filtered(self, maps: jax.Array) -> jax.Array:
        """Depthwise along f."""
        border = len(self.taps) // 2 * self.maps
        padded = jnp.pad(maps, ((0, 0), (border, border)))
        width = maps.shape[1]
        parts = [
            padded[:, i * self.maps : i * self.maps + width]
            for i in range(len(self.taps))
        ]
        return _weighted(parts, self.taps)


class _GradientTile:
    """Sizes of a tile of the gradient, the branch's linear maps, and their transposes.

    Each frame has `reach` columns of zeros on both sides of its frequencies, so that a
    shift along frequency is one along the flat array [frames · width · m], and no copy.
    What maps hold in these columns is of no meaning; what comes back from the output is
    0 there. A tile of patches, and the maps made of it, have `reach` columns more at
    both ends, for the shifts of the first and last frame; what goes back to the patches
    lacks as many.
    """

    def __init__(self, x: jax.Array, kernels: Kernels):
        self.maps = kernels.project.shape[0]
        self.taps = tuple(kernels.depthwise.reshape(-1, self.maps))
        self.reach = len(self.taps) // 2
        self.frequencies = x.shape[-1]
        self.width = self.frequencies + 2 * self.reach
        self.expand = kernels.expand.reshape(_REACH**2, self.maps)
        # Taps and projection for each column of a frame: [width · m].
        self.rows = tuple(jnp.tile(tap, self.width) for tap in self.taps)
        self.projection = jnp.tile(kernels.project[:, 0], self.width)

    def split(self, frames: jax.Array) -> jax.Array:
        """[p, b, t, f] -> [tiles, p, frames · width]; zeros fill the last tile."""
        borders = ((0, 0), (0, 0), (self.reach, self.reach))
        frames = frames.reshape(len(frames), -1, self.frequencies)
        # Not by the remainder, which could not be compared for a batch of any size.
        tiles = -(-frames.shape[1] // _GRADIENT_FRAMES)
        missing = tiles * _GRADIENT_FRAMES - frames.shape[1]
        frames = jnp.pad(jnp.pad(frames, borders), ((0, 0), (0, missing), (0, 0)))
        return frames.reshape(len(frames), tiles, -1).swapaxes(0, 1)

    def join(self, tiles: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The inverse of `split`: [tiles, p, frames · width] -> [p, b, t, f]."""
        frames = tiles.swapaxes(0, 1).reshape(_REACH**2, -1, self.width)
        frames = frames[:, : shape[0] * shape[1]]
        return frames[..., self.reach : self.reach + self.frequencies].reshape(
            _REACH**2, *shape
        )

    def expanded(self, patches: jax.Array) -> jax.Array:
        """The 3×3 convolution of patches [9, places] -> [places · m]."""
        return (patches.T @ self.expand).reshape(-1)

    def filtered(self, maps: jax.Array) -> jax.Array:
        """Depthwise along f -> [frames, width · m]."""
        return _weighted(self._shifted(maps), self.rows)

    def projection_transposed(self, dy: jax.Array, slope: jax.Array) -> jax.Array:
        """Gradient by the filter's output, of swish's `slope`: [frames, width · m]."""
        dy = jnp.repeat(dy.reshape(-1, self.width), self.maps, axis=1)
        return dy * (slope * self.projection)

    def filter_transposed(self, d_outer: jax.Array) -> jax.Array:
        """Gradient by the filter's input [places, m], without `reach` at both ends."""
        flat = d_outer.reshape(-1, self.maps)
        places = len(flat) - 2 * self.reach
        parts = [flat[i : i + places] for i in range(len(self.taps))]
        return _weighted(parts, self.taps[::-1])

    def middle(self, maps: jax.Array) -> jax.Array:
        """The places [places, m] of maps that `filter_transposed` gives."""
        return maps.reshape(-1, self.maps)[2 * self.reach : -2 * self.reach or None]

    def tap_gradients(self, maps: jax.Array, dy: jax.Array) -> tuple[jax.Array, ...]:
        """Gradient by each tap, not yet summed over frequency: [width · m] each.

        The sum over frames is written out: XLA's reduction of a product makes a copy
        of its operands first.
        """
        return tuple(_weighted(tuple(part), tuple(dy)) for part in self._shifted(maps))

    def _shifted(self, maps: jax.Array) -> list[jax.Array]:
        length = len(maps) - 2 * self.reach * self.maps
        return [
            maps[i * self.maps : i * self.maps + length].reshape(_GRADIENT_FRAMES, -1)
            for i in range(len(self.taps))
        ]


def _weighted(parts: Sequence[jax.Array], weights: Sequence[jax.Array]) -> jax.Array:
    """Sum of parts times weights, written out."""
    first, *others = (part * w for part, w in zip(parts, weights, strict=True))
    return sum(others, start=first)


def _patches(x: jax.Array) -> jax.Array:
    """The nine neighbours of each place: [b, t, f] -> [9, b, t, f], zeros outside."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1)))
    _, t, f = x.shape
    places = [(i, j) for i in range(_REACH) for j in range(_REACH)]
    return jnp.stack([padded[:, i : i + t, j : j + f] for i, j in places])


def _unpatch(patches: jax.Array) -> jax.Array:
    """The transpose of `_patches`."""
    places = [(i, j) for i in range(_REACH) for j in range(_REACH)]
    padded = [
        jnp.pad(patch, ((0, 0), (i, 2 - i), (j, 2 - j)))
        for (i, j), patch in zip(places, patches, strict=True)
    ]
    return sum(padded[1:], start=padded[0])[:, 1:-1, 1:-1]
