"""TFDS builders for both versions of Speech Commands, 12 labels or all words.

    config   labels                                        train   validation  test
    v1_12    ten keywords, _silence_, _unknown_            from Google's 0.01 archives
    v2_12    the same; as TFDS's own speech_commands       85,511  10,102      4,890
    v1_30    every word of version 0.01                    51,088  6,798       6,835
    v2_35    every word of version 0.02                    84,843  9,981       11,005

Splits follow the archive's `validation_list.txt` and `testing_list.txt`; the test split
of the 12-label configs is Google's separate, balanced test archive. Every config has a
further split `background`: the long recordings as they are, without a label (-1).

They keep each clip's word, speaker and file name, which TFDS's own builder does not.
`StockSpeechCommands` is that builder, reading WAV with soundfile instead of pydub.
Importing this module imports TensorFlow Datasets.

Reference: Warden 2018, arXiv 1804.03209.
"""

import posixpath
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums

from kws_jax.data.audio_files import decode_audio
from kws_jax.data.corpus import SAMPLE_RATE, SILENCE, TEST, TRAIN, UNKNOWN, VALIDATION
from kws_jax.data.splits import TEST_LIST, VALIDATION_LIST, speaker_of, split_by_lists
from kws_jax.errors import UserError

BACKGROUND_SPLIT = "background"
BACKGROUND_WORD = "_background_noise_"
# Google names no recording for validation; TFDS gives it this one.
VALIDATION_RECORDING = "running_tap.wav"

KEYWORDS = ("down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes")
# fmt: off
WORDS_V1 = (
    "bed", "bird", "cat", "dog", "down", "eight", "five", "four", "go", "happy",
    "house", "left", "marvin", "nine", "no", "off", "on", "one", "right", "seven",
    "sheila", "six", "stop", "three", "tree", "two", "up", "wow", "yes", "zero",
)
# fmt: on
WORDS_V2 = tuple(
    sorted((*WORDS_V1, "backward", "follow", "forward", "learn", "visual"))
)

_SITE = "http://download.tensorflow.org/data/"
_ARCHIVE = _SITE + "speech_commands_v{}.tar.gz"
_TEST_ARCHIVE = _SITE + "speech_commands_test_set_v{}.tar.gz"
_SIZES_AND_HASHES = {
    _ARCHIVE.format("0.01"): (
        1_489_096_277,
        "743935421bb51cccdb6bdd152e04c5c70274e935c82119ad7faeec31780d811d",
    ),
    _ARCHIVE.format("0.02"): (
        2_428_923_189,
        "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
    ),
    _TEST_ARCHIVE.format("0.02"): (
        112_563_277,
        "cc2a00c1147c2254e9be3fa0f779d8c17421dc349b86366567a8edfa9acd51df",
    ),
}
# Takes the place of TFDS's checksum file, which would have to lie in the package.
_URL_INFOS = {
    url: checksums.UrlInfo(size, sha256, posixpath.basename(url))
    for url, (size, sha256) in _SIZES_AND_HASHES.items()
}


class SpeechCommandsConfig(tfds.core.BuilderConfig):
    """One version of the data set with one set of labels."""

    def __init__(self, name: str, archive: str, labels: tuple[str, ...]):
        super().__init__(
            name=name, description=f"Speech Commands {archive}, {len(labels)} labels"
        )
        self.archive = archive
        self.labels = labels

    @property
    def twelve(self) -> bool:
        """Whether silence and unknown are labels, as in Google's test archive."""
        return UNKNOWN in self.labels


