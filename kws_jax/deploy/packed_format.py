"""The packed file: a quantised network with its weights at their bits. NumPy alone.

All numbers are little-endian. A file is

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
"""

import dataclasses
import json
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kws_jax.errors import UserError
from kws_jax.ops.tables import TABLES

MAGIC, VERSION = b"KWSP", 1
_HEAD = struct.Struct("<4sIII")
_TYPES = {"float32": "<f4", "int32": "<i4"}


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
        return self.values.astype(_TYPES[self.values.dtype.name]).tobytes()


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
    top = _top(bits)
    flat = values.reshape(-1).astype(np.int64)
    if flat.size and (np.abs(flat).max() > top or (bits == 1 and not flat.all())):
        raise ValueError(f"not integers of {bits} bits")
    codes = (flat + top) >> (bits == 1)
    stream = codes[:, None] >> np.arange(bits) & 1
    return np.packbits(stream.astype(np.uint8).ravel(), bitorder="little").tobytes()


def unpack_bits(stored: bytes, bits: int, shape: Sequence[int]) -> np.ndarray:
    """The integers of `pack_bits`, int8."""
    count = math.prod(shape)
    stream = np.unpackbits(
        np.frombuffer(stored, np.uint8), count=bits * count, bitorder="little"
    )
    codes = stream.reshape(count, bits) @ (1 << np.arange(bits))
    return ((codes << (bits == 1)) - _top(bits)).astype(np.int8).reshape(shape)


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
    return _HEAD.pack(MAGIC, VERSION, len(header), zlib.crc32(body)) + body


def read(path: str | Path) -> Program:
    """The program in a file.

    Raises:
      UserError: the file is missing, no packed network, of a later version, or damaged.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    if len(data) < _HEAD.size or data[:4] != MAGIC:
        raise UserError(
            f"{path} is no packed network: give a file that `python -m kws_jax.export "
            "--format=packed` has written."
        )
    _, version, header_size, checksum = _HEAD.unpack_from(data)
    if version != VERSION:
        raise UserError(
            f"{path} has version {version} of the packed format, this reader knows "
            f"{VERSION}: export the network again, or use the kws_jax that wrote it."
        )
    body = data[_HEAD.size :]
    if zlib.crc32(body) != checksum:
        raise UserError(
            f"{path} is damaged or was cut off (its checksum is wrong): copy or export "
            "it again."
        )
    fields = json.loads(zlib.decompress(body[:header_size]))
    return Program(
        metadata=fields["metadata"],
        input_shape=tuple(fields["input"]),
        constants=_constants(fields["constants"], body[header_size:]),
        operations=[Operation(n, tuple(i), s) for n, i, s in fields["operations"]],
        output=fields["output"],
    )


def _constants(entries: Sequence[Mapping[str, Any]], stored: bytes) -> list[Constant]:
    constants, place = [], 0
    for entry in entries:
        shape, count = entry["shape"], math.prod(entry["shape"])
        if "table" in entry:
            name, settings = entry["table"], entry["settings"]
            values = TABLES[name](**settings).astype(np.float32).reshape(shape)
            constants.append(Constant(values, table=(name, settings)))
            continue
        bits = entry.get("bits", 0)
        size = bytes_of(count, bits or 32)
        part = stored[place : place + size]
        place += size
        if bits:
            values = unpack_bits(part, bits, shape)
        else:
            values = np.frombuffer(part, _TYPES[entry["type"]]).reshape(shape)
        constants.append(Constant(values, entry.get("weights", ""), bits))
    return constants


def _top(bits: int) -> int:
    return max(1, 2 ** (bits - 1) - 1)
