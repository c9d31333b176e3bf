"""Speech Commands through TensorFlow Datasets: downloaded, prepared and stored once."""

import hashlib
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kws_jax import runtime
from kws_jax.condition_names import SEEN, UNSEEN
from kws_jax.data import store
from kws_jax.data.corpus import (
    SILENCE,
    SPLITS,
    TEST,
    TRAIN,
    VALIDATION,
    Corpus,
    Recording,
)
from kws_jax.data.splits import divide_background
from kws_jax.errors import UserError, nearest

ARCHIVE_URL = "http://download.tensorflow.org/data/speech_commands_v{}.tar.gz"
STOCK = "speech_commands"
# Version of the archive and config of our builder.
BUILDERS = {
    STOCK: ("0.02", ""),
    "speech_commands_v1": ("0.01", "v1_30"),
    "speech_commands_v2": ("0.02", "v2_35"),
    "speech_commands_v1_12": ("0.01", "v1_12"),
    "speech_commands_v2_12": ("0.02", "v2_12"),
}
_TIMEOUT_SECONDS = 5.0


def open_tfds(
    data_dir: str = "",
    *,
    builder: str = STOCK,
    cache_dir: str = "",
    download: bool = True,
    progress: store.Progress | None = None,
) -> Corpus:
    """Opens Speech Commands from TFDS; the first time it is downloaded and stored.

    `speech_commands` is TFDS's own builder, version 0.0.3: Speech Commands 0.02 with
    twelve labels as words. It tells neither speakers nor file names, so every clip is
    its own speaker, and its silence clips (in pieces of one second) are the background
    recordings of their split. `speech_commands_v1_12` and `speech_commands_v2_12` are
    the same with speakers, names and whole recordings; `running_tap` is for validation,
    the others for training, none for testing. `speech_commands_v1` and
    `speech_commands_v2` have all words, with the recordings as `divide_background`
    gives them.

    Args:
      data_dir: folder of TFDS, "" for its default (~/tensorflow_datasets).
      builder: a name in `BUILDERS`.
      cache_dir: where stores are kept, see `runtime.cache_root`.
      download: whether what is missing may be downloaded.
      progress: called with (clips done, all clips) while the store is written.

    Raises:
      UserError: nothing is prepared and it cannot be downloaded (no network, or
        `download` is False), an unknown builder, a full disk.
    """
    if builder not in BUILDERS:
        raise UserError(
            f"unknown config.data.builder {builder!r}; {nearest(builder, BUILDERS)}"
        )
    place = str(Path(data_dir).resolve()) if data_dir else ""
    folder = f"tfds-{builder}-{hashlib.sha256(place.encode()).hexdigest()[:12]}"
    path = runtime.cache_root(cache_dir) / folder
    if not os.path.exists(path):
        source = _prepared_builder(builder, data_dir, download)
        _convert(source, path, stock=builder == STOCK, progress=progress)
    return store.open_store(path)


