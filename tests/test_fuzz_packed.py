"""Packed files of every content and a right checksum: run, or refused with a reason."""

import copy
import inspect
import json
import math
import zlib

import numpy as np
import pytest
from fuzzing import cases, refusal, within, within_memory
from hypothesis import given
from hypothesis import strategies as st
from packed_cases import REAL, packed, packed_header, parts_of
from test_fuzz_networks import VALUES
from test_packed_shapes import SETTINGS, SHAPES

from kws_jax.deploy.packed_operations import OPERATIONS
from kws_jax.deploy.packed_reader import load
from kws_jax.ops.tables import TABLES

# What packed_check.py allows, and the header as Python's objects.
MOST_BYTES = 200e6
HEADER, STORED = parts_of(REAL.read_bytes())
LAST = len(HEADER["constants"]) + len(HEADER["operations"])
NUMBERS = st.sampled_from(
    (-1, 0, 1, 2, 3, 7, 480, 65_537, 10**9, 2**31, 2**63, 10**400, 1e308, 0.5, True)
)
NAMES = st.sampled_from((*OPERATIONS, *TABLES, "unknown", ""))
OF_TABLES = st.one_of(
    st.fixed_dictionaries({"window": NUMBERS}),
    st.fixed_dictionaries({"num_mel": NUMBERS, "num_coefficients": NUMBERS}),
    st.fixed_dictionaries({"name": st.just("hann"), "taps": NUMBERS}),
)
OTHERS = st.one_of(VALUES, NUMBERS, NAMES, *SETTINGS.values())


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def places(value):
    """All (list or object, key) in a header, the outermost first."""
    found = []
    level = [value]
    while level:
        here = [
            (outer, key)
            for outer in level
            if isinstance(outer, list | dict)
            for key in (outer if isinstance(outer, dict) else range(len(outer)))
        ]
        found += here
        level = [outer[key] for outer, key in here]
    return found


def change_any(draw, header):
    """Another value, or none, wherever there is one."""
    outer, key = draw(st.sampled_from(places(header)))
    kind = draw(st.sampled_from(("other", "drop", "twice", "swap", "deep")))
    if kind == "drop":
        del outer[key]
    elif kind == "deep":
        outer[key] = nested(draw(st.sampled_from((1, 30, 300))))
    elif kind == "twice" and isinstance(outer, list):
        outer.insert(key, copy.deepcopy(outer[key]))
    elif kind == "swap":
        other = draw(st.sampled_from(list(outer) if isinstance(outer, dict) else [key]))
        outer[key], outer[other] = outer[other], outer[key]
    else:
        outer[key] = draw(OTHERS)


def change_number(draw, header):
    """A number by one, by a factor, or for any."""
    found = [(o, k) for o, k in places(header) if type(o[k]) in (int, float)]
    outer, key = draw(st.sampled_from(found))
    number = outer[key]
    near = (number + 1, number - 1, -number, 2 * number, 1000 * number)
    outer[key] = draw(st.one_of(st.sampled_from(near), NUMBERS))


def settings_of(name):
    """The settings that an operation takes, by its signature."""
    if isinstance(OPERATIONS[name], np.ufunc | np.vectorize):
        return []
    takes = inspect.signature(OPERATIONS[name]).parameters.values()
    return [p.name for p in takes if p.kind == inspect.Parameter.KEYWORD_ONLY]


def change_operation(draw, header):
    """Name, inputs or settings of an operation, for plausible ones."""
    index = draw(st.integers(0, len(header["operations"]) - 1))
    operation = header["operations"][index]
    before = len(header["constants"]) + index
    if draw(st.booleans()):
        operation[0] = draw(st.sampled_from(sorted(OPERATIONS)))
        names = settings_of(operation[0])
        operation[2] = {name: draw(SETTINGS[name]) for name in names}
    if draw(st.booleans()):
        last = before if draw(st.booleans()) else LAST
        operation[1] = draw(st.lists(st.integers(0, last), min_size=1, max_size=3))
    for name in operation[2]:
        if draw(st.booleans()):
            operation[2][name] = draw(st.one_of(SETTINGS[name], OTHERS))


def change_constant(draw, header):
    """What a constant is, and how large."""
    place = draw(st.integers(0, len(header["constants"]) - 1))
    shape = draw(st.one_of(st.just(header["constants"][place]["shape"]), SHAPES))
    one = draw(st.sampled_from(("type", "weights", "table", "others")))
    header["constants"][place] = {
        "type": {"type": draw(st.sampled_from(("int32", "float32", "int8")))},
        "weights": {"weights": "any", "bits": draw(st.integers(1, 8))},
        "table": {"table": draw(NAMES), "settings": draw(OF_TABLES)},
        "others": {**header["constants"][place], draw(NAMES): draw(OTHERS)},
    }[one] | {"shape": shape}


def fitted(header, stored):
    """As many bytes as the constants of a header take, where that can be said."""
    size = 0
    for entry in header["constants"]:
        bits = 0 if "table" in entry else entry.get("bits", 32)
        size += -(-bits * math.prod(entry["shape"]) // 8)
    return (stored * (1 + size // len(stored)))[:size] if size < 10**6 else stored


# In this order: behind the last, a header may be of any form.
CHANGES = (change_constant, change_operation, change_any, change_number)


@st.composite
def files(draw):
    """The real file with a few changes, none of which its checksum tells."""
    header, stored = copy.deepcopy(HEADER), STORED
    for change in CHANGES:
        if change is change_any:
            stored = fitted(header, stored)
        if draw(st.sampled_from((True, False, False))):
            change(draw, header)
    kind = draw(st.sampled_from((*["same"] * 5, "cut", "longer", "bytes")))
    place = draw(st.integers(0, len(stored)))
    some = draw(st.binary(min_size=1, max_size=9))
    stored = {
        "same": stored,
        "cut": stored[:place],
        "longer": stored + some,
        "bytes": stored[:place] + some + stored[place + len(some) :],
    }[kind]
    return packed_header(header, stored)


def answer(path):
    network = load(path)
    shape = network.metadata["input"]["shape"]
    for level in (0.1, 1e30):
        noise = np.random.default_rng(0).normal(size=(1, *shape))
        heard = network.probabilities((level * noise).astype(np.float32))
        assert heard.shape == (1, len(network.metadata["labels"]))
        assert heard.dtype.kind == "f"


def assert_run_or_refused(path, content):
    """Returns the reason, "" where it runs."""
    path.write_bytes(content)
    with within(), within_memory(round(MOST_BYTES + 10 * len(content))):
        told = refusal(answer, path)
    assert not told or str(path) in told
    return told


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    # Pages of BLAS that are taken once.
    answer(REAL)
    return tmp_path_factory.mktemp("fuzz") / "any.kwsp"


@pytest.mark.filterwarnings("error")
@cases(400)
@given(files())
def test_any_header_and_constants_run_or_are_refused(path, content):
    assert_run_or_refused(path, content)


DEEP = b"[" * 100_000
TEXTS = st.one_of(
    VALUES.map(json.dumps).map(str.encode),
    st.binary(max_size=40),
    st.sampled_from((b"", b"{", DEEP, b'{"input":' + DEEP, b"NaN", b"[" * 900)),
)


@cases(200)
@given(TEXTS, st.binary(max_size=9), st.integers(0, 9), st.booleans())
def test_any_text_as_header_is_refused(path, text, more, cut, whole):
    compressed = zlib.compress(text) + more
    compressed = text if whole else compressed[: len(compressed) - cut]
    assert assert_run_or_refused(path, packed(compressed, STORED))
