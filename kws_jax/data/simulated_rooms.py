"""Shoebox rooms by the image source method of pyroomacoustics, of a given T60.

pyroomacoustics is the optional extra `rooms`. Its inverse of Sabine's formula misses
the asked T60 by up to a third, since a shoebox with the same absorption everywhere is
no diffuse field. So the absorption is found from the images themselves, and corrected
by what is then measured on the impulse response. In rooms with a long T60
noise stands for the late reflections, which are too many to be told apart.

Reference: Allen and Berkley 1979, J. Acoust. Soc. Am. 65:943–950 (image sources).
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from kws_jax.data.corpus import SAMPLE_RATE, TEST, TRAIN
from kws_jax.data.responses import Response
from kws_jax.data.room_decay import BIN, Decay, measured_t60
from kws_jax.errors import UserError

# Talker and microphone keep this distance (m) from the walls.
_WALL = 0.3
# The measured T60 may differ from the asked one by this share.
_TOLERANCE = 0.05
# Responses are cut to a clip's length, 1 s, which shortens the T60 that is measured on
# them: 2 s by 5 %, 2.3 s by 10 %, 3 s by 25 %. Above this (s) the cut and the tolerance
# together may take more than 10 %.
_LONGEST_T60 = 2.0
# Rooms with a longer T60 (s) have no more orders of reflections than with this one, or
# than few: time and memory grow as their cube. Later reflections, several in each
# sample, are noise that falls on as they did.
_FOLLOWED, _FEW_ORDERS = 0.8, 40
# It begins so long (s) before their end, where the filter of pyroomacoustics rings.
_RINGING = 0.05
_TAIL = 1  # behind a room's seeds: draws of its noise, apart from those of the room
_CORRECTIONS = 6
_ATTEMPTS = 200


@dataclasses.dataclass(frozen=True)
class _Room:
    """Size, talker and microphone (m) of a room, and its T60 (s)."""

    size: np.ndarray
    talker: np.ndarray
    microphone: np.ndarray
    t60: float


def simulate(
    *,
    number: int,
    length_m: Sequence[float],
    width_m: Sequence[float],
    height_m: Sequence[float],
    t60_s: Sequence[float],
    distance_m: Sequence[float],
    seed: int,
    test_fraction: float,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, list[Response]]:
    """Rooms for training and other rooms for the test, under TRAIN and TEST.

    Everything is uniform in its range (low, high) and a function of the seed and the
    number of the room. What does not go together (a distance that the room is too small
    for, a T60 that no absorption brings) is drawn again.

    Args:
      number: rooms in all, each with one talker and one microphone.
      length_m: of the rooms, in metres.
      width_m: the same.
      height_m: the same.
      t60_s: time (s) in which the energy falls by 60 dB, as measured from -5 to -25 dB;
        at most 2 s, since responses are no longer than a clip.
      distance_m: from talker to microphone.
      seed: where all chance comes from.
      test_fraction: share of the rooms for the test.
      progress: called with (rooms made, all rooms).

    Raises:
      UserError: pyroomacoustics is missing, a setting makes no sense, or the ranges do
        not go together.
    """
    ranges = {
        "length_m": length_m,
        "width_m": width_m,
        "height_m": height_m,
        "t60_s": t60_s,
        "distance_m": distance_m,
    }
    _check(number, seed, ranges)
    acoustics = _pyroomacoustics()
    test = round(number * test_fraction)
    if 0 < test_fraction < 1:
        test = min(max(test, 1), number - 1)
    parts: dict[str, list[Response]] = {TRAIN: [], TEST: []}
    for split, count in {TRAIN: number - test, TEST: test}.items():
        for i in range(count):
            seeds = [seed, split == TEST, i]
            rng, tail = (np.random.default_rng(s) for s in (seeds, [*seeds, _TAIL]))
            room, audio = _simulated(acoustics, rng, tail, ranges)
            name = f"{split} room {i}"
            followed = [_FOLLOWED] if room.t60 > _FOLLOWED else []
            origin = json.dumps([*map(float, room.size), room.t60, *followed])
            parts[split].append(Response(name, audio, name, origin))
            if progress:
                progress(sum(map(len, parts.values())), number)
    return parts


def _check(number: int, seed: int, ranges: dict[str, Sequence[float]]) -> None:
    where = "config.data.simulated_rooms"
    if number < 2:
        raise UserError(f"{where}.number = {number}: give at least 2.")
    if not 0 <= seed < 2**32:
        raise UserError(f"{where}.seed = {seed}: give 0 to 4294967295.")
    for field, values in ranges.items():
        if len(values) != 2 or not 0 < values[0] <= values[1] < np.inf:
            raise UserError(
                f"{where}.{field} = {values}: give (low, high) with 0 < low ≤ high."
            )
    if ranges["t60_s"][1] > _LONGEST_T60:
        raise UserError(
            f"{where}.t60_s = {ranges['t60_s']}: give at most {_LONGEST_T60:g} s. A "
            "response is cut to the length of a clip, 1 s, and would have a T60 more "
            "than 10 % below a longer one."
        )


def _pyroomacoustics() -> Any:
    try:
        import pyroomacoustics
    except ImportError as error:
        raise UserError(
            "config.data.rooms = 'simulated' needs the package pyroomacoustics, the "
            "extra 'rooms': pip install -c constraints.txt -e '.[rooms]' in a copy of "
            "the repository, or give a folder of impulse responses"
        ) from error
    return pyroomacoustics


def _simulated(
    acoustics: Any,
    rng: np.random.Generator,
    tail: np.random.Generator,
    ranges: dict[str, Sequence[float]],
) -> tuple[_Room, np.ndarray]:
    """The first room drawn that can be built, and its response."""
    for room in _drawn(rng, ranges):
        audio = _response(acoustics, room, tail)
        if audio is not None:
            return room, audio
    told = ", ".join(f"{field} {tuple(values)}" for field, values in ranges.items())
    raise UserError(
        f"config.data.simulated_rooms: {_ATTEMPTS} draws brought no room that goes "
        f"with {told}. Small rooms are too small for large distances, and large rooms "
        "cannot have a short T60; change these ranges"
    )


def _drawn(
    rng: np.random.Generator, ranges: dict[str, Sequence[float]]
) -> Iterator[_Room]:
    """Rooms in which talker and microphone have the drawn distance."""
    for _ in range(_ATTEMPTS):
        drawn = {
            field: low + (high - low) * rng.random()
            for field, (low, high) in ranges.items()
        }
        size = np.array([drawn[f] for f in ("length_m", "width_m", "height_m")])
        direction = rng.standard_normal(3)
        step = drawn["distance_m"] * direction / np.linalg.norm(direction)
        low = np.maximum(_WALL, _WALL - step)
        high = np.minimum(size - _WALL, size - _WALL - step)
        talker = low + rng.random(3) * (high - low)
        if np.all(low <= high):
            yield _Room(size, talker, talker + step, drawn["t60_s"])


def _response(
    acoustics: Any, room: _Room, tail: np.random.Generator
) -> np.ndarray | None:
    """The response from its direct path on; None where no absorption brings the T60."""
    speed = acoustics.constants.get("c")
    reach = speed * room.t60
    order, most = (
        int(np.ceil(speed * t60 / room.size.min())) for t60 in (room.t60, _FOLLOWED)
    )
    most = max(most, _FEW_ORDERS)
    late = room.t60 > _FOLLOWED and order > most
    if late:
        order = most
        # None that is nearer is of a higher order.
        reach = (order - 3) / np.linalg.norm(1 / room.size)
    begin = round((reach / speed - _RINGING) * SAMPLE_RATE)
    noise = tail.standard_normal(late * (round(room.t60 * SAMPLE_RATE) - begin))
    shoebox = acoustics.ShoeBox(
        room.size,
        fs=SAMPLE_RATE,
        materials=acoustics.Material(0.5),
        max_order=order,
    )
    shoebox.add_source(room.talker)
    shoebox.add_microphone(room.microphone)
    shoebox.image_source_model()
    source = shoebox.sources[0]
    distances = np.linalg.norm(source.images - room.microphone[:, None], axis=0)
    # The farther images add nothing that is heard, and take most of the time.
    heard = distances <= reach
    shoebox.visibility[0] = heard[None]
    # Farther away some orders are lacking: noise must not fall as these do.
    known = heard if late else slice(None)
    decay = Decay.of_images(
        distances[known] / speed,
        distances[known],
        source.orders[known],
        room.t60 if late else 0.0,
    )
    asked = room.t60
    for _ in range(_CORRECTIONS):
        absorption = decay.absorption(asked)
        if absorption is None:
            return None
        kept = (1 - absorption) ** (source.orders / 2)
        source.damping = kept.astype(np.float32)[None]
        shoebox.compute_rir()
        start = distances.min() / speed * SAMPLE_RATE
        delay = acoustics.constants.get("frac_delay_length") // 2
        audio = np.asarray(shoebox.rir[0][0])
        if late:
            level = np.sqrt(decay.later(absorption, begin, len(noise)) / BIN)
            audio = np.concatenate([audio[: begin + delay], level * noise])
        audio = audio[int(start + delay) :]
        measured = measured_t60(audio)
        if abs(measured / room.t60 - 1) <= _TOLERANCE:
            return audio
        asked *= room.t60 / max(measured, 0.1 * room.t60)
    return None
