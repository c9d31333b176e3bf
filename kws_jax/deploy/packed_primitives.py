"""JAX's primitives as operations of the packed format."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kws_jax.deploy.packed_graph import Graph, Node
from kws_jax.deploy.packed_operations import equation_of

Params = Mapping[str, Any]
Shapes = Sequence[tuple[int, ...]]

# Give what they get.
SAME = ("stop_gradient", "copy")
_BY_ELEMENT = (
    *("add", "sub", "mul", "max", "min", "gt", "lt", "eq", "neg", "abs", "square"),
    *("sqrt", "rsqrt", "exp", "log", "log1p", "sin", "cos", "tanh", "logistic", "erfc"),
    *("real", "imag"),
)


def _reshape(params: Params, shapes: Shapes, result: Any) -> dict[str, Any]:
    return {"shape": list(result.shape)}


def _convert(params: Params, shapes: Shapes, result: Any) -> dict[str, Any]:
    return {"type": result.dtype.name}


def _transpose(params: Params, shapes: Shapes, result: Any) -> dict[str, Any]:
    return {"axes": _whole(params["permutation"])}


def _axes(params: Params, shapes: Shapes, result: Any) -> dict[str, Any]:
    return {"axes": _whole(params["axes"])}


def _slice(params: Params, shapes: Shapes, result: Any) -> dict[str, Any]:
    steps = params["strides"] or (1,) * len(shapes[0])
    places = zip(params["start_indices"], params["limit_indices"], steps)
    return {"places": [_whole(place) for place in places]}


def _concatenate(params: Params, shapes: Shapes, result: Any) -> dict[str, Any]:
    return {"axis": int(params["dimension"])}


def _pad(params: Params, shapes: Shapes, result: Any) -> dict[str, Any]:
    if any(
        min(low, high) < 0 or inner for low, high, inner in params["padding_config"]
    ):
        raise ValueError("padding must add numbers, around the others")
    return {"padding": [_whole(pads[:2]) for pads in params["padding_config"]]}


def _count(params: Params, shapes: Shapes, result: Any) -> dict[str, Any]:
    return {
        **_reshape(params, shapes, result),
        **_convert(params, shapes, result),
        "axis": int(params["dimension"]),
    }


def _rfft(params: Params, shapes: Shapes, result: Any) -> dict[str, Any]:
    (length,) = params["fft_lengths"]
    if 2 * (result.shape[-1] - 1) != length:
        raise ValueError("only the transform of real numbers is known")
    return {"length": int(length)}


def _power(params: Params, shapes: Shapes, result: Any) -> dict[str, Any]:
    return {"exponent": int(params["y"])}


def _product(params: Params, shapes: Shapes, result: Any) -> dict[str, Any]:
    contracted, batch = params["dimension_numbers"]
    first, second = shapes
    return {"equation": equation_of((len(first), len(second)), contracted, batch)}


def _conv(params: Params, shapes: Shapes, result: Any) -> dict[str, Any]:
    space = len(shapes[0]) - 2
    last = (0, space + 1, *range(1, space + 1))
    taps_first = (space + 1, space, *range(space))
    if tuple(params["dimension_numbers"]) != (last, taps_first, last):
        raise ValueError("a convolution must have its channels last")
    if any(d != 1 for d in params["lhs_dilation"]) or params["batch_group_count"] != 1:
        raise ValueError("a convolution must be no transposed one")
    return {
        "strides": _whole(params["window_strides"]),
        "padding": [_whole(pads) for pads in params["padding"]],
        "dilation": _whole(params["rhs_dilation"]),
        "groups": int(params["feature_group_count"]),
    }


def _in_float(params: Params, shapes: Shapes, result: Any) -> dict[str, Any]:
    if result.dtype.kind != "f":
        raise ValueError("whole numbers are not divided")
    return {}


def _none(params: Params, shapes: Shapes, result: Any) -> dict[str, Any]:
    return {}


# primitive -> (operation, its settings from the primitive's, shapes and the result)
SETTINGS: dict[str, tuple[str, Callable[[Params, Shapes, Any], dict[str, Any]]]] = {
    **{name: (name, _none) for name in _BY_ELEMENT},
    "div": ("div", _in_float),
    "select_n": ("select", _none),
    "reshape": ("reshape", _reshape),
    "squeeze": ("reshape", _reshape),
    "convert_element_type": ("convert", _convert),
    "transpose": ("transpose", _transpose),
    "slice": ("slice", _slice),
    "concatenate": ("concatenate", _concatenate),
    "pad": ("pad", _pad),
    "iota": ("count", _count),
    "fft": ("rfft", _rfft),
    "integer_pow": ("power", _power),
    "reduce_sum": ("sum", _axes),
    "reduce_max": ("max_over", _axes),
    "dot_general": ("product", _product),
    "conv_general_dilated": ("conv", _conv),
}


def _split(
    graph: Graph, inputs: Sequence[Node], params: Params, shapes: Shapes
) -> list[Node]:
    (x,), axis = inputs, params["axis"]
    ends = np.cumsum(params["sizes"])
    parts = []
    for end, shape in zip(ends, shapes):
        places = [[0, size, 1] for size in x.shape]
        places[axis] = _whole((end - shape[axis], end, 1))
        parts.append(graph.apply("slice", [x], shape, {"places": places}))
    return parts


def _stack(
    graph: Graph, inputs: Sequence[Node], params: Params, shapes: Shapes
) -> list[Node]:
    (shape,), axis = shapes, int(params["axis"])
    one = (*shape[:axis], 1, *shape[axis + 1 :])
    parts = [graph.apply("reshape", [x], one, {"shape": list(one)}) for x in inputs]
    return [graph.apply("concatenate", parts, shape, {"axis": axis})]


def _broadcast(
    graph: Graph, inputs: Sequence[Node], params: Params, shapes: Shapes
) -> list[Node]:
    """Axes of size 1, which are spread where that is more than nothing."""
    (x,), (shape,) = inputs, shapes
    thin = [1] * len(shape)
    for axis, size in zip(params["broadcast_dimensions"], x.shape):
        thin[axis] = size
    x = graph.apply("reshape", [x], tuple(thin), {"shape": thin})
    if tuple(thin) == shape:
        return [x]
    return [graph.apply("broadcast", [x], shape, {"shape": list(shape)})]


def _platform(
    graph: Graph, inputs: Sequence[Node], params: Params, shapes: Shapes
) -> list[Node]:
    """Which platform computes: of no use, since the plain form is taken."""
    return [graph.constant(np.asarray(0))]


# primitive -> nodes of its results
SEVERAL: dict[str, Callable[..., list[Node]]] = {
    "split": _split,
    "stack": _stack,
    "broadcast_in_dim": _broadcast,
    "platform_index": _platform,
}


def _whole(numbers: Any) -> list[int]:
    return [int(number) for number in numbers]
