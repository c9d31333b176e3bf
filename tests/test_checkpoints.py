"""Checkpoints and logs: nothing that was saved is lost, whatever happens to the run."""

import contextlib
import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from etils import epath

from kws_jax import together
from kws_jax.errors import UserError
from kws_jax.training import checkpoints
from kws_jax.training.checkpoints import StageCheckpoints, write_json
from kws_jax.training.logs import JsonLines
from kws_jax.training.state import (
    ARCHITECTURE,
    WEIGHTS,
    apply_gradients,
    create_train_state,
    without_optimizers,
)
from kws_jax.training.tensorboard import TensorBoard

TRANSFORMATIONS = {WEIGHTS: optax.sgd(0.1, 0.9), ARCHITECTURE: optax.adam(1e-3)}


def make_state(seed=0, shape=(3, 4)):
    """A state with two trees after one update, so that no optimiser state is zero."""
    keys = jax.random.split(jax.random.key(seed), 4)
    trees = {
        WEIGHTS: {"kernel": jax.random.normal(keys[0], shape)},
        ARCHITECTURE: (jax.random.normal(keys[1], (5,)), jnp.ones(2)),
    }
    state = create_train_state(trees, {"mean": jnp.arange(3.0)}, TRANSFORMATIONS)
    gradients = jax.tree.map(jnp.cos, trees)
    state = apply_gradients(state, gradients, TRANSFORMATIONS)
    return state.replace(step=jnp.int32(seed))


