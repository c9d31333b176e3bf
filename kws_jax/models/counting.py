"""Parameters, and multiply-accumulates counted from the traced program."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core as jex_core

from kws_jax.ops.example_conv import MULTIPLY_ADDS

PyTree = Any


def count_parameters(params: PyTree) -> int:
    """Number of trainable values: entries of all leaves."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def count_parameters_with_statistics(variables: PyTree) -> int:
    """Parameters and batch statistics, as the TC-ResNet paper counts them.

    `variables` is what `model.init` returns ("params" and "batch_stats").
    """
    return sum(
        count_parameters(variables.get(name, {})) for name in ("params", "batch_stats")
    )


def count_macs(fn: Callable, *args: Any) -> int:
    """Multiply-accumulates of `fn(*args)`, in convolutions and matrix products.

    A convolution has output size × kernel taps × input channels / groups of them (taps
    that fall on padding are counted), a matrix product output size × contracted size.
    Sums, products by element, norms and pooling are not counted, but for the products
    that make up a convolution (those under the name MULTIPLY_ADDS). Where platforms
    have forms of their own, the plain one counts. `args` may be jax.ShapeDtypeStruct;
    nothing is computed.

    Raises:
      ValueError: `fn` has a while loop, whose length is not known.
    """
    return _count(jax.make_jaxpr(fn)(*args).jaxpr)


def _count(jaxpr: jex_core.Jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: jex_core.JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    operands: list[Any] = [variable.aval for variable in equation.invars]
    results: list[Any] = [variable.aval for variable in equation.outvars]
    if name == "conv_general_dilated":
        weights = operands[1].shape
        out_channels = weights[params["dimension_numbers"].rhs_spec[0]]
        return results[0].size * math.prod(weights) // out_channels
    if name == "dot_general":
        contracted = params["dimension_numbers"][0][0]
        shape = operands[0].shape
        return results[0].size * math.prod(shape[i] for i in contracted)
    if name == "mul" and MULTIPLY_ADDS in str(equation.source_info.name_stack):
        return results[0].size
    counts = [_count(jaxpr) for jaxpr in _inner(params)]
    if name == "while" and any(counts):
        raise ValueError("cannot count a while loop: its length is not known")
    if name == "cond":
        platforms = params.get("branches_platforms") or ()
        return counts[platforms.index(None)] if None in platforms else max(counts)
    return sum(counts) * (params["length"] if name == "scan" else 1)


def _inner(params: dict[str, Any]) -> list[jex_core.Jaxpr]:
    """The programs an equation calls: of jit, scan, the branches of cond, …"""
    found = []
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, jex_core.ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, jex_core.Jaxpr):
                found.append(item)
    return found
