"""Folders of words: splits, the store they are prepared into, and bad input."""

import errno
import hashlib
import os
import re
import shutil
import threading
import time
from collections import Counter
from pathlib import Path

import fake_speech_commands as fake
import numpy as np
import pytest

from kws_jax import runtime
from kws_jax.data import audio_files, store
from kws_jax.data.corpus import Recording
from kws_jax.data.folder import open_folder, read_noise_folder
from kws_jax.data.protocols import build_task
from kws_jax.data.splits import divide_background, split_by_lists, which_set
from kws_jax.errors import UserError

DEV = Path(__file__).parents[2] / "shared" / "data" / "speech_commands_dev"


@pytest.fixture
def folder(tmp_path):
    return fake.write_folder(tmp_path / "words")


@pytest.fixture
def cache(tmp_path):
    return str(tmp_path / "cache")


def stores(cache):
    return sorted(path.name for path in Path(cache).glob("*-*"))


def google_which_set(filename, validation_percentage, testing_percentage):
    """Google's function, from the README of the data set."""
    max_num_wavs_per_class = 2**27 - 1
    base_name = os.path.basename(filename)
    hash_name = re.sub(r"_nohash_.*$", "", base_name)
    hash_name_hashed = hashlib.sha1(hash_name.encode()).hexdigest()
    percentage_hash = (int(hash_name_hashed, 16) % (max_num_wavs_per_class + 1)) * (
        100.0 / max_num_wavs_per_class
    )
    if percentage_hash < validation_percentage:
        return "validation"
    if percentage_hash < (testing_percentage + validation_percentage):
        return "test"
    return "train"


def test_which_set_is_googles():
    names = [f"yes/{i:08x}_nohash_{i % 3}.wav" for i in range(3_000)]
    ours = [which_set(n, validation_fraction=0.1, test_fraction=0.1) for n in names]
    assert ours == [google_which_set(name, 10, 10) for name in names]
    assert set(ours) == {"train", "validation", "test"}


def test_which_set_of_free_names_does_not_see_the_suffix():
    for i in range(50):
        wav, flac = (
            which_set(f"yes/{i}{suffix}", validation_fraction=0.3, test_fraction=0.3)
            for suffix in (".wav", ".flac")
        )
        assert wav == flac == google_which_set(str(i), 30, 30)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_lists_decide_whatever_the_suffix(tmp_path, cache, suffix):
    root = fake.write_folder(tmp_path / "words", suffix=suffix)
    corpus = open_folder(root, cache_dir=cache)
    expected = {
        f"{word}/{name.replace('.wav', suffix)}": split
        for split, clips in fake.MAIN_CLIPS.items()
        for word, name in clips
    }
    assert dict(zip(corpus.names.tolist(), corpus.splits.tolist())) == expected
    audio = corpus.read(np.arange(len(expected)))
    for clip, name, word, speaker in zip(
        audio, corpus.names, corpus.words, corpus.speakers
    ):
        sound = fake.tone(name.replace(suffix, ".wav"))
        np.testing.assert_array_equal(clip[: len(sound)], sound)
        assert not clip[len(sound) :].any()
        assert name == f"{word}/{speaker}_nohash_{name.split('_')[-1]}"


def test_fractions_without_lists_and_without_speakers(tmp_path, cache):
    root = tmp_path / "words"
    for i in range(60):
        fake.write_audio(root / "yes" / f"take {i}.wav", fake.tone(str(i), 200))
    corpus = open_folder(
        root, cache_dir=cache, validation_fraction=0.25, test_fraction=0.25
    )
    expected = [google_which_set(Path(n).stem, 25, 25) for n in corpus.names.tolist()]
    assert corpus.splits.tolist() == expected
    counts = Counter(expected)
    assert counts["validation"] > 5 < counts["test"]
    assert corpus.speakers.tolist() == [Path(n).stem for n in corpus.names]


