"""What each operation of a packed file makes, from shapes alone. No NumPy.

There is a rule for each name of `packed_operations`: from the shapes and kinds of its
inputs and from its settings follow those of its result, and what computing it takes. So
a program is known to be sound, small and quick before anything is computed, and an
operation that has passed does not fail when it runs.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from kws_jax.deploy.packed_fields import MOST_AXES, BadFile, shown
from kws_jax.deploy.packed_values import (
    ALL,
    CALL,
    ERFC,
    FAR,
    FFT,
    FUNCTION,
    LOOSE_PRODUCT,
    POWER,
    Result,
    Rule,
    Value,
    by_element,
    kind_of,
    made,
    pace,
    spread,
    view,
)

Pads = Sequence[Sequence[int]]

# Of arrays; weights are int8.
TYPES = {"bool": "b", "int32": "i", "float32": "f"}
_KIND_NAMES = {"b": "booleans", "i": "integers", "f": "floats", "c": "complex numbers"}
# So that no sum of sizes grows without bound; far more than may be computed.
_MOST_NUMBERS = 2**40
_EQUATION = re.compile("([a-zA-Z]*),([a-zA-Z]*)->([a-zA-Z]*)")


def result_of(
    name: str, inputs: Sequence[Value], settings: Mapping[str, Any]
) -> Result:
    """What an operation makes of inputs; its settings are those of its rule.

    Raises:
      BadFile: it cannot be computed.
    """
    rule = RULES[name]
    if len(inputs) < rule.inputs or (len(inputs) > rule.inputs and not rule.more):
        raise BadFile(f"it has {len(inputs)} inputs, expected {rule.inputs}")
    for value in inputs:
        if value.kind not in rule.takes:
            raise BadFile(f"it takes no {_KIND_NAMES[value.kind]}")
    result = rule.result(*inputs, **settings)
    shape = result.value.shape
    if len(shape) > MOST_AXES or math.prod(shape) > _MOST_NUMBERS:
        raise BadFile(f"its result of shape {list(shape)} is too large")
    return result


def _quantize(x: Value, scale: Value, *, bits: int, signed: bool) -> Result:
    if spread(x, scale) != x.shape:
        raise BadFile("its scale has more axes than what it rounds")
    return made(x.shape, "i", [x], scratch=4)


def _sub(x: Value, y: Value) -> Result:
    if kind_of(x, y) == "b":
        raise BadFile("booleans have no difference")
    return made(spread(x, y), kind_of(x, y), [x, y])


def _product(x: Value, y: Value, *, equation: str, largest: int = 0) -> Result:
    parts = _EQUATION.fullmatch(equation)
    first, second, last = parts.groups() if parts else ("", "", "")
    once = all(len(set(letters)) == len(letters) for letters in (first, second, last))
    both = set(first) & set(second)
    sizes = dict(zip(first, x.shape)) | dict(zip(second, y.shape))
    if (
        not (parts and once)
        or (len(first), len(second)) != (len(x.shape), len(y.shape))
        or not set(first) ^ set(second) <= set(last) <= set(first) | set(second)
        or any(x.shape[first.index(a)] != sizes[a] for a in both)
    ):
        raise BadFile(
            f"{shown(equation)} is no product of shapes {list(x.shape)} and "
            f"{list(y.shape)}"
        )
    # Only those without axes of both in the result are products of matrices.
    by_matrix = both and not both & set(last)
    kind, moved = "i" if largest else "f", x.numbers + y.numbers
    result = made([sizes[a] for a in last], kind, [x, y], scratch=4)
    products = math.prod(sizes.values()) * (1 if by_matrix else LOOSE_PRODUCT)
    work = products + result.work + pace(x, y) * moved
    return Result(result.value, work, result.scratch + 2 * moved)


def _conv(
    x: Value,
    kernel: Value,
    *,
    strides: Sequence[int],
    padding: Pads,
    dilation: Sequence[int],
    groups: int = 1,
    largest: int = 0,
) -> Result:
    space = len(kernel.shape) - 2
    counts = {len(x.shape) - 2, len(strides), len(padding), len(dilation)}
    if space < 0 or counts != {space}:
        raise BadFile("its input, kernel and settings are of different numbers of axes")
    (batch, *sizes, channels), (*taps, inputs, outputs) = x.shape, kernel.shape
    if channels != groups * inputs or outputs % groups:
        raise BadFile(
            f"a kernel of {inputs} to {outputs} channels in {groups} groups does not "
            f"fit to {channels} channels"
        )
    padded = [size + sum(pads) for size, pads in zip(sizes, padding)]
    met = [p - d * (k - 1) for p, d, k in zip(padded, dilation, taps)]
    if min(met, default=1) < 1:
        raise BadFile("its kernel is longer than what it runs over")
    spans = [(m - 1) // s + 1 for m, s in zip(met, strides)]
    value = Value((batch, *spans, outputs), "i" if largest else "f")
    wide = Value((batch, *padded, channels), x.kind, x.within)
    # Channels each by their own, else matrices, of all channels or of each group.
    places, apart = batch * math.prod(spans), inputs == 1 and outputs == groups
    products = 0 if apart else places * inputs * outputs
    products *= 1 if groups == 1 else LOOSE_PRODUCT
    moved, read = places * (channels + 2 * outputs), 2 * wide.numbers + kernel.numbers
    of_tap = 2 * CALL + products + pace(wide, value) * moved
    work = math.prod(taps) * of_tap + pace(wide, kernel) * read
    return Result(value, work, read + moved + value.numbers)


def _convert(x: Value, *, type: str) -> Result:
    return made(x.shape, TYPES[type], [x])


def _reshape(x: Value, *, shape: Sequence[int]) -> Result:
    if math.prod(shape) != math.prod(x.shape):
        raise BadFile(f"{list(x.shape)} cannot take the shape {list(shape)}")
    return view(x, shape)


def _broadcast(x: Value, *, shape: Sequence[int]) -> Result:
    if spread(x, Value(tuple(shape), "b")) != tuple(shape):
        raise BadFile(f"{list(x.shape)} cannot be spread to {list(shape)}")
    return view(x, shape)


def _transpose(x: Value, *, axes: Sequence[int]) -> Result:
    if sorted(axes) != list(range(len(x.shape))):
        raise BadFile(f"{shown(axes)} is no order of {len(x.shape)} axes")
    return view(x, [x.shape[axis] for axis in axes])


def _slice(x: Value, *, places: Sequence[Sequence[int]]) -> Result:
    if len(places) != len(x.shape) or not all(
        start < end <= size for (start, end, _), size in zip(places, x.shape)
    ):
        raise BadFile(f"{shown(places)} are no places in {list(x.shape)}")
    return view(x, [-(-(end - start) // step) for start, end, step in places])


def _concatenate(*parts: Value, axis: int) -> Result:
    rests = {(*part.shape[:axis], *part.shape[axis + 1 :]) for part in parts}
    if len(rests) > 1 or not all(axis < len(part.shape) for part in parts):
        raise BadFile(f"its inputs do not go together along axis {axis}")
    shape = list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    result = made(shape, kind_of(*parts), parts)
    return dataclasses.replace(result, work=result.work + CALL * len(parts) // 8)


def _pad(x: Value, value: Value, *, padding: Pads) -> Result:
    if value.shape or value.kind == "c" or len(padding) != len(x.shape) or not x.shape:
        raise BadFile("it takes one number, and numbers of it for each axis")
    shape = [size + sum(pads) for size, pads in zip(x.shape, padding)]
    return made(shape, x.kind, [x])


def _count(*, shape: Sequence[int], axis: int, type: str) -> Result:
    if axis >= len(shape) or type == "bool":
        raise BadFile(f"there is no count of type {type} along axis {axis} of {shape}")
    return made(shape, TYPES[type], [])


def _reduced(x: Value, axes: Sequence[int], kind: str) -> Result:
    if len(set(axes)) < len(axes) or max(axes, default=-1) >= len(x.shape):
        raise BadFile(f"{shown(axes)} are no axes of {list(x.shape)}")
    left = [size for axis, size in enumerate(x.shape) if axis not in axes]
    return dataclasses.replace(made(left, kind, [x]), work=pace(x) * x.numbers)


def _sum(x: Value, *, axes: Sequence[int]) -> Result:
    return _reduced(x, axes, "i" if x.kind == "b" else x.kind)


def _max_over(x: Value, *, axes: Sequence[int]) -> Result:
    return _reduced(x, axes, x.kind)


def _rfft(x: Value, *, length: int) -> Result:
    if not x.shape:
        raise BadFile("it takes an array of at least one axis")
    rows = math.prod(x.shape[:-1])
    value = Value((*x.shape[:-1], length // 2 + 1), "c")
    # A length that is prime is computed by several transforms of another.
    scratch = 2 * (x.numbers + value.numbers) + 16 * length
    return Result(value, FFT * rows * length + FAR * x.numbers, scratch)


def _part(x: Value) -> Result:
    return view(x, x.shape, "f" if x.kind == "c" else x.kind)


def _power(x: Value, *, exponent: int) -> Result:
    if exponent < 0 and x.kind != "f":
        raise BadFile("integers have no negative powers")
    return made(x.shape, "i" if x.kind == "b" else x.kind, [x], POWER)


def _select(which: Value, first: Value, second: Value) -> Result:
    if which.kind not in "bi":
        raise BadFile("what it chooses by is neither booleans nor integers")
    inputs = (which, first, second)
    return made(spread(*inputs), kind_of(first, second), inputs)


_FLOAT = {"b": "f", "i": "f"}
_BOOLEAN = dict.fromkeys("bif", "b")
_function = by_element(1, gives=_FLOAT, work=FUNCTION)
_part_of_complex = Rule(_part, takes=ALL)

# One for each of `packed_operations.OPERATIONS`.
RULES: dict[str, Rule] = {
    "quantize": Rule(_quantize, 2, ("bits", "signed")),
    "scale": by_element(2, gives=_FLOAT),
    "product": Rule(_product, 2, ("equation",), ("largest",)),
    "conv": Rule(_conv, 2, ("strides", "padding", "dilation"), ("groups", "largest")),
    "convert": Rule(_convert, settings=("type",)),
    "reshape": Rule(_reshape, settings=("shape",), takes=ALL),
    "broadcast": Rule(_broadcast, settings=("shape",), takes=ALL),
    "transpose": Rule(_transpose, settings=("axes",), takes=ALL),
    "slice": Rule(_slice, settings=("places",), takes=ALL),
    "concatenate": Rule(_concatenate, settings=("axis",), takes=ALL, more=True),
    "pad": Rule(_pad, 2, ("padding",), takes=ALL),
    "count": Rule(_count, 0, ("shape", "axis", "type")),
    "sum": Rule(_sum, settings=("axes",), takes=ALL),
    "max_over": Rule(_max_over, settings=("axes",)),
    "rfft": Rule(_rfft, settings=("length",)),
    "real": _part_of_complex,
    "imag": _part_of_complex,
    "power": Rule(_power, settings=("exponent",)),
    "select": Rule(_select, 3, takes=ALL),
    "add": by_element(2, ALL),
    "sub": Rule(_sub, 2, takes=ALL),
    "mul": by_element(2, ALL),
    "div": by_element(2, gives=_FLOAT),
    "max": by_element(2),
    "min": by_element(2),
    "gt": by_element(2, gives=_BOOLEAN),
    "lt": by_element(2, gives=_BOOLEAN),
    "eq": by_element(2, gives=_BOOLEAN),
    "neg": by_element(1, "ifc"),
    "abs": by_element(1, ALL, {"c": "f"}),
    "square": by_element(1, ALL, {"b": "i"}),
    **dict.fromkeys(("sqrt", "rsqrt", "exp", "log", "log1p"), _function),
    **dict.fromkeys(("sin", "cos", "tanh", "logistic"), _function),
    # Goes through objects.
    "erfc": by_element(1, gives=_FLOAT, work=ERFC, scratch=12),
}
