"""Parts of an experiment on random clips, without a source of data."""

import contextlib

import numpy as np
import pytest

from configs import tc_resnet
from kws_jax.condition_names import SEEN
from kws_jax.data import pipeline
from kws_jax.data.corpus import CLIP_SAMPLES, SILENCE, Recording, Split, Task
from kws_jax.data.draws import Recipe, training_selection
from kws_jax.data.noise import NoiseBank
from kws_jax.data.responses import Response
from kws_jax.data.rooms import RoomBank
from kws_jax.frontends.registry import create_frontend
from kws_jax.parts import Parts
from kws_jax.training import sharding
from kws_jax.training.checkpoints import StageCheckpoints

LABELS = ("up", "down", "left", SILENCE)


def random_audio(seed, shape, level=6000):
    return np.random.default_rng(seed).integers(-level, level, shape).astype(np.int16)


def random_split(name, clips, seed):
    """Clips of every loudness, the first all zero and the second at full scale."""
    audio = random_audio(seed, (clips, CLIP_SAMPLES), 32_767)
    audio[2:] //= np.geomspace(1, 1000, clips - 2).astype(np.int16)[:, None]
    audio[0] = 0
    names = np.array([f"{name}{i}" for i in range(clips)])
    labels = np.arange(clips, dtype=np.int32) % len(LABELS)
    return Split(name, labels, names, names, lambda rows: audio[rows])


def bank(seed):
    lengths = (20_000, 33_000, 47_000)
    return NoiseBank.from_recordings(
        [Recording(str(n), random_audio(seed + n, n)) for n in lengths]
    )


def room_bank(seed, rooms=3, taps=900):
    """Rooms of random reverberation after a strong direct path."""
    rng = np.random.default_rng(seed)
    tails = rng.normal(0, 0.1, (rooms, taps)) * np.exp(-np.arange(taps) / 300)
    tails[:, 0] = 1
    return RoomBank.from_responses(
        [Response(str(i), tail, str(i), "") for i, tail in enumerate(tails)]
    )


_DRAWN = ("batch_size", "seed", "process_index", "process_count")
_STREAM = ("start_step", "num_steps", "threads", "prefetch")


def train_batches(split, condition, **more):
    """Batches of training from the host; `more` is of draws, stream and recipe."""
    drawn = {name: more.pop(name) for name in _DRAWN if name in more}
    stream = {name: more.pop(name) for name in _STREAM if name in more}
    recipe = Recipe(split, condition, **more)
    select = training_selection(len(split), **drawn)
    return pipeline.selected_batches(recipe, select, **stream)


def tiny_config(steps=11, batch_size=8, **changes):
    """Training of a narrow TC-ResNet8; `changes` are fields of the config."""
    config = tc_resnet.get_config("8").unlock()
    config.network.width = 0.25
    config.log_every_steps = 100
    config.evaluation.batch_size = 16
    config.stages[0].update(steps=steps, batch_size=batch_size)
    on_device = changes.pop("on_device", False)
    config.update(changes)
    config.data.on_device = on_device
    return config


def tiny_parts(config=None, clips=23):
    train, validation = random_split("train", clips, 0), random_split("val", 16, 1)
    test = random_split("test", 16, 2)
    return Parts(
        config=config or tiny_config(),
        labels=LABELS,
        frontend=create_frontend("mfcc"),
        mesh=sharding.data_mesh(),
        task=Task("custom", LABELS, train, validation, test),
        fingerprint="",
        clips="",
        background=bank(10),
        noise={SEEN: bank(20)},
        reference_rms=0.05,
        training_noise=bank(50),
        training_rooms=room_bank(30),
        test_rooms=room_bank(40),
    )


class Killed(BaseException):
    """The end of a process, which no handler of errors holds up."""


@contextlib.contextmanager
def killed_after_saving(stage=""):
    """Within, a run must end just after it saves a stage whose folder begins so.

    Gives the list of (folder, step) of what was saved.
    """
    save, saves = StageCheckpoints.save_last, []

    def save_and_fall(self, step, *rest):
        save(self, step, *rest)
        saves.append((self.directory.name, step))
        if self.directory.name.startswith(stage):
            self.close()
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageCheckpoints, "save_last", save_and_fall)
        with pytest.raises(Killed):
            yield saves
