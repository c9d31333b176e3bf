"""Reads packed files, which may come from anywhere: all that one says is checked first.

NumPy alone. What breaks a rule of `packed_format` is refused by name, with the reason.
Reading takes at most ten times the bytes of the file and 50 MB.
"""

import json
import os
import stat
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from kws_jax.deploy.formats import INPUTS
from kws_jax.deploy.packed_check import check, check_settings
from kws_jax.deploy.packed_constants import read_constants
from kws_jax.deploy.packed_fields import (
    BadFile,
    check_depth,
    fields,
    listed,
    shape_of,
    shown,
    text,
    whole,
    wholes,
)
from kws_jax.deploy.packed_format import HEAD, MAGIC, VERSION, Operation, Program
from kws_jax.deploy.packed_shapes import RULES
from kws_jax.errors import UserError, nearest

MOST_BYTES, MOST_OF_HEADER, MOST_DEEP = 2**26, 2**20, 32


def read(path: str | Path) -> Program:
    """The program in a file. It runs, as `packed_check.check` has found.

    Raises:
      UserError: the file is missing, no packed network, of a later version, damaged, or
        says what cannot be.
    """
    body, header_size = _body(path)
    try:
        told = fields(
            _header(body[:header_size]),
            "its header",
            ("metadata", "input", "constants", "operations", "output"),
            (),
        )
        program = _program(told, body[header_size:])
        _check_answer(program)
    except BadFile as error:
        raise UserError(
            f"{path} cannot be run: {error}. It was damaged before its checksum was "
            "made, or is not by kws_jax: export the network again."
        ) from error
    return program


def _body(path: str | Path) -> tuple[bytes, int]:
    """What lies behind the fixed fields, and how much of it is the header."""
    try:
        # Pipes and devices never end.
        if not stat.S_ISREG(os.stat(path).st_mode):
            _refuse_to_read(path, "it is no regular file")
        with open(path, "rb") as file:
            head = file.read(HEAD.size)
            if len(head) < HEAD.size or head[:4] != MAGIC:
                raise UserError(
                    f"{path} is no packed network: give a file that `python -m "
                    "kws_jax.export --format=packed` has written."
                )
            _, version, header_size, checksum = HEAD.unpack(head)
            if version != VERSION:
                raise UserError(
                    f"{path} has version {version} of the packed format, this reader "
                    f"knows {VERSION}: export the network again, or use the kws_jax "
                    "that wrote it."
                )
            body = file.read(MOST_BYTES)
            if file.read(1):
                _refuse_to_read(path, f"it has more than {MOST_BYTES:,} bytes")
    except (OSError, ValueError) as error:  # ValueError for a name with a zero byte.
        _refuse_to_read(path, getattr(error, "strerror", None) or str(error))
    if zlib.crc32(body) != checksum:
        raise UserError(
            f"{path} is damaged or was cut off (its checksum is wrong): copy or export "
            "it again."
        )
    return body, header_size


def _refuse_to_read(path: str | Path, reason: str) -> NoReturn:
    raise UserError(f"{path} cannot be read: {reason}. Give a packed network.")


def _header(compressed: bytes) -> Any:
    """The JSON of a header, however much a few bytes would become."""
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(compressed, MOST_OF_HEADER + 1)
        if len(content) > MOST_OF_HEADER:
            raise BadFile(f"its header has more than {MOST_OF_HEADER:,} bytes")
        if not unpacker.eof or unpacker.unused_data:
            raise BadFile("its header ends too early or too late")
        told = json.loads(content.decode())
    except zlib.error as error:
        raise BadFile(f"its header is not compressed by zlib ({error})") from error
    except RecursionError as error:
        raise BadFile(f"its header is nested more than {MOST_DEEP} deep") from error
    except ValueError as error:
        raise BadFile(f"its header is not JSON ({error})") from error
    check_depth(told, MOST_DEEP)
    return told


def _program(told: Mapping[str, Any], stored: bytes) -> Program:
    constants = read_constants(listed(told["constants"], "constants"), stored)
    operations: list[Operation] = []
    for index, value in enumerate(listed(told["operations"], "operations")):
        try:
            operations.append(_operation(value, before=1 + len(constants) + index))
        except BadFile as error:
            raise BadFile(f"operations[{index}]: {error}") from error
    last = len(constants) + len(operations)
    return Program(
        metadata=fields(told["metadata"], "metadata"),
        input_shape=shape_of(told["input"], "input"),
        constants=constants,
        operations=operations,
        output=whole(told["output"], "output", 0, last),
    )


def _operation(value: Any, before: int) -> Operation:
    """An operation on values that stand before the number `before`."""
    parts = listed(value, "it")
    if len(parts) != 3:
        raise BadFile(f"it has {len(parts)} parts, expected name, inputs and settings")
    name = text(parts[0], "its name")
    if name not in RULES:
        raise BadFile(f"{shown(name)} is unknown ({nearest(name[:40], RULES)})")
    inputs = wholes(parts[1], f"inputs of {name}", 0, before - 1)
    return Operation(name, tuple(inputs), check_settings(name, parts[2]))


def _check_answer(program: Program) -> None:
    """Raises BadFile where program and metadata are none of a network for keywords."""
    if program.input_shape[:1] != (1,):
        raise BadFile(f"input is {list(program.input_shape)}, expected one example")
    answer = check(program)
    told = fields(program.metadata, "metadata", ("labels", "input"))
    labels = listed(told["labels"], "labels")
    for label in labels:
        text(label, "a label")
    if len(set(labels)) < len(labels):
        raise BadFile("two labels are the same")
    if (answer.shape, answer.kind) != ((1, len(labels)), "f"):
        raise BadFile(
            f"its output is no probabilities [1, {len(labels)}] of its labels, but of "
            f"shape {list(answer.shape)}"
        )
    source = fields(told["input"], "the input", ("kind", "shape", "sample_rate"))
    text(source["kind"], "the kind of input", INPUTS)
    whole(source["sample_rate"], "the sample rate", 1)
    if shape_of(source["shape"], "the shape of input") != program.input_shape[1:]:
        raise BadFile("the shape of input is another than the program's")
    _check_others(told)


def _check_others(told: Mapping[str, Any]) -> None:
    """Raises BadFile for fields of the metadata that are there, but none such."""
    for name in ("made_by", "network", "objective"):
        text(told.get(name, ""), name)
    if "frontend" in told:
        frontend = fields(told["frontend"], "the front end", ("name", "settings"))
        text(frontend["name"], "the name of the front end")
        fields(frontend["settings"], "settings of the front end")
    if told.get("detection") is not None:
        found = fields(told["detection"], "detection", ("threshold", "thresholds"))
        thresholds = fields(found["thresholds"], "thresholds")
        for name, threshold in {**thresholds, "": found["threshold"]}.items():
            if type(threshold) not in (int, float):
                raise BadFile(f"the threshold of {shown(name)} is no number")
