"""Times the first training step of a fresh process: `python -m benchmarks.compile`.

Tracing, compilation and the step itself, without imports and initial weights: once
with an empty compilation cache (cold), once with what that run has left (cached).
"""

import json
import os
import subprocess
import sys
import tempfile

from benchmarks import command
from benchmarks.command import Session
from benchmarks.networks import CASES
from benchmarks.results import make_row
from benchmarks.timing import Timing
from kws_jax.errors import UserError

COLD, CACHED = "JAX cold", "JAX cached"
SEARCH = "autokws_search"
NAMES = (*CASES, SEARCH)


def measure(session: Session, chosen: list[str]) -> None:
    """Both times of each chosen network, `repeats` pairs of processes each."""
    wanted = session.options
    for name in chosen:
        session.console.print(f"  {name}", highlight=False)
        seconds: dict[str, list[float]] = {COLD: [], CACHED: []}
        for _ in range(wanted.repeats):
            with tempfile.TemporaryDirectory() as cache:
                for times in seconds.values():
                    times.append(_first_step(name, wanted.batch, wanted.small, cache))
        for framework, times in seconds.items():
            timing = Timing(tuple(times))
            session.rows.append(make_row(name, framework, timing, wanted.batch))


def _first_step(name: str, batch: int, small: bool, cache: str) -> float:
    """Seconds of the first step in a process whose programs are cached in `cache`."""
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    arguments = [name, str(batch), str(int(small))]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.first_step", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise UserError(f"the first step of {name} failed:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


if __name__ == "__main__":
    command.run("compile", NAMES, measure, repeats=1)
