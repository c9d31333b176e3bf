"""Two runs never work in one folder, and a killed one leaves no lock."""

import errno
import fcntl
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_parts import tiny_parts

from configs import tc_resnet
from kws_jax import config as configs
from kws_jax import experiment
from kws_jax.errors import UserError
from kws_jax.parts import TASK_FILE
from kws_jax.stages import dispatch, runner
from kws_jax.training.workdir_lock import LOCK_FILE, WorkdirLock

_HOLDS = """
import pathlib, sys, time
from kws_jax.parts import TASK_FILE
from kws_jax.stages import dispatch, runner
from kws_jax.training.workdir_lock import WorkdirLock
with WorkdirLock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_run_is_refused_until_the_first_is_killed(tmp_path):
    first = subprocess.Popen(
        [sys.executable, "-c", _HOLDS, str(tmp_path)],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="Another run is at work in") as caught:
        experiment.run(tc_resnet.get_config("8"), str(tmp_path))
    assert f"process {first.pid} on " in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]
    first.send_signal(signal.SIGKILL)
    first.communicate()
    with WorkdirLock(tmp_path):
        pass


def test_a_workdir_that_another_run_takes_meanwhile_is_not_overwritten(
    tmp_path, monkeypatch
):
    one = tc_resnet.get_config("8")
    other = tc_resnet.get_config("14")

    def opened(config, console):
        (tmp_path / "config.json").write_text(configs.to_json(other))

    monkeypatch.setattr(experiment, "build_parts", opened)
    monkeypatch.setattr(experiment.dispatch, "check", lambda parts, folder: None)
    monkeypatch.setattr(experiment.detection, "check", lambda parts: None)
    with pytest.raises(UserError, match="belongs to another experiment"):
        experiment.run(one, str(tmp_path))
    assert (tmp_path / "config.json").read_text() == configs.to_json(other)


def test_a_lock_is_given_back_and_no_folder_is_made_too_early(tmp_path):
    folder = tmp_path / "new" / "run"
    with WorkdirLock(folder) as lock:
        assert not folder.exists()
        lock.take(make=True)
        lock.take(make=True)
        with pytest.raises(UserError, match="Another run"), WorkdirLock(folder):
            pass
    with WorkdirLock(folder):
        pass


def test_a_folder_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    def read_only(self, *arguments):
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "open", read_only)
    with pytest.raises(UserError, match="Read-only file system"):
        WorkdirLock(tmp_path).take()


def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch, capsys):
    def no_locks(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with WorkdirLock(tmp_path):
        assert "without locks" in capsys.readouterr().err


def test_an_address_of_another_kind_is_no_folder():
    with pytest.raises(UserError, match="s3://bucket/run is an address"):
        experiment.run(tc_resnet.get_config("8"), "s3://bucket/run")


@pytest.mark.parametrize("damage", [b"", b'{"labels": ["yes"', b"\xff\xfe"])
def test_damaged_records_are_named(damage, tmp_path):
    parts = tiny_parts()
    experiment.claim_workdir(parts, tmp_path)
    done = runner.stage_folder(parts, 0, tmp_path) / runner.DONE_FILE
    done.parent.mkdir(parents=True)
    readers = {
        done: lambda: dispatch.run(parts, 0, tmp_path),
        tmp_path / TASK_FILE: lambda: experiment.claim_workdir(parts, tmp_path),
    }
    for path, read in readers.items():
        path.write_bytes(damage)
        with pytest.raises(UserError, match=rf"{path.name} is damaged"):
            read()
