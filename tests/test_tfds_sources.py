"""Our TFDS builders on small archives, TFDS's own one, and life without a network."""

import importlib.resources
import os
import sys
import time
import types
import wave
from collections import Counter
from pathlib import Path
from typing import Any

import fake_speech_commands as fake
import numpy as np
import pytest
import tensorflow_datasets as tfds

from kws_jax.data import speech_commands_builder as builders
from kws_jax.data import tfds_source
from kws_jax.data.protocols import build_task
from kws_jax.data.sources import open_corpus
from kws_jax.errors import UserError


@pytest.fixture
def archives(tmp_path, monkeypatch):
    """Downloads come from small archives on the disk."""
    paths: dict[str, Path] = {}
    for version in ("0.01", "0.02"):
        paths |= fake.write_archives(tmp_path / "archives", version)

    def download(self, urls):
        if isinstance(urls, dict):
            return {key: paths[os.path.basename(url)] for key, url in urls.items()}
        return [paths[os.path.basename(url)] for url in urls]

    monkeypatch.setattr(tfds.download.DownloadManager, "download", download)
    monkeypatch.setattr(tfds_source, "unreachable", lambda url: "")


def open_fake(tmp_path, builder, **options):
    options = {"cache_dir": str(tmp_path / "cache")} | options
    return tfds_source.open_tfds(str(tmp_path / "tfds"), builder=builder, **options)


def contents(corpus):
    """{(split, word, first samples)} of a corpus."""
    audio = corpus.read(np.arange(len(corpus.words)))
    return Counter(
        (split, word, clip.tobytes())
        for split, word, clip in zip(corpus.splits, corpus.words, audio)
    )


def padded(audio):
    return np.pad(audio[:16_000], (0, max(0, 16_000 - len(audio)))).tobytes()


def silence_pieces(recording):
    audio = fake.tone(recording, fake.BACKGROUND_SAMPLES)
    return [audio[s : s + 16_000] for s in (0, 8_000, 16_000)]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_all_words_follow_the_lists(archives, tmp_path, version):
    corpus = open_fake(tmp_path, f"speech_commands_{version}")
    expected = Counter(
        (split, word, padded(fake.tone(f"{word}/{name}")))
        for split, clips in fake.MAIN_CLIPS.items()
        for word, name in clips
    )
    assert contents(corpus) == expected
    of_bed = corpus.names == "train/bed/00000002_nohash_0.wav"
    assert corpus.speakers[of_bed].tolist() == ["00000002"]
    names = {split: [r.name for r in rs] for split, rs in corpus.background.items()}
    assert names["validation"] == ["running_tap.wav"]
    assert names["test"] == ["exercise_bike.wav"]
    assert len(names["train"]) == 4
    tap = corpus.background["validation"][0].audio
    np.testing.assert_array_equal(tap, fake.tone("running_tap", len(tap)))
    assert len(tap) == fake.BACKGROUND_SAMPLES


def twelve_expected():
    expected: Counter[tuple[str, str, bytes]] = Counter()
    for split in ("train", "validation"):
        for word, name in fake.MAIN_CLIPS[split]:
            label = word if word in ("yes", "no") else "_unknown_"
            expected[split, label, padded(fake.tone(f"{word}/{name}"))] += 1
    for name in fake.BACKGROUND:
        split = "validation" if name == "running_tap" else "train"
        for piece in silence_pieces(name):
            expected[split, "_silence_", piece.tobytes()] += 1
    for word, name in fake.TEST_CLIPS:
        expected["test", word, padded(fake.tone(f"{word}/{name}"))] += 1
    return expected


@pytest.mark.parametrize(
    "builder", ["speech_commands", "speech_commands_v1_12", "speech_commands_v2_12"]
)
def test_twelve_labels_take_the_test_archive_and_cut_silence(
    archives, tmp_path, builder
):
    corpus = open_fake(tmp_path, builder)
    assert contents(corpus) == twelve_expected()
    background = {split: len(rs) for split, rs in corpus.background.items()}
    pieces = 3 if builder == "speech_commands" else 1
    assert background == {"train": 5 * pieces, "validation": pieces, "test": 0}


def test_stock_records_equal_those_of_tfds_with_pydub(archives, tmp_path, monkeypatch):
    class AudioSegment:
        """What TFDS uses of pydub, on the standard library's WAV reader."""

        @staticmethod
        def from_file(file, format):
            with wave.open(file) as sound:
                samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2")
            return types.SimpleNamespace(get_array_of_samples=lambda: samples)

    pydub: Any = types.ModuleType("pydub")
    pydub.AudioSegment = AudioSegment
    pydub.exceptions = types.SimpleNamespace(CouldntDecodeError=wave.Error)
    monkeypatch.setitem(sys.modules, "pydub", pydub)
    # TFDS imports the backport, and does not require it.
    monkeypatch.setitem(sys.modules, "importlib_resources", importlib.resources)
    theirs = tfds.builder("speech_commands", data_dir=tmp_path / "theirs")
    theirs.download_and_prepare()
    ours = builders.StockSpeechCommands(data_dir=tmp_path / "ours")
    ours.download_and_prepare()
    assert ours.info.full_name == theirs.info.full_name
    assert repr(ours.info.features) == repr(theirs.info.features)
    for split in ("train", "validation", "test"):
        pairs = list(
            zip(
                tfds.as_numpy(ours.as_dataset(split=split)),
                tfds.as_numpy(theirs.as_dataset(split=split)),
                strict=True,
            )
        )
        assert pairs
        for mine, reference in pairs:
            assert mine["label"] == reference["label"]
            np.testing.assert_array_equal(mine["audio"], reference["audio"])


