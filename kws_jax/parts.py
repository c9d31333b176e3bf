"""The parts that all stages of an experiment share, made from its config."""

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import Progress

from kws_jax import config as configs
from kws_jax.data import (
    device,
    draws,
    held_out,
    pipeline,
    protocols,
    rooms,
    sources,
    synthetic_unknown,
    training_share,
    tuples,
)
from kws_jax.data.conditions import Condition
from kws_jax.data.corpus import (
    SILENCE,
    TEST,
    TRAIN,
    UNKNOWN,
    Corpus,
    Recording,
    Split,
    Task,
)
from kws_jax.data.held_out import NOTHING_HELD_OUT, HeldOut
from kws_jax.data.label_noise import flip_labels
from kws_jax.data.noise import NoiseBank
from kws_jax.data.noise_folder import SEEN, UNSEEN, open_noise
from kws_jax.data.rooms import RoomBank
from kws_jax.errors import UserError
from kws_jax.frontends.registry import Frontend, create_frontend
from kws_jax.training import sharding

TASK_FILE = "task.json"
# Between the seeds of two streams, so that no user's seed of one is that of another.
_STREAM_STRIDE = 2**32


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


@dataclasses.dataclass(frozen=True)
class Parts(Setup):
    """What all stages share: the setup, and the task with its noises and rooms.

    Attributes:
      noise: what the test hears, under SEEN (kinds that training hears too, but other
        recordings or seconds of them) and UNSEEN.
      training_noise: what conditions with `snr_db` hear in training and validation.
      training_rooms: the same for conditions with `reverberant_fraction`.
      test_rooms: other rooms, for the far tests.
    """

    task: Task
    fingerprint: str
    background: NoiseBank | None
    noise: dict[str, NoiseBank]
    reference_rms: float
    training_noise: NoiseBank | None = None
    training_rooms: RoomBank | None = None
    test_rooms: RoomBank | None = None
    held_out: HeldOut = NOTHING_HELD_OUT
    # Rows of the training split whose labels were flipped, and their labels before.
    flipped: tuple[int, ...] = ()
    flipped_from: tuple[int, ...] = ()

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
        self, split: Split, stage: ConfigDict, *, stream: int = 0
    ) -> Callable[[int], draws.Selection]:
        """What `train_batches` selects at a step: one process's share of it."""
        drawing = {"seed": self.config.data.seed + stream * _STREAM_STRIDE}
        drawing |= _processes()
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

    def flips(self) -> list[dict[str, str]]:
        """The training clips with a wrong label on purpose: name and both labels."""
        train = self.task.train
        return [
            {
                "name": str(train.names[row]),
                "label": self.labels[train.labels[row]],
                "label_before": self.labels[before],
            }
            for row, before in zip(self.flipped, self.flipped_from, strict=True)
        ]

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
    data = config.data
    protocol = data.protocol
    if protocol == "auto":
        protocol = "tfds-12" if data.source == "tfds" else "custom"
    console.print(f"Data: opening {data.source} {data.dir}".rstrip())
    with _preparation(console) as progress:
        corpus = sources.open_corpus(
            data.source,
            data_dir=data.dir,
            cache_dir=data.cache_dir,
            protocol=protocol,
            builder=data.builder,
            skip_corrupt=data.skip_corrupt,
            validation_fraction=data.validation_fraction,
            test_fraction=data.test_fraction,
            progress=progress,
            words=configs.keywords(config),
            clips_per_word=data.clips_per_word,
            seed=data.task_seed,
        )
    unheard = configs.words(data.unheard_words)
    held_out.check_unheard(corpus, protocol, configs.keywords(config), unheard)
    unknown = data.unknown_percent
    task = protocols.build_task(
        held_out.without(corpus, unheard),
        protocol=protocol,
        keywords=configs.keywords(config),
        unknown_percent=None if unknown < 0 else unknown,
        silence_percent=data.silence_percent,
        silence=data.silence,
        seed=data.task_seed,
    )
    # Of all training clips, so that the tests are the same for every train_fraction.
    keywords = sum(label not in (UNKNOWN, SILENCE) for label in task.labels)
    reference_rms = pipeline.median_rms(task.train, keywords)
    task = training_share.keep_speakers(task, data.train_fraction, data.task_seed)
    task, spoken = _with_synthetic_unknown(task, data, unheard, console)
    console.print(
        f"Task: {len(task.labels)} labels; {len(task.train):,} training, "
        f"{len(task.validation):,} validation, {len(task.test):,} test clips"
    )
    beside = held_out.collect(corpus, task.labels, unheard)
    if beside.unheard is not None:
        console.print(beside.unheard.told())
    before = task.train.labels
    train, flipped = flip_labels(
        task.train, task.labels, data.flip_labels, data.task_seed
    )
    task = dataclasses.replace(task, train=train)
    training_noise, noise = open_noise(
        {SEEN: data.noise_seen, UNSEEN: data.noise_unseen},
        corpus.noise,
        corpus.background,
        test_fraction=data.noise_test_fraction,
        hours=data.noise_hours,
    )
    with _preparation(console) as progress:
        heard_rooms = rooms.open_rooms(
            data.rooms,
            test_fraction=data.rooms_test_fraction,
            simulated=data.simulated_rooms.to_dict(),
            progress=progress,
        )
    return Parts(
        config=config,
        labels=task.labels,
        frontend=_frontend(config),
        mesh=sharding.data_mesh(),
        task=task,
        fingerprint=_fingerprint(
            corpus, spoken, training_noise, heard_rooms.get(TRAIN)
        ),
        background=_bank(corpus.background.get(TRAIN, ())),
        noise=noise,
        reference_rms=reference_rms,
        training_noise=training_noise,
        training_rooms=heard_rooms.get(TRAIN),
        test_rooms=heard_rooms.get(TEST),
        held_out=beside,
        flipped=tuple(flipped.tolist()),
        flipped_from=tuple(before[flipped].tolist()),
    )


