"""Arrays of a packed program before they are computed: shapes, kinds and costs.

Work is counted in products of matrices, of which a core does 5·10⁹ and more a second.
What else there is counts as many of them as it takes at worst.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from kws_jax.deploy.packed_fields import BadFile

# Kinds of numbers, each wider than those before it, and those of most operations.
_KINDS = "bifc"
REAL, ALL = "bif", _KINDS
# What a number takes that is moved, near in memory and far, where rows of large arrays
# are jumped over; and more for a function of it, a power, an erfc and a transform.
NEAR, FAR, FUNCTION, POWER, ERFC, FFT = 8, 64, 64, 512, 1024, 2048
# A product that is none of matrices, and a call, however small its arrays are.
LOOSE_PRODUCT, CALL = 64, 2**14
# Numbers of an array that is near.
_CACHED = 2**19


@dataclasses.dataclass(frozen=True)
class Value:
    """An array before it is computed.

    Attributes:
      shape: its sizes.
      kind: as of NumPy's dtypes: "b" booleans, "i" integers, "f" floats, "c" complex.
      within: numbers of the array that it may be a view of.
    """

    shape: tuple[int, ...]
    kind: str
    within: int = 0

    @property
    def numbers(self) -> int:
        """How many there are, each of 8 bytes at most; a complex one counts as two."""
        return math.prod(self.shape) * (1 + (self.kind == "c"))


@dataclasses.dataclass(frozen=True)
class Result:
    """What an operation makes.

    Attributes:
      value: the result.
      work: products that take as long.
      scratch: numbers held meanwhile, beside inputs and result.
      view: whether it may be a view of its first input, whose memory then stays.
    """

    value: Value
    work: int
    scratch: int = 0
    view: bool = False


@dataclasses.dataclass(frozen=True)
class Rule:
    """What follows of an operation from its inputs and settings.

    Attributes:
      result: inputs, and settings by name -> Result; BadFile with the reason.
      inputs: how many it takes, and `more` where it may be more.
      settings: those that it must have.
      others: those that it may have.
      takes: the kinds of its inputs.
    """

    result: Callable[..., Result]
    inputs: int = 1
    settings: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    takes: str = REAL
    more: bool = False


def pace(*values: Value) -> int:
    """What each number takes that is moved from or to one of these arrays."""
    return FAR if any(max(v.numbers, v.within) > _CACHED for v in values) else NEAR


def made(
    shape: Sequence[int],
    kind: str,
    inputs: Sequence[Value],
    work: int = 0,
    scratch: int = 3,
) -> Result:
    """A result, with so much work beside moving, and scratch, for each number."""
    value = Value(tuple(shape), kind)
    work += pace(value, *inputs)
    return Result(value, work * value.numbers, scratch * value.numbers)


def view(x: Value, shape: Sequence[int], kind: str = "") -> Result:
    """Numbers of `x` in another shape."""
    result = made(shape, kind or x.kind, [x], scratch=0)
    within = max(x.within, x.numbers)
    value = dataclasses.replace(result.value, within=within)
    return dataclasses.replace(result, value=value, view=True)


def kind_of(*inputs: Value) -> str:
    """The widest kind."""
    return max((value.kind for value in inputs), key=_KINDS.index)


def spread(*inputs: Value) -> tuple[int, ...]:
    """The shape to which axes of size 1, and those that lack in front, are spread.

    Raises:
      BadFile: there is none.
    """
    axes = max(len(value.shape) for value in inputs)
    shape = [1] * axes
    for value in inputs:
        for axis, size in enumerate(value.shape, start=axes - len(value.shape)):
            if size != 1 and shape[axis] not in (1, size):
                shapes = " and ".join(str(list(value.shape)) for value in inputs)
                raise BadFile(f"the shapes {shapes} do not go together")
            shape[axis] = max(shape[axis], size)
    return tuple(shape)


def by_element(
    inputs: int,
    takes: str = REAL,
    gives: Mapping[str, str] | None = None,
    work: int = 0,
    scratch: int = 3,
) -> Rule:
    """The rule of an operation by element; `gives` says which kinds become others."""

    def result(*values: Value) -> Result:
        kind = kind_of(*values)
        kind = (gives or {}).get(kind, kind)
        return made(spread(*values), kind, values, work, scratch)

    return Rule(result, inputs, takes=takes)
