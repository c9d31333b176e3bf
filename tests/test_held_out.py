"""Words kept from training, other words and background, and their measures."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from test_protocols import make_corpus

from kws_jax.data import held_out
from kws_jax.data.corpus import CLIP_SAMPLES, SILENCE, UNKNOWN, Recording
from kws_jax.data.noise import NoiseBank
from kws_jax.data.protocols import build_task
from kws_jax.errors import UserError
from kws_jax.evaluation import false_accepts
from kws_jax.evaluation.metrics import clustered_interval, wilson_interval
from kws_jax.report import false_accepts as report
from kws_jax.report.workdir import Run, parse_results

WORDS = ("yes", "no")
CLEAN = {"stage": "train", "split": "test", "condition": "clean"}
CLEAN |= {"metric": "accuracy", "value": 0.9}
LABELS = (*WORDS, UNKNOWN, SILENCE)
UNHEARD = ("happy", "tree")


def corpus():
    words = {
        "train": ["yes", "no"] * 10 + ["bed"] * 9 + ["happy"] * 30 + ["tree"] * 3,
        "validation": ["yes", "no"] * 5 + ["bed"] * 4 + ["happy"] * 7 + ["tree"],
        "test": ["yes", "no"] * 5 + ["bed"] * 4 + ["happy"] * 25 + ["tree"],
    }
    return make_corpus(words)


def task_without(unheard):
    return build_task(
        held_out.without(corpus(), unheard), keywords=WORDS, unknown_percent=40.0
    )


def words_of(split):
    return {name.split("/")[0] for name in split.names.tolist()} - {SILENCE}


def test_unheard_words_are_in_no_ordinary_split():
    task = task_without(UNHEARD)
    for split in (task.train, task.validation, task.test):
        assert words_of(split) == {"yes", "no", "bed"}
        # The clips are still those that the names say.
        spoken = [i for i, n in enumerate(split.names) if not n.startswith(SILENCE)]
        values = split.read(np.array(spoken))[:, 0].tolist()
        assert values == [int(split.names[i].split("/")[2]) for i in spoken]
    assert task.labels == LABELS


def test_without_unheard_words_nothing_changes():
    whole = corpus()
    assert held_out.without(whole, ()) is whole


def test_unheard_clips_are_the_test_speakers_and_all_of_rare_words():
    unheard = held_out.collect(corpus(), LABELS, UNHEARD).unheard
    counts = np.bincount(unheard.split.labels)
    assert dict(zip(unheard.words, counts.tolist())) == {"happy": 25, "tree": 5}
    assert dict(zip(unheard.words, unheard.rare)) == {"happy": False, "tree": True}
    strangers = unheard.split.names[unheard.of_test_speakers]
    assert {n.split("/")[1] for n in strangers} == {"test"}
    assert len(strangers) == 26
    assert "30 clips, 26 of them of test speakers" in unheard.told()
    values = unheard.split.read(np.arange(30))[:, 0].tolist()
    assert values == [int(name.split("/")[2]) for name in unheard.split.names]


def test_other_words_of_a_stream_are_all_of_the_split():
    beside = held_out.collect(corpus(), LABELS, UNHEARD)
    assert beside.others["validation"].words == ("bed",)
    assert beside.others["test"].words == ("bed", "happy", "tree")
    assert len(beside.others["test"].split) == 4 + 25 + 1
    assert held_out.collect(corpus(), LABELS).unheard is None
    assert len(held_out.collect(corpus(), LABELS).others["validation"].split) == 12


def test_sources_without_recordings_give_their_silence():
    prepared = make_corpus(
        {
            s: ["yes", UNKNOWN, SILENCE, SILENCE]
            for s in ("train", "validation", "test")
        },
        background={},
    )
    constants = prepared.read
    # The clips of such a corpus are constants, which are silent.
    assert held_out.collect(prepared, ("yes", UNKNOWN, SILENCE)).background == {}
    hiss = np.int16(np.arange(CLIP_SAMPLES) % 2 * 2 - 1)
    prepared = dataclasses.replace(prepared, read=lambda r: hiss * constants(r))
    beside = held_out.collect(prepared, ("yes", UNKNOWN, SILENCE))
    assert beside.others["test"].words == (UNKNOWN,)
    bank = beside.background["test"]
    assert sorted(bank.cut(bank.starts)[:, 1].tolist()) == [10, 11]


@pytest.mark.parametrize(
    ("unheard", "protocol", "message"),
    [
        (("yes", "tree"), "custom", "names yes, which are keywords"),
        (("trea",), "custom", "'trea': did you mean 'tree'"),
        (("tree",), "all", "every word is a keyword"),
    ],
)
def test_unheard_words_that_cannot_be_are_named(unheard, protocol, message):
    with pytest.raises(UserError, match=message):
        held_out.check_unheard(corpus(), protocol, WORDS, unheard)


def test_a_source_that_does_not_tell_its_words_is_named():
    prepared = make_corpus({s: ["up", UNKNOWN, SILENCE] for s in ("train", "test")})
    with pytest.raises(UserError, match="does not tell its other words apart"):
        held_out.check_unheard(prepared, "tfds-12", (), ("tree",))


def test_no_second_of_background_is_counted_twice():
    audio = np.arange(-24_000, 25_000).astype(np.int16)
    bank = NoiseBank.from_recordings(
        [Recording("a", audio), Recording("b", 2 * audio[14_000:34_000])]
    )
    crops = held_out.background_crops(bank)
    read = crops.read(np.arange(len(crops)))
    assert read[:, 0].tolist() == [-24_000, -8_000, 8_000, -20_000]
    samples = read[:3].ravel().tolist()
    assert len(set(samples)) == len(samples) == 3 * CLIP_SAMPLES


@pytest.mark.parametrize("samples", [CLIP_SAMPLES // 2, CLIP_SAMPLES - 1, CLIP_SAMPLES])
def test_a_short_recording_of_background_is_counted_once(samples):
    noise = np.random.default_rng(0).normal(0, 1000, samples).astype(np.int16)
    bank = NoiseBank.from_recordings([Recording("a", noise), Recording("b", noise)])
    assert len(held_out.background_crops(bank)) == 2


def test_false_accepts_are_counted_by_kind_and_word():
    """A network that answers with the value of the clip modulo four."""
    beside = held_out.collect(corpus(), LABELS, UNHEARD)

    def predict(batch):
        return np.eye(4)[batch["audio"][:, 0] % 4]

    def batches(split):
        half = np.array_split(np.arange(len(split)), 2)
        for rows in half:
            yield {
                "audio": split.read(rows),
                "label": split.labels[rows],
                "mask": np.ones(len(rows), bool),
            }

    predictions = {
        "label": np.array([0, 2, 2, 2, 3]),
        "clean": np.array([0, 1, 2, 0, 0]),
    }
    rows = false_accepts.test_others(
        predict,
        batches,
        beside,
        predictions,
        stage="train",
        labels=LABELS,
        keywords=2,
    )
    found = {row["metric"].removeprefix("false_accept/"): row for row in rows}
    assert found["heard"]["value"] == pytest.approx(2 / 3)
    assert found["heard"]["count"] == 3
    hits = []
    for word in UNHEARD:
        values = [
            int(name.split("/")[2])
            for name in beside.unheard.split.names.tolist()
            if name.startswith(word)
        ]
        taken = sum(value % 4 < 2 for value in values)
        hits.append(taken)
        row = found[f"unheard/{word}"]
        assert (row["value"], row["count"]) == (taken / len(values), len(values))
        assert row["ci95"] == list(wilson_interval(taken, len(values)))
        assert "words" not in row
    pooled, rare = found["unheard"], found["unheard_rare"]
    assert (pooled["value"], pooled["count"]) == (sum(hits) / 30, 30)
    assert pooled["words"] == list(UNHEARD)
    assert pooled["ci95"] == list(clustered_interval(hits, [25, 5]))
    # A single word is rare: its clips are all that there is to draw.
    alone = found["unheard/tree"]
    assert rare["words"] == ["tree"]
    names = ("value", "count", "ci95")
    assert [rare[n] for n in names] == [alone[n] for n in names]
    # Crops at samples 1, of the one recording of 20,000 samples.
    assert (found["background"]["value"], found["background"]["count"]) == (1, 1)
    run = Run(workdir=Path(), config={}, results=parse_results([CLEAN, *rows], "rows"))
    section = report.section(run)
    assert "“happy”" in section
    assert "“tree”" in section
    assert "<td>30 of 2 words</td>" in section
    assert "<td>5 of 1 word</td>" in section
    ((_, told),) = report.facts(run)
    low, high = (100 * bound for bound in pooled["ci95"])
    assert told.startswith("other words 66.7 % (20.8 – 93.9 %), unheard words ")
    assert f" ({low:.1f} – {high:.1f} %), rare unheard words " in told
    assert told.endswith("background 100.0 % (20.7 – 100.0 %)")


def test_a_report_without_such_rows_has_no_such_section():
    run = Run(workdir=Path(), config={}, results=parse_results([CLEAN], "rows"))
    assert report.section(run) is None
    assert list(report.facts(run)) == []


def test_without_unknown_and_background_there_are_no_rows():
    rows = false_accepts.test_others(
        lambda batch: None,
        lambda split: [],
        held_out.NOTHING_HELD_OUT,
        {"label": np.array([0]), "clean": np.array([0])},
        stage="train",
        labels=WORDS,
        keywords=2,
    )
    assert rows == []