def test_background_is_divided_by_recording(folder, cache):
    corpus = open_folder(folder, cache_dir=cache)
    names = {split: [r.name for r in rs] for split, rs in corpus.background.items()}
    assert names == {
        "train": [
            f"{name}.wav"
            for name in (
                "doing_the_dishes",
                "dude_miaowing",
                "pink_noise",
                "white_noise",
            )
        ],
        "validation": ["running_tap.wav"],
        "test": ["exercise_bike.wav"],
    }
    seen = [recording.name for recording in corpus.noise["seen"]]
    assert seen == names["train"]
    assert not corpus.noise["unseen"]


@pytest.mark.parametrize("count", range(13))
def test_no_background_is_shared_between_splits(count):
    audio = np.arange(9_000, dtype=np.int16)
    recordings = [Recording(f"{i:02}", audio + 10_000 * (i % 3)) for i in range(count)]
    parts = divide_background(recordings[::-1])
    heard = {
        split: {(r.name, sample) for r in members for sample in r.audio.tolist()}
        for split, members in parts.items()
    }
    assert sum(map(len, heard.values())) == count * 9_000
    assert len(set.union(*heard.values())) == count * 9_000
    if count:
        assert all(heard.values())
        assert len(heard["train"]) == max(map(len, heard.values()))


def test_second_opening_reads_no_audio(folder, cache, monkeypatch):
    first = open_folder(folder, cache_dir=cache)
    monkeypatch.setattr(audio_files.soundfile, "SoundFile", None)
    monkeypatch.setattr(Path, "read_bytes", None)
    again = open_folder(folder, cache_dir=cache)
    assert again.fingerprint == first.fingerprint
    rows = np.array([3, 0])
    np.testing.assert_array_equal(again.read(rows), first.read(rows))


def test_a_copy_of_the_folder_shares_the_store(folder, cache, tmp_path):
    open_folder(folder, cache_dir=cache)
    shutil.copytree(folder, tmp_path / "copy")
    open_folder(tmp_path / "copy", cache_dir=cache)
    assert len(stores(cache)) == 1


