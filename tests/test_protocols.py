"""Exact counts, stable choice of unknown clips, and what silence is made of."""

import math
import random
from collections import Counter

import numpy as np
import pytest

from kws_jax.data.corpus import SPLITS, Corpus, Recording
from kws_jax.data.protocols import GOOGLE_TEN, build_task
from kws_jax.errors import UserError


def make_corpus(words_by_split, background=None, order=None):
    """A corpus whose clip in row i is filled with the value i."""
    rows = [(w, s) for s, words in words_by_split.items() for w in words]
    words, splits = (np.array(column) for column in zip(*rows))
    names = np.array([f"{w}/{s}/{i}" for i, (w, s) in enumerate(rows)])
    index = np.arange(len(rows)) if order is None else order

    def read(positions):
        values = index[np.asarray(positions)].astype(np.int16)
        return np.repeat(values[:, None], 16_000, axis=1)

    if background is None:
        background = {
            split: [Recording(f"{split} noise", np.arange(1, 20_001, dtype=np.int16))]
            for split in SPLITS
        }
    return Corpus(
        words=words[index],
        speakers=names[index],
        names=names[index],
        splits=splits[index],
        read=read,
        background=background,
        noise={"seen": [], "unseen": []},
        fingerprint="",
    )


def spread(count):
    """`count` clips spread over the ten keywords."""
    return [GOOGLE_TEN[i % 10] for i in range(count)]


def small(train=30, held_out=10):
    return make_corpus(
        {
            "train": [*spread(train), *["bed", "cat"] * 20],
            "validation": [*spread(held_out), *["bed", "cat"] * 5],
            "test": [*spread(held_out), *["bed", "cat"] * 5],
        }
    )


# Keyword clips of the official lists; published sizes of the splits.
OFFICIAL = {
    "v1-12": ((18_538, 2_577, 2_567), (22_246, 3_093, 3_081), (1_854, 258, 257)),
    "v2-12": ((30_769, 3_703, 4_074), (36_923, 4_445, 4_890), (3_077, 371, 408)),
}


@pytest.mark.parametrize("protocol", OFFICIAL)
def test_official_counts(protocol):
    keywords, sizes, extra = OFFICIAL[protocol]
    corpus = make_corpus(
        {s: [*spread(n), *["bed"] * 4_000] for s, n in zip(SPLITS, keywords)}
    )
    task = build_task(corpus, protocol=protocol)
    assert task.labels == (*GOOGLE_TEN, "_unknown_", "_silence_")
    for name, size, more in zip(SPLITS, sizes, extra):
        split = getattr(task, name)
        counts = Counter(split.labels.tolist())
        assert len(split) == size
        assert counts[10] == counts[11] == more


def script_sizes(keyword_clips, unknown_clips, percent):
    """`prepare_data_index` of TensorFlow's input_data.py, as it counts."""
    data_index = list(range(keyword_clips))
    unknown_index = list(range(unknown_clips))
    set_size = len(data_index)
    silence_size = math.ceil(set_size * percent / 100)
    random.shuffle(unknown_index)
    unknown_size = math.ceil(set_size * percent / 100)
    return len(unknown_index[:unknown_size]), silence_size


@pytest.mark.parametrize("percent", [1.0, 10.0, 33.0])
def test_counts_are_those_of_the_script(percent):
    corpus = small(train=37, held_out=11)
    task = build_task(
        corpus,
        keywords=GOOGLE_TEN,
        unknown_percent=percent,
        silence_percent=percent,
    )
    for split, keyword_clips, others in ((task.train, 37, 40), (task.test, 11, 10)):
        counts = Counter(split.labels.tolist())
        assert (counts[10], counts[11]) == script_sizes(keyword_clips, others, percent)


def test_rows_carry_the_right_audio_label_and_name():
    corpus = small()
    task = build_task(corpus, keywords=("go", "yes"), seed=3)
    assert task.labels == ("go", "yes", "_unknown_", "_silence_")
    audio = task.train.read(np.arange(len(task.train)))
    for clip, label, name in zip(audio, task.train.labels, task.train.names):
        if task.labels[label] == "_silence_":
            continue
        row = int(clip[0])
        assert corpus.names[row] == name
        word = corpus.words[row]
        assert task.labels[label] == (word if word in ("go", "yes") else "_unknown_")
    assert len(set(task.train.names.tolist())) == len(task.train)


