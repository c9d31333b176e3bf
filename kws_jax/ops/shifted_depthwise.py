"""Depthwise convolution on CPUs: sums of shifted copies of the input.

The output is one fused loop over them. So is the gradient by the input, for each of the
places between two outputs where there are strides. The gradients of the taps are added
up image by image, while an image is in the cache, or, for long signals and high images,
are one reduction each.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Products written out at most for the part of one image in the gradients of the taps.
_MOST_PRODUCTS = 256


class Geometry(NamedTuple):
    """Strides, distances of taps and zeros (before, after), each by axis of space.

    Images lie as [b, *space, c], or as [c, *space, b] if `batch_last`.
    """

    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    batch_last: bool = False


def shifted_sum(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """The convolution of x with taps [*taps, 1, c]."""
    padded = _pad(x, geometry.pads)
    shifts = _shifts(padded, kernel.shape[:-2], geometry)
    return _sum_of(
        padded[shift] * tap
        for shift, tap in zip(shifts, _each_tap(kernel, geometry), strict=True)
    )


def shifted_gradients(
    x: jax.Array, kernel: jax.Array, dy: jax.Array, geometry: Geometry
) -> tuple[jax.Array, jax.Array]:
    """Gradients by x and by kernel."""
    taps = _tap_gradients(x, dy, kernel.shape[:-2], geometry).reshape(kernel.shape)
    strided = any(stride > 1 for stride in geometry.strides)
    if strided and all(distance == 1 for distance in geometry.dilation):
        return _by_phases(x.shape, kernel, dy, geometry), taps
    return _of_spread(x.shape, kernel, dy, geometry), taps


def _of_spread(
    shape: tuple[int, ...], kernel: jax.Array, dy: jax.Array, geometry: Geometry
) -> jax.Array:
    """The gradient by x: the full correlation of dy, spread out by the strides.

    With the flipped kernel this is again a depthwise convolution.
    """
    strides, dilation, pads, _ = geometry
    spread = [(stride - 1) * (n - 1) + n for stride, n in zip(strides, dy.shape[1:-1])]
    borders = []
    for axis, (before, _) in enumerate(pads):
        reach = dilation[axis] * (kernel.shape[axis] - 1)
        borders.append((reach - before, shape[axis + 1] + before - spread[axis]))
    dy = _pad(dy, borders, strides)
    flipped = jnp.flip(kernel, tuple(range(kernel.ndim - 2)))
    ones, none = (1,) * len(strides), ((0, 0),) * len(strides)
    return shifted_sum(dy, flipped, geometry._replace(strides=ones, pads=none))


def _by_phases(
    shape: tuple[int, ...], kernel: jax.Array, dy: jax.Array, geometry: Geometry
) -> jax.Array:
    """The gradient by x without the zeros that spread dy; dilation 1.

    Place stride·m + r of the padded input has met the taps r + stride·l alone, at the
    outputs m − l. So each r gives a phase, and the phases are interleaved.
    """
    counts, pads = kernel.shape[:-2], geometry.pads
    places = [
        -(-(size + before) // stride)
        for size, (before, _), stride in zip(shape[1:-1], pads, geometry.strides)
    ]
    reach = [-(-k // stride) - 1 for k, stride in zip(counts, geometry.strides)]
    outputs = dy.shape[1:-1]
    padded = _pad(dy, [(r, m - n) for r, m, n in zip(reach, places, outputs)])
    taps = dict(zip(np.ndindex(counts), _each_tap(kernel, geometry), strict=True))

    def phase(first: tuple[int, ...]) -> jax.Array:
        parts = []
        for tap, value in taps.items():
            steps = [divmod(i - f, s) for i, f, s in zip(tap, first, geometry.strides)]
            if not any(rest for _, rest in steps):
                starts = [r - back for r, (back, _) in zip(reach, steps)]
                part = tuple(slice(a, a + m) for a, m in zip(starts, places))
                parts.append(padded[(slice(None), *part)] * value)
        if parts:
            return _sum_of(parts)
        return jnp.zeros((dy.shape[0], *places, dy.shape[-1]), dy.dtype)

    phases = [phase(first) for first in np.ndindex(geometry.strides)]
    for axis, stride in reversed(list(enumerate(geometry.strides, 1))):
        phases = [
            _interleave(phases[i : i + stride], axis)
            for i in range(0, len(phases), stride)
        ]
    return _pad(
        phases[0],
        [
            (-before, size + before - have)
            for (before, _), size, have in zip(pads, shape[1:-1], phases[0].shape[1:-1])
        ],
    )


def _interleave(parts: list[jax.Array], axis: int) -> jax.Array:
    """The entries of the parts along an axis, by turns."""
    size = (*parts[0].shape[:axis], -1, *parts[0].shape[axis + 1 :])
    return jnp.stack(parts, axis + 1).reshape(size) if len(parts) > 1 else parts[0]


def _tap_gradients(
    x: jax.Array, dy: jax.Array, taps: tuple[int, ...], geometry: Geometry
) -> jax.Array:
    """Σ_{b, s} dy[b, s, c] · x[b, strides·s + dilation·i − before, c], each tap i."""
    if dy.ndim == 4 and dy.shape[1] * taps[1] <= _MOST_PRODUCTS:
        return _tap_gradients_of_images(x, dy, taps, geometry)
    return _tap_gradients_in_turn(_pad(x, geometry.pads), dy, taps, geometry)


def _tap_gradients_of_images(
    x: jax.Array, dy: jax.Array, taps: tuple[int, ...], geometry: Geometry
) -> jax.Array:
    """Image by image, or channel by channel; so that all taps find it in the cache.

    In the sums, which are kept for each column, the rows are written out: XLA's
    reduction of a product makes a copy of its operands first. One column of zeros is
    added to dy as well as to x, since XLA computes a padded array but once, where it
    would otherwise take an image out of the batch in the innermost loop, which is then
    not vectorised.
    """
    (down, right), (d, e), pads, batch_last = geometry
    rows, columns = dy.shape[1], dy.shape[2] + 1
    wide = jnp.promote_types(x.dtype, jnp.float32)
    height, width = d * (taps[0] - 1) + 1, right * (columns - 1) + 1
    needed = (down * (rows - 1) + height, e * (taps[1] - 1) + width)
    borders = [
        (before, size - before - have)
        for (before, _), size, have in zip(pads, needed, x.shape[1:3])
    ]

    def add(n: jax.Array, sums: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        image, slope = (lax.dynamic_slice_in_dim(a, n, 1).astype(wide) for a in (x, dy))
        image, slope = _pad(image, borders)[0], _pad(slope, ((0, 0), (0, 1)))[0]

        def part(row: int, tap: int) -> jax.Array:
            top, left = down * row, e * tap
            met = image[top : top + height : d, left : left + width : right]
            return met * slope[row]

        return tuple(
            sum((part(row, tap) for row in range(rows)), start=so_far)
            for tap, so_far in enumerate(sums)
        )

    zeros = (jnp.zeros((taps[0], columns, x.shape[-1]), wide),) * taps[1]
    if batch_last:
        # stacked before they are summed, or XLA would make its slow reductions of them
        by_channel = lax.map(
            lambda n: jnp.stack(add(n, zeros), 1).sum(2).sum(2), jnp.arange(len(x))
        )
        return jnp.moveaxis(by_channel, 0, -1).astype(x.dtype)
    sums = lax.fori_loop(0, x.shape[0], add, zeros)
    return jnp.stack([s.sum(1) for s in sums], 1).astype(x.dtype)


def _tap_gradients_in_turn(
    padded: jax.Array, dy: jax.Array, taps: tuple[int, ...], geometry: Geometry
) -> jax.Array:
    """Tap by tap, of the input after padding.

    In a loop: XLA would otherwise compute what comes before the padding anew for each
    tap, as it fuses that into the reductions.
    """
    grid = np.indices(taps).reshape(len(taps), -1).T
    starts = np.pad(grid * np.array(geometry.dilation), ((0, 0), (1, 1)))
    spans = [s * (n - 1) + 1 for s, n in zip(geometry.strides, dy.shape[1:-1])]
    size = (padded.shape[0], *spans, padded.shape[-1])
    every = tuple(slice(None, None, stride) for stride in geometry.strides)
    channel = 0 if geometry.batch_last else dy.ndim - 1
    others = tuple(axis for axis in range(dy.ndim) if axis != channel)

    def tap(start: jax.Array) -> jax.Array:
        met = lax.dynamic_slice(padded, start, size)[(slice(None), *every)]
        return (met * dy).sum(others)

    return lax.map(tap, jnp.asarray(starts))


def _each_tap(kernel: jax.Array, geometry: Geometry) -> list[jax.Array]:
    """The taps one by one, in a shape that spreads over images."""
    taps = kernel.reshape(-1, kernel.shape[-1])
    if geometry.batch_last:
        taps = taps.reshape(*taps.shape, *(1,) * (kernel.ndim - 1))
    return list(taps)


def _sum_of(terms) -> jax.Array:
    first, *others = terms
    return sum(others, start=first)


def _pad(
    x: jax.Array, pads: Sequence[tuple[int, int]], spread: Sequence[int] | None = None
) -> jax.Array:
    """Zeros around the axes of space, negative to crop, and between their entries."""
    spread = spread or (1,) * len(pads)
    inner = [(before, after, s - 1) for (before, after), s in zip(pads, spread)]
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *inner, (0, 0, 0)))


def _shifts(
    padded: jax.Array, taps: Sequence[int], geometry: Geometry
) -> list[tuple[slice, ...]]:
    """For each tap, the part of the padded input [·, *space, ·] that it meets."""
    shifts: list[tuple[slice, ...]] = [(slice(None),)]
    for size, count, stride, step in zip(
        padded.shape[1:-1], taps, geometry.strides, geometry.dilation, strict=True
    ):
        outputs = (size - step * (count - 1) - 1) // stride + 1
        span = stride * (outputs - 1) + 1
        parts = [slice(step * i, step * i + span, stride) for i in range(count)]
        shifts = [(*shift, part) for shift in shifts for part in parts]
    return shifts
