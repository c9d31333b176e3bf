"""Detection of a whole experiment, and the command, with a network that knows tones."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import scipy.fft
import soundfile
from rich.console import Console
from words import KEYWORDS, WORDS, write_words

from configs import tc_resnet
from kws_jax import command_line, detect, experiment, measuring
from kws_jax import config as configs
from kws_jax.data.corpus import TEST
from kws_jax.data.rooms import RoomBank
from kws_jax.errors import UserError
from kws_jax.evaluation.det_curve import Curve
from kws_jax.evaluation.metrics import wilson_interval
from kws_jax.parts import build_parts
from kws_jax.report.page import write_report
from kws_jax.report.terminal import print_detection
from kws_jax.report.workdir import read_run
from kws_jax.stages import detection, dispatch, runner
from kws_jax.stages.detection_records import recording_lines
from kws_jax.training.workdir_lock import WorkdirLock

RATE = 16_000


class ToneNetwork:
    """Hears a word where most of the power of a window is near the word's tone."""

    stream = None

    def __init__(self, deaf_to=()):
        self._deaf = deaf_to

    def predict(self, batch):
        # Half the rate is enough, and the bins of a second are 1 Hz apart.
        audio = np.asarray(batch["audio"], np.float32)[:, ::2]
        power = np.abs(scipy.fft.rfft(audio, axis=1)) ** 2
        total = power.sum(1) + 8e13  # what is faint counts little
        shares = []
        for word in KEYWORDS:
            low, high = round(0.93 * WORDS[word]), round(1.07 * WORDS[word])
            deaf = word in self._deaf
            shares.append(0 * total if deaf else power[:, low:high].sum(1) / total)
        known = np.stack(shares, 1)
        rest = 1 - known.sum(1, keepdims=True)
        return np.concatenate([known, rest / 2, rest / 2], 1)


