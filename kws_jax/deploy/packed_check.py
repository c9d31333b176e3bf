"""Whether a packed program can run, and in how much memory and time. No NumPy.

What a file says is believed only after this: it may come from anywhere. Beside what
the file stores, a program may hold ROOM numbers of at most 8 bytes at once, 128 MiB.
Its constants and an answer together may take as long as WORK products of matrices, a
few seconds of a core, as `packed_values` counts them. Of the networks here, ConvMixer
holds a fifth of that room and res15 takes a tenth of that work.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from kws_jax.deploy.packed_fields import (
    BadFile,
    fields,
    listed,
    shape_of,
    shown,
    text,
    whole,
    wholes,
)
from kws_jax.deploy.packed_format import Operation, Program
from kws_jax.deploy.packed_shapes import RULES, TYPES, result_of
from kws_jax.deploy.packed_values import CALL, Result, Value

ROOM, WORK = 2**24, 2**35


def _truth(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise BadFile(f"{name} is {shown(value)}, expected true or false")
    return value


def _groups(count: int) -> Callable[[Any, str], Any]:
    """Lists of `count` whole numbers each."""

    def check(value: Any, name: str) -> Any:
        for numbers in listed(value, name):
            if len(wholes(numbers, name)) != count:
                raise BadFile(f"{name} has {shown(numbers)}, not {count} numbers")
        return value

    return check


def _places(value: Any, name: str) -> Any:
    for _, _, step in _groups(3)(value, name):
        whole(step, name, low=1)
    return value


# setting -> what checks its value and name
_SETTINGS: dict[str, Callable[[Any, str], Any]] = {
    "bits": lambda value, name: whole(value, name, 1, 16),
    "signed": _truth,
    "equation": text,
    "largest": whole,
    "strides": lambda value, name: wholes(value, name, 1),
    "dilation": lambda value, name: wholes(value, name, 1),
    "padding": _groups(2),
    "groups": lambda value, name: whole(value, name, 1),
    "type": lambda value, name: text(value, name, TYPES),
    "shape": shape_of,
    "axes": wholes,
    "axis": whole,
    "places": _places,
    "length": lambda value, name: whole(value, name, 1),
    # Weights are int8, and take the exponent as one.
    "exponent": lambda value, name: whole(value, name, -100, 100),
}


def check_settings(operation: str, settings: Any) -> Mapping[str, Any]:
    """The settings of an operation, by name and kind; `check` sees whether they fit.

    Raises:
      BadFile: one is missing, unknown, or no such value.
    """
    rule = RULES[operation]
    told = fields(settings, f"settings of {operation}", rule.settings, rule.others)
    for name, value in told.items():
        _SETTINGS[name](value, f"{name} of {operation}")
    return told


class _Step(NamedTuple):
    operation: Operation
    number: int
    result: Result


def check(program: Program) -> Value:
    """What a program of settings as in `check_settings` answers for one example.

    Raises:
      BadFile: an operation does not go with its inputs, or all together take too much.
    """
    first = 1 + len(program.constants)
    values = [Value(program.input_shape, "f")]
    values += [Value(c.values.shape, c.values.dtype.kind) for c in program.constants]
    fixed = set(range(1, first))
    before: list[_Step] = []
    steps: list[_Step] = []
    for number, operation in enumerate(program.operations, start=first):
        inputs = [values[i] for i in operation.inputs]
        try:
            result = result_of(operation.name, inputs, operation.settings)
        except BadFile as error:
            raise BadFile(
                f"operations[{number - first}] ({operation.name}): {error}"
            ) from error
        values.append(result.value)
        # As the reader computes them: once, or for each answer.
        if fixed.issuperset(operation.inputs):
            fixed.add(number)
            before.append(_Step(operation, number, result))
        else:
            steps.append(_Step(operation, number, result))
    in_tables = sum(c.values.size for c in program.constants if c.table)
    held = _most_held(values, before, steps, in_tables, program.output)
    if held > ROOM:
        raise BadFile(
            f"it holds too much: {held:.1e} numbers at once, at most {ROOM:.1e}"
        )
    work = sum(CALL + step.result.work for step in (*before, *steps))
    if work > WORK:
        raise BadFile(f"it computes too much: {work:.1e} products, at most {WORK:.1e}")
    return values[program.output]


def _most_held(
    values: Sequence[Value],
    before: Sequence[_Step],
    steps: Sequence[_Step],
    tables: int,
    output: int,
) -> int:
    """Numbers that are held at once, beside those that the file stores."""
    held = tables + 2 * values[0].numbers
    most = held
    for step in before:
        held += step.result.value.numbers
        most = max(most, held + step.result.scratch)
    # How many operations to come, and views, keep the memory of a value.
    keepers = collections.Counter(i for s in steps for i in set(s.operation.inputs))
    keepers[output] += 1
    of_view: dict[int, int] = {}
    known = {step.number for step in steps}
    for operation, number, result in steps:
        held += result.value.numbers
        most = max(most, held + result.scratch)
        if result.view:
            of_view[number] = operation.inputs[0]
            keepers[operation.inputs[0]] += 1
        keepers[number] += 1
        left = [*set(operation.inputs), number]
        while left:
            old = left.pop()
            keepers[old] -= 1
            if not keepers[old] and old in known:
                held -= values[old].numbers
                left += [of_view[old]] if old in of_view else []
    return most
