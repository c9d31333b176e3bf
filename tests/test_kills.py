"""Runs that are killed at random moments end as one that nobody has disturbed.

Each run is killed three times (SIGKILL), at moments of kinds that are drawn: in a step,
in a validation, while a checkpoint is saved, between stages, in the final test. Once it
is asked to stop, or finds the disk full. KWS_JAX_KILLS=50 makes fifty kills, three of a
run and so one more; a few by default. `pytest -rP` shows at what moments they came.
"""

import dataclasses
import itertools
import multiprocessing
import os
import random
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import chex
import orbax.checkpoint as ocp
import pytest
from words import (
    CLOCK,
    KEYWORDS,
    ROOT,
    SPEAKERS,
    lines_of,
    rows_of,
    without_clock,
    write_words,
)

from kws_jax import experiment
from kws_jax.search.space import SearchSpace
from kws_jax.stages import runner, search
from kws_jax.training import loop
from kws_jax.training.checkpoints import StageCheckpoints

KILLS = int(os.environ.get("KWS_JAX_KILLS", "6"))
# Of one run, before it may end.
KILLS_OF_A_RUN = 3
FULL_DISK = "full disk"
TRAIN_CLIPS = 3 * SPEAKERS["train"] + 4 + 4
SYSTEMS = ("autokws", "curriculum")
# What a run is doing; PREPARING until it has claimed its workdir.
MOMENTS = PREPARING, BETWEEN, STEPS, VALIDATION, SAVING, TEST = (
    *("preparing", "between stages", "steps", "validation", "a checkpoint"),
    "the final test",
)
# A run comes this often to a moment of the kind that is drawn before it is disturbed.
MOST_TIMES = 3
# Runs that may come to their end before they are struck.
MOST_LIVES = 8
# So long may a run take to end after SIGTERM, on a machine with other work.
SECONDS_TO_END = 15


def small_space(parts):
    """Two layers of three operations; the whole space is compiled for a minute."""
    return SearchSpace((2, 1), (6, 6), 4, operations=("C3", "C5SE", "SKIP"))


@dataclasses.dataclass
class Strike:
    """A disturbance: `delay` seconds after a run has come `times` times to a moment."""

    moment: str
    times: int
    delay: float
    how: Any  # a signal, or FULL_DISK

    def __call__(self, doing):
        """Strikes this process."""
        doing.note_strike()
        if self.how == FULL_DISK:
            # No file may grow beyond one byte; pipes may.
            resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1))
        else:
            os.kill(os.getpid(), self.how)


class Doing:
    """What a run is doing, for those who look when it has ended: a byte in a file.

    Behind it the time of the strike.
    """

    def __init__(self, path, strike):
        self._path, self._strike = path, strike

    def tell(self, moment):
        self._write(bytes([MOMENTS.index(moment)]), 0)
        if self._strike and moment == self._strike.moment:
            self._strike.times -= 1
            if not self._strike.times:
                # Another thread: it comes in the midst of what this one does.
                timer = threading.Timer(self._strike.delay, self._strike, [self])
                timer.daemon = True
                timer.start()

    def note_strike(self):
        self._write(str(time.monotonic()).encode(), 1)

    def during(self, moment, after=None):
        """Makes a function tell the moment, and afterwards the former one."""

        def wrap(function):
            def wrapped(*arguments, **settings):
                before = self.last()
                self.tell(moment)
                try:
                    return function(*arguments, **settings)
                finally:
                    self.tell(after or before)

            return wrapped

        return wrap

    def last(self):
        return MOMENTS[self._path.read_bytes()[0]]

    def seconds_since_strike(self):
        return time.monotonic() - float(self._path.read_bytes()[1:])

    def _write(self, content, place):
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT)
        os.pwrite(file, content, place)
        os.close(file)


def watch(doing):
    """Has the run of this process tell what it is doing."""

    def while_validating(make):
        return lambda *parts: doing.during(VALIDATION)(make(*parts))

    doing.tell(PREPARING)
    for owner, name, wrap in (
        (experiment, "prepare", doing.during(PREPARING, after=BETWEEN)),
        (loop, "train_stage", doing.during(STEPS)),
        (runner, "make_validation", while_validating),
        (StageCheckpoints, "_save", doing.during(SAVING)),
        (experiment, "final_test", doing.during(TEST)),
    ):
        setattr(owner, name, wrap(getattr(owner, name)))


