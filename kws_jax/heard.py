"""What a trained network heard may not be in a test that is made of it later.

Within one experiment the data see to that when they are opened. A later test may name
other folders, or divide the same ones anew.
"""

import os
import sys
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from kws_jax.data import copies, noise_folder
from kws_jax.data.corpus import TRAIN
from kws_jax.data.noise import NoiseBank
from kws_jax.data.rooms import SIMULATED, RoomBank, open_rooms
from kws_jax.errors import UserError
from kws_jax.parts import Parts

_OF_NOISE = ("noise_seen", "noise_test_fraction", "noise_hours")


def check_divisions(data: ConfigDict, trained: ConfigDict) -> None:
    """Raises UserError where the test's data are those of training, divided anew.

    Args:
      data: `config.data` of the test.
      trained: the config of the training.
    """
    before = trained.data
    if data.source == before.source == "folder" and _same(data.dir, before.dir):
        for field in ("validation_fraction", "test_fraction"):
            if data[field] != before[field]:
                raise _divided_anew(field, "dir", "clips", data, before)
    for field, folder, what, heard in (
        ("noise_test_fraction", "noise_seen", "recordings", _hears_noise(trained)),
        ("rooms_test_fraction", "rooms", "rooms", _hears_rooms(trained)),
    ):
        # Without a test in them there is nothing to mix up.
        changed = data[field] not in (0, before[field])
        if heard and changed and _same(data[folder], before[folder]):
            raise _divided_anew(field, folder, what, data, before)


def check_sounds(parts: Parts, trained: ConfigDict) -> None:
    """Raises UserError where the test has noise or rooms that training heard.

    They are told by their sound. Where the folders of the training are no more, a note
    on standard error says that this could not be looked at.

    Args:
      parts: of the test.
      trained: the config of the training.
    """
    data, before = parts.config.data, trained.data
    if _hears_noise(trained) and any(data[f] != before[f] for f in _OF_NOISE):
        _check_noise(parts, before)
    if _hears_rooms(trained) and not _same(data.rooms, before.rooms):
        _check_rooms(parts, before)


def _check_noise(parts: Parts, before: ConfigDict) -> None:
    try:
        training = noise_folder.training_part(
            before.noise_seen,
            test_fraction=before.noise_test_fraction,
            hours=before.noise_hours,
        )
    except UserError as error:
        _tell_unknown("noise_seen", "noise", error)
        return
    heard = frozenset().union(
        *(marks for _, marks in _marks(NoiseBank.from_recordings(training)))
    )
    for kind, bank in parts.noise.items():
        shared = [name for name, marks in _marks(bank) if marks & heard]
        if shared:
            raise UserError(
                f"data.noise_{kind}: the test's {kind} noise has {shared[0]} "
                f"({len(shared)} of {len(bank)} recordings), which this network heard "
                f"in training (data.noise_seen={before.noise_seen}). Give folders "
                "without them, or leave data.noise_seen and data.noise_hours as they "
                "were"
            )


def _check_rooms(parts: Parts, before: ConfigDict) -> None:
    if parts.test_rooms is None:
        return
    try:
        rooms = open_rooms(
            before.rooms, test_fraction=before.rooms_test_fraction, simulated={}
        )
    except UserError as error:
        _tell_unknown("rooms", "rooms", error)
        return
    heard = {own for _, own in _responses(rooms[TRAIN])} if TRAIN in rooms else set()
    shared = [name for name, own in _responses(parts.test_rooms) if own in heard]
    if shared:
        raise UserError(
            f"data.rooms={parts.config.data.rooms}: the test has {shared[0]} "
            f"({len(shared)} of {len(parts.test_rooms)} impulse responses), which this "
            f"network heard in training (data.rooms={before.rooms}). Give a folder "
            "without them, or leave data.rooms as it was"
        )


def _marks(bank: NoiseBank) -> Iterator[tuple[str, frozenset[bytes]]]:
    for name, start, length in zip(bank.names, bank.starts, bank.lengths, strict=True):
        yield name, copies.marks(bank.audio[start : start + length])


def _responses(bank: RoomBank) -> Iterator[tuple[str, bytes]]:
    """Each response without the zeros that fill it up to the longest of its bank."""
    for name, response in zip(bank.names, bank.responses, strict=True):
        yield name, np.trim_zeros(response, "b").tobytes()


def _hears_noise(trained: ConfigDict) -> bool:
    """Whether training heard recordings of data.noise_seen."""
    return bool(trained.data.noise_seen) and _asked_for(trained, "snr_db")


def _hears_rooms(trained: ConfigDict) -> bool:
    """Whether training heard rooms of a folder; simulated ones are for one side."""
    folder = trained.data.rooms not in ("", SIMULATED)
    return folder and _asked_for(trained, "reverberant_fraction")


def _asked_for(trained: ConfigDict, field: str) -> bool:
    conditions = [stage.condition for stage in trained.stages if "condition" in stage]
    return any(bool(condition.get(field)) for condition in conditions)


def _same(folder: str, other: str) -> bool:
    named = bool(folder and other)
    return named and os.path.realpath(folder) == os.path.realpath(other)


def _divided_anew(
    field: str, folder: str, what: str, data: ConfigDict, before: ConfigDict
) -> UserError:
    return UserError(
        f"data.{field}={data[field]} divides data.{folder}={data[folder]} anew, while "
        f"this network was trained with {before[field]}: the test would have {what} "
        f"that it heard. Leave data.{field} as it was, or give another data.{folder}"
    )


def _tell_unknown(field: str, what: str, error: UserError) -> None:
    print(
        f"note: whether training heard the test's {what} cannot be told, since what it "
        f"heard cannot be read (data.{field} of this workdir): {error}",
        file=sys.stderr,
    )
