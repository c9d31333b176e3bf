"""Opens the data of an experiment: the clips of its task, its noises and its rooms."""

import contextlib
import dataclasses
import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import Progress

from kws_jax import config as configs
from kws_jax import together
from kws_jax.condition_names import SEEN, UNSEEN
from kws_jax.data import (
    background,
    held_out,
    pipeline,
    protocols,
    rooms,
    sources,
    synthetic_unknown,
    training_share,
)
from kws_jax.data.corpus import SILENCE, TEST, TRAIN, UNKNOWN, Corpus, Task
from kws_jax.data.folder import BACKGROUND_FOLDER
from kws_jax.data.held_out import NOTHING_HELD_OUT, HeldOut
from kws_jax.data.label_noise import flip_labels
from kws_jax.data.noise import NoiseBank
from kws_jax.data.noise_folder import open_noise
from kws_jax.data.rooms import RoomBank
from kws_jax.data.sounding import is_silent
from kws_jax.data.splits import powers_of_wholes
from kws_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class OpenedData:
    """The task with its noises and rooms.

    Attributes:
      noise: what the test hears, under SEEN (kinds that training hears too, but other
        recordings or seconds of them) and UNSEEN.
      fingerprint: changes with the clips, and with what else training may hear.
      clips: changes with the clips alone.
      training_noise: what conditions with `snr_db` hear in training and validation.
      training_rooms: the same for conditions with `reverberant_fraction`.
      test_rooms: other rooms, for the far tests.
    """

    task: Task
    fingerprint: str
    clips: str
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

    def flips(self) -> list[dict[str, str]]:
        """The training clips with a wrong label on purpose: name and both labels."""
        train, labels = self.task.train, self.task.labels
        return [
            {
                "name": str(train.names[row]),
                "label": labels[train.labels[row]],
                "label_before": labels[before],
            }
            for row, before in zip(self.flipped, self.flipped_from, strict=True)
        ]


def open_data(config: ConfigDict, console: Console) -> OpenedData:
    """Opens all that the config's `data` names; every error in it shows here.

    Raises:
      UserError: for data or settings that do not fit.
    """
    data = config.data
    protocol = protocol_of(data)
    corpus = background.without_copies(_open_corpus(config, protocol, console))
    unheard = configs.words(data.unheard_words)
    task = _build_task(config, protocol, corpus, unheard)
    # Of all training clips, so that the tests are the same for every train_fraction.
    keywords = sum(label not in (UNKNOWN, SILENCE) for label in task.labels)
    reference_rms = pipeline.median_rms(task.train, keywords)
    whole = task.train
    task = training_share.keep_speakers(task, data.train_fraction, data.task_seed)
    if data.train_fraction < 1:
        console.print(training_share.told(task.train, whole))
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
    # Before the noise, which is the same recordings where no folder is given.
    soft = _background(corpus, data)
    training_noise, noise = open_noise(
        {SEEN: data.noise_seen, UNSEEN: data.noise_unseen},
        corpus.noise,
        corpus.background,
        test_fraction=data.noise_test_fraction,
        hours=data.noise_hours,
    )
    for line in _untested(config, noise):
        console.print(line)
    heard_rooms = _open_rooms(data, console)
    return OpenedData(
        task=dataclasses.replace(task, train=train),
        fingerprint=_fingerprint(
            corpus, spoken, training_noise, heard_rooms.get(TRAIN)
        ),
        clips=corpus.fingerprint,
        background=soft,
        noise=noise,
        reference_rms=reference_rms,
        training_noise=training_noise,
        training_rooms=heard_rooms.get(TRAIN),
        test_rooms=heard_rooms.get(TEST),
        held_out=beside,
        flipped=tuple(flipped.tolist()),
        flipped_from=tuple(before[flipped].tolist()),
    )


def protocol_of(data: ConfigDict) -> str:
    """The name of the protocol that `config.data` means."""
    if data.protocol != "auto":
        return str(data.protocol)
    return "tfds-12" if data.source == "tfds" else protocols.CUSTOM