@pytest.fixture
def open_at():
    opened = []

    def open_checkpoints(directory, **options):
        opened.append(StageCheckpoints(directory, **options))
        return opened[-1]

    yield open_checkpoints
    for each in opened:
        each.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the states 5 and 9 as last ones; copied by those who harm it."""
    directory = tmp_path_factory.mktemp("saved") / "stage"
    kept = StageCheckpoints(directory)
    for step in (5, 9):
        kept.save_last(step, make_state(step), {"step": step})
    kept.close()
    return directory


def test_a_state_comes_back_bit_for_bit(tmp_path, open_at):
    state, notes = make_state(7), {"best_accuracy": 0.1 + 0.2, "best_step": 3}
    open_at(tmp_path).save_last(7, state, notes)
    restored, found = open_at(tmp_path).restore_last(make_state(1))
    chex.assert_trees_all_equal_shapes_and_dtypes(restored, state)
    chex.assert_trees_all_equal(restored, state)
    assert found == notes
    assert float(jnp.abs(restored.opt_state[WEIGHTS][0].trace["kernel"]).min()) > 0


def test_an_empty_folder_has_no_state(tmp_path, open_at):
    kept = open_at(tmp_path)
    assert kept.restore_last(make_state()) is None
    assert kept.restore_best(make_state()) is None
    assert kept.last_path() == "none yet"


def test_the_best_and_the_newest_two_are_kept(tmp_path, open_at):
    kept = open_at(tmp_path)
    for step in (1, 2, 3):
        kept.save_last(step, make_state(step), {"step": step})
    for step in (1, 2):
        kept.save_best(step, without_optimizers(make_state(step)), {"step": step})
    again = open_at(tmp_path)
    last, notes = again.restore_last(make_state())
    chex.assert_trees_all_equal(last, make_state(3))
    assert notes == {"step": 3}
    best, notes = again.restore_best(without_optimizers(make_state()))
    chex.assert_trees_all_equal(best, without_optimizers(make_state(2)))
    assert notes == {"step": 2}
    assert sorted(p.name for p in (tmp_path / "last").iterdir()) == ["2", "3"]
    assert kept.last_path() == str(tmp_path / "last" / "3")


def test_the_same_step_may_be_saved_again(tmp_path, open_at):
    kept = open_at(tmp_path)
    kept.save_best(4, make_state(1), {})
    kept.save_best(4, make_state(2), {"second": True})
    best, notes = open_at(tmp_path).restore_best(make_state())
    chex.assert_trees_all_equal(best, make_state(2))
    assert notes == {"second": True}


def test_a_step_to_go_on_from_may_be_saved_again(tmp_path, open_at):
    kept = open_at(tmp_path)
    for step, seed in ((3, 3), (4, 1), (4, 2)):
        kept.save_last(step, make_state(seed), {"seed": seed})
    again, notes = open_at(tmp_path).restore_last(make_state())
    chex.assert_trees_all_equal(again, make_state(2))
    assert notes == open_at(tmp_path, read_only=True).last_notes() == {"seed": 2}
    assert states_in(tmp_path) == ["last/3", "last/4"]


def states_in(folder):
    """The checkpoints to go on from, complete or not."""
    kinds = ("last", "aside")
    return sorted(
        f"{p.parent.name}/{p.name}" for k in kinds for p in folder.glob(f"{k}/*")
    )


class Died(BaseException):
    """The end of a process, which no handler of errors holds up."""


def no_space():
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def failing_at(monkeypatch, number, how, error):
    """What writes or removes checkpoints fails for the time `number`, from 0.

    "before" anything is done, "after" it is, or "within", with the first file gone.
    """
    counted = itertools.count()

    def failing(name, call):
        def run(manager, step, **settings):
            here = next(counted) == number
            if here and how == "within" and name == "delete":
                next((manager.directory / str(step)).glob("*/*")).unlink()
            if here and how != "after":
                raise error
            call(manager, step, **settings)
            if here:
                raise error

        return run

    for name in ("save", "delete"):
        call = getattr(ocp.CheckpointManager, name)
        monkeypatch.setattr(ocp.CheckpointManager, name, failing(name, call))


@pytest.mark.parametrize("error", [no_space(), Died()], ids=["full", "killed"])
@pytest.mark.parametrize("how", ["before", "within", "after"])
@pytest.mark.parametrize("number", range(4))
def test_a_step_that_is_saved_again_is_whole_at_any_moment(
    number, how, error, tmp_path, open_at, monkeypatch
):
    open_at(tmp_path).save_last(4, make_state(1), {"seed": 1})
    kept = open_at(tmp_path)
    with monkeypatch.context() as patch:
        failing_at(patch, number, how, error)
        with pytest.raises(UserError if isinstance(error, OSError) else Died):
            kept.save_last(4, make_state(2), {"seed": 2})
    new = 2 if number > 0 or how == "after" else 1
    again = open_at(tmp_path)
    for reading in (open_at(tmp_path, read_only=True), again):
        before = states_in(tmp_path)
        assert reading.last_step() == 4
        restored, notes = reading.restore_last(make_state())
        assert notes == {"seed": new}
        chex.assert_trees_all_equal(restored, make_state(new))
        assert reading is again or states_in(tmp_path) == before
    assert Path(again.last_path()).is_dir()
    # Nor may a second failure lose it.
    for second in range(3):
        with monkeypatch.context() as patch:
            failing_at(patch, second, "within", error)
            with contextlib.suppress(UserError, Died):
                again.save_last(4, make_state(2), {"seed": 2})
        again = open_at(tmp_path)
        assert again.restore_last(make_state())[1]["seed"] in (new, 2)
    # It goes on as ever, and no copy is left.
    again.save_last(4, make_state(2), {"seed": 2})
    again.save_last(5, make_state(3), {})
    assert states_in(tmp_path) == ["last/4", "last/5"]
    assert int(open_at(tmp_path).restore_last(make_state())[0].step) == 3


def test_the_best_state_is_not_removed_to_be_saved_again(tmp_path, open_at):
    open_at(tmp_path).save_best(4, make_state(1), {"seconds": 1.0})
    place = tmp_path / "best" / "4"
    made = place.stat().st_ino
    open_at(tmp_path).save_best(4, make_state(1), {"seconds": 2.0})
    assert place.stat().st_ino == made
    assert open_at(tmp_path).restore_best(make_state())[1] == {"seconds": 1.0}


def test_a_damaged_best_state_is_saved_anew(tmp_path, open_at):
    open_at(tmp_path).save_best(4, make_state(1), {})
    for file in (tmp_path / "best" / "4" / "notes").iterdir():
        file.write_bytes(b"")
    open_at(tmp_path).save_best(4, make_state(1), {})
    best, _ = open_at(tmp_path).restore_best(make_state())
    chex.assert_trees_all_equal(best, make_state(1))


def test_what_another_process_cannot_read_is_not_taken(
    saved, tmp_path, open_at, monkeypatch
):
    folder = shutil.copytree(saved, tmp_path / "stage")
    # The other one fails at the first that is tried, the newest.
    of_another = iter([True, False])
    monkeypatch.setattr(together, "any_of", lambda here: here or next(of_another))
    restored, notes = open_at(folder).restore_last(make_state())
    assert notes == {"step": 5}
    chex.assert_trees_all_equal(restored, make_state(5))


def test_reading_changes_nothing(saved, tmp_path, open_at):
    shutil.copytree(saved, tmp_path / "stage")
    (tmp_path / "stage" / "last" / "12.orbax-checkpoint-tmp").mkdir()
    before = sorted(tmp_path.rglob("*"))
    kept = open_at(tmp_path / "stage", read_only=True)
    assert int(kept.restore_last(make_state())[0].step) == 9
    assert open_at(tmp_path / "none", read_only=True).restore_best({}) is None
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("damage", ["truncated", "emptied", "removed"])
@pytest.mark.parametrize(
    "pattern",
    ["state/d/*", "state/manifest.ocdbt", "state/_METADATA", "notes/metadata"],
)
def test_instead_of_a_damaged_checkpoint_the_one_before_is_taken(
    pattern, damage, saved, tmp_path, open_at, capfd
):
    shutil.copytree(saved, tmp_path / "stage")
    damaged = tmp_path / "stage" / "last" / "9"
    for file in damaged.glob(pattern):
        content = file.read_bytes()
        if damage == "removed":
            file.unlink()
        else:
            file.write_bytes(content[: len(content) // 2 * (damage == "truncated")])
    # Of a stage that is over, nothing but its end will do.
    with pytest.raises(UserError, match="is damaged") as caught:
        open_at(tmp_path / "stage", read_only=True).restore_last(make_state())
    assert str(damaged) in str(caught.value)
    assert len(str(caught.value)) < 800
    restored, notes = open_at(tmp_path / "stage").restore_last(make_state())
    chex.assert_trees_all_equal(restored, make_state(5))
    assert notes == {"step": 5}
    assert not damaged.exists()
    told = capfd.readouterr().err
    assert told.count("note: ") == 1
    assert f"{damaged} was damaged and is removed" in told
    assert "goes on from step 5" in told


@pytest.mark.parametrize("kind", ["last", "best"])
def test_where_no_checkpoint_is_whole_it_is_told(kind, saved, tmp_path, open_at):
    shutil.copytree(saved, tmp_path / "stage")
    shutil.copytree(tmp_path / "stage" / "last" / "9", tmp_path / "stage/best/9")
    for file in (tmp_path / "stage").glob("*/*/notes/metadata"):
        file.write_text("{")
    kept = open_at(tmp_path / "stage")
    with pytest.raises(UserError, match="is damaged") as caught:
        (kept.restore_last if kind == "last" else kept.restore_best)(make_state())
    assert f"{kind}/9" in str(caught.value)
    assert f"remove {tmp_path / 'stage'}:" in str(caught.value)
    with pytest.raises(UserError, match="is damaged"):
        kept.last_notes()


@pytest.mark.parametrize("number", range(8))
def test_no_changed_bit_is_taken_for_what_was_saved(number, saved, tmp_path, open_at):
    """In the largest files, where the values are."""
    shutil.copytree(saved, tmp_path / "stage")
    files = [p for p in (tmp_path / "stage/last/9").rglob("*") if p.is_file()]
    rng = np.random.default_rng(number)
    file = sorted(files, key=lambda path: path.stat().st_size)[-1 - number % 4]
    content = bytearray(file.read_bytes())
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    file.write_bytes(content)
    restored, notes = open_at(tmp_path / "stage").restore_last(make_state())
    chex.assert_trees_all_equal(restored, make_state(notes["step"]))


def test_values_of_another_checkpoint_are_found_out(saved, tmp_path, open_at):
    """Files that are whole in themselves, and not what was saved."""
    shutil.copytree(saved, tmp_path / "stage")
    last = tmp_path / "stage" / "last"
    shutil.rmtree(last / "9" / "state")
    shutil.copytree(last / "5" / "state", last / "9" / "state")
    kept = open_at(tmp_path / "stage", read_only=True)
    with pytest.raises(UserError, match="not those that were saved"):
        kept.restore_last(make_state())
    notes = json.loads((last / "9/notes/metadata").read_text())
    (last / "9/notes/metadata").write_text(json.dumps(notes | {"step": 8}))
    with pytest.raises(UserError, match="notes are not those that were saved"):
        open_at(tmp_path / "stage", read_only=True).last_notes()


def test_a_checkpoint_without_digests_is_taken_as_it_is(saved, tmp_path, open_at):
    shutil.copytree(saved, tmp_path / "stage")
    file = tmp_path / "stage/last/9/notes/metadata"
    file.write_text(json.dumps({"step": 9}))
    restored, notes = open_at(tmp_path / "stage").restore_last(make_state())
    chex.assert_trees_all_equal(restored, make_state(9))
    assert notes == {"step": 9}


def test_removing_a_damaged_checkpoint_leaves_the_one_before(saved, tmp_path, open_at):
    shutil.copytree(saved, tmp_path / "stage")
    shutil.rmtree(tmp_path / "stage" / "last" / "9")
    restored, _ = open_at(tmp_path / "stage").restore_last(make_state())
    chex.assert_trees_all_equal(restored, make_state(5))


def test_a_state_of_another_network_is_told(saved, open_at):
    kept = open_at(saved, read_only=True)
    with pytest.raises(UserError, match="does not fit this experiment"):
        kept.restore_last(make_state(shape=(4, 3)))
    other = make_state()
    other = other.replace(trees={**other.trees, "more": jnp.ones(1)})
    with pytest.raises(UserError, match="does not fit this experiment"):
        kept.restore_last(other)


_SAVES = """
import jax.numpy as jnp, sys
from kws_jax.training.checkpoints import StageCheckpoints
kept = StageCheckpoints(sys.argv[1])
kept.save_last(1, {"w": jnp.full((1000,), 1.0)}, {"n": 1})
kept.save_best(1, {"w": jnp.full((1000,), 1.0)}, {"n": 1})
print("saved", flush=True)
many = {"w": jnp.ones((1000,)), "more": [jnp.ones((1 << 20,))] * 100}
kept.save_last(2, many, {"n": 2})
"""


def test_a_kill_while_saving_leaves_the_former_checkpoint(tmp_path, open_at):
    process = subprocess.Popen(
        [sys.executable, "-c", _SAVES, str(tmp_path)],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout.readline() == b"saved\n"
    deadline = time.monotonic() + 60
    while not [*(tmp_path / "last").glob("2.*/*")] and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert not (tmp_path / "last" / "2").exists()
    kept = open_at(tmp_path)
    like = {"w": jnp.zeros((1000,))}
    for restored, notes in (kept.restore_last(like), kept.restore_best(like)):
        np.testing.assert_array_equal(restored["w"], np.ones(1000))
        assert notes == {"n": 1}
    kept.save_last(2, like, {"n": 2})
    assert open_at(tmp_path).restore_last(like)[1] == {"n": 2}
    # What the kill left half-written does not fill the disk.
    assert sorted(p.name for p in (tmp_path / "last").iterdir()) == ["1", "2"]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 256 KiB; the test is skipped where none may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if (
        not shutil.which("mount")
        or subprocess.run(command, capture_output=True).returncode
    ):
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


# Of an asynchronous write that Orbax had begun.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_is_told_and_the_former_checkpoint_stays(small_disk):
    # Not through `open_at`: the disk is unmounted first.
    kept = StageCheckpoints(small_disk / "stage")
    kept.save_last(1, make_state(1), {"n": 1})
    kept.save_best(1, make_state(1), {"n": 1})
    with pytest.raises(UserError, match="No space left on device") as caught:
        kept.save_last(2, make_state(2, shape=(500, 400)), {"n": 2})
    assert str(small_disk / "stage") in str(caught.value)
    assert "Free some space" in str(caught.value)
    kept.close()
    # With space again, the same command goes on.
    larger = ["mount", "-o", "remount,size=8m", str(small_disk)]
    subprocess.run(larger, check=True)
    again = StageCheckpoints(small_disk / "stage")
    restored, notes = again.restore_last(make_state())
    chex.assert_trees_all_equal(restored, make_state(1))
    assert notes == {"n": 1}
    again.save_last(2, make_state(2), {"n": 2})
    chex.assert_trees_all_equal(again.restore_last(make_state())[0], make_state(2))
    again.close()


_FAILS = """
import jax.numpy as jnp, resource, signal, sys, time
from kws_jax.errors import UserError
from kws_jax.training.checkpoints import StageCheckpoints
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
many = [jnp.arange(3000.0) + i for i in range(60)]
for i in range(3):
    kept = StageCheckpoints(f"{sys.argv[1]}/{i}")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    try:
        kept.save_last(1, many, {})
    except UserError:
        print("told")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