def test_second_opening_needs_neither_tfds_nor_network(archives, tmp_path, monkeypatch):
    first = open_fake(tmp_path, "speech_commands_v2")
    monkeypatch.setattr(tfds_source, "_prepared_builder", None)
    again = open_fake(tmp_path, "speech_commands_v2")
    assert again.fingerprint == first.fingerprint
    np.testing.assert_array_equal(again.names, first.names)


def test_prepared_data_are_converted_without_download(archives, tmp_path):
    open_fake(tmp_path, "speech_commands_v2")
    other = open_fake(
        tmp_path,
        "speech_commands_v2",
        cache_dir=str(tmp_path / "other"),
        download=False,
    )
    assert len(other.words) == 8


def test_mock_data_of_any_length_become_clips(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_source, "unreachable", lambda url: "")
    steps = []
    with tfds.testing.mock_data(num_examples=7):
        corpus = open_fake(
            tmp_path, "speech_commands", progress=lambda *step: steps.append(step)
        )
        lengths = {
            len(example["audio"])
            for example in tfds.as_numpy(tfds.load("speech_commands", split="train"))
        }
    assert len(lengths) > 1
    assert Counter(corpus.splits.tolist()) == {"train": 7, "validation": 7, "test": 7}
    assert corpus.read(np.arange(21)).shape == (21, 16_000)
    assert steps == [(done, 21) for done in range(1, 22)]


def test_tfds_protocol_labels_the_clips_of_the_twelve(archives, tmp_path):
    corpus = open_fake(tmp_path, "speech_commands")
    # The small archives have two of the ten keywords.
    with pytest.raises(UserError, match="no clips of these keywords"):
        build_task(corpus, protocol="tfds-12")


def test_full_silence_counts_of_the_official_recordings():
    lengths = {
        "doing_the_dishes": 1_522_930,
        "dude_miaowing": 988_891,
        "exercise_bike": 980_062,
        "pink_noise": 960_000,
        "running_tap": 978_488,
        "white_noise": 960_000,
    }
    pieces = {
        name: len(list(builders._silence_pieces(np.zeros(n, np.int8))))
        for name, n in lengths.items()
    }
    # TFDS: 85,511 training clips of which 84,843 are words, and 10,102 of which 9,981.
    assert pieces.pop("running_tap") == 10_102 - 9_981
    assert sum(pieces.values()) == 85_511 - 84_843


def test_words_of_the_versions():
    assert len(set(builders.WORDS_V1)) == 30
    assert len(set(builders.WORDS_V2)) == 35
    assert set(builders.KEYWORDS) < set(builders.WORDS_V1) < set(builders.WORDS_V2)


def test_without_network_both_ways_out_are_named_in_seconds(tmp_path, monkeypatch):
    # Nothing listens at this port of the machine itself.
    monkeypatch.setattr(tfds_source, "ARCHIVE_URL", "http://127.0.0.1:9/v{}.tar.gz")
    begin = time.monotonic()
    with pytest.raises(UserError) as error:
        open_corpus(
            "tfds",
            data_dir=str(tmp_path / "tfds"),
            cache_dir=str(tmp_path / "cache"),
            protocol="tfds-12",
        )
    assert time.monotonic() - begin < 8
    assert "--config.data.source=folder --config.data.dir=…" in str(error.value)
    assert "--config=configs/autokws.py:demo" in str(error.value)
    assert not (tmp_path / "cache").exists()


def test_an_unanswered_host_is_given_up_within_the_time_limit(monkeypatch):
    monkeypatch.setattr(tfds_source, "_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: time.sleep(30))
    begin = time.monotonic()
    assert "no answer" in tfds_source.unreachable("http://example.org/x")
    assert time.monotonic() - begin < 5


def test_download_can_be_switched_off(tmp_path):
    with pytest.raises(UserError, match="switched off"):
        open_fake(tmp_path, "speech_commands_v1", download=False)


def test_unknown_names_get_the_nearest(tmp_path):
    with pytest.raises(UserError, match="did you mean 'speech_commands_v1'"):
        open_fake(tmp_path, "speech_comands_v1")
    with pytest.raises(UserError, match="did you mean 'folder'"):
        open_corpus("folders")


def test_a_builder_must_go_with_the_protocol():
    with pytest.raises(UserError, match="is defined on speech_commands_v1"):
        open_corpus("tfds", protocol="v1-12", builder="speech_commands")
