"""The parts that all stages of an experiment share, made from its config."""

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import Progress

from kws_jax import config as configs
from kws_jax.data import device, draws, pipeline, protocols, sources, training_share
from kws_jax.data.conditions import Condition
from kws_jax.data.corpus import SILENCE, TRAIN, UNKNOWN, Corpus, Recording, Split, Task
from kws_jax.data.folder import read_noise_folder
from kws_jax.data.noise import NoiseBank
from kws_jax.errors import UserError
from kws_jax.frontends.registry import Frontend, create_frontend
from kws_jax.training import sharding

SEEN, UNSEEN = "seen", "unseen"
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


@dataclasses.dataclass(frozen=True)
class Parts(Setup):
    """What all stages share: the setup, and the task with its noises."""

    task: Task
    fingerprint: str
    background: NoiseBank | None
    noise: dict[str, NoiseBank]
    reference_rms: float

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
        return pipeline.train_batches(
            split,
            _condition(stage),
            **self._drawing(stage, stream),
            **self._mixing(self.noise.get(SEEN)),
            start_step=start_step,
            threads=self.config.data.threads,
        )

    def recipe(self, split: Split, stage: ConfigDict) -> draws.Recipe:
        """What the stage's batches of `split` are mixed from."""
        return draws.Recipe(
            split, _condition(stage), **self._mixing(self.noise.get(SEEN))
        )

    def selection(
        self, split: Split, stage: ConfigDict, *, stream: int = 0
    ) -> Callable[[int], draws.Selection]:
        """What `train_batches` selects at a step: one process's share of it."""
        return draws.training_selection(len(split), **self._drawing(stage, stream))

    @functools.cached_property
    def resident(self) -> device.Resident:
        """The training set, and what its stages may hear, in the memory of each device.

        It is put there when first asked for, and stays for all stages.
        """
        held = device.read(self.task.train, *self._heard())
        return sharding.replicate(held, self.mesh)

    def check_room(self) -> None:
        """Raises UserError where `resident` would not fit."""
        device.check_room(len(self.task.train), self._heard(), self.mesh.local_devices)

    def _heard(self) -> tuple[NoiseBank | None, NoiseBank | None]:
        """Background and noise that some stage hears in training."""
        recipes = [
            self.recipe(self.task.train, stage)
            for stage in self.config.stages
            if "condition" in stage
        ]
        return (
            self.background if any(r.heard_background for r in recipes) else None,
            self.noise.get(SEEN) if any(r.heard_noise for r in recipes) else None,
        )

    def eval_batches(
        self, split: Split, condition: Condition, noise: NoiseBank | None = None
    ) -> Iterator[dict[str, jax.Array]]:
        """Sharded batches with every clip of `split` once, the last one padded."""
        size = self.config.evaluation.batch_size
        batches = pipeline.eval_batches(
            split,
            condition,
            batch_size=-(-size // self.mesh.size) * self.mesh.size,
            seed=self.config.evaluation.seed,
            threads=self.config.data.threads,
            **self._mixing(noise),
            **_processes(),
        )
        return (sharding.shard(batch, self.mesh) for batch in batches)

    def _mixing(self, noise: NoiseBank | None) -> dict[str, Any]:
        return {
            "background": self.background,
            "noise": noise,
            "silence_label": self.labels.index(SILENCE)
            if SILENCE in self.labels
            else None,
            "reference_rms": self.reference_rms,
        }

    def _drawing(self, stage: ConfigDict, stream: int) -> dict[str, Any]:
        return {
            "batch_size": stage.batch_size,
            "seed": self.config.data.seed + stream * _STREAM_STRIDE,
            **_processes(),
        }


def _condition(stage: ConfigDict) -> Condition:
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
    unknown = data.unknown_percent
    task = protocols.build_task(
        corpus,
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
    fraction = data.get("train_fraction", 1.0)
    task = training_share.keep_speakers(task, fraction, data.task_seed)
    console.print(
        f"Task: {len(task.labels)} labels; {len(task.train):,} training, "
        f"{len(task.validation):,} validation, {len(task.test):,} test clips"
    )
    noise = _noise_banks(data, corpus.noise)
    return Parts(
        config=config,
        labels=task.labels,
        frontend=_frontend(config),
        mesh=sharding.data_mesh(),
        task=task,
        fingerprint=_fingerprint(corpus, noise),
        background=_bank(corpus.background.get(TRAIN, ())),
        noise=noise,
        reference_rms=reference_rms,
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


def _fingerprint(corpus: Corpus, noise: Mapping[str, NoiseBank]) -> str:
    """Changes with the clips, and with the noise that training may hear."""
    digest = hashlib.sha256(corpus.fingerprint.encode())
    if SEEN in noise:
        digest.update(noise[SEEN].audio.tobytes())
    return digest.hexdigest()


def _bank(recordings: Sequence[Recording]) -> NoiseBank | None:
    return NoiseBank.from_recordings(recordings) if recordings else None


def _noise_banks(
    data: ConfigDict, from_source: Mapping[str, Sequence[Recording]]
) -> dict[str, NoiseBank]:
    folders = {SEEN: data.noise_seen, UNSEEN: data.noise_unseen}
    banks = {
        kind: _bank(read_noise_folder(folder) if folder else from_source.get(kind, ()))
        for kind, folder in folders.items()
    }
    return {kind: bank for kind, bank in banks.items() if bank is not None}
