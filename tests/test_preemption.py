"""SIGTERM and Ctrl-C: a state saved between two steps, from which nothing is missed."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import chex
import jax.numpy as jnp
import pytest
from test_loop import PLAN, Run, saved
from tiny_parts import Killed

from kws_jax.errors import Interrupted, UserError
from kws_jax.training import preemption


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("undisturbed"))
    run.train()
    return run


@pytest.fixture(autouse=True)
def hears_ctrl_c():
    """Where the tests run in the background, Ctrl-C is ignored, and stays so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def ask(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


def stopped_run(folder, step, *, validating=False, number=signal.SIGTERM, **changes):
    """A run that is asked to stop during a step or its validation; its message."""
    run = Run(folder, **changes)
    make_step, validate = run.step_fn, run._validate

    def asked_step(state, batch):
        after = make_step(state, batch)
        if int(after[0].step) == step and not validating:
            ask(number)
        return after

    def asked_validate(state):
        if int(state.step) == step and validating:
            ask(number)
        return validate(state)

    run.step_fn, run._validate = asked_step, asked_validate
    with preemption.watched(), pytest.raises(Interrupted) as caught:
        run.train()
    return run, caught.value


@pytest.mark.parametrize(
    ("step", "validating"),
    # Between two log lines, at one, at a validation, in it, and at the end.
    [(1, False), (4, False), (5, False), (6, False), (6, True), (10, True)],
)
def test_a_stopped_stage_saves_its_step_and_ends_like_an_undisturbed_one(
    step, validating, undisturbed, tmp_path
):
    run, request = stopped_run(tmp_path, step, validating=validating)
    assert f"step {step} of stage 'toy' is saved" in str(request)
    assert run.closed == 1
    assert int(saved(tmp_path)[0].step) == step
    again = Run(tmp_path)
    again.train()
    assert again.batches == list(range(step, PLAN.total_steps))
    assert again.values() == undisturbed.values()
    for kind in ("last", "best"):
        (state, notes), (whole, expected) = (
            saved(folder, kind) for folder in (tmp_path, undisturbed.folder)
        )
        chex.assert_trees_all_equal(state, whole)
        assert notes | {"seconds": 0} == expected | {"seconds": 0}


def test_a_stage_may_be_stopped_again_and_again(undisturbed, tmp_path):
    # Twice between two log lines, once at a validation, then in the very next step.
    for step, validating in [(1, False), (2, False), (3, True), (4, False)]:
        stopped_run(tmp_path, step, validating=validating)
    again = Run(tmp_path)
    again.train()
    assert again.values() == undisturbed.values()
    chex.assert_trees_all_equal(saved(tmp_path)[0], saved(undisturbed.folder)[0])


def test_a_validation_that_was_told_but_not_saved_is_told_once(undisturbed, tmp_path):
    stopped_run(tmp_path, 6, validating=True)
    # It makes the validation, tells of it, and is gone before it saves.
    with pytest.raises(Killed):
        Run(tmp_path, fall_at=(6, "validation")).train()
    again = Run(tmp_path)
    again.train()
    assert again.values() == undisturbed.values()


def test_a_validation_that_is_stopped_twice_is_saved_once(tmp_path):
    stopped_run(tmp_path, 3, validating=True)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    run, _ = stopped_run(tmp_path, 3, validating=True)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("stage/*")}
    assert run.batches == []
    assert after == {path: before[path] for path in after}


def test_several_steps_a_call_are_saved_after_the_call(tmp_path):
    plan = dataclasses.replace(PLAN, total_steps=8, log_every=4, eval_every=8)
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    whole = Run(tmp_path / "whole", plan=plan)
    whole.train()
    stopped_run(tmp_path / "stopped", 3, plan=plan)
    again = Run(tmp_path / "stopped", plan=plan)
    again.train()
    assert again.values() == whole.values()


def test_a_request_before_the_first_step_saves_that_step(undisturbed, tmp_path):
    run = Run(tmp_path)
    batches = run._batches

    def asked(start):
        ask()
        return batches(start)

    run._batches = asked
    with preemption.watched(), preemption.answered_between_steps():
        with pytest.raises(Interrupted):
            run.train()
        preemption._request.signal = None
    assert int(saved(tmp_path)[0].step) == 1


