"""Workdirs in buckets: every program, with a stand-in for Cloud Storage."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import google.api_core.exceptions
import google.cloud.storage
import jax.numpy as jnp
import pytest
import tensorflow as tf
from cloud_storage import Files, Server
from etils.epath import gpath
from words import KEYWORDS, LABELS, ROOT, data_flags

from kws_jax import workdirs
from kws_jax.errors import UserError
from kws_jax.training import loop
from kws_jax.training.checkpoints import StageCheckpoints, saving
from kws_jax.training.logs import JsonLines
from kws_jax.workdirs import folder_of, in_bucket

WORKDIR = "gs://bucket/runs/first"


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.shutdown()


@pytest.fixture(scope="module")
def bucket(server):
    return Files(server.address)


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


LAST = "runs/first/stages/1-train/last/"


def steps_of(names):
    """The steps of stage 1 that the names are of."""
    return {
        int(name.removeprefix(LAST).partition("/")[0])
        for name in names
        if name.startswith(LAST) and name != LAST
    }


@pytest.fixture(scope="module")
def trained(server, bucket, start, flags):
    """A draw and a training, killed in the training and taken up.

    Gives what was told, the newest step that was saved before, and what was written
    after.
    """
    process = start("main", *flags, f"--workdir={WORKDIR}")
    deadline = time.monotonic() + 300
    # That of the step itself, not those of its items.
    commit = re.compile(f"{LAST}[0-9]+/commit_success.txt")
    while not (saved := [n for n in bucket.names(LAST) if commit.fullmatch(n)]):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.communicate()
    before = len(server.written)
    told = ended(start("main", *flags, f"--workdir={WORKDIR}"))
    return told, max(steps_of(saved)), server.written[before:]


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


def test_what_was_saved_is_taken_up(trained):
    (_, told), newest, written = trained
    assert f"{WORKDIR} is in a bucket, which has no locks" in told
    # Neither the stage that was done nor a step that was saved is made again.
    assert not [name for name in written if name.startswith("runs/first/stages/0-")]
    assert min(steps_of(written)) > newest


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
    """Every bucket is there."""
    monkeypatch.setattr(workdirs, "_check_bucket", lambda address: None)


def test_addresses(reached):
    assert folder_of(Path("here")) == folder_of("here") == Path("here")
    assert str(folder_of("gs://bucket/a") / "b") == "gs://bucket/a/b"
    assert in_bucket(folder_of("gs://bucket/a") / "b")
    assert not in_bucket(folder_of("gs/bucket"))
    with pytest.raises(UserError, match="s3://bucket/run is an address of an unknown"):
        folder_of("s3://bucket/run")


class _Flat:
    """Cloud Storage with a bucket of the usual kind."""

    def get_bucket(self, name):
        return self


class _Client:
    """Cloud Storage, as far as it is asked for a bucket."""

    hierarchical_namespace_enabled = True

    def get_bucket(self, name):
        if name == "closed":
            raise google.api_core.exceptions.Forbidden("no storage.buckets.get")
        return self


def test_buckets_that_cannot_be_used_are_told(monkeypatch):
    monkeypatch.setattr(google.cloud.storage, "Client", _Client)
    workdirs._bucket.cache_clear()
    with pytest.raises(
        UserError, match=r"gs://closed/a cannot be reached.*buckets\.get"
    ):
        folder_of("gs://closed/a")
    with pytest.raises(UserError, match="gs://folders/a has a hierarchical namespace"):
        folder_of("gs://folders/a")
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    monkeypatch.delattr(google.cloud, "storage")
    with pytest.raises(UserError, match="gs://other/a needs the extra 'gcs'"):
        folder_of("gs://other/a")


def test_errors_of_writing_to_a_bucket_are_told(reached):
    denied = tf.errors.PermissionDeniedError(None, None, "403: gs://bucket/a")
    errors = (
        denied,
        google.api_core.exceptions.Forbidden("no storage.objects.create"),
        ValueError("Error writing gs://bucket/a"),
    )
    for error in errors:
        told = pytest.raises(UserError, match="Could not write to gs://bucket/a")
        with told, saving(folder_of("gs://bucket/a")):
            raise error
    # Those of ours, and of TensorFlow in folders of this machine, stay what they are.
    ours = tf.errors.UnknownError(None, None, "MemoryError in a map")
    for error, place in (
        (ValueError("of ours"), "gs://bucket/a"),
        (ours, "gs://bucket/a"),
        (denied, "here"),
    ):
        with pytest.raises(type(error)), saving(place):
            raise error


def test_a_checkpoint_out_of_reach_is_not_given_up(server, reached, monkeypatch):
    mounted(server, monkeypatch)
    checkpoints = StageCheckpoints(folder_of("gs://bucket/stage"))
    for step in (1, 2):
        checkpoints.save_last(step, {"a": jnp.ones(3)}, {})
    kept = Files(server.address).names("stage/last/2/")

    def refused(*arguments, **settings):
        raise google.api_core.exceptions.ServiceUnavailable("503")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._last, "restore", refused)
        with pytest.raises(UserError, match=r"last/2 cannot be read: 503 503\n.*again"):
            checkpoints.restore_last({"a": jnp.zeros(3)})
    assert Files(server.address).names("stage/last/2/") == kept
    state, _ = checkpoints.restore_last({"a": jnp.zeros(3)})
    assert state["a"].sum() == 3


@pytest.mark.parametrize("failing", ["save", "delete"])
def test_a_step_in_a_bucket_that_is_saved_again_is_not_lost(
    failing, server, reached, monkeypatch
):
    mounted(server, monkeypatch)
    place, like = folder_of(f"gs://bucket/again-{failing}"), {"a": jnp.zeros(3)}
    checkpoints = StageCheckpoints(place)
    checkpoints.save_last(1, {"a": jnp.ones(3)}, {"n": 1})

    def fails(step, **settings):
        if failing == "delete":
            # The mark that it is complete is still there.
            (place / "last/1/notes/metadata").unlink()
        raise google.api_core.exceptions.ServiceUnavailable("503")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._last, failing, fails)
        with pytest.raises(UserError, match="Could not write"):
            checkpoints.save_last(1, {"a": 2 * jnp.ones(3)}, {"n": 2})
    again = StageCheckpoints(place)
    state, notes = again.restore_last(like)
    assert (notes["n"], state["a"].sum()) == (2, 6)
    again.save_last(2, state, {"n": 3})
    assert not Files(server.address).names(f"again-{failing}/aside/")
    assert StageCheckpoints(place).restore_last(like)[1] == {"n": 3}


def mounted(server, monkeypatch):
    """Lets epath, TensorStore and Orbax reach the server from this process."""
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "gs", Files(server.address))
    monkeypatch.setattr(google.cloud.storage, "Client", _Flat)
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", server.address)
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")


@pytest.fixture
def log(monkeypatch, reached):
    """A log in a bucket of its own, and the server that holds it."""
    server = Server()
    mounted(server, monkeypatch)
    yield JsonLines(folder_of("gs://bucket/log.jsonl")), server
    server.shutdown()


def steps_in(server):
    lines = Files(server.address).read("log.jsonl").splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_logs_are_written_when_a_state_is_saved(log):
    log, server = log
    for step in range(100):
        log.append(stage="train", step=step)
    assert not server.written
    log.flush()
    log.flush()
    log.append(stage="train", step=100)
    log._written -= 60
    log.append(stage="train", step=101)
    assert server.written == ["log.jsonl"] * 2
    log.append(stage="train", step=102)
    log.rewind("train", 50)
    log.flush()
    assert steps_in(server) == list(range(51))


def test_logs_are_written_when_a_stage_ends_by_an_error(log):
    log, server = log
    log.append(stage="train", step=0)
    with pytest.raises(ZeroDivisionError), loop._flushed([log]):
        raise ZeroDivisionError
    assert steps_in(server) == [0]