@pytest.mark.parametrize("change", ["content", "name", "new", "list"])
def test_any_change_makes_a_new_store(folder, cache, change):
    first = open_folder(folder, cache_dir=cache)
    clip = folder / "yes" / "00000001_nohash_0.wav"
    status = clip.stat()
    if change == "content":
        fake.write_audio(clip, fake.tone("another sound"))
        # Even with the size and the time that it had.
        os.utime(clip, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert clip.stat().st_size == status.st_size
    elif change == "name":
        clip.rename(clip.with_name("00000009_nohash_0.wav"))
    elif change == "new":
        fake.write_audio(folder / "no" / "00000009_nohash_0.wav", fake.tone("new"))
    else:
        (folder / "testing_list.txt").write_text("bed/00000004_nohash_1.wav\n")
    second = open_folder(folder, cache_dir=cache)
    assert second.fingerprint != first.fingerprint
    assert len(stores(cache)) == 2


def test_fractions_are_part_of_the_key(tmp_path, cache):
    root = fake.write_folder(tmp_path / "words", lists=False)
    first = open_folder(root, cache_dir=cache)
    second = open_folder(root, cache_dir=cache, validation_fraction=0.8)
    assert Counter(second.splits)["validation"] > Counter(first.splits)["validation"]


def spoil(folder):
    (folder / "yes" / "00000001_nohash_0.wav").write_bytes(b"")
    (folder / "no" / "00000002_nohash_0.wav").write_text("no audio")
    (folder / "_background_noise_" / "pink_noise.wav").write_bytes(b"RIFF")
    return ("yes/00000001_nohash_0.wav", "no/00000002_nohash_0.wav", "pink_noise.wav")


def test_corrupt_files_are_listed_together_and_nothing_is_left(folder, cache):
    names = spoil(folder)
    with pytest.raises(UserError) as error:
        open_folder(folder, cache_dir=cache)
    for name in names:
        assert str(folder) in str(error.value)
        assert name in str(error.value)
    assert "--config.data.skip_corrupt=True" in str(error.value)
    assert [path.name for path in Path(cache).iterdir()] == ["folders"]


def test_corrupt_files_are_skipped_on_demand_only(folder, cache, capsys):
    names = spoil(folder)
    corpus = open_folder(folder, cache_dir=cache, skip_corrupt=True)
    assert len(corpus.words) == 8 - 2
    assert not set(names) & set(corpus.names.tolist())
    told = capsys.readouterr().err
    assert all(name in told for name in names)
    with pytest.raises(UserError, match="3 audio files cannot be read"):
        open_folder(folder, cache_dir=cache)


def test_a_word_without_readable_clips_is_an_error(folder, cache):
    (folder / "cat" / "00000003_nohash_0.wav").write_bytes(b"")
    with pytest.raises(UserError, match="no clip of cat"):
        open_folder(folder, cache_dir=cache, skip_corrupt=True)


def test_bad_folders_are_named(tmp_path, cache):
    with pytest.raises(UserError, match=r"nowhere is not a folder.*config\.data\.dir"):
        open_folder(tmp_path / "nowhere", cache_dir=cache)
    (tmp_path / "empty" / "yes").mkdir(parents=True)
    with pytest.raises(UserError, match="no audio in the folders of"):
        open_folder(tmp_path / "empty", cache_dir=cache)
    root = fake.write_folder(tmp_path / "words")
    (root / "left").mkdir()
    (root / "right").mkdir()
    with pytest.raises(UserError, match=r"without audio: .*/left, .*/right"):
        open_folder(root, cache_dir=cache)


def test_bad_lists_are_named(folder, cache):
    (folder / "validation_list.txt").unlink()
    with pytest.raises(UserError, match=r"testing_list\.txt alone"):
        open_folder(folder, cache_dir=cache)
    (folder / "validation_list.txt").write_text("yes/elsewhere.wav\n")
    with pytest.raises(UserError, match=r"named by validation_list\.txt"):
        open_folder(folder, cache_dir=cache)
    with pytest.raises(UserError, match="both name yes/a"):
        split_by_lists(
            ["yes/a.wav"], validation="yes/a.wav", test="yes/a.wav", where="x"
        )


def test_fractions_out_of_range_are_refused(folder, cache):
    with pytest.raises(UserError, match=r"config\.data\.validation_fraction"):
        open_folder(folder, cache_dir=cache, validation_fraction=0.6, test_fraction=0.4)


def test_noise_folders_are_read_with_all_below(tmp_path):
    fake.write_audio(tmp_path / "n" / "b.wav", fake.tone("b"))
    fake.write_audio(tmp_path / "n" / "sub" / "a.flac", fake.tone("a"))
    recordings = read_noise_folder(tmp_path / "n")
    assert [recording.name for recording in recordings] == ["b.wav", "sub/a.flac"]
    np.testing.assert_array_equal(recordings[1].audio, fake.tone("a"))
    (tmp_path / "n" / "c.wav").write_bytes(b"")
    with pytest.raises(UserError, match=r"n/c\.wav: "):
        read_noise_folder(tmp_path / "n")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="holds no audio"):
        read_noise_folder(tmp_path / "none")
    with pytest.raises(UserError, match="is not a folder"):
        read_noise_folder(tmp_path / "missing")


def make_store(path, count=40, length=12_000):
    clips = [
        (f"yes/{i}", "yes", f"speaker {i}", "train", fake.tone(str(i), length + i))
        for i in range(count)
    ]
    store.write_store(path, iter(clips), {}, {}, {"made by": "a test"})
    return clips