def _untested(config: ConfigDict, noise: Mapping[str, NoiseBank]) -> Iterator[str]:
    """What a user may miss: tests without noise, noise and rooms without training."""
    data = config.data
    if config.evaluation.snr_db and not noise:
        yield (
            "Noise: there is no test in noise; config.data.noise_unseen, a folder of "
            "noise, gives one"
        )
    elif config.evaluation.snr_db and data.noise_seen and UNSEEN not in noise:
        yield (
            "Noise: there is no test in unseen noise; config.data.noise_unseen, a "
            "folder of other noise than that of config.data.noise_seen, gives one"
        )
    conditions = [stage.condition for stage in config.stages if "condition" in stage]
    if data.noise_seen and not any(c.snr_db for c in conditions):
        yield (
            "Noise: config.data.noise_seen is heard in the test alone; no stage has a "
            "condition.snr_db"
        )
    if data.rooms and not any(c.get("reverberant_fraction") for c in conditions):
        yield (
            "Rooms: config.data.rooms are heard in the test alone; no stage has a "
            "condition.reverberant_fraction above 0"
        )


def _open_corpus(config: ConfigDict, protocol: str, console: Console) -> Corpus:
    data = config.data
    console.print(f"Data: opening {data.source} {data.dir}".rstrip())
    with (
        together.first_process_first("data"),
        _preparation(console) as progress,
    ):
        return sources.open_corpus(
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


def _build_task(
    config: ConfigDict, protocol: str, corpus: Corpus, unheard: Sequence[str]
) -> Task:
    data, keywords = config.data, configs.keywords(config)
    held_out.check_unheard(corpus, protocol, keywords, unheard)
    unknown = data.unknown_percent
    return protocols.build_task(
        held_out.without(corpus, unheard),
        protocol=protocol,
        keywords=keywords,
        unknown_percent=None if unknown < 0 else unknown,
        silence_percent=data.silence_percent,
        silence=data.silence,
        seed=data.task_seed,
    )


def _open_rooms(data: ConfigDict, console: Console) -> dict[str, RoomBank]:
    with _preparation(console) as progress:
        return rooms.open_rooms(
            data.rooms,
            test_fraction=data.rooms_test_fraction,
            simulated=data.simulated_rooms.to_dict(),
            progress=progress,
        )


@contextlib.contextmanager
def _preparation(console: Console) -> Iterator[Callable[[int, int], None]]:
    """Shows how far the preparation of data is, if there is any to do."""
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("preparing", visible=False)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, visible=True)

        yield progress


def _with_synthetic_unknown(
    task: Task, data: ConfigDict, unheard: Sequence[str], console: Console
) -> tuple[Task, Corpus | None]:
    """The task with synthetic words in its unknown training clips, and these words."""
    settings = data.synthetic_unknown
    synthetic_unknown.check_rate(settings.rate)
    if not settings.rate:
        return task, None
    if UNKNOWN not in task.labels:
        more = (
            "config.data.unknown_percent above 0"
            if task.protocol == protocols.CUSTOM
            else "config.data.protocol to one with unknown words, such as 'v1-12' or "
            f"'custom': in {task.protocol!r} every word is a keyword"
        )
        raise UserError(
            f"config.data.synthetic_unknown.rate = {settings.rate}, but this task has "
            f"no unknown class. Set the rate to 0, or {more}."
        )
    label = task.labels.index(UNKNOWN)
    count = synthetic_unknown.clips_for(
        int((task.train.labels == label).sum()), settings.rate
    )
    keywords = [w for w in task.labels if w not in (UNKNOWN, SILENCE)]
    words = synthetic_unknown.choose_words(
        configs.words(settings.words), keywords, unheard
    )
    with (
        together.first_process_first("synthetic unknown words"),
        _preparation(console) as progress,
    ):
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


def _background(corpus: Corpus, data: ConfigDict) -> NoiseBank | None:
    recordings = corpus.background.get(TRAIN, ())
    where = f"{data.dir}/{BACKGROUND_FOLDER}" if data.dir else data.source
    where = f"background for training from {where} (config.data.dir)"
    # Of one or two recordings training has the first third.
    thirds = powers_of_wholes(corpus.background)
    silent = [r.name for r in recordings if r.name in thirds and is_silent(r.audio)]
    sounding = [recording for recording in recordings if recording.name not in silent]
    if silent and not sounding:
        raise UserError(
            f"{where}: the first third of {', '.join(silent)}, which training would "
            "hear, is silent. Cut the silence away, or add recordings: of three, none "
            "is cut into thirds"
        )
    if silent:
        print(
            f"note: {where}: the first third of {', '.join(silent)} is silent; it is "
            "left out",
            file=sys.stderr,
        )
    return NoiseBank.from_recordings(sounding, where) if recordings else None