def test_unknown_depends_on_the_seed_and_not_on_the_order_of_the_files():
    def unknown(corpus, seed):
        train = build_task(corpus, keywords=GOOGLE_TEN, seed=seed).train
        return sorted(train.names[train.labels == 10].tolist())

    corpus = small(train=100)
    count = len(corpus.words)
    shuffled = make_corpus(
        {
            "train": [*spread(100), *["bed", "cat"] * 20],
            "validation": [*spread(10), *["bed", "cat"] * 5],
            "test": [*spread(10), *["bed", "cat"] * 5],
        },
        order=np.random.default_rng(0).permutation(count),
    )
    assert unknown(corpus, 1) == unknown(corpus, 1) == unknown(shuffled, 1)
    assert unknown(corpus, 1) != unknown(corpus, 2)


def test_unknown_is_an_even_draw():
    taken: Counter[str] = Counter()
    corpus = small(train=100)
    for seed in range(200):
        train = build_task(corpus, keywords=GOOGLE_TEN, seed=seed).train
        taken.update(train.names[train.labels == 10].tolist())
    # 10 of 40 clips, 200 times: 50 each, standard deviation 6.1.
    assert len(taken) == 40
    assert 25 < min(taken.values()) <= max(taken.values()) < 75


def test_all_other_words_without_a_percentage():
    task = build_task(small(), keywords=("yes",), unknown_percent=None)
    assert Counter(task.train.labels.tolist())[1] == 30 - 3 + 40


def test_no_unknown_and_no_silence_at_zero_percent():
    task = build_task(
        small(), keywords=("yes", "no"), unknown_percent=0, silence_percent=0
    )
    assert task.labels == ("yes", "no")
    assert Counter(task.test.labels.tolist()) == {0: 1, 1: 1}


@pytest.mark.parametrize("protocol", ["v1-30", "v2-35", "all"])
def test_every_word_is_a_label(protocol):
    corpus = small()
    task = build_task(corpus, protocol=protocol)
    assert task.labels == tuple(sorted({*GOOGLE_TEN, "bed", "cat"}))
    assert len(task.train) + len(task.validation) + len(task.test) == len(corpus.words)


def test_prepared_unknown_and_silence_are_taken_as_they_are():
    words = [*spread(20), *["_unknown_"] * 9, *["_silence_"] * 4]
    corpus = make_corpus({split: words for split in SPLITS})
    task = build_task(corpus, protocol="tfds-12")
    for split in (task.train, task.validation, task.test):
        counts = Counter(split.labels.tolist())
        assert (counts[10], counts[11]) == (9, 4)
        silent = np.flatnonzero(split.labels == 11)
        rows = split.read(silent)[:, 0]
        assert set(corpus.words[rows].tolist()) == {"_silence_"}


def test_silence_of_zeros_and_mixed_reads():
    task = build_task(small(), protocol="v1-12")
    silent = int(np.flatnonzero(task.test.labels == 11)[0])
    audio = task.test.read(np.array([silent, 3, silent, 0]))
    assert not audio[[0, 2]].any()
    np.testing.assert_array_equal(audio[1], task.test.read(np.array([3]))[0])
    assert audio[1].any()
    assert audio[3].any()


def test_silence_of_background_is_a_crop_times_a_volume_and_stays_the_same():
    ramp = np.arange(1, 20_001)
    corpus = small(train=300, held_out=100)
    task = build_task(corpus, keywords=GOOGLE_TEN, seed=5)
    again = build_task(corpus, keywords=GOOGLE_TEN, seed=5)
    other = build_task(corpus, keywords=GOOGLE_TEN, seed=6)
    for split, same, differs in zip(
        (task.train, task.validation, task.test),
        (again.train, again.validation, again.test),
        (other.train, other.validation, other.test),
    ):
        rows = np.flatnonzero(split.labels == 11)
        audio = split.read(rows).astype(float)
        np.testing.assert_array_equal(audio, same.read(rows[::-1])[::-1])
        assert np.any(audio != differs.read(rows))
        volumes = (audio[:, -1] - audio[:, 0]) / 15_999
        starts = audio[:, 0] / volumes
        for clip, volume, start in zip(audio, volumes, np.rint(starts).astype(int)):
            crop = volume * ramp[start - 1 : start - 1 + 16_000]
            # Half a unit of rounding in the clip, one in the estimated crop.
            assert np.abs(clip - crop).max() < 1.5
        assert 0 <= volumes.min() < 0.4 < 0.6 < volumes.max() <= 1
        assert len(set(np.rint(starts))) > 1


