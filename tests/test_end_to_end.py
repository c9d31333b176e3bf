"""The programs as users run them, on a small folder of tones in place of words."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import numpy as np
import orbax.checkpoint as ocp
import pytest
import soundfile
from words import (
    CLOCK,
    KEYWORDS,
    LABELS,
    RATE,
    ROOT,
    SPEAKERS,
    TEST_CLIPS,
    data_flags,
    lines_of,
    rows_of,
    speakers,
    without_clock,
)

from kws_jax import config as configs
from kws_jax.errors import UserError
from kws_jax.models.genotype import OPERATIONS, load_genotype

ROW_KEYS = {"stage", "split", "condition", "metric", "value", "ci95", "count"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def start(cache):
    """Starts a program of the package; all share one cache of compiled programs."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "KWS_JAX_CACHE": str(cache),
        "JAX_COMPILATION_CACHE_DIR": str(cache / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }

    def start(program, *arguments, **more):
        return subprocess.Popen(
            [sys.executable, "-m", f"kws_jax.{program}", *map(str, arguments)],
            cwd=ROOT,
            env=environment | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture(scope="module")
def run(start):
    """Runs a program to its end: (exit code, stdout, stderr)."""

    def run(program, *arguments, **more):
        process = start(program, *arguments, **more)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    return run


def search_flags(speech: Path) -> list[str]:
    return [
        "--config=configs/autokws.py:noisydarts,cpu",
        *data_flags(speech),
        "--config.search.width=0.25",
        *(
            f"--config.stages[{stage}].{setting}"
            for stage in (0, 1)
            for setting in ("epochs=1", "batch_size=8", "eval_every_epochs=1")
        ),
    ]


# Thirty checkpoints, so that a kill between the first and the last is easily placed.
STEPS, EVAL_EVERY = 120, 4


def train_flags(speech: Path) -> list[str]:
    train_clips = 3 * SPEAKERS["train"] + 4 + 4
    return [
        "--config=configs/tc_resnet.py:8",
        *data_flags(speech),
        "--config.network.width=0.25",
        "--config.stages[0].batch_size=8",
        f"--config.stages[0].steps={STEPS}",
        f"--config.stages[0].eval_every_epochs={EVAL_EVERY * 8 / train_clips}",
    ]


@pytest.fixture(scope="module")
def trained(run, speech, tmp_path_factory):
    """The workdir of an undisturbed training."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    code, _, err = run("main", *train_flags(speech), f"--workdir={workdir}")
    assert code == 0, err
    return workdir


@pytest.fixture(scope="module")
def searched(run, speech, tmp_path_factory):
    """The workdir of a search and a training, and what was printed."""
    workdir = tmp_path_factory.mktemp("searched") / "run"
    code, out, err = run("main", *search_flags(speech), f"--workdir={workdir}")
    assert code == 0, err
    return workdir, out


def test_one_command_searches_trains_and_tests(searched):
    workdir, out = searched
    rows = rows_of(workdir)
    assert all(set(row) == ROW_KEYS for row in rows)
    measured = {(r["stage"], r["split"], r["condition"], r["metric"]): r for r in rows}
    assert len(measured) == len(rows)
    clean = measured["train", "test", "clean", "accuracy"]
    assert clean["count"] == TEST_CLIPS
    assert clean["ci95"][0] <= clean["value"] <= clean["ci95"][1]
    recalls = [measured["train", "test", "clean", f"recall/{w}"] for w in LABELS]
    assert [row["count"] for row in recalls] == [4, 4, 4, 2, 2]
    hits = sum(row["value"] * row["count"] for row in recalls)
    assert hits / TEST_CLIPS == pytest.approx(clean["value"])
    assert measured["train", "test", "seen 10 dB", "accuracy"]["count"] == TEST_CLIPS
    for stage in ("search", "train"):
        assert measured[stage, "validation", "clean", "accuracy"]["count"] == TEST_CLIPS
        assert measured[stage, "train", "clean", "seconds"]["value"] > 0
    for metric in ("parameters", "macs"):
        assert measured["train", "train", "clean", metric]["value"] > 0
    assert f"{100 * clean['value']:.1f}" in out
    assert "report.html" in out


def test_the_search_leaves_a_network_and_its_history(searched):
    workdir, _ = searched
    genotype = load_genotype(workdir / "genotype.json")
    assert len(genotype.layers) == 6
    assert {op for layer in genotype.layers for op in layer} <= set(OPERATIONS)
    assert genotype.channels == (6, 6, 8, 8, 12, 12)
    (history,) = lines_of(workdir, "architecture.jsonl")
    assert history["stage"] == "search"
    for weights in history["weights"]:
        assert sum(weights) == pytest.approx(1, abs=1e-5)
        assert np.ptp(weights) > 0


def test_logs_and_report_lie_beside_the_results(searched):
    workdir, _ = searched
    lines = lines_of(workdir)
    # 44 training clips: 22 for the weights of the search are 3 steps of 8; 6 to train.
    assert [(line["stage"], line["split"], line["step"]) for line in lines] == [
        ("search", "train", 3),
        ("search", "validation", 3),
        ("train", "train", 3),
        ("train", "train", 6),
        ("train", "validation", 6),
    ]
    assert all(np.isfinite(line["loss"]) for line in lines)
    page = (workdir / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert 'src="http' not in page
    assert [*(workdir / "tensorboard").iterdir()]
    stored = configs.load_workdir(workdir)
    assert stored.data.keywords == ",".join(KEYWORDS)
    assert json.loads((workdir / "evaluation.json").read_text())["labels"] == [*LABELS]
    with np.load(workdir / "predictions.npz") as predictions:
        assert len(predictions["label"]) == len(predictions["clean"]) == TEST_CLIPS


def test_a_finished_experiment_is_not_trained_again(searched, run, speech):
    workdir, _ = searched
    kept = {path: path.stat().st_mtime_ns for path in (workdir / "stages").rglob("*")}
    results = (workdir / "results.json").read_bytes()
    metrics = (workdir / "metrics.jsonl").read_bytes()
    began = time.monotonic()
    code, _, err = run("main", *search_flags(speech), f"--workdir={workdir}")
    assert code == 0, err
    assert time.monotonic() - began < 60
    assert (workdir / "results.json").read_bytes() == results
    assert (workdir / "metrics.jsonl").read_bytes() == metrics
    again = {path: path.stat().st_mtime_ns for path in (workdir / "stages").rglob("*")}
    assert again == kept


def test_stages_of_another_workdir_are_taken_on_the_command_line(
    run, speech, trained, tmp_path
):
    flags = train_flags(speech)
    flags += [f"--workdir={tmp_path / 'run'}", f"--stages_from={trained}"]
    code, out, err = run("main", *flags)
    assert code == 0, err
    assert f"Taken from {trained}: 'train'\n" in out
    assert rows_of(tmp_path / "run") == rows_of(trained)
    command = json.loads((tmp_path / "run" / "command.json").read_text())
    assert command == flags[:-2] + flags[-1:]

    code, _, err = run("main", *flags, "--config.network.width=0.5")
    assert code == 2
    assert "belongs to another experiment" in err
    code, _, err = run("main", *flags, "--stages_from=s3://bucket/run")
    assert code == 2
    assert "unknown kind" in err


def last_steps(workdir: Path) -> list[int]:
    """Steps of the complete checkpoints to go on from."""
    folder = workdir / "stages" / "0-train" / "last"
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())


def kill_after_a_checkpoint(
    process: subprocess.Popen, workdir: Path, delay: float
) -> None:
    """SIGKILL so many seconds after the next checkpoint."""
    before = last_steps(workdir)
    deadline = time.monotonic() + 120
    while last_steps(workdir) in ([], before):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def saved_tree(workdir: Path, kind: str, step: int):
    path = (workdir / "stages" / "0-train" / kind / str(step) / "state").resolve()
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path)


def test_a_killed_training_ends_with_the_same_parameters(
    trained, start, run, speech, tmp_path
):
    workdir = tmp_path / "killed"
    command = ("main", *train_flags(speech), f"--workdir={workdir}")
    told, rng = [], random.Random(0)
    for _ in range(2):
        process = start(*command)
        delay = rng.uniform(0, 1)
        kill_after_a_checkpoint(process, workdir, delay)
        told.append((delay, last_steps(workdir)))
        assert process.returncode == -signal.SIGKILL, told
        assert last_steps(workdir)[-1] < STEPS, told
        assert not (workdir / "results.json").exists()
    code, _, err = run(*command)
    assert code == 0, (told, err)
    steps = last_steps(workdir)
    assert steps == last_steps(trained) == [STEPS - EVAL_EVERY, STEPS], told
    killed, undisturbed = (saved_tree(w, "last", STEPS) for w in (workdir, trained))
    assert {"step", "trees", "opt_state", "batch_stats"} <= set(undisturbed)
    chex.assert_trees_all_equal_shapes_and_dtypes(killed, undisturbed)
    chex.assert_trees_all_equal(killed, undisturbed)
    assert without_clock(lines_of(workdir)) == without_clock(lines_of(trained)), told
    rows, expected = (
        [row for row in rows_of(w) if row["metric"] not in CLOCK]
        for w in (workdir, trained)
    )
    assert rows == expected, told


def test_predict_answers_for_files_of_any_length_rate_and_folder(
    trained, run, speech, tmp_path
):
    clip, _ = soundfile.read(next((speech / "up").iterdir()))
    long = np.zeros(4 * RATE)
    # At the start of a window: one of the windows is the clip itself.
    long[RATE : 2 * RATE] = clip
    soundfile.write(tmp_path / "long.flac", long, RATE)
    soundfile.write(tmp_path / "clip.wav", clip, RATE)
    seconds = np.arange(8_000 * 2) / 8_000
    stereo = np.stack([np.sin(2 * np.pi * 300 * seconds)] * 2, axis=1)
    soundfile.write(tmp_path / "stereo_8k.wav", 0.3 * stereo, 8_000)
    folder = tmp_path / "folder" / "below"
    folder.mkdir(parents=True)
    for path in sorted((speech / "stop").iterdir())[:3]:
        shutil.copy(path, folder)
    files = [tmp_path / n for n in ("clip.wav", "long.flac", "stereo_8k.wav")]
    code, out, err = run("predict", *files, folder.parent, f"--workdir={trained}")
    assert code == 0, err
    answers = [json.loads(line) for line in out.splitlines()]
    expected = [str(path) for path in (*files, *sorted(folder.iterdir()))]
    assert [answer["path"] for answer in answers] == expected
    for answer in answers:
        assert list(answer) == ["path", "keyword", "score", "scores"]
        assert tuple(answer["scores"]) == LABELS
        assert sum(answer["scores"].values()) == pytest.approx(1, abs=1e-4)
        assert answer["score"] == max(answer["scores"].values())
        assert answer["scores"][answer["keyword"]] == answer["score"]
    short, whole = (max(a["scores"][w] for w in KEYWORDS) for a in answers[:2])
    assert whole >= short - 1e-5


def test_predict_tells_what_is_missing_or_broken(trained, run, searched, tmp_path):
    def told(*arguments, workdir=trained):
        code, out, err = run("predict", f"--workdir={workdir}", *arguments)
        assert (code, out) == (2, "")
        return _one_message(err)

    nowhere = tmp_path / "nowhere.wav"
    assert f"no file or folder '{nowhere}'" in told(nowhere)
    assert "holds no audio" in told(tmp_path)
    assert "holds no experiment" in told(nowhere, workdir=tmp_path)
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF nonsense")
    assert f"{broken} cannot be read as audio" in told(broken)
    unfinished = tmp_path / "unfinished"
    shutil.copytree(searched[0], unfinished)
    (unfinished / "stages" / "1-train" / "done.json").unlink()
    assert "has not been run to its end" in told(
        tmp_path / "broken.wav", workdir=unfinished
    )


def test_evaluate_measures_again_under_other_conditions(trained, run, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    output = tmp_path / "rows.json"
    code, out, err = run(
        "evaluate",
        f"--workdir={trained}",
        "--evaluation.snr_db=(5,-5)",
        f"--output={output}",
    )
    assert code == 0, err
    rows = json.loads(output.read_text())
    accuracy = {r["condition"]: r for r in rows if r["metric"] == "accuracy"}
    assert set(accuracy) == {"clean", "seen 5 dB", "seen -5 dB"}
    assert all(row["count"] == TEST_CLIPS for row in accuracy.values())
    (clean,) = (
        row
        for row in rows_of(trained)
        if (row["split"], row["condition"], row["metric"])
        == ("test", "clean", "accuracy")
    )
    assert accuracy["clean"] == clean
    assert "seen -5 dB" in out or "-5" in out
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_what_evaluate_keeps_is_compared(trained, run, tmp_path):
    kept = tmp_path / "kept"
    ask = ("evaluate", f"--workdir={trained}", f"--output_dir={kept}")
    code, _, err = run(*ask, "--evaluation.snr_db=(10,-5)")
    assert code == 0, err
    both = (str(trained), str(kept), "--noise", f"--baseline={trained}")
    code, out, err = run("compare", *both)
    assert code == 0, err
    # What is tested alike in both is no different; what was not tested is not told.
    clean = next(
        row["value"]
        for row in rows_of(trained)
        if (row["split"], row["condition"], row["metric"])
        == ("test", "clean", "accuracy")
    )
    assert out.count(f"{100 * clean:.2f}") >= 2, out
    assert "+0.00 (+0.00 … +0.00)" in out.replace("−", "+"), out
    (of_training,) = {
        row["value"] for row in rows_of(trained) if row["metric"] == "parameters"
    }
    assert out.count(f"{of_training:,.0f}") == 2, out
    code, _, err = run(*ask)
    assert code == 2
    assert "holds something already: name a new folder" in _one_message(err)


def test_evaluate_refuses_data_with_other_labels(trained, run):
    code, _, err = run(
        "evaluate", f"--workdir={trained}", "--data.keywords=up,down,cat"
    )
    assert code == 2
    assert "knows the labels up, down, stop, _unknown_" in _one_message(err)
    code, _, err = run("evaluate", f"--workdir={trained}", "--data.keyword=up")
    assert code == 2
    assert "did you mean 'keywords'" in _one_message(err)


def _one_message(err: str) -> str:
    """What a program says on stderr before it ends: one error, no traceback."""
    assert err.count("error: ") == 1, err
    assert "Traceback" not in err
    assert err.startswith("error: "), err
    return err


def test_a_missing_folder_is_told_in_seconds(run, tmp_path):
    began = time.monotonic()
    flags = train_flags(tmp_path / "nowhere")
    code, _, err = run("main", *flags, f"--workdir={tmp_path / 'run'}")
    assert code == 2
    assert f"{tmp_path / 'nowhere'} is not a folder" in _one_message(err)
    assert not (tmp_path / "run").exists()
    assert time.monotonic() - began < 30


def test_speech_commands_without_a_network_names_the_ways_out(run, tmp_path):
    began = time.monotonic()
    nowhere = "http://127.0.0.1:9"
    code, _, err = run(
        "main",
        "--config=configs/autokws.py",
        f"--config.data.dir={tmp_path / 'tfds'}",
        f"--workdir={tmp_path / 'run'}",
        http_proxy=nowhere,
        https_proxy=nowhere,
        HTTP_PROXY=nowhere,
        HTTPS_PROXY=nowhere,
    )
    assert code == 2
    message = _one_message(err)
    assert "--config.data.source=folder" in message
    assert "--config.data.dir=" in message
    assert ":demo" in message
    assert not (tmp_path / "run").exists()
    assert time.monotonic() - began < 30


def test_the_workdir_of_another_experiment_is_refused(trained, run, speech):
    kept = (trained / "config.json").read_bytes()
    code, _, err = run(
        "main", *train_flags(speech), "--config.seed=7", f"--workdir={trained}"
    )
    assert code == 2
    message = _one_message(err)
    assert "belongs to another experiment" in message
    assert "config.seed: 0 there, 7 here" in message
    assert (trained / "config.json").read_bytes() == kept


def test_a_batch_that_the_devices_cannot_share_is_refused(run, speech, tmp_path):
    code, _, err = run(
        "main",
        *train_flags(speech),
        f"--workdir={tmp_path / 'run'}",
        XLA_FLAGS="--xla_force_host_platform_device_count=3",
    )
    assert code == 2
    assert "batch_size = 8 cannot be divided over 3 devices" in _one_message(err)


@pytest.fixture
def refused(speech, cache, tmp_path, monkeypatch):
    """Runs a changed experiment in this process; gives the UserError's message."""
    monkeypatch.chdir(ROOT)
    # Imported here: it is slow, and not all tests need it.
    from kws_jax import experiment

    def begin(*arguments):
        pytest.fail("training had begun")

    monkeypatch.setattr(experiment.dispatch, "run", begin)

    def refused(file="configs/tc_resnet.py:8", **changes):
        config = configs.load_file(file)
        config.data.source, config.data.dir = "folder", str(speech)
        config.data.cache_dir = str(cache)
        config.data.keywords = ",".join(KEYWORDS)
        for field, value in changes.items():
            *groups, name = field.split("__")
            here = config
            for group in groups:
                here = here[int(group)] if group.isdigit() else here[group]
            here[name] = value
        workdir = tmp_path / "refused"
        with pytest.raises(UserError) as caught:
            experiment.run(config, str(workdir))
        return str(caught.value)

    return refused


def test_a_wrong_keyword_names_the_nearest(refused):
    message = refused(data__keywords="up,dwon,stop")
    assert "'dwon': did you mean 'down'?" in message


def test_an_empty_class_is_named(refused, speech, tmp_path):
    folder = tmp_path / "words"
    shutil.copytree(speech, folder)
    (folder / "left").mkdir()
    message = refused(data__dir=str(folder))
    assert f"word folders without audio: {folder / 'left'}" in message


def test_a_split_without_a_word_is_named(refused, speech, tmp_path):
    folder = tmp_path / "words"
    shutil.copytree(speech, folder)
    for speaker in speakers("test"):
        (folder / "stop" / f"{speaker}_nohash_0.wav").unlink()
    assert "the test split has no clips of stop" in refused(data__dir=str(folder))


def test_corrupt_files_are_all_named(refused, speech, tmp_path):
    folder = tmp_path / "words"
    shutil.copytree(speech, folder)
    first, second = sorted((folder / "up").iterdir())[:2]
    first.write_bytes(b"RIFF nonsense")
    second.write_bytes(b"")
    message = refused(data__dir=str(folder))
    assert "2 audio files cannot be read" in message
    assert str(first) in message
    assert str(second) in message
    assert "--config.data.skip_corrupt=True" in message


AUTOKWS = "configs/autokws.py:cpu"


def test_a_genotype_that_does_not_fit_is_named(refused, tmp_path):
    file = tmp_path / "genotype.json"
    file.write_text(json.dumps({"layers": [["C3"], ["C5"]]}))
    message = refused(AUTOKWS, network__genotype=str(file))
    assert str(file) in message
    assert "2 entries, expected 6" in message
    message = refused(AUTOKWS, network__genotype="autokws-noisydart")
    assert "did you mean 'autokws-noisydarts'" in message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"search__method": "noisydart"}, "did you mean 'noisydarts'"),
        ({"search__shortcut": "2x2"}, "2x2"),
        ({"search__order": 3}, "config.search.order = 3: give 1 or 2"),
        ({"network__name": "tc_resnet8"}, "no setting 'genotype'"),
        ({"network__dropout": 1.5}, "'dropout'"),
        ({"stages__1__optimizer__name": "sdg"}, "did you mean 'sgd'"),
        (
            {
                "stages__1__optimizer__schedule": "step",
                "stages__1__optimizer__step_at": (2.0,),
            },
            "optimizer.step_at",
        ),
        ({"stages__0__architecture_optimizer__name": "addam"}, "did you mean 'adam'"),
        ({"stages__1__condition__snr_db": (10.0,), "data__noise_seen": "no"}, "no is"),
        ({"frontend__name": "mfc"}, "did you mean 'mfcc'"),
        ({"data__protocol": "v1_12"}, "did you mean 'v1-12'"),
        ({"stages__0__kind": "train"}, "config.network.genotype is empty"),
    ],
)
def test_settings_of_any_stage_are_checked_before_the_first(changes, expected, refused):
    assert expected in refused(AUTOKWS, **changes)