def test_a_broken_state_does_not_become_a_checkpoint(tmp_path):
    def breaking(state, batch):
        state, metrics = Run._step(None, state, batch)
        if int(state.step) == 5:
            state = state.replace(trees={"weights": {"w": jnp.array([1, jnp.inf, 1])}})
            ask()
        return state, metrics

    run = Run(tmp_path, step_fn=breaking)
    with preemption.watched(), pytest.raises(UserError, match="weights became inf"):
        run.train()
    assert int(saved(tmp_path)[0].step) == 3


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)]
)
def test_outside_of_a_stage_a_request_is_answered_at_once(number, code):
    with preemption.watched():
        with pytest.raises(Interrupted, match=signal.Signals(number).name) as caught:
            ask(number)
        assert caught.value.exit_code == code
        # Schedulers repeat themselves while the run is ending.
        ask(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            ask(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_second_ctrl_c_does_not_wait_for_the_step():
    with preemption.watched(), preemption.answered_between_steps():
        ask(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            ask(signal.SIGINT)
        preemption._request.signal = None


def test_a_request_in_the_last_step_is_answered_after_the_stage():
    reached = []

    def stages():
        with preemption.answered_between_steps():
            ask()
            reached.append("end of the stage")
        reached.append("next stage")

    with preemption.watched(), pytest.raises(Interrupted):
        stages()
    assert reached == ["end of the stage"]


def test_what_is_ignored_stays_ignored_and_other_threads_change_nothing():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with preemption.watched():
            ask(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    handlers = []

    def elsewhere():
        with preemption.watched():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert handlers == [signal.SIG_DFL]


_PROGRAM = """
import signal, sys, os
from kws_jax import command_line
from kws_jax.errors import Interrupted
def main(argv):
    if argv[1:] == ["ctrl-c"]:
        raise KeyboardInterrupt
    raise Interrupted(signal.SIGTERM, "step 7 of stage 'a' is saved")
command_line.run(main)
"""


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ([], 75, "stopped by SIGTERM: step 7 of stage 'a' is saved; the same command"),
        (["ctrl-c"], 130, "stopped by SIGINT: "),
    ],
)
def test_the_program_ends_with_one_line_and_a_code_of_its_own(arguments, code, told):
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *arguments],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(told)
    assert done.stderr.count("\n") == 1


_POD = """
import os, signal, sys, time
import numpy as np
from kws_jax import command_line, distributed

def main(argv):
    address, number, folder, asked_at, slow = argv[1:]
    distributed.start(
        {"coordinator": address, "num_processes": "2", "process_id": number,
         "cluster": ""}
    )
    import pathlib
    import test_loop
    from kws_jax import together
    from kws_jax.training import preemption, sharding

    create, mesh = test_loop.create_train_state, sharding.data_mesh()
    test_loop.create_train_state = lambda *a: sharding.replicate(create(*a), mesh)
    run = test_loop.Run(pathlib.Path(folder))
    batches, step, write = run._batches, run._step, run.write
    run._batches = lambda start: map(np.asarray, batches(start))
    run.write = lambda *told: together.is_first() and write(*told)

    def asked_step(state, batch):
        state, metrics = step(state, batch)
        if int(state.step) == int(asked_at):
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(float(slow))
        return state, metrics

    run.step_fn = asked_step
    with preemption.watched():
        run.train()

command_line.run(main)
"""


def pod(folder, asked_at, slow):
    """Runs the toy on two processes, of which the second is asked to stop.

    `slow`: seconds that each step takes longer.
    """
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        address = f"localhost:{listener.getsockname()[1]}"
    root = Path(__file__).parents[1]
    paths = os.pathsep.join([str(root), str(root / "tests")])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _POD, address]
            + [str(told) for told in (number, folder, at, slow)],
            env=os.environ | {"PYTHONPATH": paths, "JAX_NUM_CPU_DEVICES": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, at in enumerate([0, asked_at])
    ]
    told = [process.communicate(timeout=300)[1] for process in processes]
    return [process.returncode for process in processes], told


def test_a_request_to_one_process_of_a_pod_saves_the_same_step_on_all(
    undisturbed, tmp_path
):
    codes, told = pod(tmp_path, asked_at=2, slow=0.4)
    assert codes == [75, 75], told
    step = int(saved(tmp_path)[0].step)
    # They hear of it within half a second each; the step being made may be the last.
    assert 2 <= step < PLAN.total_steps
    expected = f"step {step} of stage 'toy' is saved"
    assert all(expected in text for text in told), told
    codes, told = pod(tmp_path, asked_at=0, slow=0)
    assert codes == [0, 0], told
    assert Run(tmp_path).values() == undisturbed.values()
    chex.assert_trees_all_equal(saved(tmp_path)[0], saved(undisturbed.folder)[0])
