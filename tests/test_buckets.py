"""Workdirs in buckets: every program, with a stand-in for Cloud Storage."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cloud_storage import Files, Server
from etils.epath import gpath
from test_end_to_end import KEYWORDS, LABELS, ROOT, data_flags, write_words

from kws_jax.errors import UserError
from kws_jax.training.checkpoints import saving
from kws_jax.workdirs import folder_of, in_bucket

WORKDIR = "gs://bucket/runs/first"


@pytest.fixture(scope="module")
def bucket():
    server = Server()
    yield Files(server.address)
    server.shutdown()


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "words"
    write_words(folder)
    return folder


@pytest.fixture(scope="module")
def environment(bucket, tmp_path_factory):
    """For programs whose gs://bucket is the stand-in's."""
    cache = tmp_path_factory.mktemp("cache")
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "KWS_JAX_CACHE": str(cache),
        "JAX_COMPILATION_CACHE_DIR": str(cache / "xla"),
        "STORAGE_ADDRESS": bucket.address,
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
    }


@pytest.fixture(scope="module")
def start(environment):
    """Starts a program of the package in that environment."""

    def start(program, *arguments):
        script = str(Path(__file__).with_name("bucket_program.py"))
        return subprocess.Popen(
            [sys.executable, script, f"kws_jax.{program}", *map(str, arguments)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def ended(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out, err


@pytest.fixture(scope="module")
def flags(speech):
    return [
        "--config=configs/autokws.py:random,cpu",
        *data_flags(speech),
        "--config.search.width=0.25",
        *(
            f"--config.stages[1].{setting}"
            for setting in ("epochs=6", "batch_size=8", "eval_every_epochs=1")
        ),
    ]


@pytest.fixture(scope="module")
def trained(bucket, start, flags):
    """A draw and a training, killed in the training and taken up; what was told."""
    process = start("main", *flags, f"--workdir={WORKDIR}")
    prefix = "runs/first/stages/1-train/last/"
    deadline = time.monotonic() + 300
    while not any("commit_success" in name for name in bucket.names(prefix)):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.communicate()
    return ended(start("main", *flags, f"--workdir={WORKDIR}"))


def rows(text):
    """The measures that do not depend on the time."""
    times = ("seconds", "clips_per_second")
    return [row for row in json.loads(text) if row["metric"] not in times]


def accuracies(text):
    """Condition -> accuracy of the final test."""
    return {
        row["condition"]: row["value"]
        for row in json.loads(text)
        if (row["metric"], row["split"]) == ("accuracy", "test")
    }


def test_a_killed_run_ends_as_one_in_a_folder(
    trained, bucket, start, flags, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("folder")
    ended(start("main", *flags, f"--workdir={folder}"))
    results = bucket.read("runs/first/results.json")
    assert rows(results) == rows((folder / "results.json").read_text())
    for name in ("genotype.json", "task.json", "evaluation.json"):
        assert bucket.read(f"runs/first/{name}").decode() == (folder / name).read_text()
    logs = (
        bucket.read("runs/first/metrics.jsonl"),
        (folder / "metrics.jsonl").read_bytes(),
    )
    here, there = ([json.loads(line) for line in log.splitlines()] for log in logs)
    # Neither gap nor repeat.
    assert [line["step"] for line in here] == [line["step"] for line in there]
    assert [line["loss"] for line in here] == [line["loss"] for line in there]
    # Nothing of it became a folder here.
    assert not (ROOT / "gs:").exists()
    # No half of a file is left over.
    assert not [name for name in bucket.names("runs/first/") if name.endswith(".tmp")]


def test_it_is_told_that_a_bucket_has_no_locks(trained):
    assert f"{WORKDIR} is in a bucket, which has no locks" in trained[1]


def test_programs_read_and_write_the_bucket(trained, bucket, start, speech, tmp_path):
    clip = next((speech / KEYWORDS[0]).iterdir())
    answer = json.loads(ended(start("predict", f"--workdir={WORKDIR}", clip))[0])
    assert set(answer["scores"]) == set(LABELS)
    kept = tmp_path / "rows.json"
    ended(start("evaluate", f"--workdir={WORKDIR}", f"--output={kept}"))
    accuracy = accuracies(bucket.read("runs/first/results.json"))
    assert set(accuracy) >= {"clean", "seen 10 dB"}
    assert accuracies(kept.read_text()) == accuracy
    table, _ = ended(start("compare", WORKDIR))
    assert f"{100 * accuracy['clean']:.2f}" in table
    ended(start("export", f"--workdir={WORKDIR}", "--format=stablehlo"))
    told = json.loads(bucket.read("runs/first/export/stablehlo.json"))
    assert told["equal_decisions"] == 1
    assert f"runs/first/export/{told['artefact']}" in bucket.names("runs/first/export")


@pytest.fixture
def reached(monkeypatch):
    monkeypatch.setattr(gpath.PosixGPath, "exists", lambda self: False)


def test_a_pod_shares_a_bucket(trained, bucket, environment, flags):
    done = subprocess.run(
        [
            *(sys.executable, "launch/local_pod.py", "--processes=2", "--devices=2"),
            *("--module=bucket_program", "--", "kws_jax.main", *flags),
            "--workdir=gs://bucket/pod",
        ],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    results = [bucket.read(f"{run}/results.json") for run in ("pod", "runs/first")]
    counts = [
        {(row["metric"], row["condition"]): row["count"] for row in rows(text)}
        for text in results
    ]
    assert counts[0] == counts[1]
    logs = [
        list(map(json.loads, bucket.read(f"{run}/metrics.jsonl").splitlines()))
        for run in ("pod", "runs/first")
    ]
    steps = [[(line["split"], line["step"]) for line in lines] for lines in logs]
    assert steps[0] == steps[1]
    # Later ones grow apart by rounding: test_pods.py looks at that.
    first, expected = (lines[0]["loss"] for lines in logs)
    assert first == pytest.approx(expected, rel=1e-4)


def test_addresses(reached):
    assert folder_of(Path("here")) == folder_of("here") == Path("here")
    assert str(folder_of("gs://bucket/a") / "b") == "gs://bucket/a/b"
    assert in_bucket(folder_of("gs://bucket/a") / "b")
    assert not in_bucket(folder_of("gs/bucket"))
    with pytest.raises(UserError, match="s3://bucket/run is an address of an unknown"):
        folder_of("s3://bucket/run")


def test_a_bucket_that_cannot_be_reached_is_told(monkeypatch):
    def denied(self):
        raise RuntimeError("PERMISSION_DENIED")

    monkeypatch.setattr(gpath.PosixGPath, "exists", denied)
    with pytest.raises(UserError, match="gs://bucket/a cannot be reached: PERMISSION"):
        folder_of("gs://bucket/a")


def test_errors_of_writing_to_a_bucket_are_told(reached):
    class Denied(Exception):
        pass

    Denied.__module__ = "tensorflow.python.framework.errors_impl"
    for error in (
        Denied("PERMISSION_DENIED"),
        ValueError("Error writing gs://bucket/a"),
    ):
        told = pytest.raises(UserError, match="Could not write to gs://bucket/a")
        with told, saving(folder_of("gs://bucket/a")):
            raise error
    with pytest.raises(ValueError, match="of ours"), saving("gs://bucket/a"):
        raise ValueError("of ours")
