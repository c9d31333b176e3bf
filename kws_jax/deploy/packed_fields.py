"""Fields of a packed file's header: JSON that may be anything, checked. NumPy alone."""

import reprlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

# Axes of a value at most; networks have four.
MOST_AXES = 8
_LARGEST = 2**31 - 1


class BadFile(Exception):
    """What is wrong with a packed file, in words; who reads it adds its name."""


def shown(value: Any) -> str:
    """A value of a header in a message: cut, however long or deep it is."""
    return reprlib.repr(value)


def whole(value: Any, name: str, low: int = 0, high: int = _LARGEST) -> int:
    """A whole number from `low` to `high`; true and 1.0 are none.

    Raises:
      BadFile: anything else.
    """
    if type(value) is not int or not low <= value <= high:
        raise BadFile(
            f"{name} is {shown(value)}, expected a whole number from {low} to {high}"
        )
    return value


def wholes(value: Any, name: str, low: int = 0, high: int = _LARGEST) -> list[int]:
    """A list of such numbers.

    Raises:
      BadFile: anything else.
    """
    numbers = listed(value, name)
    return [whole(number, f"one of {name}", low, high) for number in numbers]


def shape_of(value: Any, name: str) -> tuple[int, ...]:
    """A shape: at most MOST_AXES sizes, each at least 1.

    Raises:
      BadFile: anything else.
    """
    shape = tuple(wholes(value, name, low=1))
    if len(shape) > MOST_AXES:
        raise BadFile(f"{name} has {len(shape)} axes, expected at most {MOST_AXES}")
    return shape


def number(value: Any, name: str) -> float:
    """A finite number of an ordinary size; true is none.

    Raises:
      BadFile: anything else.
    """
    if type(value) not in (int, float) or not abs(value) <= _LARGEST:
        raise BadFile(f"{name} is {shown(value)}, expected a number")
    return value


def text(value: Any, name: str, known: Collection[str] = ()) -> str:
    """A text; where there are `known` ones, one of them.

    Raises:
      BadFile: anything else.
    """
    if not isinstance(value, str) or (known and value not in known):
        expected = f"one of {', '.join(known)}" if known else "a text"
        raise BadFile(f"{name} is {shown(value)}, expected {expected}")
    return value


def listed(value: Any, name: str) -> Sequence[Any]:
    """A list.

    Raises:
      BadFile: anything else.
    """
    if not isinstance(value, list):
        raise BadFile(f"{name} is {shown(value)}, expected a list")
    return value


def fields(
    value: Any,
    name: str,
    needed: Collection[str] = (),
    others: Collection[str] | None = None,
) -> Mapping[str, Any]:
    """An object with all the `needed` fields; of `others`, if given, and no more.

    Raises:
      BadFile: anything else.
    """
    if not isinstance(value, dict):
        raise BadFile(f"{name} is {shown(value)}, expected an object")
    for field in needed:
        if field not in value:
            raise BadFile(f"there is no {field!r} in {name}")
    unknown = set(value) - set(needed) - set(others or ())
    if unknown and others is not None:
        raise BadFile(f"there is an unknown {shown(min(unknown))} in {name}")
    return value


def check_depth(value: Any, most: int) -> None:
    """Raises BadFile for lists and objects more than `most` deep in one another.

    What goes through them calls itself, and so would end with RecursionError.
    """
    level = [value]
    for _ in range(most + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, list | dict)
            for inner in (outer if isinstance(outer, list) else outer.values())
        ]
        if not level:
            return
    raise BadFile(f"its header is nested more than {most} deep")
