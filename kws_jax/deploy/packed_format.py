"""The packed file: a quantised network with its weights at their bits. NumPy alone.

This module says what is in a file and writes it; `packed_file` reads it. All numbers
are little-endian. A file is

    4 bytes   "KWSP"
    uint32    version of this layout and of its operations, 1
    uint32    h, bytes of the header
    uint32    CRC-32 of all that follows
    h bytes   the header: JSON in UTF-8, compressed by zlib
    …         the constants, one behind the other in the order of the header

The header's fields:

    "metadata"    labels, thresholds, front end with its settings, sample rate, …
    "input"       shape of the input, float32, of one example: [1, …]
    "constants"   what is stored, each with its "shape" and one of
                  "type": "float32" or "int32", four bytes a value;
                  "weights": name of a layer, with "bits": integers, see `pack_bits`;
                  "table": name of a function of kws_jax/ops/tables.py with its
                  "settings": no bytes, the reader makes its float32 values anew
    "operations"  [name, [numbers of its inputs], {its settings}], in the order in which
                  they are computed; kws_jax/deploy/packed_operations.py says what each
                  name does
    "output"      the number of the value that are the probabilities [1, k]

Values have numbers: 0 is the input, then come the constants, then the operations, each
with one result. Arrays are in C order, channels last.

A file that breaks one of these rules is refused:

- It has at most 64 MiB, its header at most 1 MiB before zlib, and objects and lists in
  it are at most 32 deep. Nothing stands behind the constants.
- Shapes have at most 8 sizes, each from 1. Tables have 2^20 numbers together.
- Operations have the inputs and settings that kws_jax/deploy/packed_shapes.py tells,
  and the inputs stand before them.
- The program fits into the memory and the work of kws_jax/deploy/packed_check.py.
- The metadata has the labels, as many as the output has probabilities, and the "input",
  whose "shape" is that of the program's without the first axis.
"""

import dataclasses
import json
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MAGIC, VERSION = b"KWSP", 1
HEAD = struct.Struct("<4sIII")
TYPES = {"float32": "<f4", "int32": "<i4"}
# Integers that are unpacked at once, in whole bytes.
_AT_ONCE = 2**16


@dataclasses.dataclass(frozen=True, eq=False)
class Constant:
    """A constant of a program.

    Attributes:
      values: float32 or int32; int8 for weights.
      weights: the layer whose weights these integers are, or "".
      bits: of weights, 1 to 8, else 0.
      table: name and settings of a table, or None.
    """

    values: np.ndarray
    weights: str = ""
    bits: int = 0
    table: tuple[str, dict[str, Any]] | None = None

    def describe(self) -> dict[str, Any]:
        """Its entry in the header."""
        shape = {"shape": list(self.values.shape)}
        if self.table:
            return {"table": self.table[0], "settings": self.table[1], **shape}
        if self.weights:
            return {"weights": self.weights, "bits": self.bits, **shape}
        return {"type": self.values.dtype.name, **shape}

    def stored(self) -> bytes:
        """Its bytes in the file."""
        if self.table:
            return b""
        if self.weights:
            return pack_bits(self.values, self.bits)
        return self.values.astype(TYPES[self.values.dtype.name]).tobytes()


@dataclasses.dataclass(frozen=True)
class Operation:
    """One step of a program: a name of `packed_operations`, its inputs and settings."""

    name: str
    inputs: tuple[int, ...]
    settings: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Program:
    """All that a packed file holds; see the fields of the header."""

    metadata: Mapping[str, Any]
    input_shape: tuple[int, ...]
    constants: Sequence[Constant]
    operations: Sequence[Operation]
    output: int


def pack_bits(values: np.ndarray, bits: int) -> bytes:
    """Integers of −top … top, top = 2^(bits−1) − 1, at `bits` bits each.

    The code of q is q + top; of one bit, whose integers are −1 and 1, (q + 1) / 2. Bit
    j of the i-th code is bit (bits·i + j) of the stream, and bit n of the stream is bit
    n mod 8, the lowest first, of byte n // 8. The last byte is filled up with zeros.

    Raises:
      ValueError: another integer.
    """
    largest = top(bits)
    flat = values.reshape(-1).astype(np.int64)
    if flat.size and (np.abs(flat).max() > largest or (bits == 1 and not flat.all())):
        raise ValueError(f"not integers of {bits} bits")
    codes = (flat + largest) >> (bits == 1)
    stream = codes[:, None] >> np.arange(bits) & 1
    return np.packbits(stream.astype(np.uint8).ravel(), bitorder="little").tobytes()


def unpack_bits(stored: bytes, bits: int, shape: Sequence[int]) -> np.ndarray:
    """The integers of `pack_bits`, int8.

    Raises:
      ValueError: fewer bytes, or codes that stand for no such integer.
    """
    values = np.empty(math.prod(shape), np.int8)
    # By pieces, since each bit is a byte meanwhile.
    for first in range(0, values.size, _AT_ONCE):
        piece = values[first : first + _AT_ONCE]
        part = stored[first * bits // 8 :][: bytes_of(piece.size, bits)]
        stream = np.unpackbits(
            np.frombuffer(part, np.uint8), count=bits * piece.size, bitorder="little"
        )
        codes = stream.reshape(piece.size, bits) @ (1 << np.arange(bits))
        if codes.max(initial=0) > 2 * top(bits):
            raise ValueError(f"not integers of {bits} bits")
        piece[:] = (codes << (bits == 1)) - top(bits)
    return values.reshape(shape)


def bytes_of(count: int, bits: int) -> int:
    """Bytes of `count` integers of so many bits."""
    return -(-count * bits // 8)


def sizes(program: Program) -> dict[str, int]:
    """Bytes of the file by what they hold: "weights", "constants", "program", "total".

    "constants" are scales, biases and all else that is stored as numbers; "program" is
    the header, with the labels and settings.
    """
    weights = sum(len(c.stored()) for c in program.constants if c.weights)
    stored = sum(len(c.stored()) for c in program.constants)
    total = len(to_bytes(program))
    return {
        "weights": weights,
        "constants": stored - weights,
        "program": total - stored,
        "total": total,
    }


def to_bytes(program: Program) -> bytes:
    """The file of a program."""
    fields = {
        "metadata": program.metadata,
        "input": list(program.input_shape),
        "constants": [constant.describe() for constant in program.constants],
        "operations": [
            [o.name, list(o.inputs), dict(o.settings)] for o in program.operations
        ],
        "output": program.output,
    }
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False)
    header = zlib.compress(text.encode(), 9)
    body = header + b"".join(constant.stored() for constant in program.constants)
    return HEAD.pack(MAGIC, VERSION, len(header), zlib.crc32(body)) + body


def top(bits: int, *, signed: bool = True) -> int:
    """The largest integer of so many bits: 2^(bits−1) − 1 signed, else 2^bits − 1.

    Of one bit signed, whose integers are −1 and 1, it is 1.
    """
    return max(1, 2 ** (bits - signed) - 1)
