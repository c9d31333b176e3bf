"""What a packed file may not say, whose checksum is right: refused for its reason."""

import json
import re
import subprocess
import sys
import zlib

import pytest
from fuzzing import refusal, within, within_memory
from packed_cases import (
    HEADER,
    STORED,
    before_answer,
    changed,
    hann,
    mel,
    packed,
    packed_header,
    views,
)

from kws_jax.deploy.packed_reader import load

BILLION = 10**9


def raw(text):
    return lambda: packed(zlib.compress(text), STORED)


def deep(depth):
    return json.loads("[" * depth + "]" * depth)


WRONG = {
    "no fields": (raw(b"{}"), "there is no 'metadata' in its header"),
    "a list": (raw(b"[]"), r"its header is \[\], expected an object"),
    "no JSON": (raw(b"{"), "its header is not JSON"),
    "no UTF-8": (raw(b'"\xff"'), "its header is not JSON .*utf-8"),
    "deep": (raw(b"[" * 500_000), "nested more than 32 deep"),
    "deep labels": (changed("metadata", "labels", to=deep(90)), "more than 32 deep"),
    "no zlib": (lambda: packed(b"abc", STORED), "not compressed by zlib"),
    "half": (lambda: packed(zlib.compress(b"{}")[:-3], b""), "ends too early"),
    "more": (lambda: packed(zlib.compress(b"{}") + b"x", b""), "or too late"),
    "a bomb": (raw(b" " * 50_000_000 + b"{}"), "more than 1,048,576 bytes"),
    "many objects": (raw(b"[" + b'{"a":0},' * 130_000 + b"0]"), "expected an object"),
    "another field": (changed("more", to=1), "there is an unknown 'more' in its"),
    "less stored": (lambda: packed_header(HEADER, STORED[:-1]), "but 21 are stored"),
    "more stored": (lambda: packed_header(HEADER, STORED + b"x"), "but 23 are"),
    "a huge shape": (
        changed("constants", 3, "shape", to=[BILLION, 3]),
        "its constants take 1125000016 bytes, but 22 are stored",
    ),
    "a negative size": (changed("constants", 3, "shape", to=[-5, -3]), "is -5, expec"),
    "an empty shape": (changed("constants", 3, "shape", to=[0, 3]), "is 0, expected"),
    "many bits": (
        changed("constants", 3, "bits", to=9),
        r"bits of constants\[3\] is 9",
    ),
    "other codes": (
        lambda: packed_header(HEADER, STORED[:-6] + b"\xff" * 6),
        r"constants\[3\]: not integers of 3 bits",
    ),
    "a type": (changed("constants", 0, "type", to="object"), "expected one of float32"),
    "a table": (changed("constants", 2, "table", to="han"), "did you mean 'hann'"),
    "a large table": (
        changed("constants", 2, to=hann(BILLION, BILLION)),
        "its tables have 1000000000 numbers, expected at most 1,048,576",
    ),
    "a larger table": (
        changed("constants", 2, to=hann(BILLION, 5)),
        r"constants\[2\] has the shape \[5\], but its table 1000000000 numbers",
    ),
    "a table of true": (changed("constants", 2, to=hann(True, 1)), "window of .* True"),
    "a table of no band": (
        changed("constants", 2, to=mel(low_hz=9_000)),
        r"constants\[2\]: Mel filters need",
    ),
    "an operation": (changed("operations", 4, 0, to="ad"), "did you mean 'pad'"),
    "a long name": (
        changed("operations", 4, 0, to="ad" * 50_000),
        r"is unknown \(known: ",
    ),
    "a setting": (
        changed("operations", 0, 2, to={"bits": 4}),
        r"operations\[0\]: there is no 'signed' in settings of quantize",
    ),
    "another setting": (
        changed("operations", 4, 2, to={"dtype": "object"}),
        "unknown 'dtype' in settings of add",
    ),
    "a value to come": (changed("operations", 0, 1, to=[0, 6]), "is 6, expected"),
    "itself": (changed("operations", 0, 1, to=[5, 1]), "is 5, expected"),
    "too many inputs": (changed("operations", 4, 1, to=[7, 8, 8]), "it has 3 inputs"),
    "no such output": (changed("output", to=10), "output is 10, expected"),
    "another output": (changed("output", to=7), None),
    "an output of another shape": (changed("output", to=8), r"but of shape \[\]"),
    "integers": (changed("output", to=6), "its output is no probabilities"),
    "labels": (
        changed("metadata", "labels", to=["a", "b"]),
        r"no probabilities \[1, 2",
    ),
    "two of one": (changed("metadata", "labels", to=["a", "a", "b"]), "are the same"),
    "a number as label": (changed("metadata", "labels", to=[1, 2, 3]), "label is 1"),
    "no input": (
        changed("metadata", to={"labels": list("abc")}),
        "there is no 'input'",
    ),
    "a kind": (changed("metadata", "input", "kind", to="image"), "waveform, features"),
    "a shape": (changed("metadata", "input", "shape", to=[6]), "than the program's"),
    "a threshold": (
        changed("metadata", "detection", to={"threshold": "x", "thresholds": {}}),
        "threshold of '' is no number",
    ),
    "two examples": (changed("input", to=[2, 5]), "expected one example"),
    "a broadcast": (
        before_answer(["broadcast", [0], {"shape": [BILLION, 5]}]),
        "it holds too much: 5.0e",
    ),
    "a count": (
        before_answer(["count", [], {"shape": [BILLION], "axis": 0, "type": "int32"}]),
        "it holds too much: 4.0e",
    ),
    "a padding": (
        before_answer(["pad", [0, 1], {"padding": [[0, BILLION], [BILLION, 0]]}]),
        "its result of shape .* is too large",
    ),
    "a transform": (
        before_answer(["rfft", [0], {"length": BILLION}]),
        "it holds too much: 1.9e",
    ),
    "padding of a convolution": (
        before_answer(
            ["reshape", [0], {"shape": [1, 5, 1]}],
            ["reshape", [1], {"shape": [1, 1, 1]}],
            [
                "conv",
                [5, 6],
                {"strides": [BILLION], "padding": [[0, BILLION]], "dilation": [1]},
            ],
        ),
        "it (holds|computes) too much",
    ),
    "twice, 60 times": (
        before_answer(
            *(["concatenate", [i, i], {"axis": 0}] for i in (0, *range(5, 64)))
        ),
        "is too large",
    ),
    "views of arrays that are gone": (
        before_answer(*views(20)),
        "it holds too much",
    ),
    "a slow program": (
        before_answer(
            ["broadcast", [0], {"shape": [20_000, 5]}],
            *(["erfc", [i], {}] for i in range(5, 405)),
        ),
        "it computes too much",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_run_is_refused_with_the_reason(wrong, tmp_path):
    content, reason = WRONG[wrong]
    path = tmp_path / "any.kwsp"
    path.write_bytes(content())
    with within(10), within_memory(100_000_000):
        told = refusal(load, path)
    if reason is None:
        assert not told
        return
    assert re.search(rf"any\.kwsp cannot be run: .*{reason}", told), told
    assert told.endswith("export the network again.")
    assert len(told) < 700


def test_the_program_tells_the_reason_without_a_traceback(tmp_path):
    path = tmp_path / "any.kwsp"
    path.write_bytes(WRONG["no fields"][0]())
    command = [sys.executable, "-m", "kws_jax.deploy.packed_reader", path, "x.wav"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {path} cannot be run: ")
