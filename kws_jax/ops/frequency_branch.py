"""ConvMixer's frequency branch as one operation.

3×3 to m maps → swish → depthwise along frequency → swish → 1×1 to one map: the branch
of Ng et al. (arXiv 2201.05863), Eq. (1), before its batch norm. Its maps are m times as
large as its input and its output: for a batch of 128 they fill 205 MB, so operation by
operation it is the memory that is measured. But no map reaches into another frame once
the 3×3 patches are cut. On CPUs a few frames are therefore taken through all of it
while they are in the cache, and once more for the gradient, so no map is ever kept.

In a tile the maps lie as [frames, f·m], so that loops run over f·m neighbouring numbers
however small m is, and a shift along frequency is one by m numbers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from kws_jax.ops.depthwise import depthwise_conv

# Frames · m of a tile: its arrays of float32 fill some 400 kB for 64 frequencies. Sums
# over the frames of a tile are written out, which more frames make slow to compile.
_TILE, _MOST_FRAMES = 1600, 49
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
    tile = _Tile(x, kernels)
    projection = jnp.tile(kernels.project[:, 0], tile.frequencies)

    def run(sums, inputs):
        patches, dy = inputs
        inner, slope = _swish(tile.expanded(patches))
        outer, outer_slope = _swish(tile.filtered(inner))
        d_project = dy.reshape(-1) @ outer.reshape(-1, tile.maps)
        d_outer = jnp.repeat(dy[0], tile.maps, axis=1) * projection * outer_slope
        d_taps = tile.tap_gradients(inner, d_outer)
        d_inner = (tile.filtered(d_outer, flipped=True) * slope).reshape(-1, tile.maps)
        flat = patches.reshape(_REACH**2, -1)
        d_patches = (tile.expand @ d_inner.T).reshape(patches.shape)
        return jax.tree.map(
            jnp.add, sums, (flat @ d_inner, d_taps, d_project)
        ), d_patches

    zeros = (
        jnp.zeros_like(tile.expand),
        tuple(jnp.zeros_like(tap) for tap in tile.taps),
        jnp.zeros_like(kernels.project[:, 0]),
    )
    tiles = tile.split(_patches(x)), tile.split(dy[None])
    (d_expand, d_taps, d_project), d_patches = lax.scan(run, zeros, tiles)
    taps = jnp.stack(d_taps).reshape(-1, tile.frequencies, tile.maps).sum(1)
    d_kernels = Kernels(
        d_expand.reshape(kernels.expand.shape),
        taps.reshape(kernels.depthwise.shape),
        d_project[:, None],
    )
    return _unpatch(tile.join(d_patches, (_REACH**2, *x.shape))), d_kernels


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
        """The inverse of `split`; without its axis p where `shape` has none."""
        parts = 1 if len(shape) == 3 else shape[0]
        tiles = tiles.reshape(-1, parts, self.frames * self.frequencies)
        flat = tiles.swapaxes(0, 1).reshape(parts, -1)
        count = shape[-3] * shape[-2] * shape[-1]
        return flat[:, :count].reshape(shape)

    def expanded(self, patches: jax.Array) -> jax.Array:
        """The 3×3 convolution of patches [9, frames, f] -> [frames, f·m]."""
        flat = patches.reshape(_REACH**2, -1)
        return (flat.T @ self.expand).reshape(self.frames, -1)

    def filtered(self, maps: jax.Array, *, flipped: bool = False) -> jax.Array:
        """Depthwise along f; `flipped` is its transpose."""
        shifted = self._shifted(maps)
        taps = self.taps[::-1] if flipped else self.taps
        return sum(
            (part * tap for part, tap in zip(shifted[1:], taps[1:], strict=True)),
            start=shifted[0] * taps[0],
        )

    def tap_gradients(self, maps: jax.Array, dy: jax.Array) -> tuple[jax.Array, ...]:
        """Gradient by each tap, not yet summed over frequency: [f·m] each.

        The sum over frames is written out: XLA's reduction of a product makes a copy
        of its operands first.
        """
        return tuple(
            sum((part[r] * dy[r] for r in range(1, self.frames)), part[0] * dy[0])
            for part in self._shifted(maps)
        )

    def _shifted(self, maps: jax.Array) -> list[jax.Array]:
        border = len(self.taps) // 2 * self.maps
        padded = jnp.pad(maps, ((0, 0), (border, border)))
        width = maps.shape[1]
        return [
            padded[:, i * self.maps : i * self.maps + width]
            for i in range(len(self.taps))
        ]


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