def tiny_config(folder, cache):
    config = tc_resnet.get_config("8,cpu").unlock()
    config.data.update(source="folder", dir=str(folder), cache_dir=str(cache))
    config.data.keywords = ",".join(KEYWORDS)
    config.detection.update(hours=0.02, keywords_per_hour=500.0, noise_share=0.3)
    config.detection.target_false_alarms_per_hour = 20.0
    return config


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Parts on a folder of tones, and a workdir as before its first stage."""
    folder = tmp_path_factory.mktemp("data")
    write_words(folder / "words")
    config = tiny_config(folder / "words", folder / "cache")
    parts = build_parts(config, Console(quiet=True))
    experiment.claim_workdir(parts, folder / "work")
    (folder / "work" / "results.json").write_text("[]")
    return parts, folder / "work"


@pytest.fixture(scope="module")
def measured(made, tmp_path_factory):
    """Rows of a measurement with the network of tones, and its workdir."""
    folder = tmp_path_factory.mktemp("measured") / "work"
    shutil.copytree(made[1], folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "finished_network", lambda *_: ToneNetwork())
        return detection.measure(made[0], folder, Console(quiet=True)), folder


@pytest.fixture
def workdir(made, tmp_path, monkeypatch):
    monkeypatch.setattr(dispatch, "finished_network", lambda *_: ToneNetwork())
    parts, folder = made
    copy = shutil.copytree(folder, tmp_path / "work")
    for index in range(len(parts.config.stages)):
        stage = runner.stage_folder(parts, index, copy)
        stage.mkdir(parents=True)
        (stage / runner.DONE_FILE).touch()
    return copy


def test_parts_know_words_that_training_does_not_hear_or_that_are_synthetic(made):
    parts, _ = made
    config = parts.config.copy_and_resolve_references()
    config.data.update(unheard_words="tree", unknown_percent=20.0)
    config.data.synthetic_unknown.update(rate=0.5, words="lift,stock")
    other = build_parts(config, Console(quiet=True))
    assert other.fingerprint != parts.fingerprint
    assert not [n for n in other.task.train.names.tolist() if n.startswith("tree")]
    assert other.held_out.unheard.words == ("tree",)
    # Twice as many unknown clips; validation and test are as they were.
    recorded = -(-len(KEYWORDS) * 12 * 20 // 100)
    unknown = (other.task.train.labels == len(KEYWORDS)).sum()
    assert unknown == 2 * recorded
    for split in (other.task.validation, other.task.test):
        assert not [n for n in split.names.tolist() if n.startswith("synthetic")]
    config.data.update(unknown_percent=0.0, unheard_words="")
    with pytest.raises(UserError, match="no unknown class"):
        build_parts(config, Console(quiet=True))


def test_a_network_that_hears_everything_misses_nothing(measured):
    rows, workdir = measured
    found = {(r["split"], r["condition"], r["metric"]): r for r in rows}
    assert len(found) == len(rows)
    assert all(detection.is_row(row) for row in rows)
    for metric in ("frr@1fa/h", "frr@10fa/h", "frr@1fa/h/up", "frr@threshold"):
        row = found["test", "clean", metric]
        assert row["value"] == 0
        assert row["ci95"] == pytest.approx(wilson_interval(0, row["count"]))
    assert found["test", "clean", "frr@1fa/h"]["count"] == 10
    alarms = found["test", "clean", "false_alarms_per_hour"]
    assert (alarms["value"], alarms["count"]) == (0, 0)
    # -ln 0.025: a mean that makes none with a probability of 2.5 %.
    assert alarms["ci95"] == pytest.approx([0, 3.68888 / 0.02], rel=1e-3)
    assert ("test", "seen 10 dB", "frr@1fa/h") in found
    kept = detection.load(workdir)
    assert kept["rows"] == rows
    assert 0 < kept["threshold"] < 1
    assert set(kept["thresholds"]) == set(KEYWORDS)
    for stream in kept["streams"]:
        for curve in stream["curves"].values():
            # Fewer false alarms want a higher threshold.
            assert 1 >= curve["threshold@1fa/h"] >= curve["threshold@10fa/h"] > 0


def test_what_was_measured_on_is_kept(made, workdir):
    """Whatever shapes the streams, and the clips; nothing of how it is listened to."""
    parts, _ = made
    config = parts.config.copy_and_resolve_references()
    before = detection._measured_on(parts)
    assert before["clips"] == parts.clips
    assert before["words"]["detection.hours"] == 0.02
    changes = (
        ("words", "detection", {"keywords_per_hour": 400.0}),
        ("words", "detection", {"speech_share": 0.5, "seed": 1}),
        ("validation", "data", {"unheard_words": "tree"}),
        ("noise", "data", {"noise_unseen": "elsewhere"}),
        ("noise", "detection", {"snr_db": (5.0,)}),
        ("rooms", "data", {"rooms": "simulated"}),
        (None, "detection", {"hop_ms": 50.0, "target_false_alarms_per_hour": 3.0}),
        (None, "data", {"seed": 7, "threads": 1, "cache_dir": "elsewhere"}),
        # What changes the clips is known by them.
        (None, "data", {"keywords": "up, down,stop", "task_seed": 3}),
    )
    for what, group, fields in changes:
        changed = config.copy_and_resolve_references()
        changed[group].update(fields)
        after = detection._measured_on(dataclasses.replace(parts, config=changed))
        assert {n for n in before if before[n] != after[n]} == {what} - {None}
    detection.measure(parts, workdir, Console(quiet=True))
    assert detection.load(workdir)["measured_on"] == before


def test_a_word_that_is_never_heard_is_missed_and_the_others_are_not(
    made, workdir, monkeypatch
):
    monkeypatch.setattr(dispatch, "finished_network", lambda *_: ToneNetwork(("up",)))
    rows = detection.measure(made[0], workdir, Console(quiet=True))
    value = {
        r["metric"]: r["value"]
        for r in rows
        if (r["split"], r["condition"]) == ("test", "clean")
    }
    assert value["frr@1fa/h/up"] == 1
    assert value["frr@1fa/h/down"] == 0
    assert 0 < value["frr@1fa/h"] < 1


def test_settings_that_do_not_go_are_found_before_training(made):
    parts, _ = made
    config = parts.config.copy_and_resolve_references()
    config.detection.update(final_test=True, speech_share=0.01)
    bad = type(parts)(**{**vars(parts), "config": config})
    with pytest.raises(UserError, match="do not fit into speech_share"):
        detection.check(bad)
    config.detection.final_test = False
    detection.check(bad)


def test_a_rate_below_none_is_refused_before_anything_is_heard(made):
    config = made[0].config.copy_and_resolve_references()
    config.detection.target_false_alarms_per_hour = 0.0
    configs.check(config)
    config.detection.target_false_alarms_per_hour = -1.0
    with pytest.raises(UserError, match=r"per_hour = -1\.0: give a number from 0"):
        configs.check(config)


def test_gaps_without_background_are_found_before_training(made):
    parts, _ = made
    config = parts.config.copy_and_resolve_references()
    config.detection.update(final_test=True, noise_share=0.5)
    background = {TEST: parts.held_out.background[TEST]}
    lacking = dataclasses.replace(parts.held_out, background=background)
    bad = type(parts)(**{**vars(parts), "config": config, "held_out": lacking})
    with pytest.raises(UserError, match="the validation split has no recordings of"):
        detection.check(bad)
    config.detection.noise_share = 0.0
    detection.check(bad)


def write_tones(path, seconds, tones, rate=RATE):
    """Tones of words in silence: (word, second of its middle, amplitude)."""
    wave = np.zeros(round(seconds * rate))
    for word, middle, amplitude in tones:
        here = slice(round((middle - 1) * rate), round((middle + 1) * rate))
        t = np.arange(here.start, here.stop) / rate
        envelope = amplitude * np.exp(-(((t - middle) / 0.15) ** 2))
        wave[here] += np.sin(2 * np.pi * WORDS[word] * t) * envelope
    soundfile.write(path, wave, rate)


def test_without_an_snr_the_clean_streams_alone_are_heard(made, workdir):
    parts, _ = made
    assert parts.noise
    config = parts.config.copy_and_resolve_references()
    config.detection.snr_db = ()
    quiet = type(parts)(**{**vars(parts), "config": config})
    rows = detection.measure(quiet, workdir, Console(quiet=True))
    assert {(row["split"], row["condition"]) for row in rows} == {
        ("validation", "clean"),
        ("test", "clean"),
    }
    (workdir / "results.json").write_text(json.dumps(rows))
    assert "Keywords in continuous audio" in write_report(workdir).read_text()


def write_recording(path, rate=RATE):
    """Twelve seconds: "up" in the third, another word in the fifth, then "stop"."""
    tones = [("up", 2.5, 0.3), ("cat", 4.5, 0.3), ("stop", 7.5, 0.3)]
    write_tones(path, 12, tones, rate)


@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_a_recording_of_any_rate_is_heard(workdir, made, tmp_path, rate):
    write_recording(tmp_path / "long.wav", rate)
    (tmp_path / "times.csv").write_text("2,3,up\n4,5,_unknown_\n7,8,stop\n9,10,down\n")
    config = made[0].config
    told = detect.listen(
        config, workdir, str(tmp_path / "long.wav"), str(tmp_path / "times.csv"), "0.6"
    )
    *lines, errors = told
    heard = [line for line in lines if "time" in line]
    assert [(h["keyword"], h["right"]) for h in heard] == [("up", True), ("stop", True)]
    assert [h["time"] for h in heard] == pytest.approx([2.5, 7.5], abs=0.5)
    assert errors["keywords"] == 3
    assert errors["false_reject_rate"] == pytest.approx(1 / 3, abs=1e-6)
    assert errors["false_alarms_per_hour"] == 0
    assert errors["hours"] == pytest.approx(12 / 3600, abs=1e-6)


def test_a_recording_of_ones_own_gets_the_curve_of_each_keyword(
    workdir, made, tmp_path
):
    """400 s, in which ten false alarms an hour are one, and one an hour is none.

    "up" is said twice and once only resembles it, less clearly than the first and more
    so than the second; "stop" is said clearly, "down" without a sound.
    """
    path, times = tmp_path / "long.wav", tmp_path / "times.csv"
    tones = [("up", 10.5, 0.4), ("up", 50.5, 0.35), ("up", 30.5, 0.3)]
    write_tones(path, 400, [*tones, ("stop", 70.5, 0.4)])
    times.write_text("10,11,up\n30,31,up\n70,71,stop\n90,91,down\n")
    config = made[0].config.copy_and_resolve_references()
    config.detection.target_false_alarms_per_hour = 10.0
    lines = list(detect.listen(config, workdir, str(path), str(times), "0.7"))
    assert [line["right"] for line in lines[:4]] == [True, True, False, True]

    def share(name, misses, count):
        low, high = wilson_interval(misses, count)
        bounds = [round(low, 6), round(high, 6)]
        return {name: round(misses / count, 6), f"{name}_ci95": bounds}

    def told(misses, points, count):
        rates = [
            share(f"frr@{rate}fa/h", missed, count)
            for rate, missed in zip((1, 10), misses)
        ]
        return rates[0] | rates[1] | {"points": points}

    note, errors = lines[-2:]
    for line in [*lines[4:-2], errors]:
        for rate in (1, 10):
            # Given back on the same recording, the threshold does what was told of it.
            threshold = str(line.pop(f"threshold@{rate}fa/h"))
            events = detect.listen(config, workdir, str(path), str(times), threshold)
            words = {line["curve"]} if "curve" in line else set(KEYWORDS)
            heard = [e["right"] for e in events if e.get("keyword") in words]
            said = line.get("references", line.get("keywords"))
            assert heard.count(True) == round(said * (1 - line[f"frr@{rate}fa/h"]))
            assert heard.count(False) <= rate * 400 / 3600
    assert lines[4:-2] == [
        {"curve": "up", "references": 2} | told((1, 0), [[0, 1], [1, 0]], 2),
        # Heard nowhere, it is found where every second is an event: at a score of 0.
        {"curve": "down", "references": 1} | told((1, 1), [[0, 1], [399, 0]], 1),
        {"curve": "stop", "references": 1} | told((0, 0), [[0, 0]], 1),
    ]
    assert note == {
        "note": "In so short a recording (0.111 h) at most 1 false alarm an hour "
        "means none at all."
    }
    hours = 400 / 3600
    alarms = errors.pop("false_alarms_per_hour_ci95")
    # A Poisson variable that was once 1, by Garwood's table.
    assert alarms == pytest.approx([0.0253 / hours, 5.572 / hours], rel=1e-3)
    assert errors == {
        "keywords": 4,
        "hours": round(hours, 6),
        "false_alarms_per_hour": round(1 / hours, 6),
        **share("false_reject_rate", 1, 4),
        # Three keywords, each in every second, but for the four times one is said.
        **told((2, 1), [[0, 2], [1, 1], [1196, 0]], 4),
    }
    # The lines are what a JSON reader gets back.
    assert [json.loads(json.dumps(line)) for line in lines] == lines


def test_the_wanted_rate_is_told_of_a_recording_of_ones_own(workdir, made, tmp_path):
    path, times = tmp_path / "long.wav", tmp_path / "times.csv"
    write_tones(path, 400, [("up", 10.5, 0.4), ("up", 50.5, 0.35), ("up", 30.5, 0.3)])
    times.write_text("10,11,up\n30,31,up\n")
    config = made[0].config.copy_and_resolve_references()
    config.detection.target_false_alarms_per_hour = 9.0
    arguments = (config, workdir, str(path), str(times), "0.7")
    told = list(detect.listen(*arguments))[-1]
    rates = [key for key in told if key.startswith("threshold@")]
    assert rates == ["threshold@1fa/h", "threshold@9fa/h", "threshold@10fa/h"]
    # 400 s at nine an hour are one alarm, as at ten
    assert told["threshold@9fa/h"] == told["threshold@10fa/h"]
    assert told["frr@9fa/h"] == 0


def test_a_threshold_just_above_all_scores_is_taken(workdir, made, tmp_path):
    write_recording(tmp_path / "long.wav")
    path = str(tmp_path / "long.wav")
    above = str(np.nextafter(1.0, 2.0))
    assert not list(detect.listen(made[0].config, workdir, path, "", above))


@pytest.mark.parametrize(
    ("hours", "rates"), [(0.05, "1 or 10"), (0.5, "1"), (1.0, None), (7.0, None)]
)
def test_rates_that_allow_no_alarm_in_a_short_recording_are_told(hours, rates):
    curve = Curve(np.array([0.5]), np.array([1]), np.array([0]), 2, hours)
    told = [
        line["note"]
        for line in recording_lines({"": curve}, (1, 0))
        if line.keys() == {"note"}
    ]
    assert [f"at most {rates} false alarm" in note for note in told] == (
        [True] if rates else []
    )


def test_the_stored_threshold_and_rule_are_used(workdir, made, measured, tmp_path):
    write_recording(tmp_path / "long.wav")
    parts, _ = made
    path = str(tmp_path / "long.wav")
    with pytest.raises(UserError, match=r"no detection\.json.*kws_jax\.detect"):
        list(detect.listen(parts.config, workdir, path, "", "common"))
    shutil.copy(measured[1] / "detection.json", workdir)
    for threshold in ("common", "each"):
        heard = list(detect.listen(parts.config, workdir, path, "", threshold))
        assert [h["keyword"] for h in heard] == ["up", "stop"]
        assert all("right" not in h for h in heard)
    with pytest.raises(UserError, match="--threshold=2: give 'common'"):
        list(detect.listen(parts.config, workdir, path, "", "2"))
    stored = json.loads((workdir / "detection.json").read_text())
    (workdir / "detection.json").write_text(json.dumps(stored | {"threshold": 1.5}))
    assert not list(detect.listen(parts.config, workdir, path, "", "common"))


def test_the_command_keeps_rows_and_draws_the_report(workdir, made, capsys):
    other = {
        "stage": "train",
        "split": "test",
        "condition": "clean",
        "ci95": [0.8, 1.0],
    }
    other |= {"metric": "accuracy", "value": 0.9, "count": 20}
    former = other | {"metric": "frr@1fa/h"}
    (workdir / "results.json").write_text(json.dumps([other, former]))
    measuring.detect(made[0].config, workdir)
    rows = json.loads((workdir / "results.json").read_text())
    assert rows[0] == other
    assert rows[1:] == detection.load(workdir)["rows"]
    assert "0.0 % missed at 1 false alarm an hour" in capsys.readouterr().out
    page = (workdir / "report.html").read_text()
    section = page[page.index('id="detection"') :]
    for word in (*KEYWORDS, "all keywords"):
        assert f"{word}</text>" in section
    assert section.count('class="line each') == len(KEYWORDS)
    assert '<td class="number">0 – 184</td>' in section
    # A later run of the same experiment keeps them.
    assert detection.final_test(made[0], workdir, Console(quiet=True)) == rows[1:]


def refuse_data(monkeypatch):
    """Lets a test fail that opens data before it has refused what it was asked for."""

    def opened(*_):
        raise AssertionError("the data were opened first")

    monkeypatch.setattr(measuring, "build_parts", opened)


def test_without_a_final_test_nothing_is_measured(workdir, made, monkeypatch):
    refuse_data(monkeypatch)
    (workdir / "results.json").unlink()
    with pytest.raises(UserError, match=r"no results\.json: its final test has not"):
        measuring.detect(made[0].config, workdir)
    assert not (workdir / detection.FILE).exists()


def test_a_file_that_cannot_be_written_is_told_before_the_test(
    workdir, made, monkeypatch, tmp_path
):
    refuse_data(monkeypatch)
    config = made[0].config
    for name, told in (("no/such/x.json", "does not exist"), ("", "is a folder")):
        with pytest.raises(UserError, match=f"--output=.*{told}"):
            measuring.evaluate(config, workdir, str(tmp_path / name))
    # In the new folder it may be, which is made before.
    inside = tmp_path / "new" / "x.json"
    with pytest.raises(AssertionError, match="opened first"):
        measuring.evaluate(config, workdir, str(inside), str(inside.parent))


def test_a_file_that_cannot_be_written_after_all_is_named(
    workdir, made, monkeypatch, tmp_path
):
    def tested(*_):
        (tmp_path / "there").rmdir()
        return []

    (tmp_path / "there").mkdir()
    monkeypatch.setattr(measuring.experiment, "final_test", tested)
    with pytest.raises(UserError, match=r"--output=.*x\.json cannot be written"):
        measuring.evaluate(made[0].config, workdir, str(tmp_path / "there" / "x.json"))


def test_where_there_are_rooms_every_test_is_repeated_far(
    made, measured, workdir, capsys
):
    """Two rooms: one delays by a tenth of a second, one leaves nearly nothing."""
    responses = np.zeros((2, RATE // 10 + 1), np.float32)
    responses[0, -1], responses[1, 0] = 1, 1e-3
    rooms = RoomBank(("hall", "cupboard"), responses, "")
    parts = dataclasses.replace(made[0], test_rooms=rooms)
    planned = detection.plan(parts)
    far, near = planned[-1], planned[1]
    assert (far.condition, near.condition) == ("far seen 10 dB", "clean")
    assert far.stream is near.stream
    rows = detection.measure(parts, workdir, Console(quiet=True))
    before = measured[0]
    assert rows[: len(before)] == before
    added = rows[len(before) :]
    assert {r["condition"] for r in added} == {"far clean", "far seen 10 dB"}
    assert {r["metric"] for r in added} == {
        r["metric"] for r in before if r["split"] == "test"
    }
    found = {(r["condition"], r["metric"]): r["value"] for r in added}
    # As often in the one room as in the other; ten keywords are said.
    assert 0.1 <= found["far clean", "frr@10fa/h"] <= 0.9
    assert found["far clean", "false_alarms_per_hour"] == 0
    near, far = (
        np.stack(list(detection._clips(parts, near.stream.words, one.words_in)))
        for one in (near, far)
    )
    delayed = np.pad(near, ((0, 0), (RATE // 10, 0)))[:, :RATE]
    differs = np.minimum(
        np.abs(far - delayed.astype(float)).max(1),
        np.abs(far - 1e-3 * near.astype(float)).max(1),
    )
    assert differs.max() <= 1
    tested = rows[-1] | {"condition": "clean", "metric": "accuracy"}
    (workdir / "results.json").write_text(json.dumps([tested, *rows]))
    write_report(workdir)
    print_detection(workdir)
    told = capsys.readouterr().out
    assert "continuous audio: 0.0 % missed at 1 false alarm" in told
    share = f"{100 * found['far clean', 'frr@1fa/h']:.1f} % missed at 1 false alarm"
    assert f"continuous audio, far: {share}" in told
    page = (workdir / "report.html").read_text()
    section = page[page.index('id="detection"') :]
    assert section.count('class="line each') == 2 * len(KEYWORDS)
    assert "test, far clean</td>" in section
    assert "test, far seen 10 dB</td>" in section


def test_words_that_training_heard_are_not_called_unheard_later(made, workdir):
    config = made[0].config.copy_and_resolve_references()
    config.data.unheard_words = "tree"
    with pytest.raises(UserError, match="names tree, which were not kept from"):
        measuring.evaluate(config, workdir)
    # whatever else is changed, as long as the clips are the same
    config.data.noise_test_fraction = 0.0
    config.data.rooms = "simulated"
    with pytest.raises(UserError, match="names tree, which were not kept from"):
        measuring.evaluate(config, workdir)


def test_words_that_training_never_heard_stay_unheard(made, workdir):
    parts, _ = made
    stored = parts.identity()
    trained = parts.config.copy_and_resolve_references()
    trained.data.unheard_words = "tree"
    with pytest.raises(UserError, match="lacks tree, which were kept from training"):
        measuring._check_unheard(parts, trained, stored)
    del stored["clips"]
    with pytest.raises(UserError, match="lacks tree, which were kept from training"):
        measuring._check_unheard(parts, trained, stored)
    # The folder of its training may have grown; of another one nothing is known.
    others = stored | {"clips": "others"}
    with pytest.raises(UserError, match="lacks tree, which were kept from training"):
        measuring._check_unheard(parts, trained, others)
    trained.data.dir = "elsewhere"
    measuring._check_unheard(parts, trained, others)
    measuring._check_unheard(parts, parts.config, parts.identity())


def test_a_report_without_detection_has_no_such_section(made, workdir):
    write_report(workdir)
    assert read_run(workdir).detection is None
    assert 'id="detection"' not in (workdir / "report.html").read_text()


@pytest.fixture
def own(tmp_path):
    """A recording of 400 s with its words, as arguments: ten an hour are one alarm.

    "up" is said twice and once only resembles it, less clearly than the first and more
    so than the second; "stop" is said clearly, "down" not at all.
    """
    path, times = tmp_path / "mine" / "long.wav", tmp_path / "times.csv"
    path.parent.mkdir()
    tones = [("up", 10.5, 0.4), ("up", 50.5, 0.35), ("up", 30.5, 0.3)]
    write_tones(path, 400, [*tones, ("stop", 70.5, 0.4)])
    times.write_text("10,11,up\n30,31,up\n70,71,stop\n")
    return str(path), str(times)


def wanting(parts, target):
    config = parts.config.copy_and_resolve_references()
    config.detection.target_false_alarms_per_hour = target
    return config


def heard_by(config, workdir, own, threshold):
    """How many events in a recording are right, and how many are wrong."""
    events = detect.listen(config, workdir, *own, threshold)
    right = [event["right"] for event in events if "right" in event]
    return right.count(True), right.count(False)


def without(settings, *names):
    return {name: value for name, value in settings.items() if name not in names}


@pytest.mark.parametrize("old", [False, True])
def test_thresholds_of_ones_own_recording_become_the_workdirs(
    made, workdir, measured, own, old
):
    rows, before = measured[0], detection.load(measured[1])
    if old:  # as a former version kept it
        before = without(before, "chosen_on", "measured_on", "scores")
        names = ("threshold", "scores", "rule")
        before["streams"] = [without(s, *names) for s in before["streams"]]
    (workdir / "detection.json").write_text(json.dumps(before))
    (workdir / "results.json").write_text(json.dumps(rows))
    config = wanting(made[0], 10.0)
    *_, errors, last = detect.listen(config, workdir, *own, "each", keep=True)
    kept = detection.load(workdir)
    common, each = kept["threshold"], kept["thresholds"]
    assert last == {
        "kept": {
            "target_false_alarms_per_hour": 10.0,
            "threshold": common,
            "thresholds": each,
        }
    }
    assert common == errors["threshold@10fa/h"] != before["threshold"]
    # What is never said has the threshold of all.
    assert each["down"] == common
    assert kept["chosen_on"] == {"recording": "long.wav", "hours": 400 / 3600}
    # At the stored thresholds one false alarm is made, and nothing missed.
    assert heard_by(config, workdir, own, "common") == (3, 1)
    assert heard_by(config, workdir, own, "each") == (3, 1)
    # Streams are as they were measured, and say at which threshold.
    for stream, former in zip(kept["streams"], before["streams"], strict=True):
        measured_with = {name: before[name] for name in ("threshold", "rule")}
        assert stream == former | measured_with | {"scores": "windows"}
    named = ("frr@threshold", "false_alarms_per_hour")
    others = [row for row in rows if row["metric"] not in named]
    assert kept["rows"] == json.loads((workdir / "results.json").read_text()) == others
    page = (workdir / "report.html").read_text()
    section = page[page.index('id="detection"') :]
    told = f"The threshold {common:.4g} was chosen on the recording long.wav (0.111 h)"
    assert told in section
    assert f"Streams were measured before, at {before['threshold']:.4g}:" in section
    assert section.count(f"<td>{before['threshold']:.4g}</td>") == len(kept["streams"])
    assert f"<td>{common:.4g}</td>" not in section


def test_a_measurement_tells_whose_thresholds_it_replaces(made, workdir, own, capsys):
    list(detect.listen(wanting(made[0], 10.0), workdir, *own, "0.7", keep=True))
    rows = detection.measure(made[0], workdir, Console())
    told = " ".join(capsys.readouterr().out.split())
    assert "take the place of those chosen on long.wav" in told
    kept = detection.load(workdir)
    assert kept["chosen_on"] == {"streams": "validation", "hours": 0.02}
    (workdir / "results.json").write_text(json.dumps(rows))
    page = write_report(workdir).read_text()
    assert f"{kept['threshold']:.4g} was chosen on validation clips, to keep" in page
    assert "with a window of a second" in page
    assert "With it:" in page


@pytest.mark.parametrize("threshold", ["common", "each", "0.7"])
def test_a_workdir_without_thresholds_gets_its_first(made, workdir, own, threshold):
    config = wanting(made[0], 10.0)
    told = list(detect.listen(config, workdir, *own, threshold, keep=True))
    kept = detection.load(workdir)
    right = [line["right"] for line in told if "right" in line]
    assert (right.count(True), right.count(False)) == (3, 1)
    assert told[-1]["kept"]["threshold"] == kept["threshold"]
    assert kept["streams"] == kept["rows"] == []
    assert kept["rule"]["hop_ms"] == config.detection.hop_ms
    assert detection.final_test(made[0], workdir, Console(quiet=True)) == []
    page = (workdir / "report.html").read_text()
    section = page[page.index('id="detection"') :]
    assert "was chosen on the recording long.wav" in section
    assert "With it" not in section


def test_a_recording_too_short_for_the_wanted_rate_keeps_nothing(made, workdir, own):
    """400 s at one an hour are a ninth of an alarm; none at all can be wanted."""
    with pytest.raises(
        UserError, match=r"long\.wav \(0\.111 h\) at most 1 false alarm an hour would"
    ):
        list(detect.listen(wanting(made[0], 1.0), workdir, *own, "0.7", keep=True))
    assert not (workdir / detection.FILE).exists()
    list(detect.listen(wanting(made[0], 0.0), workdir, *own, "0.7", keep=True))
    # As loud as the false alarm, which is above one of them, "up" is not heard.
    assert heard_by(made[0].config, workdir, own, "common") == (2, 0)


def test_a_threshold_is_not_kept_while_another_run_is_at_work(made, workdir, own):
    config = wanting(made[0], 10.0)
    told = detect.listen(config, workdir, *own, "0.7", keep=True)
    with WorkdirLock(workdir), pytest.raises(UserError, match="Another run is at work"):
        next(told)


@pytest.mark.parametrize(
    "ignored",
    [
        "--data.dir=clips",
        "--detection.hours=2",
        "-detection.keywords_per_hour=9",
        "--nodetection.final_test",
        "--detection.target_false_alarms_per_hour=5",
        "--detection.tolerance_ms=5",
    ],
)
@pytest.mark.parametrize("threshold", ["--threshold=0.5", "--threshold=each"])
def test_what_a_recording_does_not_know_is_refused(workdir, ignored, threshold):
    argv = [f"--workdir={workdir}", "--audio=a.wav", threshold, ignored]
    with pytest.raises(UserError, match=r"With --audio may be given .*hop_ms") as told:
        detect._define_overrides(argv)
    assert str(told.value).startswith(f"{ignored} says nothing of a recording.")


def test_flags_that_do_not_go_together_are_told(workdir, monkeypatch):
    def define(*arguments):
        detect._define_overrides([f"--workdir={workdir}", *arguments])

    with pytest.raises(UserError, match="the stored threshold goes with the settings"):
        define("--audio=a.wav", "--detection.hop_ms=50")
    # Where none is stored yet, those of the recording go with what is given here.
    keeping = ["--audio=a.wav", "--labels=a.csv", "--keep_thresholds"]
    with monkeypatch.context() as patch:
        patch.setattr(command_line, "define_groups", lambda argv, groups: None)
        define(*keeping, "--detection.hop_ms=50")
    (workdir / "detection.json").write_text("{}")
    with pytest.raises(UserError, match="the stored threshold goes with the settings"):
        define(*keeping, "--detection.hop_ms=50")
    wanted = "--detection.target_false_alarms_per_hour=5"
    with pytest.raises(
        UserError, match=r"--detection\.hop_ms=50: the stored threshold"
    ):
        define("--audio=a.wav", "--labels=a.csv", wanted, "--detection.hop_ms=50")
    with monkeypatch.context() as patch:
        patch.setattr(command_line, "define_groups", lambda argv, groups: None)
        define("--audio=a.wav", "--labels=a.csv", wanted)
        define("--audio=a.wav", "--threshold=0.5", "--detection.hop_ms=50")
        define("--audio=a.wav", "--data.cache_dir=here")
    with pytest.raises(UserError, match=r"has no field 'hop'; did you mean 'hop_ms'"):
        define("--detection.hop=50")
    with pytest.raises(UserError, match=r"here is --data\.FIELD=VALUE and --detection"):
        define("--config.detection.hours=1")
    config = json.loads((workdir / "config.json").read_text())
    del config["detection"]
    (workdir / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="earlier version"):
        define()
