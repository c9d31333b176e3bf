"""A function as the plain program that a device is to run.

What JAX traces has more in it than an exporter wants: batch norms and filters made of
parameters alone, which would be computed anew for each clip; rules of differentiation;
results that nobody asks for; and, in the operations of `kws_jax.ops`, a way for CPUs
beside the ordinary one, in loops over shifted copies where a converter would have found
a depthwise convolution.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
from jax.extend import core as jex_core

# Calls, and where their programs are among the parameters; what they add to it
# (compilation, differentiation, memory) means nothing to an exporter.
CALLS = {
    "jit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "checkpoint": "jaxpr",
}
# Name of a primitive or of a jitted function -> what is run in its place: a function of
# the same arrays, and of the parameters of a primitive by name.
Replacements = Mapping[str, Callable[..., Any]]


class _Value:
    """What an operation gives."""

    def __init__(self, depends: bool) -> None:
        self.depends = depends  # on the input


@dataclasses.dataclass(frozen=True)
class _Operation:
    """One primitive or replacement, with arrays and values as its inputs."""

    apply: Callable[..., Any]
    inputs: Sequence[Any]
    outputs: Sequence[_Value]


def plain(
    function: Callable[[jax.Array], jax.Array],
    example: Any,
    replacements: Replacements = MappingProxyType({}),
) -> Callable[[jax.Array], jax.Array]:
    """The same function of arrays of one shape, with what it needs alone.

    All that does not depend on the input is computed here and now, calls are written
    out, and of `lax.platform_dependent` the default is taken.

    Args:
      function: of one array, with one array as its result.
      example: an array like the input, or its shape.
      replacements: see `Replacements`.
    """
    closed = jax.make_jaxpr(function)(example)
    start = _Value(depends=True)
    collector = _Collector(replacements)
    (end,) = collector.collect(closed.jaxpr, closed.consts, [start])
    needed = _needed(collector.operations, [end])
    later = [operation for operation in needed if operation.outputs[0].depends]
    before = [operation for operation in needed if not operation.outputs[0].depends]
    known = {v for o in later for v in _values(o.inputs) if not v.depends}
    constants = jax.jit(lambda: _run(before, {}, list(known)))()
    computed = dict(zip(known, constants, strict=True))
    return lambda x: _run(later, {**computed, start: x}, [end])[0]


class _Collector:
    """The operations of a program, calls written out."""

    def __init__(self, replacements: Replacements) -> None:
        self.operations: list[_Operation] = []
        self._replacements = replacements

    def collect(
        self,
        jaxpr: jex_core.Jaxpr,
        constants: Sequence[Any],
        arguments: Sequence[Any],
    ) -> list[Any]:
        """Appends those of a program; returns its results."""
        known: dict[Any, Any] = dict(zip(jaxpr.constvars, constants, strict=True))
        known.update(zip(jaxpr.invars, arguments, strict=True))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, jex_core.Literal) else known[atom]

        for equation in jaxpr.eqns:
            results = self._results(equation, [read(a) for a in equation.invars])
            known.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _results(self, equation: Any, inputs: list[Any]) -> list[Any]:
        name, parameters = equation.primitive.name, equation.params
        if name == "platform_index":
            # One of the alternatives is for any platform.
            return [parameters["platforms"].index(None)]
        if name == "cond" and not isinstance(inputs[0], _Value):
            branch = parameters["branches"][int(inputs[0])]
            return self.collect(branch.jaxpr, branch.consts, inputs[1:])
        if name in CALLS and parameters.get("name") not in self._replacements:
            called = parameters[CALLS[name]]
            constants = getattr(called, "consts", ())
            return self.collect(getattr(called, "jaxpr", called), constants, inputs)
        if name == "concatenate":
            # Padding leaves parts without entries, whose shapes ONNX cannot tell.
            sizes = [atom.aval.size for atom in equation.invars]
            inputs = [x for x, size in zip(inputs, sizes, strict=True) if size]
        depends = any(value.depends for value in _values(inputs))
        outputs = [_Value(depends) for _ in equation.outvars]
        self.operations.append(_Operation(self._applied(equation), inputs, outputs))
        return outputs

    def _applied(self, equation: Any) -> Callable[..., Any]:
        replace = self._replacements
        if equation.params.get("name") in replace:
            return replace[equation.params["name"]]
        run = replace.get(equation.primitive.name, equation.primitive.bind)

        def apply(*inputs: Any) -> Any:
            # Calls, whose parameters would be functions to be bound, are written out.
            return run(*inputs, **equation.params)

        return apply


def _values(inputs: Iterable[Any]) -> list[_Value]:
    return [value for value in inputs if isinstance(value, _Value)]


def _needed(
    operations: Sequence[_Operation], results: Sequence[_Value]
) -> list[_Operation]:
    """The operations that some result depends on, in their order."""
    wanted, kept = set(results), []
    for operation in reversed(operations):
        if wanted.intersection(operation.outputs):
            wanted.update(_values(operation.inputs))
            kept.append(operation)
    return kept[::-1]


def _run(
    operations: Sequence[_Operation],
    arrays: Mapping[_Value, Any],
    results: Sequence[_Value],
) -> list[Any]:
    """The results of operations, given the arrays of the values they begin with."""
    arrays = dict(arrays)
    for operation in operations:
        inputs = [arrays[v] if isinstance(v, _Value) else v for v in operation.inputs]
        outputs = operation.apply(*inputs)
        if not isinstance(outputs, (list, tuple)):
            outputs = [outputs]
        arrays.update(zip(operation.outputs, outputs, strict=True))
    return [arrays[value] for value in results]
