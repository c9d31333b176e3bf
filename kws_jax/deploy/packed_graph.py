"""The graph of a packed program while it is made: equal parts once, constants folded.

A number in it may be one of integers: those of a rounded activation, or weights. They
stay integers through everything that only moves them, into products and convolutions,
whose sums are integers again. Everything else gets them times their scale.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kws_jax.deploy.packed_format import Constant, Operation, Program, top
from kws_jax.deploy.packed_operations import OPERATIONS
from kws_jax.ops import tables

# Operations that move numbers and compute none.
_MOVES = ("reshape", "transpose", "slice", "concatenate", "pad", "broadcast")
# Those that change nothing where the shape stays.
_STAYS = ("reshape", "slice", "pad", "broadcast")
_SUMS = ("product", "conv")


@dataclasses.dataclass(frozen=True, eq=False)
class Integers:
    """What the integers of a node stand for.

    Attributes:
      scale: value of the integer 1, float32: one, or one for each of the last axis.
      largest: bound of their size; of a sum over weights, see `Graph.apply`.
    """

    scale: np.ndarray
    largest: int


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """A value: a constant, the input, or what an operation gives.

    Attributes:
      shape: of the value.
      operation: its name, "" of a constant and of the input.
      inputs, settings: of the operation.
      constant: what is known of it before the program runs.
      integers: None where it is no node of integers.
    """

    shape: tuple[int, ...]
    operation: str = ""
    inputs: tuple["Node", ...] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    constant: Constant | None = None
    integers: Integers | None = None


class Graph:
    """Makes nodes, each only once."""

    def __init__(self) -> None:
        # In the order in which they were made.
        self._nodes: dict[Any, Node] = {}

    def constant(self, values: np.ndarray) -> Node:
        """A constant in float32, or else int32; a table where its values are one's."""
        kept = np.float32 if values.dtype.kind == "f" else np.int32
        values = np.asarray(values).astype(kept)
        key = ("constant", values.dtype, values.shape, values.tobytes())
        constant = Constant(values, table=tables.origin(values))
        return self._once(key, Node(values.shape, constant=constant))

    def weights(
        self, name: str, values: np.ndarray, bits: int, scale: np.ndarray
    ) -> Node:
        """The integers of a layer, int8, with the scale of each output channel."""
        constant = Constant(values, name, bits)
        integers = Integers(scale, int(np.abs(values).max()))
        node = Node(values.shape, constant=constant, integers=integers)
        return self._once(("weights", name), node)

    def quantize(self, x: Node, scale: float, bits: int, signed: bool) -> Node:
        """A rounded activation."""
        step = self.constant(np.asarray(scale, np.float32))
        return self._make(
            "quantize",
            (self._in_float(x), step),
            {"bits": bits, "signed": signed},
            x.shape,
            Integers(np.asarray(scale, np.float32), top(bits, signed=signed)),
        )

    def apply(
        self,
        name: str,
        inputs: Sequence[Node],
        shape: tuple[int, ...],
        settings: Mapping[str, Any],
    ) -> Node:
        """An operation. Of sums over integers, what they stand for, in float.

        Raises:
          ValueError: integers in a place that the format has none for.
        """
        if name in _STAYS and inputs[0].shape == shape:
            return inputs[0]
        if name in _SUMS and all(node.integers for node in inputs):
            x, weights = inputs
            return self._sum(name, x, weights, shape, settings)
        first = inputs[0].integers if inputs else None
        if first and name in _MOVES and self._only_moved(name, inputs, shape):
            return self._make(name, tuple(inputs), settings, shape, first)
        floats = tuple(self._in_float(node) for node in inputs)
        return self._make(name, floats, settings, shape)

    def program(
        self, source: Node, output: Node, metadata: Mapping[str, Any]
    ) -> Program:
        """The program that computes `output` of the input `source`.

        Floats come first among the constants, then tables, then weights.
        """
        needed, left = set(), [output]
        while left:
            node = left.pop()
            if node not in needed:
                needed.add(node)
                left += node.inputs
        # Nodes were made behind their inputs; those that were folded stand there twice.
        order = [node for node in dict.fromkeys(self._nodes.values()) if node in needed]
        constants = sorted((n for n in order if n.constant), key=_place)
        computed = [node for node in order if node.operation]
        numbers = {n: i for i, n in enumerate([source, *constants, *computed])}
        return Program(
            metadata=metadata,
            input_shape=source.shape,
            constants=[n.constant for n in constants if n.constant],
            operations=[
                Operation(n.operation, tuple(numbers[i] for i in n.inputs), n.settings)
                for n in computed
            ],
            output=numbers[output],
        )

    def _sum(
        self, name: str, x: Node, weights: Node, shape: tuple[int, ...], settings: Any
    ) -> Node:
        if not weights.constant or not x.integers or not weights.integers:
            raise ValueError("the second input of a quantised layer must be weights")
        if name == "product" and not _keeps_channels(settings["equation"]):
            raise ValueError(f"not the product of a layer: {settings['equation']}")
        sizes = np.abs(weights.constant.values.astype(np.int64))
        sums = sizes.reshape(-1, sizes.shape[-1]).sum(0)
        largest = x.integers.largest * int(sums.max())
        if largest >= 2**31:
            raise ValueError(f"sums up to {largest} do not fit into 32 bits")
        total = self._make(name, (x, weights), {**settings, "largest": largest}, shape)
        return self._scaled(total, x.integers.scale * weights.integers.scale)

    def _only_moved(
        self, name: str, inputs: Sequence[Node], shape: tuple[int, ...]
    ) -> bool:
        """Whether integers stay integers of one meaning."""
        integers = inputs[0].integers
        if name == "pad":
            value = inputs[1].constant
            return value is not None and not value.values.any()
        same = all(node.integers is integers for node in inputs)
        return same and integers is not None and integers.scale.size in (1, shape[-1])

    def _in_float(self, node: Node) -> Node:
        return self._scaled(node, node.integers.scale) if node.integers else node

    def _scaled(self, node: Node, scale: np.ndarray) -> Node:
        values = scale.reshape(-1) if scale.size > 1 else scale.reshape(())
        return self._make("scale", (node, self.constant(values)), {}, node.shape)

    def _make(
        self,
        name: str,
        inputs: tuple[Node, ...],
        settings: Mapping[str, Any],
        shape: tuple[int, ...],
        integers: Integers | None = None,
    ) -> Node:
        key = (name, inputs, repr(sorted(settings.items())))
        made = Node(shape, name, inputs, settings, integers=integers)
        return self._once(key, self._folded(made))

    def _folded(self, node: Node) -> Node:
        """The node, computed where that takes no more bytes than its inputs."""
        known = [i.constant for i in node.inputs if i.constant and not i.constant.table]
        if not known or len(known) < len(node.inputs) or node.operation == "quantize":
            return node
        values = OPERATIONS[node.operation](
            *(constant.values for constant in known), **node.settings
        )
        if values.size > max(constant.values.size for constant in known):
            return node
        if node.integers:
            constant = dataclasses.replace(known[0], values=values)
            return dataclasses.replace(node, operation="", inputs=(), constant=constant)
        if values.dtype.kind == "c":
            return node
        return self.constant(np.asarray(values))

    def _once(self, key: Any, node: Node) -> Node:
        return self._nodes.setdefault(key, node)


def _keeps_channels(equation: str) -> bool:
    """Whether the last axis of the second input is the result's: scales go by it."""
    first, second = equation.split("->")[0].split(",")
    return equation[-1] == second[-1] and second[-1] not in first


def _place(node: Node) -> int:
    constant = node.constant
    return (
        2 if constant and constant.weights else int(bool(constant and constant.table))
    )
