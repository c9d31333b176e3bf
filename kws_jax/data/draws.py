"""What the batch of a step holds: which clips, and how each of them is disturbed.

Every choice (order, shift, crops, levels) is a pure function of the seed, the step and
the position in the global batch, made by NumPy's counter-based Philox generator. What
then does the arithmetic, `pipeline` on the host or `device` on an accelerator, has no
say in it.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from kws_jax.data.conditions import Condition
from kws_jax.data.corpus import Split
from kws_jax.data.mixing import (
    DRAWS,
    REFERENCE_RMS,
    ROOM_DRAWS,
    check_condition,
    draw,
)
from kws_jax.data.noise import NoiseBank
from kws_jax.data.rooms import RoomBank
from kws_jax.errors import UserError

# Streams of random numbers that must not overlap under one seed.
_ORDER, _TRAIN_DRAWS, _EVAL_DRAWS = 1, 2, 3
_TRAIN_ROOM_DRAWS, _EVAL_ROOM_DRAWS = 4, 5

Inputs = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Selection:
    """One process's part of a global batch: what to read and how to disturb it."""

    positions: np.ndarray  # int64 [b], rows of the split
    mask: np.ndarray  # bool [b], False where the row is padding
    uniforms: np.ndarray  # float64 [b, len(DRAWS)]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What batches of a split are mixed from, and how.

    Attributes:
      split: the clips.
      condition: the disturbance drawn anew for each clip.
      background: recordings added by volume, if the condition asks for it.
      noise: recordings added at an SNR, if the condition asks for it.
      silence_label: clips of this label hold no speech (see `mixing.mix`).
      reference_rms: level of speech that noise over silence is set against.
      rooms: impulse responses, if the condition asks for them.

    Raises:
      UserError: an empty split, or a condition that makes no sense or lacks its
        recordings or rooms.
    """

    split: Split
    condition: Condition
    background: NoiseBank | None = None
    noise: NoiseBank | None = None
    silence_label: int | None = None
    reference_rms: float = REFERENCE_RMS
    rooms: RoomBank | None = None

    def __post_init__(self) -> None:
        check_condition(self.condition)
        if not len(self.split):
            raise UserError(
                f"The {self.split.name} split is empty; check the keywords and the"
                " split lists."
            )
        if self.condition.background_probability > 0 and self.background is None:
            raise UserError(
                "The condition adds background"
                f" (background_probability {self.condition.background_probability:g})"
                " but there are no background recordings: put some into the folder"
                " _background_noise_ beside the words (config.data.dir), or set"
                " background_probability to 0."
            )
        if self.condition.snr_db and self.noise is None:
            levels = ", ".join(f"{snr:g}" for snr in self.condition.snr_db)
            raise UserError(
                f"The condition asks for noise (snr_db {levels}) but there are no noise"
                " recordings for it: name a folder of noise in config.data.noise_seen"
                " (which leaves some for training where noise_test_fraction is below"
                " 1), or leave snr_db empty."
            )
        if self.condition.reverberant_fraction > 0 and self.rooms is None:
            raise UserError(
                "The condition asks for clips heard through rooms"
                f" (reverberant_fraction {self.condition.reverberant_fraction:g}) but"
                " there are no rooms for it; name a folder of impulse responses, or"
                " 'simulated', in config.data.rooms (which leaves some for training"
                " where rooms_test_fraction is below 1), or set reverberant_fraction"
                " to 0."
            )

    @property
    def heard_background(self) -> NoiseBank | None:
        """The background, where the condition lets any of it be heard."""
        c = self.condition
        audible = c.background_probability > 0 and c.background_volume > 0
        return self.background if audible else None

    @property
    def heard_noise(self) -> NoiseBank | None:
        """The noise, where the condition lets any of it be heard."""
        audible = self.condition.snr_db and self.condition.clean_fraction < 1
        return self.noise if audible else None

    @property
    def heard_rooms(self) -> RoomBank | None:
        """The rooms, where the condition lets any clip be heard through one."""
        return self.rooms if self.condition.reverberant_fraction > 0 else None

    def inputs(self, selection: Selection) -> Inputs:
        """All that is drawn for a batch, by name.

        Returns:
          `index` int32 [b] (row of the split), `label` int32 [b], `mask` bool [b],
          `shift` int64 [b] (samples), `background_gain` and `noise_level` float32 [b]
          (see `mixing.Disturbance`); `background_start` and `noise_start` int64 [b],
          first samples in `NoiseBank.audio`, where such a recording may be heard;
          `room` int64 [b], row of the room or -1 for none, where one may be heard.
        """
        column = dict(zip(DRAWS, selection.uniforms.T, strict=True))
        what = draw(self.condition, selection.uniforms)
        label = np.where(selection.mask, self.split.labels[selection.positions], 0)
        inputs = {
            "index": selection.positions.astype(np.int32),
            "label": label.astype(np.int32),
            "mask": selection.mask,
            "shift": what.shift,
            "background_gain": what.background_gain,
            "noise_level": what.noise_level,
        }
        banks = {"background": self.heard_background, "noise": self.heard_noise}
        for kind, bank in banks.items():
            if bank is not None:
                inputs[f"{kind}_start"] = bank.first_samples(
                    column[f"{kind}_recording"], column[f"{kind}_start"]
                )
        if self.heard_rooms is not None:
            room = (column["room"] * len(self.heard_rooms)).astype(np.int64)
            inputs["room"] = np.where(what.reverberant, room, -1)
        return inputs


def training_selection(
    clips: int,
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Callable[[int], Selection]:
    """The selection of a training step, as a pure function of the step.

    Training is an endless stream of epochs, each a permutation of the split, cut in
    batches: global position n = step · batch_size + p lies in epoch n div `clips`,
    whose permutation depends on (seed, epoch) alone.

    Raises:
      UserError: a batch size that the processes cannot share.
    """
    part = process_part(batch_size, process_index, process_count)

    @functools.lru_cache(maxsize=4)
    def permutation(epoch: int) -> np.ndarray:
        return generator(seed, _ORDER, epoch).permutation(clips)

    def select(step: int) -> Selection:
        positions = np.arange(step * batch_size, (step + 1) * batch_size)[part]
        epochs, places = np.divmod(positions, clips)
        rows = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            rows[here] = permutation(epoch)[places[here]]
        uniforms = _uniforms(seed, _TRAIN_DRAWS, _TRAIN_ROOM_DRAWS, step, batch_size)
        return Selection(rows, np.ones(len(rows), bool), uniforms[part])

    return select


def evaluation_selection(
    clips: int,
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Callable[[int], Selection]:
    """The selection of an evaluation's batch: every clip once, in order.

    The draws of a clip depend on (seed, its position in the split) alone. Rows behind
    the last clip are padding: row 0 under mask False.

    Raises:
      UserError: a batch size that the processes cannot share.
    """
    part = process_part(batch_size, process_index, process_count)
    all_uniforms = _uniforms(seed, _EVAL_DRAWS, _EVAL_ROOM_DRAWS, 0, clips)

    def select(step: int) -> Selection:
        positions = np.arange(step * batch_size, (step + 1) * batch_size)[part]
        mask = positions < clips
        rows = np.where(mask, positions, 0)
        return Selection(rows, mask, all_uniforms[rows])

    return select


def _uniforms(
    seed: int, stream: int, room_stream: int, step: int, clips: int
) -> np.ndarray:
    """float64 [clips, len(DRAWS)] in [0, 1), the columns of rooms from a stream apart.

    So the other columns are what they were before there were rooms.
    """
    first = generator(seed, stream, step).random((clips, len(DRAWS) - ROOM_DRAWS))
    last = generator(seed, room_stream, step).random((clips, ROOM_DRAWS))
    return np.concatenate([first, last], axis=1)


def generator(seed: int, stream: int, step: int) -> np.random.Generator:
    """Philox with key (seed, stream); the counter's high word is the step."""
    key = np.array([seed % 2**64, stream], np.uint64)
    counter = np.array([0, 0, 0, step], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def process_part(
    size: int, process_index: int, process_count: int, *, what: str = "batch size"
) -> slice:
    """A process's share of `size` rows; `what` names them in the message.

    Raises:
      UserError: a size that the processes cannot share.
    """
    if size < 1 or size % process_count:
        raise UserError(
            f"The {what} is {size}; give a positive multiple of the"
            f" {process_count} process(es) that share it."
        )
    if not 0 <= process_index < process_count:
        raise UserError(f"Process {process_index} is not one of {process_count}.")
    local = size // process_count
    return slice(process_index * local, (process_index + 1) * local)
