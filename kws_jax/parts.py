"""The parts that all stages of an experiment share, made from its config."""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from kws_jax import config as configs
from kws_jax.data import device, draws, pipeline, tuples
from kws_jax.data.conditions import Condition
from kws_jax.data.corpus import SILENCE, UNKNOWN, Split
from kws_jax.data.noise import NoiseBank
from kws_jax.data.rooms import RoomBank
from kws_jax.errors import UserError
from kws_jax.frontends.registry import Frontend, create_frontend
from kws_jax.opening import OpenedData, open_data
from kws_jax.training import sharding
from kws_jax.workdirs import read_json

TASK_FILE = "task.json"
# Between the seeds of two streams, so that no user's seed of one is that of another.
_STREAM_STRIDE = 2**32
# No stage has so many streams.
_STREAMS_OF_A_STAGE = 1024


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a trained network needs to answer: no data, only what it was made with."""

    config: ConfigDict
    labels: tuple[str, ...]
    frontend: Frontend
    mesh: Mesh

    @property
    def keywords(self) -> tuple[str, ...]:
        """The labels that are words; they come first."""
        return tuple(w for w in self.labels if w not in (UNKNOWN, SILENCE))

    def features(self, audio: jax.Array) -> jax.Array:
        """Features [b, t, f] of audio [b, s] that is split over the mesh, or whole.

        Inside a jitted function; each device makes those of its own rows.
        """
        made: jax.Array = sharding.by_rows(self.frontend, self.mesh)(audio)
        return made


@dataclasses.dataclass(frozen=True)
class Parts(OpenedData, Setup):
    """What all stages share: the setup, and the data with what is made of it."""

    @functools.cached_property
    def _programs(self) -> dict[Hashable, Any]:
        """What was jitted, by what it was made from; see `once`."""
        return {}

    def once(self, what: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` gives, made at the first call with an equal `what`.

        Functions that are jitted outlive their stage here, so that stages which differ
        in their data alone are compiled once. All that such a function is made from,
        beside these parts, must be in `what`.
        """
        if what not in self._programs:
            self._programs[what] = make()
        return self._programs[what]

    def identity(self) -> dict[str, Any]:
        """What tells the data from others, kept in a workdir's task.json."""
        return {
            "labels": list(self.labels),
            "fingerprint": self.fingerprint,
            "clips": self.clips,
        }

    def is_data_of(self, stored: Mapping[str, Any]) -> bool:
        """Whether `stored` is the identity of this data; earlier versions kept less."""
        own = self.identity()
        return all(own.get(key) == value for key, value in stored.items())

    def of_seed(self, seed: int) -> "Parts":
        """The same for a single `config.seed`; data and programs are shared.

        No program is made from the seed: keys and states are given to it.
        """
        config = self.config.copy_and_resolve_references().unlock()
        config.update(seed=seed, seeds=1)
        parts = dataclasses.replace(self, config=config.lock())
        # Where cached properties are kept.
        vars(parts)["_programs"] = self._programs
        if self.config.data.on_device:
            vars(parts)["resident"] = self.resident
        return parts

    def train_batches(
        self, split: Split, stage: ConfigDict, start_step: int, *, stream: int = 0
    ) -> Iterator[dict[str, jax.Array]]:
        """Endless sharded batches of `split` under the stage's condition.

        Streams of different numbers are drawn independently of each other.
        """
        for batch in self.host_batches(split, stage, start_step, stream=stream):
            yield sharding.shard(batch, self.mesh)

    def host_batches(
        self, split: Split, stage: ConfigDict, start_step: int, *, stream: int = 0
    ) -> Iterator[pipeline.Batch]:
        """The share of `train_batches` of one process, still on the host."""
        return pipeline.selected_batches(
            self.recipe(split, stage),
            self.selection(split, stage, stream=stream),
            start_step=start_step,
            threads=self.config.data.threads,
        )

    def recipe(self, split: Split, stage: ConfigDict) -> draws.Recipe:
        """What the stage's batches of `split` are mixed from."""
        return draws.Recipe(
            split,
            condition_of(stage),
            **self._mixing(self.training_noise, self.training_rooms),
        )

    def selection(
        self, split: Split, stage: ConfigDict, *, stream: int = 0, whole: bool = False
    ) -> Callable[[int], draws.Selection]:
        """What `train_batches` selects at a step: a process's share, or the `whole`.

        Each stage counts its steps from 0 and has draws of its own: else later stages
        would hear the order, shifts and pieces of noise of the first one again.
        """
        number = [each.name for each in self.config.stages].index(stage.name)
        stride = (number * _STREAMS_OF_A_STAGE + stream) * _STREAM_STRIDE
        drawing = {"seed": self.config.data.seed + stride}
        drawing |= {} if whole else _processes()
        if stage.kind == "embed":
            return tuples.tuple_selection(
                split.labels,
                self.labels,
                tuples_per_batch=stage.tuples_per_batch,
                classes=stage.classes,
                **drawing,
            )
        return draws.training_selection(
            len(split), batch_size=stage.batch_size, **drawing
        )

    @functools.cached_property
    def resident(self) -> device.Resident:
        """The training set, and what its stages may hear, in the memory of each device.

        It is put there when first asked for, and stays for all stages.
        """
        held = device.read(self.task.train, *self._heard())
        return sharding.replicate(held, self.mesh)

    def check_room(self) -> None:
        """Raises UserError where `resident` would not fit."""
        *banks, heard_rooms = self._heard()
        device.check_room(
            len(self.task.train), banks, self.mesh.local_devices, heard_rooms
        )

    def _heard(self) -> tuple[NoiseBank | None, NoiseBank | None, RoomBank | None]:
        """Background, noise and rooms that some stage hears in training."""
        recipes = [
            self.recipe(self.task.train, stage)
            for stage in self.config.stages
            if "condition" in stage
        ]
        return (
            self.background if any(r.heard_background for r in recipes) else None,
            self.training_noise if any(r.heard_noise for r in recipes) else None,
            self.training_rooms if any(r.heard_rooms for r in recipes) else None,
        )

    def eval_batches(
        self,
        split: Split,
        condition: Condition,
        noise: NoiseBank | None = None,
        rooms: RoomBank | None = None,
    ) -> Iterator[dict[str, jax.Array]]:
        """Sharded batches with every clip of `split` once, the last one padded.

        `noise` and `rooms` are what the condition lets the clips be heard in; by
        default the rooms are those of training, which the test does not share.
        """
        rooms = self.training_rooms if rooms is None else rooms
        size = self.config.evaluation.batch_size
        batches = pipeline.eval_batches(
            split,
            condition,
            batch_size=-(-size // self.mesh.size) * self.mesh.size,
            seed=self.config.evaluation.seed,
            threads=self.config.data.threads,
            **self._mixing(noise, rooms),
            **_processes(),
        )
        return (sharding.shard(batch, self.mesh) for batch in batches)

    def _mixing(
        self, noise: NoiseBank | None, rooms: RoomBank | None
    ) -> dict[str, Any]:
        return {
            "background": self.background,
            "noise": noise,
            "rooms": rooms,
            "silence_label": self.labels.index(SILENCE)
            if SILENCE in self.labels
            else None,
            "reference_rms": self.reference_rms,
        }


def condition_of(stage: ConfigDict) -> Condition:
    """The condition in which a stage trains."""
    return Condition(**stage.condition.to_dict())


def _processes() -> dict[str, Any]:
    return {
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
    }


def build_parts(config: ConfigDict, console: Console) -> Parts:
    """Opens the data and makes the parts; every error in the input shows here.

    Raises:
      UserError: for data or settings that do not fit.
    """
    opened = open_data(config, console)
    return Parts(
        **vars(opened),
        config=config,
        labels=opened.task.labels,
        frontend=_frontend(config),
        mesh=sharding.data_mesh(),
    )


def load_setup(folder: Path) -> Setup:
    """The setup of the experiment in a workdir, without opening its data.

    Raises:
      UserError: where the workdir holds no experiment, or several seeds of one.
    """
    config = configs.load_single(folder)
    task = folder / TASK_FILE
    if not task.exists():
        raise UserError(
            f"{folder} holds no {TASK_FILE}: the experiment stopped before its first "
            "stage. Run kws_jax.main with this --workdir first."
        )
    return Setup(
        config=config,
        labels=tuple(read_json(task)["labels"]),
        frontend=_frontend(config),
        mesh=sharding.data_mesh(),
    )


def _frontend(config: ConfigDict) -> Frontend:
    settings = {k: v for k, v in config.frontend.items() if k != "name"}
    return create_frontend(config.frontend.name, **settings)