class KwsSpeechCommands(tfds.core.GeneratorBasedBuilder):
    """Speech Commands 0.01 and 0.02; see the module's docstring."""

    name = "kws_speech_commands"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        SpeechCommandsConfig("v1_12", "0.01", (*KEYWORDS, SILENCE, UNKNOWN)),
        SpeechCommandsConfig("v2_12", "0.02", (*KEYWORDS, SILENCE, UNKNOWN)),
        SpeechCommandsConfig("v1_30", "0.01", WORDS_V1),
        SpeechCommandsConfig("v2_35", "0.02", WORDS_V2),
    ]
    url_infos = _URL_INFOS

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.builder_config.description,
            features=tfds.features.FeaturesDict(
                {
                    "audio": tfds.features.Audio(
                        sample_rate=SAMPLE_RATE, dtype=np.int16
                    ),
                    "label": tfds.features.ClassLabel(names=self.builder_config.labels),
                    "word": tfds.features.Text(),
                    "speaker": tfds.features.Text(),
                    "name": tfds.features.Text(),
                }
            ),
            supervised_keys=("audio", "label"),
            homepage="https://arxiv.org/abs/1804.03209",
            license="CC BY 4.0",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        version = self.builder_config.archive
        urls = {"main": _ARCHIVE.format(version)}
        if self.builder_config.twelve:
            urls["test"] = _TEST_ARCHIVE.format(version)
        paths = dl_manager.download(urls)

        def archive(name: str) -> Iterator[Any]:
            return dl_manager.iter_archive(paths[name])

        splits = _read_splits(archive("main"), paths["main"])
        generators = {
            split: self._generate_examples(archive("main"), split, splits)
            for split in (TRAIN, VALIDATION, BACKGROUND_SPLIT)
        }
        if self.builder_config.twelve:
            generators[TEST] = self._generate_examples(archive("test"), TEST, None)
        else:
            generators[TEST] = self._generate_examples(archive("main"), TEST, splits)
        return generators

    def _generate_examples(
        self, archive: Iterator[Any], split: str, splits: dict[str, str] | None
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """The clips of `archive` that `splits` gives to `split`; None gives it all."""
        for path, file in archive:
            word, name = posixpath.split(path)
            word = posixpath.basename(word)
            if not name.endswith(".wav"):
                continue
            if word == BACKGROUND_WORD:
                yield from self._background(name, file, split)
            elif splits is None or splits[f"{word}/{name}"] == split:
                yield self._clip(
                    word, name, self._label(word), decode_audio(file, path)
                )

    def _background(
        self, name: str, file: Any, split: str
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """A long recording, or the pieces of it where silence is a label."""
        of_validation = name == VALIDATION_RECORDING
        if split == BACKGROUND_SPLIT:
            yield self._clip(BACKGROUND_WORD, name, -1, decode_audio(file, name))
        elif self.builder_config.twelve and of_validation == (split == VALIDATION):
            audio = decode_audio(file, name)
            for start, piece in _silence_pieces(audio):
                yield self._clip(SILENCE, f"{name}_{start}", SILENCE, piece)

    def _label(self, word: str) -> str:
        if not self.builder_config.twelve or word in KEYWORDS or word == SILENCE:
            return word
        return UNKNOWN

    def _clip(
        self, word: str, name: str, label: str | int, audio: np.ndarray
    ) -> tuple[str, dict[str, Any]]:
        key = f"{word}/{name}"
        return key, {
            "audio": audio,
            "label": label,
            "word": word,
            "speaker": speaker_of(name),
            "name": key,
        }


_Stock: Any = tfds.builder_cls("speech_commands")


class StockSpeechCommands(_Stock, skip_registration=True):  # type: ignore[call-arg]
    """TFDS's `speech_commands` 0.0.3: the same records, without need of pydub."""

    name = _Stock.name
    pkg_dir_path = _Stock._get_pkg_dir_path()
    url_infos = _URL_INFOS

    def _generate_examples(
        self, archive: Iterator[Any], file_list: set[str] | None
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for path, file in archive:
            folder, name = posixpath.split(path)
            wanted = file_list is None or path in file_list
            if not wanted or not name.endswith(".wav"):
                continue
            word = posixpath.basename(folder)
            key = f"{word}_{name}"
            audio = decode_audio(file, path)
            if word == BACKGROUND_WORD:
                for start, piece in _silence_pieces(audio):
                    yield f"{key}_{start}", {"audio": piece, "label": SILENCE}
            else:
                known = word in KEYWORDS or word == SILENCE
                yield key, {"audio": audio, "label": word if known else UNKNOWN}


def _silence_pieces(audio: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Pieces of one second, one every half second, as TFDS cuts silence."""
    for start in range(0, len(audio) - SAMPLE_RATE, SAMPLE_RATE // 2):
        yield start, audio[start : start + SAMPLE_RATE]


def _read_splits(archive: Iterator[Any], where: Any) -> dict[str, str]:
    """The split of every clip of the main archive, by its two lists."""
    names, lists = [], {}
    for path, file in archive:
        folder, name = posixpath.split(path)
        if name in (VALIDATION_LIST, TEST_LIST):
            lists[name] = file.read().decode(errors="replace")
        elif name.endswith(".wav") and posixpath.basename(folder) != BACKGROUND_WORD:
            names.append(f"{posixpath.basename(folder)}/{name}")
    missing = {VALIDATION_LIST, TEST_LIST} - lists.keys()
    if missing:
        raise UserError(
            f"{where} holds no {' and no '.join(sorted(missing))}: this is not the "
            "archive of Speech Commands. Remove it, and it is downloaded again"
        )
    return split_by_lists(
        names,
        validation=lists[VALIDATION_LIST],
        test=lists[TEST_LIST],
        where=str(where),
    )