def test_crops_come_from_the_recordings_of_the_split():
    levels = {"train": 1_000, "validation": 0, "test": -1_000}
    background = {
        split: [Recording("x", np.full(17_000, level, np.int16))]
        for split, level in levels.items()
    }
    words = [*spread(10), "bed"]
    corpus = make_corpus({split: words for split in SPLITS}, background)
    task = build_task(corpus, keywords=GOOGLE_TEN)
    for name, level in levels.items():
        split = getattr(task, name)
        sign = np.sign(split.read(np.flatnonzero(split.labels == 11)))
        np.testing.assert_array_equal(sign, np.full_like(sign, np.sign(level)))


def test_subset_of_a_split_reads_the_same_clips():
    split = build_task(small(), keywords=GOOGLE_TEN).train
    positions = np.array([5, len(split) - 1, 2])
    half = split.subset(positions)
    np.testing.assert_array_equal(
        half.read(np.array([2, 1])), split.read(positions[[2, 1]])
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keywords": ("yes", "rigth")}, "'rigth': did you mean 'right'"),
        ({"keywords": ()}, "keywords is empty.*bed, cat"),
        ({"keywords": ("yes", "yes")}, "twice"),
        ({"protocol": "v1_12"}, "did you mean 'v1-12'"),
        ({"protocol": "v1-12", "keywords": ("yes",)}, "protocol=custom"),
        ({"protocol": "tfds-12"}, "train split has no _silence_, _unknown_"),
        ({"protocol": "v1-12", "unknown_percent": 20.0}, "unknown_percent does not go"),
        ({"protocol": "v2-12", "unknown_percent": None}, "unknown_percent does not go"),
        ({"protocol": "tfds-12", "silence_percent": 5.0}, "silence_percent does not g"),
        ({"protocol": "v2-35", "silence_percent": 5.0}, "silence_percent does not go"),
        ({"protocol": "tfds-12", "silence": "zeros"}, "takes silence from the source"),
        (
            {"protocol": "all", "silence": "zeros"},
            "which has no silence. Leave it empty",
        ),
        ({"keywords": ("yes",), "silence": "noise"}, "config.data.silence"),
        ({"keywords": ("yes",), "unknown_percent": -1}, "unknown_percent must be"),
        (
            {"keywords": GOOGLE_TEN, "unknown_percent": 150.0},
            "train split has 40 clips .* but 45 are wanted",
        ),
    ],
)
def test_wrong_settings_name_the_field(options, message):
    with pytest.raises(UserError, match=message):
        build_task(small(), **options)


def test_shares_that_a_protocol_has_anyway_may_be_given():
    plain = build_task(small(), protocol="all")
    same = build_task(small(), protocol="all", unknown_percent=0.0, silence_percent=0.0)
    assert same.labels == plain.labels
    task = build_task(small(), protocol="v1-12", silence="background")
    assert task.train.read(np.flatnonzero(task.train.labels == 11)).any()


def test_a_label_without_clips_in_a_split_is_an_error():
    words = {split: spread(10) for split in SPLITS} | {"test": spread(9)}
    with pytest.raises(UserError, match="test split has no clips of go"):
        build_task(make_corpus(words), keywords=GOOGLE_TEN, unknown_percent=0)


def test_background_silence_without_recordings_is_an_error():
    words = {split: spread(10) for split in SPLITS}
    corpus = make_corpus(words, {split: [] for split in SPLITS})
    with pytest.raises(UserError, match=r"--config\.data\.silence=zeros"):
        build_task(corpus, keywords=GOOGLE_TEN, unknown_percent=0)


def test_positions_out_of_range_are_refused():
    split = build_task(small(), keywords=GOOGLE_TEN).test
    with pytest.raises(IndexError):
        split.read(np.array([len(split)]))