def _prepared_builder(name: str, data_dir: str, download: bool) -> Any:
    """The TFDS builder, its data downloaded and prepared; nothing is tried in vain."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import (
        NonMatchingChecksumError,
    )

    from kws_jax.data import speech_commands_builder as builders

    version, config = BUILDERS[name]
    source = (
        builders.KwsSpeechCommands(config=config, data_dir=data_dir or None)
        if config
        else builders.StockSpeechCommands(data_dir=data_dir or None)
    )
    if source.is_prepared():
        return source
    missing = f"Speech Commands {version} is not prepared in {source.data_dir}"
    if not download:
        raise _no_data(f"{missing}, and downloading is switched off")
    reason = unreachable(ARCHIVE_URL.format(version))
    if reason:
        raise _no_data(f"{missing}, and it cannot be downloaded: {reason}")
    try:
        source.download_and_prepare()
    except OSError as error:
        raise UserError(
            f"Speech Commands cannot be prepared in {source.data_dir}: {error}. Make "
            "room there, or choose another folder with --config.data.dir=…"
        ) from error
    except (tfds.download.DownloadError, NonMatchingChecksumError) as error:
        raise _no_data(f"{missing}, and its download failed: {error}") from error
    return source


def unreachable(url: str) -> str:
    """Why `url` cannot be downloaded, "" where it can; an answer within seconds.

    TFDS itself would try again and again for minutes.
    """
    result = [f"no answer from {url} within {_TIMEOUT_SECONDS:.0f} s"]

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS):
                result[0] = ""
        except urllib.error.HTTPError as error:
            result[0] = f"{url} answers {error.code} {error.reason}"
        except OSError as error:
            result[0] = f"{url} is out of reach ({getattr(error, 'reason', error)})"

    # A thread, since the look-up of a host name knows no time-out.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_TIMEOUT_SECONDS)
    return result[0]


def _no_data(reason: str) -> UserError:
    return UserError(
        f"{reason}.\nTwo ways out:\n"
        "  clips of your own in WORD/*.wav: "
        "--config.data.source=folder --config.data.dir=…\n"
        "  speech made on this machine:     --config=configs/autokws.py:demo"
    )


def _convert(
    source: Any, path: Path, *, stock: bool, progress: store.Progress | None
) -> None:
    """Writes the store from a prepared builder."""
    splits = {
        split: source.as_dataset(split=split, shuffle_files=False) for split in SPLITS
    }
    total = sum(len(dataset) for dataset in splits.values())
    read = _stock_clips if stock else _own_clips
    labels = source.info.features["label"]
    # Filled while the clips are read; the store looks at it when they are consumed.
    background: dict[str, list[Recording]] = {split: [] for split in SPLITS}
    noise: dict[str, list[Recording]] = {SEEN: background[TRAIN], UNSEEN: []}
    if not stock:
        _add_recordings(source, background)

    def clips() -> Iterator[store.Clip]:
        done = 0
        for split, dataset in splits.items():
            for clip in read(dataset, split, labels):
                if stock and clip[1] == SILENCE and split != TEST:
                    background[split].append(Recording(clip[0], store.fit(clip[4])))
                yield clip
                done += 1
                if progress:
                    progress(done, total)

    store.write_store(
        path, clips(), background, noise, {"builder": source.info.full_name}
    )


def _own_clips(dataset: Any, split: str, labels: Any) -> Iterator[store.Clip]:
    import tensorflow_datasets as tfds

    for example in tfds.as_numpy(dataset):
        # The test archive has the same file names as the main one.
        name = f"{split}/{example['name'].decode()}"
        label = labels.int2str(int(example["label"]))
        yield name, label, example["speaker"].decode(), split, example["audio"]


def _stock_clips(dataset: Any, split: str, labels: Any) -> Iterator[store.Clip]:
    import tensorflow_datasets as tfds

    for i, example in enumerate(tfds.as_numpy(dataset)):
        name = f"{split}/{i}"
        label = labels.int2str(int(example["label"]))
        yield name, label, name, split, np.asarray(example["audio"], np.int16)


def _add_recordings(source: Any, background: dict[str, list[Recording]]) -> None:
    """Divides the whole recordings of our own builders among the splits."""
    import tensorflow_datasets as tfds

    from kws_jax.data.speech_commands_builder import (
        BACKGROUND_SPLIT,
        VALIDATION_RECORDING,
    )

    dataset = source.as_dataset(split=BACKGROUND_SPLIT, shuffle_files=False)
    recordings = [
        Recording(os.path.basename(example["name"].decode()), example["audio"])
        for example in tfds.as_numpy(dataset)
    ]
    if not source.builder_config.twelve:
        for split, members in divide_background(recordings).items():
            background[split].extend(members)
        return
    for recording in sorted(recordings, key=lambda recording: recording.name):
        held_out = recording.name == VALIDATION_RECORDING
        background[VALIDATION if held_out else TRAIN].append(recording)