time.sleep(1)
"""


def test_of_many_arrays_that_cannot_be_written_one_error_is_told(tmp_path):
    """TensorStore and asyncio tell of each, from threads, also after the error."""
    ended = subprocess.run(
        [sys.executable, "-c", _FAILS, str(tmp_path)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert (ended.stdout, ended.stderr) == ("told\n" * 3, "")


def test_what_comes_later_than_a_failed_save_is_silent_too():
    """As from the threads of the test before, on a machine with other work."""
    late = """
from absl import logging
from kws_jax.training.failed_saves import told_once
with told_once():
    pass
logging.error("after one that went well")
try:
    with told_once():
        raise OSError
except OSError:
    logging.error("late")
"""
    ended = subprocess.run(
        [sys.executable, "-c", late],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "after one that went well" in ended.stderr
    assert "late" not in ended.stderr


def test_a_full_disk_while_writing_a_file_keeps_the_former_file(small_disk):
    file, log = small_disk / "results.json", JsonLines(small_disk / "metrics.jsonl")
    write_json(file, [1, 2, 3])
    log.append(stage="a", step=1)
    with pytest.raises(UserError, match=r"results\.json.*No space left"):
        write_json(file, "x" * 400_000)
    assert json.loads(file.read_text()) == [1, 2, 3]
    with pytest.raises(UserError, match=r"metrics\.jsonl.*No space left"):
        log.append(stage="a", step=2, more="x" * 400_000)
    # Nothing half-written takes the room that is needed to go on.
    assert sorted(p.name for p in small_disk.iterdir()) == [log.path.name, file.name]
    log.rewind("a", 1)
    assert [json.loads(s) for s in log.path.read_text().splitlines()] == [
        {"stage": "a", "step": 1}
    ]


def test_a_failing_write_without_root_is_told_too(tmp_path, open_at, monkeypatch):
    kept = open_at(tmp_path)
    kept.save_last(1, make_state(1), {})

    def full(*arguments, **options):
        raise no_space()

    monkeypatch.setattr(type(kept._last), "save", full)
    with pytest.raises(UserError, match="No space left on device"):
        kept.save_last(2, make_state(2), {})
    monkeypatch.undo()
    chex.assert_trees_all_equal(kept.restore_last(make_state())[0], make_state(1))


def test_a_mistake_in_the_code_is_not_told_as_a_full_disk(tmp_path):
    with pytest.raises(ValueError, match="a bug"), checkpoints.saving(tmp_path):
        raise ValueError("a bug")


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Could not write to"):
        StageCheckpoints(epath.Path(tmp_path / "file" / "stage"))


LINES = textwrap.dedent(
    """\
    {"stage": "search", "step": 10, "split": "train"}
    {"stage": "search", "step": 10, "split": "validation"}
    {"stage": "search", "step": 20, "split": "train"}
    {"stage": "train", "step": 10, "split": "train"}
    """
)


@pytest.mark.parametrize(
    ("stage", "step", "later", "unvalidated", "kept"),
    [
        ("search", 10, ("train",), False, [0, 1]),
        ("search", 10, ("train",), True, [0]),
        ("search", 0, ("train",), False, []),
        ("search", 15, (), False, [0, 1, 3]),
        ("search", 15, (), True, [0, 1, 3]),
        ("train", 0, (), False, [0, 1, 2]),
        ("train", 10, (), True, [0, 1, 2, 3]),
    ],
)
@pytest.mark.parametrize("tail", ["", '{"stage": "train", "st', "\x00\x00\x00"])
def test_rewind_drops_later_and_half_written_lines(
    stage, step, later, unvalidated, kept, tail, tmp_path
):
    log = JsonLines(tmp_path / "metrics.jsonl")
    log.path.write_text(LINES + tail)
    log.rewind(stage, step, later, unvalidated=unvalidated)
    all_lines = LINES.splitlines(keepends=True)
    assert log.path.read_text() == "".join(all_lines[i] for i in kept)
    log.append(stage=stage, step=step + 1)
    last = log.path.read_text().splitlines()[-1]
    assert json.loads(last) == {"stage": stage, "step": step + 1}


def test_rewinding_a_log_that_is_not_there_makes_none(tmp_path):
    JsonLines(tmp_path / "metrics.jsonl").rewind("search", 0)
    assert not [*tmp_path.iterdir()]


def test_curves_that_cannot_be_written_are_told(tmp_path):
    (tmp_path / "tensorboard").write_text("a file in the folder's place")
    with pytest.raises(UserError, match=r"Could not write to .*tensorboard"):
        TensorBoard(tmp_path / "tensorboard")
