"""What the operations of a packed file compute. NumPy alone.

Each takes arrays and the settings that stand with it in the file, and gives one array.
Arrays are float32, or int32 (int8 for weights) between "quantize" and "scale"; "gt",
"lt" and "eq" give booleans, "rfft" complex numbers. Those by element spread axes of
size 1. Each has a rule in kws_jax/deploy/packed_shapes.py, by which files are checked.
"""

import math
import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kws_jax.deploy.packed_format import top

Pads = Sequence[Sequence[int]]

# Sums of integers below are exact in float32, for which CPUs have fast products.
_EXACT_IN_FLOAT32 = 2**24


def quantize(x: np.ndarray, scale: np.ndarray, *, bits: int, signed: bool) -> Any:
    """The integers clip(round(x / scale), −top or 0, top), ties to the even one.

    top is `packed_format.top`. One bit signed is 1 where x ≥ 0, else −1.
    """
    if signed and bits == 1:
        return np.where(x >= 0, np.int32(1), np.int32(-1))
    largest = top(bits, signed=signed)
    lowest = -largest if signed else 0
    return np.clip(np.rint(x / scale), lowest, largest).astype(np.int32)


def scale(integers: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Integers times the values of the integer 1, one or as many as the last axis."""
    return integers.astype(np.float32) * values


def product(
    x: np.ndarray, y: np.ndarray, *, equation: str, largest: int = 0
) -> np.ndarray:
    """Sums of products, as `numpy.einsum` has them: "abc,cd->abd".

    With `largest`, above no sum of sizes |x|·|y| can be, x and y are integers, and so
    is what comes out.
    """
    working = _working_type(largest)
    y = np.einsum(equation, x.astype(working), y.astype(working), optimize=True)
    return _result(y, largest)


def conv(
    x: np.ndarray,
    kernel: np.ndarray,
    *,
    strides: Sequence[int],
    padding: Pads,
    dilation: Sequence[int],
    groups: int = 1,
    largest: int = 0,
) -> np.ndarray:
    """y[b, s, d] = Σ_{i, c} kernel[i, c, d] · x[b, strides·s + dilation·i − before, c].

    Over any number of axes of space. `padding` are the zeros (before, after) each. With
    `groups`, the channels of x and of y are divided into so many parts in order, and
    each part of y sees its own of x. `largest` is that of `product`.
    """
    working = _working_type(largest)
    x = np.pad(x.astype(working), ((0, 0), *padding, (0, 0)))
    kernel, taps = kernel.astype(working), kernel.shape[:-2]
    spans = [
        s * ((size - d * (k - 1) - 1) // s) + 1
        for size, s, d, k in zip(x.shape[1:-1], strides, dilation, taps)
    ]
    total: Any = 0
    for place in np.ndindex(*taps):
        met = tuple(
            slice(d * i, d * i + span, s)
            for i, d, s, span in zip(place, dilation, strides, spans)
        )
        total = total + _tap(x[(slice(None), *met)], kernel[place], groups)
    return _result(total, largest)


def _tap(x: np.ndarray, kernel: np.ndarray, groups: int) -> np.ndarray:
    """What one tap [c / groups, d] adds."""
    inputs, outputs = kernel.shape
    if inputs == 1 and outputs == groups:
        return x * kernel[0]
    if groups == 1:
        return (x.reshape(-1, inputs) @ kernel).reshape(*x.shape[:-1], outputs)
    parts = x.reshape(*x.shape[:-1], groups, inputs)
    y = np.einsum("...gi,igo->...go", parts, kernel.reshape(inputs, groups, -1))
    return y.reshape(*x.shape[:-1], outputs)


def _working_type(largest: int) -> Any:
    """A type of floats in which all sums of integers up to `largest` are exact.

    BLAS has no integers, and NumPy's own products of them are slow.
    """
    return np.float64 if largest >= _EXACT_IN_FLOAT32 else np.float32


def _result(y: np.ndarray, largest: int) -> np.ndarray:
    return y.astype(np.int32) if largest else y


def _convert(x: np.ndarray, *, type: str) -> np.ndarray:
    return x.astype(type)


def _reshape(x: np.ndarray, *, shape: Sequence[int]) -> np.ndarray:
    return x.reshape(shape)


def _broadcast(x: np.ndarray, *, shape: Sequence[int]) -> np.ndarray:
    return np.broadcast_to(x, shape)


def _transpose(x: np.ndarray, *, axes: Sequence[int]) -> np.ndarray:
    return x.transpose(axes)


def _slice(x: np.ndarray, *, places: Sequence[Sequence[int]]) -> np.ndarray:
    """From `start` to before `end` by `step`, for each axis."""
    return x[tuple(slice(*place) for place in places)]


def _concatenate(*parts: np.ndarray, axis: int) -> np.ndarray:
    return np.concatenate(parts, axis)


def _pad(x: np.ndarray, value: np.ndarray, *, padding: Pads) -> np.ndarray:
    return np.pad(x, padding, constant_values=value.astype(x.dtype))


def _count(*, shape: Sequence[int], axis: int, type: str) -> np.ndarray:
    """0, 1, 2, … along an axis."""
    counted = np.arange(shape[axis], dtype=type)
    counted = counted.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return np.broadcast_to(counted, shape)


def _sum(x: np.ndarray, *, axes: Sequence[int]) -> np.ndarray:
    return x.sum(tuple(axes))


def _maximum_over(x: np.ndarray, *, axes: Sequence[int]) -> np.ndarray:
    return x.max(tuple(axes))


def _rfft(x: np.ndarray, *, length: int) -> np.ndarray:
    return np.fft.rfft(x, length)


def _power(x: np.ndarray, *, exponent: int) -> np.ndarray:
    return x**exponent


def _select(which: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """`second` where `which` is true, else `first`."""
    return np.where(which, second, first)


def _logistic(x: np.ndarray) -> np.ndarray:
    # By tanh, which overflows nowhere.
    return np.float32(0.5) * np.tanh(np.float32(0.5) * x) + np.float32(0.5)


_erfc = np.vectorize(math.erfc, otypes=[np.float32])

OPERATIONS: dict[str, Callable[..., np.ndarray]] = {
    "quantize": quantize,
    "scale": scale,
    "product": product,
    "conv": conv,
    "convert": _convert,
    "reshape": _reshape,
    "broadcast": _broadcast,
    "transpose": _transpose,
    "slice": _slice,
    "concatenate": _concatenate,
    "pad": _pad,
    "count": _count,
    "sum": _sum,
    "max_over": _maximum_over,
    "rfft": _rfft,
    "real": np.real,
    "imag": np.imag,
    "power": _power,
    "select": _select,
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
    "gt": np.greater,
    "lt": np.less,
    "eq": np.equal,
    "neg": np.negative,
    "abs": np.abs,
    "square": np.square,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: np.float32(1) / np.sqrt(x),
    "exp": np.exp,
    "log": np.log,
    "log1p": np.log1p,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "logistic": _logistic,
    "erfc": _erfc,
}


def equation_of(
    ranks: tuple[int, int],
    contracted: tuple[Sequence[int], Sequence[int]],
    batch: tuple[Sequence[int], Sequence[int]],
) -> str:
    """The equation of a product of two arrays of so many axes.

    The result has the `batch` axes, then those of the first and of the second that are
    left.
    """
    letters = iter(string.ascii_letters)
    first = [next(letters) for _ in range(ranks[0])]
    second = [""] * ranks[1]
    for a, b in zip((*contracted[0], *batch[0]), (*contracted[1], *batch[1])):
        second[b] = first[a]
    second = [letter or next(letters) for letter in second]
    shared = [first[a] for a in batch[0]]
    left = [
        letter
        for letter in (*first, *second)
        if (letter in first) != (letter in second)
    ]
    return f"{''.join(first)},{''.join(second)}->{''.join((*shared, *left))}"
