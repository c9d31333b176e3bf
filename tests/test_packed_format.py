"""The packed file: integers at their bits, and what a damaged file says."""

import numpy as np
import pytest

from kws_jax.deploy import packed_format, packed_operations
from kws_jax.deploy.packed_format import Constant, Operation, Program
from kws_jax.deploy.packed_reader import PackedNetwork, load
from kws_jax.errors import UserError
from kws_jax.ops import tables


def integers(rng, bits, shape):
    top = max(1, 2 ** (bits - 1) - 1)
    if bits == 1:
        return rng.choice([-1, 1], shape).astype(np.int8)
    return rng.integers(-top, top + 1, shape).astype(np.int8)


def by_definition(values, bits):
    """The stream as one large number, the first code in its lowest bits."""
    top = max(1, 2 ** (bits - 1) - 1)
    stream = 0
    for place, q in enumerate(values.ravel().tolist()):
        code = (q + 1) // 2 if bits == 1 else q + top
        stream |= code << (bits * place)
    return stream.to_bytes(-(-values.size * bits // 8), "little")


@pytest.mark.parametrize("bits", range(1, 9))
def test_integers_take_their_bits_and_come_back(bits):
    rng = np.random.default_rng(bits)
    for _ in range(40):
        shape = tuple(rng.integers(1, 6, rng.integers(0, 4)))
        values = integers(rng, bits, shape)
        stored = packed_format.pack_bits(values, bits)
        assert stored == by_definition(values, bits)
        again = packed_format.unpack_bits(stored, bits, shape)
        assert again.dtype == np.int8
        np.testing.assert_array_equal(again, values)


@pytest.mark.parametrize(("bits", "wrong"), [(1, 0), (2, 2), (3, -4), (8, -128)])
def test_integers_of_more_bits_are_refused(bits, wrong):
    with pytest.raises(ValueError, match=f"not integers of {bits} bits"):
        packed_format.pack_bits(np.array([1, wrong]), bits)


def example(bits=3):
    """y = (round(x / 0.5) · w) · 0.25 + 1 for one dense layer, and a table."""
    rng = np.random.default_rng(0)
    weights = integers(rng, bits, (5, 3))
    return weights, Program(
        metadata={
            "labels": ["ja", "né", "_silence_"],
            "input": {"kind": "features", "shape": [5], "sample_rate": 16_000},
        },
        input_shape=(1, 5),
        constants=[
            Constant(np.float32(0.5).reshape(())),
            Constant(np.float32([0.25, 0.5, 1.0])),
            Constant(tables.hann(window=5), table=("hann", {"window": 5})),
            Constant(weights, "dense", bits),
        ],
        operations=[
            Operation("quantize", (0, 1), {"bits": 4, "signed": True}),
            Operation("product", (5, 4), {"equation": "ab,bc->ac", "largest": 105}),
            Operation("scale", (6, 2), {}),
            Operation("sum", (3,), {"axes": [0]}),
            Operation("add", (7, 8), {}),
        ],
        output=9,
    )


def test_a_file_holds_all_of_a_program_and_no_more(tmp_path):
    weights, program = example()
    path = tmp_path / "small.kwsp"
    path.write_bytes(packed_format.to_bytes(program))
    held = packed_format.sizes(program)
    assert held["total"] == path.stat().st_size
    assert held["weights"] == -(-3 * 15 // 8)
    assert held["constants"] == 4 * 4  # the table takes none
    network = load(path)
    assert network.metadata["labels"] == ["ja", "né", "_silence_"]
    x = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    q = np.clip(np.round(x.astype(np.float64) / 0.5), -7, 7)
    expected = (q @ weights) * [0.25, 0.5, 1.0] + 2.5
    np.testing.assert_allclose(network.probabilities(x), expected, rtol=1e-6)
    with pytest.raises(UserError, match=r"shape \(5,\), got \(6,\)"):
        network.probabilities(np.zeros((1, 6), np.float32))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "damaged or was cut off"),
        (lambda data: data[:20], "damaged or was cut off"),
        (lambda data: data[:-3] + b"\x55" + data[-2:], "damaged or was cut off"),
        (lambda data: data + b"\0", "damaged or was cut off"),
        (lambda data: data[:10], "is no packed network"),
        (lambda data: b"RIFF" + data[4:], "is no packed network"),
        (lambda data: data[:4] + b"\x09" + data[5:], "version 9 of the packed format"),
    ],
)
def test_a_damaged_file_is_named(damage, message, tmp_path):
    path = tmp_path / "broken.kwsp"
    path.write_bytes(damage(packed_format.to_bytes(example()[1])))
    with pytest.raises(UserError, match=rf"broken\.kwsp .*{message}"):
        load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.kwsp cannot be read: No such file"):
        load(tmp_path / "none.kwsp")


def test_a_table_is_known_by_its_values_in_any_shape():
    values = tables.hann(480)
    assert tables.origin(values.reshape(1, 480, 1)) == ("hann", {"window": 480})
    assert tables.origin(values[:-1]) is None
    assert tables.origin(values * np.float32(1.001)) is None
    window = tables.window_values("hamming", 400)
    assert tables.origin(window.astype(np.float32)) == (
        "window_values",
        {"name": "hamming", "taps": 400},
    )


def test_what_does_not_depend_on_the_input_is_computed_once(monkeypatch):
    calls = []
    monkeypatch.setitem(
        packed_operations.OPERATIONS, "sum", lambda x, axes: calls.append(0) or x.sum()
    )
    network = PackedNetwork(example()[1])
    network.probabilities(np.zeros((3, 5), np.float32))
    assert len(calls) == 1