def run_main(arguments, output, doing):
    """Runs `kws_jax.main` in this process; what it tells goes into a pipe."""
    # Here, since the flags of one program alone can be defined in a process.
    from kws_jax import command_line, main

    search.create_space = small_space
    # Where the tests run in the background, Ctrl-C is ignored, and stays so.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    watch(doing)
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    output.close()
    sys.argv = ["main", *arguments]
    os.chdir(ROOT)
    command_line.run(main.main, main._check_arguments)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts a run in a copy of a process that has imported all that it needs."""
    cache = tmp_path_factory.mktemp("cache")
    numbers = itertools.count()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kws_jax.experiment", "test_kills"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_PLATFORMS", "cpu")
        patch.setenv("KWS_JAX_CACHE", str(cache))
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache / "xla"))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")

        def start(arguments, strike=None):
            """Runs to the end: (exit code, what it told, what it was doing)."""
            output, write = context.Pipe(duplex=False)
            doing = Doing(cache / f"doing-{next(numbers)}", strike)
            process = context.Process(target=run_main, args=(arguments, write, doing))
            process.start()
            write.close()
            told = b""
            while part := os.read(output.fileno(), 1 << 16):
                told += part
            process.join()
            output.close()
            return process.exitcode, told.decode(), doing

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


@pytest.fixture(scope="module")
def undisturbed(start, flags, tmp_path_factory):
    """System -> workdir of an undisturbed run."""
    made = {}

    def of(system):
        if system not in made:
            workdir = tmp_path_factory.mktemp(system) / "run"
            code, told, _ = start([*flags[system], f"--workdir={workdir}"])
            assert code == 0, told
            made[system] = workdir
        return made[system]

    return of


def saved_states(workdir):
    """Stage -> the parameters that it ended with, and the best ones."""
    found = {}
    with ocp.StandardCheckpointer() as checkpointer:
        for folder in sorted((workdir / "stages").glob("*/*/")):
            steps = [int(p.name) for p in folder.iterdir() if p.name.isdigit()]
            if folder.name == "aside":
                assert not steps, "a state was left where it was not to stay"
                continue
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


def check_end(strike, code, told, doing):
    """Checks how a run that was struck has ended."""
    how = strike.how
    if how == signal.SIGKILL:
        assert code == -signal.SIGKILL, told
        return
    assert "Traceback" not in told
    if how == FULL_DISK:
        assert code == 2, told
        assert told.count("error: Could not write to") == 1, told
        return
    seconds = doing.seconds_since_strike()
    assert code == {signal.SIGTERM: 75, signal.SIGINT: 130}[how], told
    assert told.count(f"stopped by {how.name}: ") == 1, told
    assert seconds < SECONDS_TO_END, told
    print(f"{how.name} in {strike.moment}: ended after {seconds:.1f} s")


@pytest.mark.parametrize("number", range(-(-KILLS // KILLS_OF_A_RUN)))
def test_a_run_disturbed_at_random_moments_ends_like_an_undisturbed_one(
    number, start, flags, undisturbed, tmp_path
):
    system = SYSTEMS[number % len(SYSTEMS)]
    rng = random.Random(number)
    asked = rng.choice([signal.SIGTERM, signal.SIGINT])
    # Both of them with each of the systems.
    other = (asked, FULL_DISK)[(number + number // len(SYSTEMS)) % 2]
    kinds = [signal.SIGKILL] * KILLS_OF_A_RUN + [other]
    rng.shuffle(kinds)
    left = [(rng.choice(MOMENTS[1:]), kind) for kind in kinds]
    # What has come to the final test comes to no more steps.
    left.sort(key=lambda each: each[0] != TEST)
    lives, killed = iter(range(MOST_LIVES)), []
    arguments = [*flags[system], f"--workdir={tmp_path / f'run-{next(lives)}'}"]
    while left:
        moment, how = left[-1]
        times = 1 if moment in (BETWEEN, TEST) else rng.randint(1, MOST_TIMES)
        strike = Strike(moment, times, rng.uniform(0, 0.05), how)
        code, told, doing = start(arguments, strike)
        if code == 0:
            # It was at its end before: the rest comes to another run.
            assert_same_end(workdir_of(arguments), undisturbed(system))
            life = next(lives, None)
            assert life is not None, f"{how} in {moment} does not strike"
            arguments[-1] = f"--workdir={tmp_path / f'run-{life}'}"
            continue
        check_end(strike, code, told, doing)
        left.pop()
        killed += [doing.last()] if how == signal.SIGKILL else []
    code, told, _ = start(arguments)
    assert code == 0, told
    assert_same_end(workdir_of(arguments), undisturbed(system))
    print(f"{system}: killed in {', '.join(killed)}")


def workdir_of(arguments):
    return Path(arguments[-1].removeprefix("--workdir="))
