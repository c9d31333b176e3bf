"""What a trained network heard may not be in a test that is made of it later.

Within one experiment the data see to that when they are opened. A later test may name
other folders, divide the same ones anew, or find them grown; so a workdir keeps marks
of the noise, the background and the rooms that its training may hear.
"""

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from kws_jax.data import copies, protocols
from kws_jax.data.corpus import SILENCE, TEST
from kws_jax.data.held_out import CLIPS_OF_SILENCE
from kws_jax.data.noise import NoiseBank
from kws_jax.data.rooms import SIMULATED, RoomBank
from kws_jax.data.splits import TEST_LIST
from kws_jax.errors import UserError
from kws_jax.opening import protocol_of
from kws_jax.parts import Parts
from kws_jax.training.checkpoints import write_arrays
from kws_jax.workdirs import read_arrays

FILE = "heard.npz"
# What decides which noise, background and rooms a test has.
_FIELDS = (
    *("source", "dir", "noise_seen", "noise_unseen", "noise_test_fraction"),
    *("noise_hours", "rooms", "rooms_test_fraction"),
)


def keep(parts: Parts, folder: Path) -> None:
    """Writes the marks of what the training of `parts` may hear, into a workdir."""
    banks = []
    if parts.training_noise is not None and _asked_for(parts.config, "snr_db"):
        banks.append(parts.training_noise)
    if parts.background is not None and _hears_background(parts):
        banks.append(parts.background)
    noise = {mark for bank in banks for _, marks in _marks(bank) for mark in marks}
    rooms = set()
    if parts.training_rooms is not None and _hears_rooms(parts.config):
        rooms = {mark for _, mark in _responses(parts.training_rooms)}
    write_arrays(folder / FILE, {"noise": _sorted(noise), "rooms": _sorted(rooms)})


def check_clips(data: ConfigDict, trained: ConfigDict) -> None:
    """Raises UserError where the test would have clips of training, divided anew.

    Args:
      data: `config.data` of the test.
      trained: the config of the training.
    """
    before = trained.data
    folders = data.source == before.source == "folder"
    if not folders or not same_folder(data.dir, before.dir):
        return
    # A folder with lists of its own is not divided by shares.
    if (Path(data.dir) / TEST_LIST).exists():
        return
    fields = ("validation_fraction", "test_fraction")
    # Validation comes first, then the test; what is beyond both is training's.
    now, then = (sum(each[field] for field in fields) for each in (data, before))
    if now > then + 1e-9:
        field = next(field for field in fields if data[field] > before[field])
        raise UserError(
            f"data.{field}={data[field]} divides data.dir={data.dir} anew, while this "
            f"network was trained with {before[field]}: the test or validation would "
            f"have clips that it heard. Leave data.{field} as it was, or give another "
            "data.dir"
        )


def check_sounds(parts: Parts, folder: Path, trained: ConfigDict) -> None:
    """Raises UserError where the test has noise or rooms that training heard.

    They are told by their sound, wherever they lie. For workdirs of earlier versions,
    which keep no marks, a note on standard error says where this would matter.

    Args:
      parts: of the test.
      folder: the workdir.
      trained: the config of its training.
    """
    if not (folder / FILE).exists():
        if any(parts.config.data[f] != trained.data[f] for f in _FIELDS):
            print(
                "note: whether training heard the test's noise or rooms cannot be "
                f"told: {folder} is of an earlier version, and has no {FILE}",
                file=sys.stderr,
            )
        return
    marks = {
        name: set(own.tolist()) for name, own in read_arrays(folder / FILE).items()
    }
    for where, bank in _test_noise(parts):
        shared = [name for name, own in _marks(bank) if own & marks["noise"]]
        if shared:
            raise UserError(
                f"{where} has {shared[0]} ({len(shared)} of {len(bank)} recordings), "
                "which this network heard in training. Give folders without what it "
                "heard; where the folder is that of its training, leave "
                "data.noise_test_fraction and data.noise_hours as they were, and take "
                "away recordings that were added since: they divide it anew"
            )
    if parts.test_rooms is None:
        return
    shared = [
        name for name, own in _responses(parts.test_rooms) if own in marks["rooms"]
    ]
    if shared:
        raise UserError(
            f"data.rooms={parts.config.data.rooms}: the test has {shared[0]} "
            f"({len(shared)} of {len(parts.test_rooms)} impulse responses), which "
            "this network heard in training. Give a folder without them; where it is "
            "that of its training, leave data.rooms_test_fraction as it was, and take "
            "away rooms that were added since: they divide it anew"
        )


def same_folder(folder: str, other: str) -> bool:
    """Whether both are named, and are one folder."""
    named = bool(folder and other)
    return named and os.path.realpath(folder) == os.path.realpath(other)


def _test_noise(parts: Parts) -> Iterator[tuple[str, NoiseBank]]:
    """What the tests hear beside words, with where it comes from."""
    data = parts.config.data
    source = f"the background of {data.dir or data.source} for the test"
    for kind, bank in parts.noise.items():
        named = data[f"noise_{kind}"]
        yield f"data.noise_{kind}: the test's {kind} noise" if named else source, bank
    background = parts.held_out.background.get(TEST)
    # Clips of silence may be cut from anything: they are the data set's own test.
    if background is not None and set(background.names) != {CLIPS_OF_SILENCE}:
        yield source, background


def _marks(bank: NoiseBank) -> Iterator[tuple[str, set[int]]]:
    for name, start, length in zip(bank.names, bank.starts, bank.lengths, strict=True):
        marks = copies.marks(bank.audio[start : start + length])
        yield name, {_number(mark) for mark in marks}


def _responses(bank: RoomBank) -> Iterator[tuple[str, int]]:
    """Each response without the zeros that fill it up to the longest of its bank."""
    for name, response in zip(bank.names, bank.responses, strict=True):
        content = np.trim_zeros(response, "b").tobytes()
        yield name, _number(hashlib.sha256(content).digest())


def _number(digest: bytes) -> int:
    """Its first eight bytes: enough for the marks of a thousand hours."""
    return int.from_bytes(digest[:8], "little")


def _sorted(numbers: Iterable[int]) -> np.ndarray:
    return np.array(sorted(numbers), np.uint64)


def _hears_background(parts: Parts) -> bool:
    """Whether a clip of training, or one of silence, has background in it."""
    data = parts.config.data
    silence = data.silence or protocols.get_protocol(protocol_of(data)).silence
    silent = SILENCE in parts.labels and silence == protocols.BACKGROUND
    return silent or _asked_for(parts.config, "background_probability")


def _hears_rooms(trained: ConfigDict) -> bool:
    """Whether training heard rooms of a folder; simulated ones are for one side."""
    folder = trained.data.rooms not in ("", SIMULATED)
    return folder and _asked_for(trained, "reverberant_fraction")


def _asked_for(trained: ConfigDict, field: str) -> bool:
    conditions = [stage.condition for stage in trained.stages if "condition" in stage]
    return any(bool(condition.get(field)) for condition in conditions)
