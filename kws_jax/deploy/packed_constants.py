"""The constants of a packed file, made of its bytes and of settings. NumPy alone."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kws_jax.deploy.packed_fields import (
    BadFile,
    fields,
    number,
    shape_of,
    shown,
    text,
    whole,
)
from kws_jax.deploy.packed_format import TYPES, Constant, bytes_of, unpack_bits
from kws_jax.errors import UserError, nearest
from kws_jax.ops import tables

# Numbers of all tables together: a few bytes may name any size.
_MOST_OF_TABLES = 2**20
# What a setting of a table may be, by its annotation.
_SETTINGS: dict[Any, Callable[[Any, str], Any]] = {
    int: lambda value, name: whole(value, name, 1),
    float: number,
    str: lambda value, name: text(value, name, tables.WINDOWS),
}


class _Entry(NamedTuple):
    """A constant as the header tells it; `table` is its name, or ""."""

    shape: tuple[int, ...]
    bits: int = 32
    type: str = ""
    weights: str = ""
    table: str = ""
    settings: Mapping[str, Any] = {}

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return 0 if self.table else bytes_of(self.numbers, self.bits)


def read_constants(told: Sequence[Any], stored: bytes) -> list[Constant]:
    """The constants that a header tells, of all bytes behind it.

    Raises:
      BadFile: one is told wrongly, or they do not fit to the bytes.
    """
    entries = [_entry(value, f"constants[{i}]") for i, value in enumerate(told)]
    size = sum(entry.size for entry in entries)
    if size != len(stored):
        raise BadFile(
            f"its constants take {shown(size)} bytes, but {len(stored)} are stored"
        )
    in_tables = sum(entry.numbers for entry in entries if entry.table)
    if in_tables > _MOST_OF_TABLES:
        raise BadFile(
            f"its tables have {shown(in_tables)} numbers, expected at most "
            f"{_MOST_OF_TABLES:,}"
        )
    constants, place = [], 0
    for index, entry in enumerate(entries):
        part = stored[place : place + entry.size]
        place += entry.size
        try:
            constants.append(_constant(entry, part))
        except (UserError, ValueError) as error:
            # What settings do not make a table, or are no integers of so many bits.
            raise BadFile(f"constants[{index}]: {error}") from error
    return constants


def _entry(value: Any, name: str) -> _Entry:
    told = fields(value, name, ("shape",))
    shape = shape_of(told["shape"], f"the shape of {name}")
    if "table" in told:
        fields(told, name, ("shape", "table", "settings"), ())
        return _table(told, shape, name)
    if "weights" in told:
        fields(told, name, ("shape", "weights", "bits"), ())
        layer = text(told["weights"], f"the layer of {name}")
        if not layer:
            raise BadFile(f"the layer of {name} has no name")
        bits = whole(told["bits"], f"bits of {name}", 1, 8)
        return _Entry(shape, bits, weights=layer)
    fields(told, name, ("shape", "type"), ())
    return _Entry(shape, type=text(told["type"], f"the type of {name}", TYPES))


def _table(told: Mapping[str, Any], shape: tuple[int, ...], name: str) -> _Entry:
    table = text(told["table"], f"the table of {name}")
    if table not in tables.TABLES:
        known = nearest(table[:40], tables.TABLES)
        raise BadFile(f"{name} is the unknown table {shown(table)} ({known})")
    takes = inspect.signature(inspect.unwrap(tables.TABLES[table])).parameters
    settings = fields(told["settings"], f"settings of {name}", takes, ())
    for setting, parameter in takes.items():
        check = _SETTINGS[parameter.annotation]
        check(settings[setting], f"{setting} of {name}")
    count = tables.COUNTS[table](**settings)
    if count != math.prod(shape):
        raise BadFile(
            f"{name} has the shape {list(shape)}, but its table {shown(count)} numbers"
        )
    return _Entry(shape, table=table, settings=settings)


def _constant(entry: _Entry, stored: bytes) -> Constant:
    if entry.table:
        # Not through the memory of tables, which files from anywhere would fill.
        make = inspect.unwrap(tables.TABLES[entry.table])
        with np.errstate(all="ignore"):
            values = make(**entry.settings).astype(np.float32).reshape(entry.shape)
        return Constant(values, table=(entry.table, dict(entry.settings)))
    if entry.weights:
        values = unpack_bits(stored, entry.bits, entry.shape)
        return Constant(values, entry.weights, entry.bits)
    values = np.frombuffer(stored, TYPES[entry.type]).astype(entry.type)
    return Constant(values.reshape(entry.shape))
