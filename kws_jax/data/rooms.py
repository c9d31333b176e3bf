"""Rooms: impulse responses from a talker to a microphone, measured or simulated.

A folder of responses is read with all below it. In the layout of BUT ReverbDB
(ROOM/MICROPHONE/SPEAKER/RIR/*.wav, beside speech and silence recorded in the same
rooms) only the files in folders named RIR are responses.
"""

import dataclasses
import hashlib
import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from kws_jax.data import copies
from kws_jax.data.audio_files import (
    AUDIO_SUFFIXES,
    CorruptAudioError,
    find_audio,
    read_first_channel,
)
from kws_jax.data.corpus import CLIP_SAMPLES, SAMPLE_RATE, TEST, TRAIN
from kws_jax.data.responses import Response
from kws_jax.data.simulated_rooms import simulate
from kws_jax.data.splits import held_out
from kws_jax.errors import UserError

SIMULATED = "simulated"
_RIR_FOLDER = "RIR"
_MICROPHONE = re.compile(r"MicID\d+.*")
# The direct path is the first sample that is at most 20 dB below the largest, as ISO
# 3382-1 has it: reflections may be stronger, what is measured before it is weaker.
_DIRECT = 0.1
_FADE = SAMPLE_RATE // 20


@dataclasses.dataclass(frozen=True)
class RoomBank:
    """Impulse responses of one length, ready to be convolved with clips.

    Each begins with its direct path, so that speech is not delayed, and has Σ h² = 1:
    white noise keeps its power, and speech does to some decibels, as a room colours it.

    Attributes:
      names: of the responses.
      responses: float32 [r, taps] at 16 kHz, 1 ≤ taps ≤ CLIP_SAMPLES.
      fingerprint: changes with what the responses were made from.
    """

    names: tuple[str, ...]
    responses: np.ndarray
    fingerprint: str

    @classmethod
    def from_responses(cls, responses: Sequence[Response]) -> "RoomBank":
        """A bank of at least one response.

        A response that is longer than a clip is cut there, its last 50 ms faded out;
        others end with zeros.
        """
        parts = [_at_most_a_clip(np.asarray(r.audio, float)) for r in responses]
        bank = np.zeros((len(parts), max(map(len, parts))), np.float32)
        digest = hashlib.sha256()
        for row, part, response in zip(bank, parts, responses, strict=True):
            row[: len(part)] = part / np.sqrt(np.sum(part**2))
            digest.update(f"{response.name}\0{response.origin}\n".encode())
        return cls(tuple(r.name for r in responses), bank, digest.hexdigest())

    def __len__(self) -> int:
        return len(self.responses)


def open_rooms(
    where: str,
    *,
    test_fraction: float,
    simulated: Mapping[str, Any],
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, RoomBank]:
    """The rooms of training and those of the test, under TRAIN and TEST; none shared.

    Args:
      where: a folder of impulse responses, "simulated", or "" for no rooms.
      test_fraction: share of the rooms that the test gets, chosen by a hash of their
        paths. A room is a folder where the paths of the responses part for the first
        time, or a file that lies there beside the folders; in BUT ReverbDB it is the
        folder above the microphones, wherever it lies.
      simulated: settings of `simulated_rooms.simulate`.
      progress: called with (rooms made, all rooms) while they are simulated.

    Raises:
      UserError: a fraction or setting out of range, a folder or files that cannot be
        used, or a single room for both.
    """
    if not 0 <= test_fraction <= 1:
        raise UserError(
            f"config.data.rooms_test_fraction = {test_fraction}: give a number in "
            "0 … 1."
        )
    if not where:
        return {}
    if where == SIMULATED:
        parts = simulate(**simulated, test_fraction=test_fraction, progress=progress)
    else:
        parts = divide(read_room_folder(where), test_fraction, where)
    return {
        split: RoomBank.from_responses(responses)
        for split, responses in parts.items()
        if responses
    }