def test_clips_are_cut_or_padded_and_read_in_any_order(tmp_path):
    clips = make_store(tmp_path / "s", length=15_980)
    corpus = store.open_store(tmp_path / "s")
    rows = np.array([39, 0, 7, 39])
    for clip, row in zip(corpus.read(rows), rows):
        audio = clips[row][4][:16_000]
        np.testing.assert_array_equal(clip, np.pad(audio, (0, 16_000 - len(audio))))
    assert corpus.read(np.array([], int)).shape == (0, 16_000)
    assert store.read_meta(tmp_path / "s") == {"made by": "a test"}
    for row in (-1, 40):
        with pytest.raises(IndexError):
            corpus.read(np.array([row]))


def test_threads_may_read_at_the_same_time(tmp_path):
    make_store(tmp_path / "s")
    corpus = store.open_store(tmp_path / "s")
    whole = corpus.read(np.arange(40))
    wrong = []

    def read(seed):
        generator = np.random.default_rng(seed)
        for _ in range(50):
            rows = generator.integers(0, 40, 20)
            if not np.array_equal(corpus.read(rows), whole[rows]):
                wrong.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("file", sorted(["clips.array_record", "index.json"]))
@pytest.mark.parametrize("damage", ["cut", "gone", "other bytes"])
def test_a_damaged_store_names_the_folder_to_delete(tmp_path, file, damage):
    make_store(tmp_path / "s")
    path = tmp_path / "s" / file
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "gone":
        path.unlink()
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + b"\xff" * 99 + content[middle + 99 :])
    with pytest.raises(
        UserError, match=f"{tmp_path}/s are damaged.*Delete that folder"
    ):
        store.open_store(tmp_path / "s").read(np.arange(40))


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store.np, "savez", full)
    with pytest.raises(UserError, match=r"No space left.*config\.data\.cache_dir"):
        make_store(tmp_path / "cache" / "s")
    assert not list((tmp_path / "cache").iterdir())


def test_an_error_while_the_clips_are_made_leaves_nothing_behind(tmp_path):
    def clips():
        yield "yes/1", "yes", "1", "train", fake.tone("1")
        raise UserError("the source is at fault")

    with pytest.raises(UserError, match="the source is at fault"):
        store.write_store(tmp_path / "cache" / "s", clips(), {}, {}, {})
    assert not list((tmp_path / "cache").iterdir())


def test_what_a_killed_run_left_is_removed_after_a_day(tmp_path):
    old, young = tmp_path / ".s.old", tmp_path / ".s.young"
    for path in (old, young):
        path.mkdir()
    os.utime(old, (time.time() - 90_000,) * 2)
    make_store(tmp_path / "s", count=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".s.young", "s"]


def test_the_first_of_two_writers_stays(tmp_path):
    make_store(tmp_path / "s", count=2)
    make_store(tmp_path / "s", count=3)
    assert len(store.open_store(tmp_path / "s").words) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_cache_root(monkeypatch):
    monkeypatch.setenv("KWS_JAX_CACHE", "/somewhere")
    assert runtime.cache_root("/given") == Path("/given")
    assert runtime.cache_root() == Path("/somewhere")
    monkeypatch.delenv("KWS_JAX_CACHE")
    assert runtime.cache_root() == Path.home() / ".cache" / "kws_jax"


def test_real_speech_is_prepared_and_opened_in_seconds(cache):
    if not DEV.is_dir():
        pytest.skip(f"no development speech in {DEV}")
    corpus = open_folder(DEV, cache_dir=cache)
    begin = time.monotonic()
    open_folder(DEV, cache_dir=cache)
    assert time.monotonic() - begin < 3
    assert Counter(corpus.splits.tolist()) == {
        "train": 10_551,
        "validation": 2_022,
        "test": 1_859,
    }
    speakers = {s: set(corpus.speakers[corpus.splits == s]) for s in set(corpus.splits)}
    assert not speakers["train"] & speakers["test"]
    assert not speakers["train"] & speakers["validation"]
    keywords = ("yes", "no", "up", "down", "left", "right", "stop", "go")
    task = build_task(corpus, keywords=keywords)
    assert (len(task.train), len(task.validation), len(task.test)) == (
        7_104 + 711 + 711,
        1_444 + 145 + 145,
        1_349 + 135 + 135,
    )
