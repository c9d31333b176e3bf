"""Runs that are killed at random moments end as one that nobody has disturbed.

They are also asked to stop, and find the disk full. KWS_JAX_KILLS=50 makes fifty such
disturbances, three a run and so one more; a few by default.
"""

import dataclasses
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

import chex
import orbax.checkpoint as ocp
import pytest
from test_end_to_end import (
    CLOCK,
    KEYWORDS,
    ROOT,
    SPEAKERS,
    lines_of,
    rows_of,
    without_clock,
    write_words,
)

from kws_jax.search.space import SearchSpace
from kws_jax.stages import search

KILLS = int(os.environ.get("KWS_JAX_KILLS", "6"))
# Disturbances of one run, before it may end.
KILLS_OF_A_RUN = 3
FULL_DISK = "full disk"
TRAIN_CLIPS = 3 * SPEAKERS["train"] + 4 + 4
SYSTEMS = ("autokws", "curriculum")
# So long may a run take to end after SIGTERM, on a machine with other work.
SECONDS_TO_END = 15


def small_space(parts):
    """Two layers of three operations; the whole space is compiled for a minute."""
    return SearchSpace((2, 1), (6, 6), 4, operations=("C3", "C5SE", "SKIP"))


def run_main(arguments, output):
    """Runs `kws_jax.main` in this process; what it tells goes into a pipe."""
    # Here, since the flags of one program alone can be defined in a process.
    from kws_jax import command_line, main

    search.create_space = small_space
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    output.close()
    sys.argv = ["main", *arguments]
    os.chdir(ROOT)
    command_line.run(main.main, main._check_arguments)


@dataclasses.dataclass
class Run:
    """A started run."""

    process: Any
    output: Connection

    def end(self):
        """Waits for its end: (exit code, what it told)."""
        told = b""
        while part := os.read(self.output.fileno(), 1 << 16):
            told += part
        self.process.join()
        self.output.close()
        return self.process.exitcode, told.decode()


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts a run in a copy of a process that has imported all that it needs."""
    cache = tmp_path_factory.mktemp("cache")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kws_jax.experiment", "test_kills"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_PLATFORMS", "cpu")
        patch.setenv("KWS_JAX_CACHE", str(cache))
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache / "xla"))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")

        def start(arguments):
            output, write = context.Pipe(duplex=False)
            process = context.Process(target=run_main, args=(arguments, write))
            process.start()
            write.close()
            return Run(process, output)

        yield start


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """System -> the flags of a tiny experiment."""
    speech = tmp_path_factory.mktemp("data") / "words"
    write_words(speech)
    data = (
        "data.source=folder",
        f"data.dir={speech}",
        f"data.keywords={','.join(KEYWORDS)}",
        "evaluation.snr_db=(10,)",
        "evaluation.batch_size=16",
        "log_every_steps=3",
    )
    per_epoch = {0: TRAIN_CLIPS / 2 / 8, 1: TRAIN_CLIPS / 8}
    autokws = (
        f"stages[{stage}].{setting}"
        for stage, steps in per_epoch.items()
        for setting in (
            f"epochs={20 / steps}",
            "batch_size=8",
            f"eval_every_epochs={5 / steps}",
        )
    )
    curriculum = (
        f"stages[{stage}].{setting}"
        for stage in range(5)
        for setting in ("epochs=3.0", "batch_size=16", "stop.patience=1")
    )
    return {
        system: [f"--config=configs/{config}"]
        + [f"--config.{field}" for field in (*data, f"{width}=0.25", *fields)]
        for system, config, width, fields in (
            ("autokws", "autokws.py:noisydarts,cpu", "search.width", autokws),
            ("curriculum", "convmixer.py:tc_resnet8,demo", "network.width", curriculum),
        )
    }


def began(workdir):
    """When the newest run in the folder was ready to train; 0 where none was."""
    file = workdir / "command.json"
    return file.stat().st_mtime_ns if file.exists() else 0


@pytest.fixture(scope="module")
def undisturbed(start, flags, tmp_path_factory):
    """System -> workdir of an undisturbed run, and its seconds of training and test."""
    made = {}

    def of(system):
        if system not in made:
            workdir = tmp_path_factory.mktemp(system) / "run"
            code, told = start([*flags[system], f"--workdir={workdir}"]).end()
            assert code == 0, told
            ended = (workdir / "report.html").stat().st_mtime_ns
            made[system] = workdir, (ended - began(workdir)) / 1e9
        return made[system]

    return of


def saved_states(workdir):
    """Stage -> the parameters that it ended with, and the best ones."""
    found = {}
    with ocp.StandardCheckpointer() as checkpointer:
        for folder in sorted((workdir / "stages").glob("*/*/")):
            steps = [int(p.name) for p in folder.iterdir() if p.name.isdigit()]
            newest = folder / str(max(steps)) / "state"
            name = f"{folder.parent.name}/{folder.name}"
            found[name] = checkpointer.restore(newest.resolve())
    return found


def assert_same_end(workdir, expected):
    killed, whole = saved_states(workdir), saved_states(expected)
    assert set(killed) == set(whole)
    chex.assert_trees_all_equal(killed, whole)
    assert without_clock(lines_of(workdir)) == without_clock(lines_of(expected))
    rows, wanted = (
        [row for row in rows_of(w) if row["metric"] not in CLOCK]
        for w in (workdir, expected)
    )
    assert rows == wanted


def when_ready(run, workdir, before):
    """Waits until the run is past its preparations, or over."""
    while began(workdir) == before and run.process.is_alive():
        time.sleep(0.01)


def disturb(run, how):
    """Sends a signal, or lets all writes fail; checks how the run ends."""
    if not run.process.is_alive():
        return
    began = time.monotonic()
    if how == FULL_DISK:
        # No file may grow beyond one byte; pipes may.
        resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (1, 1))
    else:
        os.kill(run.process.pid, how)
    code, told = run.end()
    seconds = time.monotonic() - began
    if code == 0:
        return  # it was at its end already
    if how == signal.SIGKILL:
        assert code == -signal.SIGKILL, told
        return
    assert "Traceback" not in told
    if how == FULL_DISK:
        assert code == 2, told
        assert told.count("error: Could not write to") == 1, told
    else:
        assert code == {signal.SIGTERM: 75, signal.SIGINT: 130}[how], told
        assert told.count(f"stopped by {how.name}: ") == 1, told
        assert seconds < SECONDS_TO_END, told


@pytest.mark.parametrize("number", range(-(-KILLS // KILLS_OF_A_RUN)))
def test_a_run_disturbed_at_random_moments_ends_like_an_undisturbed_one(
    number, start, flags, undisturbed, tmp_path
):
    system = SYSTEMS[number % len(SYSTEMS)]
    expected, seconds = undisturbed(system)
    arguments = [*flags[system], f"--workdir={tmp_path / 'run'}"]
    rng = random.Random(number)
    asked = rng.choice([signal.SIGTERM, signal.SIGINT])
    for each in rng.sample([signal.SIGKILL, asked, FULL_DISK], KILLS_OF_A_RUN):
        before = began(tmp_path / "run")
        run = start(arguments)
        when_ready(run, tmp_path / "run", before)
        time.sleep(rng.uniform(0, seconds))
        disturb(run, each)
    code, told = start(arguments).end()
    assert code == 0, told
    assert_same_end(tmp_path / "run", expected)