def divide(
    responses: Sequence[Response], test_fraction: float, where: str
) -> dict[str, list[Response]]:
    """The responses of training and of the test, by their rooms.

    Rooms that have a response in common, sample by sample from the direct path on, are
    divided as one, which is told on standard error. Files that no folder tells the room
    of are divided as if each were a room; that they may be of one is told too.

    Raises:
      UserError: there is one room alone, and both want some.
    """
    heard: dict[str, set[bytes]] = defaultdict(set)
    for response in responses:
        heard[response.room].add(response.audio.tobytes())
    room_of = copies.same_sound(heard)
    rooms = set(room_of.values())
    if len(rooms) < len(room_of) and 0 < test_fraction < 1:
        twice = ", ".join(f"{a} = {b}" for a, b in room_of.items() if a != b)
        print(
            f"note: rooms in {where} that hold the same impulse response are divided "
            f"as one: {twice}",
            file=sys.stderr,
        )
    if len(rooms) == 1 and 0 < test_fraction < 1:
        raise UserError(
            f"{where} holds a single room, which training and test cannot share. Give "
            "more impulse responses, or set config.data.rooms_test_fraction to 0 (all "
            "for training) or 1 (all for the test)"
        )
    lone = sum(response.room == response.name for response in responses)
    if lone > 1 and 0 < test_fraction < 1:
        print(
            f"note: {lone} impulse responses in {where} lie in no folder that tells "
            "their room, so each is taken for a room of its own. If several are of one "
            "room, training and test share it: give each room a folder, or set "
            "config.data.rooms_test_fraction to 0 or 1",
            file=sys.stderr,
        )
    test = held_out(rooms, test_fraction)
    return {
        TRAIN: [r for r in responses if room_of[r.room] not in test],
        TEST: [r for r in responses if room_of[r.room] in test],
    }


def read_room_folder(directory: str | os.PathLike[str]) -> list[Response]:
    """All impulse responses in `directory` and below, in the order of their paths.

    Of files with several channels the first is taken; any sample rate is resampled;
    what comes before the direct path is cut off. Responses that are longer than a clip
    are told on standard error.

    Raises:
      UserError: no such folder, no audio in it, or files that cannot be read or are
        silent (all of them are named).
    """
    root = Path(directory)
    if not os.path.isdir(root):
        raise UserError(
            f"config.data.rooms: {root} is not a folder. Give a folder of room impulse "
            f"responses, {SIMULATED!r}, or '' for no rooms"
        )
    paths = find_audio(root, recursive=True)
    paths = [p for p in paths if p.parent.name == _RIR_FOLDER] or paths
    if not paths:
        raise UserError(
            f"{root} holds no audio. Expected room impulse responses, one of "
            f"{', '.join(AUDIO_SUFFIXES)}, in the folder or below it"
        )
    names = [path.relative_to(root).as_posix() for path in paths]
    responses, bad = [], ""
    for path, (name, room) in zip(paths, _rooms_of(names)):
        try:
            audio = read_first_channel(path)
        except CorruptAudioError as error:
            bad += f"\n  {path}: {error.reason}"
            continue
        if not np.any(audio):
            bad += f"\n  {path}: it is silent"
            continue
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        responses.append(Response(name, _from_direct_path(audio), room, content))
    if bad:
        raise UserError(
            f"room impulse responses that cannot be used:{bad}\nMend or remove them"
        )
    _tell_long(responses, root)
    return responses


def _rooms_of(names: Iterable[str]) -> list[tuple[str, str]]:
    """(name, its room), whether the folder was named at the rooms or above them.

    Folders that all files share tell nothing; the first one behind them is the room. A
    file without one is a room of its own.
    """
    folder_of = {name: PurePosixPath(name).parent for name in names}
    shared = len(PurePosixPath(os.path.commonpath(folder_of.values())).parts)
    rooms = []
    for name, folder in folder_of.items():
        own = folder.parts[shared:]
        room = _room_above_microphones(folder) or (own[0] if own else name)
        rooms.append((name, room))
    return rooms


def _room_above_microphones(folder: PurePosixPath) -> str:
    """The room in BUT ReverbDB's ROOM/MICROPHONE/SPEAKER/RIR; "" in other layouts."""
    for above, name in zip((".", *folder.parts), folder.parts):
        if _MICROPHONE.fullmatch(name):
            return above
    return ""


def _tell_long(responses: Sequence[Response], root: Path) -> None:
    long = sum(len(response.audio) > CLIP_SAMPLES for response in responses)
    if long:
        print(
            f"warning: {long} of {len(responses)} impulse responses in {root} are "
            "longer than a clip; they are cut there, with a fade",
            file=sys.stderr,
        )


def _from_direct_path(audio: np.ndarray) -> np.ndarray:
    loudness = np.abs(audio)
    return audio[np.argmax(loudness >= _DIRECT * loudness.max()) :]


def _at_most_a_clip(audio: np.ndarray) -> np.ndarray:
    if len(audio) <= CLIP_SAMPLES:
        return audio
    cut = audio[:CLIP_SAMPLES].copy()
    cut[-_FADE:] *= np.cos(np.pi / 2 * (np.arange(_FADE) + 1) / _FADE) ** 2
    return cut