def load_setup(folder: Path) -> Setup:
    """The setup of the experiment in a workdir, without opening its data.

    Raises:
      UserError: where the workdir holds no experiment.
    """
    config = configs.load_workdir(folder)
    task = folder / TASK_FILE
    if not task.exists():
        raise UserError(
            f"{folder} holds no {TASK_FILE}: the experiment stopped before its first "
            "stage. Run kws_jax.main with this --workdir first."
        )
    return Setup(
        config=config,
        labels=tuple(json.loads(task.read_text())["labels"]),
        frontend=_frontend(config),
        mesh=sharding.data_mesh(),
    )


@contextlib.contextmanager
def _preparation(console: Console) -> Iterator[Callable[[int, int], None]]:
    """Shows how far the preparation of data is, if there is any to do."""
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("preparing", visible=False)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, visible=True)

        yield progress


def _frontend(config: ConfigDict) -> Frontend:
    settings = {k: v for k, v in config.frontend.items() if k != "name"}
    return create_frontend(config.frontend.name, **settings)


def _with_synthetic_unknown(
    task: Task, data: ConfigDict, unheard: Sequence[str], console: Console
) -> tuple[Task, Corpus | None]:
    """The task with synthetic words in its unknown training clips, and these words."""
    settings = data.synthetic_unknown
    synthetic_unknown.check_rate(settings.rate)
    if not settings.rate:
        return task, None
    if UNKNOWN not in task.labels:
        raise UserError(
            f"config.data.synthetic_unknown.rate = {settings.rate}, but this task has "
            "no unknown class. Set the rate to 0, or config.data.unknown_percent above "
            "0."
        )
    label = task.labels.index(UNKNOWN)
    count = synthetic_unknown.clips_for(
        int((task.train.labels == label).sum()), settings.rate
    )
    keywords = [w for w in task.labels if w not in (UNKNOWN, SILENCE)]
    words = synthetic_unknown.choose_words(
        configs.words(settings.words), keywords, unheard
    )
    with _preparation(console) as progress:
        spoken = synthetic_unknown.open_words(
            words,
            count,
            seed=data.task_seed,
            cache_dir=data.cache_dir,
            progress=progress,
        )
    console.print(
        f"Synthetic unknown words: {count:,} training clips of {len(words)} words"
    )
    train = synthetic_unknown.with_words(task.train, spoken, count, label)
    return dataclasses.replace(task, train=train), spoken


def _fingerprint(
    corpus: Corpus,
    spoken: Corpus | None,
    noise: NoiseBank | None,
    heard_rooms: RoomBank | None,
) -> str:
    """Changes with the clips, and with the noise and rooms that training may hear."""
    digest = hashlib.sha256(corpus.fingerprint.encode())
    if spoken is not None:
        digest.update(spoken.fingerprint.encode())
    if noise is not None:
        digest.update(noise.audio.tobytes())
    if heard_rooms is not None:
        digest.update(heard_rooms.fingerprint.encode())
    return digest.hexdigest()


def _bank(recordings: Sequence[Recording]) -> NoiseBank | None:
    return NoiseBank.from_recordings(recordings) if recordings else None
