"""Packed files to be changed: a real one, a small one, and their headers."""

import json
import struct
import zlib
from pathlib import Path

from test_packed_format import example

from kws_jax.deploy import packed_format

# A narrow TC-ResNet8 on waveforms with weights of 3 bits, as it was exported once.
REAL = Path(__file__).with_name("packed_version_1.kwsp")
HEAD = struct.Struct("<4sIII")


def parts_of(content):
    """(header, constants) of a file."""
    size = HEAD.unpack_from(content)[2]
    return json.loads(zlib.decompress(content[16 : 16 + size])), content[16 + size :]


def packed(compressed, stored):
    """A file with a right checksum."""
    body = compressed + stored
    return HEAD.pack(b"KWSP", 1, len(compressed), zlib.crc32(body)) + body


def packed_header(header, stored):
    return packed(zlib.compress(json.dumps(header).encode(), 1), stored)


HEADER, STORED = parts_of(packed_format.to_bytes(example()[1]))


def changed(*where, to):
    """The small example with another value at a place of its header."""

    def content():
        header = json.loads(json.dumps(HEADER))
        outer = header
        for key in where[:-1]:
            outer = outer[key]
        outer[where[-1]] = to
        return packed_header(header, STORED)

    return content


def before_answer(*operations):
    """Operations on the input alone, value 0, that come before the others."""

    def content():
        header = json.loads(json.dumps(HEADER))
        first = 1 + len(header["constants"])
        for _, inputs, _ in header["operations"]:
            inputs[:] = [i + len(operations) * (i >= first) for i in inputs]
        header["operations"] = [*operations, *header["operations"]]
        header["output"] += len(operations)
        return packed_header(header, STORED)

    return content


def hann(window, size):
    return {"table": "hann", "settings": {"window": window}, "shape": [size]}


def mel(**settings):
    usual = {"num_mel": 40, "window": 400, "sample_rate": 16_000}
    settings = {**usual, "low_hz": 20, "high_hz": 8_000, **settings}
    return {"table": "mel_matrix", "settings": settings, "shape": [257, 40]}


def views(count):
    """One number each of many large arrays, which stay as long as it does."""
    steps = []
    for i in range(5, 5 + 3 * count, 3):
        steps += [["broadcast", [0], {"shape": [200_000, 5]}], ["neg", [i], {}]]
        steps += [["slice", [i + 1], {"places": [[0, 1, 1], [0, 5, 1]]}]]
    ends = list(range(7, 5 + 3 * count, 3))
    return [*steps, ["concatenate", ends, {"axis": 0}]]
