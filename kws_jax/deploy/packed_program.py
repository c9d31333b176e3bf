"""What a network computes, as operations of the packed format.

Inference is traced once, with weights and rounded activations as named values, and each
primitive becomes an operation. So every network, front end and front filter has this
form, and none a second implementation; what the format has no operation for is named.
`deploy.program` does the like for exporters that run in JAX, and computes all that does
not depend on the input; here that is done only where it makes the file smaller.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core as jex_core

from kws_jax.deploy.packed_format import Program
from kws_jax.deploy.packed_graph import Graph, Node
from kws_jax.deploy.packed_primitives import SAME, SETTINGS, SEVERAL
from kws_jax.deploy.program import CALLS
from kws_jax.errors import UserError
from kws_jax.quantization.integers import IntegerNetwork
from kws_jax.quantization.sites import Site

_MARK = "packed:"
# Kernels of the layers, and what a layer makes of its input, are given from outside.
Infer = Callable[
    [Mapping[str, jax.Array], Callable[[Site, jax.Array], jax.Array], jax.Array],
    jax.Array,
]


def trace(
    infer: Infer,
    integers: IntegerNetwork,
    input_shape: tuple[int, ...],
    metadata: Mapping[str, Any],
) -> Program:
    """The program of a network.

    Args:
      infer: (kernels, on_input, float32 input [1, …]) -> probabilities [1, k], as
        `quantization.network.run_folded` takes kernels and `on_input`.
      integers: its layers.
      input_shape: of one example.
      metadata: what is kept beside it.

    Raises:
      UserError: the network computes what the format has no operation for.
    """
    layers = integers.layers

    def mark(site: Site, x: jax.Array) -> jax.Array:
        return checkpoint_name(x, _MARK + site.name)

    def run(kernels: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
        return infer(kernels, mark, x)

    kernels = {
        name: jax.ShapeDtypeStruct(layer.weights.shape, jnp.float32)
        for name, layer in layers.items()
    }
    source = Node((1, *input_shape))
    traced = jax.make_jaxpr(run)(
        kernels, jax.ShapeDtypeStruct(source.shape, jnp.float32)
    )
    graph = Graph()
    # As JAX orders the leaves of a dict.
    weights = [
        graph.weights(n, layers[n].weights, layers[n].bits, layers[n].scale)
        for n in sorted(layers)
    ]
    translator = _Translator(graph, integers)
    (output,) = translator.run(traced.jaxpr, traced.consts, [*weights, source])
    return graph.program(source, output, metadata)


class _Translator:
    """Makes nodes of the equations of a program."""

    def __init__(self, graph: Graph, integers: IntegerNetwork) -> None:
        self._graph, self._layers = graph, integers.layers

    def run(
        self, jaxpr: jex_core.Jaxpr, consts: Sequence[Any], inputs: Sequence[Node]
    ) -> list[Node]:
        """The nodes of its results."""
        known = dict(zip(jaxpr.invars, inputs, strict=True))
        for variable, value in zip(jaxpr.constvars, consts, strict=True):
            known[variable] = self._graph.constant(np.asarray(value))

        def read(variable: Any) -> Node:
            if isinstance(variable, jex_core.Literal):
                return self._graph.constant(np.asarray(variable.val))
            return known[variable]

        for equation in jaxpr.eqns:
            results = self._equation(equation, [read(v) for v in equation.invars])
            known |= zip(equation.outvars, results, strict=True)
        return [read(variable) for variable in jaxpr.outvars]

    def _equation(
        self, equation: jex_core.JaxprEqn, inputs: list[Node]
    ) -> Sequence[Node]:
        name, params = equation.primitive.name, equation.params
        inner = _inner(name, params)
        if inner is not None:
            # What chooses the platform stands before the operands.
            operands = inputs[1:] if name == "cond" else inputs
            constants = getattr(inner, "consts", ())
            return self.run(getattr(inner, "jaxpr", inner), constants, operands)
        if name == "name":
            return [self._marked(params["name"], inputs[0])]
        results: list[Any] = [variable.aval for variable in equation.outvars]
        shapes = [tuple(result.shape) for result in results]
        if name in SAME or _same_type(equation):
            return inputs
        if name in SEVERAL:
            return SEVERAL[name](self._graph, inputs, params, shapes)
        if name not in SETTINGS:
            raise UserError(
                f"The packed format has no operation for {name!r}, which this network "
                "computes. Export it in another format."
            )
        operation, settings_of = SETTINGS[name]
        try:
            settings = settings_of(params, [i.shape for i in inputs], results[0])
            return [self._graph.apply(operation, inputs, shapes[0], settings)]
        except ValueError as error:
            raise UserError(
                f"The packed format cannot hold {name!r} as this network uses it: "
                f"{error}. Export it in another format."
            ) from error

    def _marked(self, name: str, x: Node) -> Node:
        if not name.startswith(_MARK):
            return x
        activation = self._layers[name.removeprefix(_MARK)].activation
        return self._graph.quantize(
            x, activation.scale, activation.bits, activation.signed
        )


def _inner(name: str, params: Mapping[str, Any]) -> Any:
    """The program that an equation calls; where platforms have their own, the plain."""
    if name == "cond" and None in (params.get("branches_platforms") or ()):
        return params["branches"][params["branches_platforms"].index(None)]
    return params[CALLS[name]] if name in CALLS else None


def _same_type(equation: Any) -> bool:
    if equation.primitive.name != "convert_element_type":
        return False
    return equation.invars[0].aval.dtype == equation.outvars[0].aval.dtype
