"""Packed files as they are read: old ones, large ones, and what is no file."""

import json
import os

import numpy as np
import pytest
import soundfile
from fuzzing import refusal, within, within_memory
from packed_cases import (
    HEADER,
    REAL,
    before_answer,
    changed,
    hann,
    mel,
    packed,
    packed_header,
    parts_of,
    views,
)
from test_packed_format import example

from kws_jax.deploy import packed_check, packed_file, packed_format
from kws_jax.deploy.packed_format import Constant, Operation, Program
from kws_jax.deploy.packed_reader import load, predictions
from kws_jax.ops import tables


def test_a_file_of_the_first_version_answers_as_it_did():
    rng = np.random.default_rng(0)
    loud = rng.normal(size=(3, 16_000)) * np.array([[0.2], [1e-3], [0.0]])
    # As the reader that was there when it was written has answered.
    expected = [
        [0.214352, 0.236892, 0.311864, 0.236892],
        [0.223602, 0.241015, 0.294368, 0.241015],
        [0.223602, 0.241015, 0.294368, 0.241015],
    ]
    heard = load(REAL).probabilities(loud.astype(np.float32))
    np.testing.assert_allclose(heard, expected, atol=1e-5)
    # And nothing of it is lost.
    header, stored = parts_of(REAL.read_bytes())
    again = parts_of(packed_format.to_bytes(packed_file.read(REAL)))
    assert again == (header, stored)


def test_what_is_as_large_as_allowed_takes_no_more(tmp_path):
    path = tmp_path / "large.kwsp"
    path.write_bytes(before_answer(*views(7))())
    with within_memory(packed_check.ROOM * 8):
        load(path).probabilities(np.ones((1, 5), np.float32))


@pytest.mark.parametrize("kind", ["folder", "pipe", "endless", "missing", "zero byte"])
def test_what_is_no_file_is_refused_by_name(kind, tmp_path):
    path = tmp_path / "any.kwsp"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "zero byte":
        path = f"{path}\0"
    with within(10):
        assert f"{path} cannot be read: " in refusal(load, path)


def test_a_file_that_is_too_large_is_refused_unread(tmp_path):
    path = tmp_path / "any.kwsp"
    with open(path, "wb") as file:
        file.write(packed(b"", b""))
        file.truncate(2**40)
    with within(10), within_memory(200_000_000):
        assert "more than 67,108,864 bytes" in refusal(load, path)


def test_weights_take_ten_times_their_bytes_at_most(tmp_path):
    count = 40_000_000
    header = json.loads(json.dumps(HEADER))
    header["constants"] = [
        {"weights": "one", "bits": 1, "shape": [count]},
        {"type": "float32", "shape": [1, 3]},
    ]
    header.update(operations=[["neg", [2], {}]], output=3)
    path = tmp_path / "any.kwsp"
    path.write_bytes(packed_header(header, bytes(count // 8 + 12)))
    with within_memory(11 * count // 8 + 20_000_000):
        assert load(path).probabilities(np.ones((2, 5), np.float32)).shape == (2, 3)


def of_audio(scale=0.25, rate=16_000, samples=16_000):
    """The first five of a second's samples, through the small example."""
    _, small = example()
    source = {"kind": "waveform", "shape": [samples], "sample_rate": rate}
    shifted = [
        Operation(o.name, tuple(i + (i > 4) for i in o.inputs), o.settings)
        for o in small.operations
    ]
    first = Operation("slice", (0,), {"places": [[0, 1, 1], [0, 5, 1]]})
    shifted[0] = Operation("quantize", (5, 1), small.operations[0].settings)
    scales = Constant(np.float32([scale, 0.5, 1.0]))
    return packed_format.to_bytes(
        Program(
            {"labels": ["ja", "no", "so"], "input": source},
            (1, samples),
            [small.constants[0], scales, *small.constants[2:]],
            [first, *shifted],
            10,
        )
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (of_audio(), ""),
        (of_audio(scale=np.nan), "what is no finite number: its weights are damaged"),
        (
            of_audio(rate=8_000),
            r"takes [16000] samples at 8000 Hz, expected [16000] at",
        ),
        (of_audio(samples=8_000), "takes [8000] samples at 16000 Hz"),
        (packed_format.to_bytes(example()[1]), "takes features, not audio"),
    ],
)
def test_networks_that_answer_no_audio_are_refused(content, message, tmp_path):
    path, clip = tmp_path / "any.kwsp", tmp_path / "clip.wav"
    path.write_bytes(content)
    soundfile.write(clip, np.zeros(16_000, np.int16), 16_000)
    told = refusal(lambda: list(predictions(str(path), [str(clip)])))
    assert message in told
    assert not message or str(path) in told


def test_every_table_has_as_many_numbers_as_is_counted():
    settings = {
        "hann": {"window": 7},
        "symmetric_hann": {"window": 7},
        "window_values": {"name": "hann", "taps": 5},
        "dct_matrix": {"num_mel": 5, "num_coefficients": 3},
        "mel_matrix": mel()["settings"],
    }
    assert set(settings) == set(tables.TABLES) == set(tables.COUNTS)
    for name, told in settings.items():
        assert tables.COUNTS[name](**told) == tables.TABLES[name](**told).size


def test_tables_of_files_fill_no_memory_of_tables(tmp_path):
    path = tmp_path / "any.kwsp"
    path.write_bytes(changed("constants", 2, to=hann(6, 6))())
    kept = len(tables._made)
    assert not refusal(load, path)
    assert len(tables._made) == kept
