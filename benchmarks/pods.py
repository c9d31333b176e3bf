"""Times training steps in pods rehearsed on this machine: `python -m benchmarks.pods`.

Each kind of step, in layouts of processes × devices by `launch/local_pod.py`. The batch
is that of all together, and all share this machine's cores: what a layout takes longer
than 1×1 is the price of processes that wait for each other. It may take less where one
process does not make use of all cores.
"""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks import command
from benchmarks.command import Session
from benchmarks.results import make_row
from benchmarks.timing import Timing
from kws_jax.errors import UserError

# With -own_norms, batch norms are those of each device's rows.
NAMES = (
    "tc_resnet8",
    "tc_resnet8-own_norms",
    "conv_mixer-own_norms",
    "data_parameters",
    "curriculum",
    "learned_bits",
    "autokws",
)
LAYOUTS = ((1, 1), (2, 1), (1, 4), (2, 2), (4, 1))
DEVICES = max(processes * devices for processes, devices in LAYOUTS)
_ROOT = Path(__file__).parents[1]


def measure(session: Session, chosen: list[str]) -> None:
    """The time of each chosen step in each layout.

    Raises:
      UserError: a batch that cannot be divided, or a step that failed.
    """
    batch = session.options.batch
    if batch % DEVICES:
        raise UserError(
            f"--batch={batch} cannot be divided over {DEVICES} devices; give a "
            "multiple."
        )
    for name in chosen:
        session.console.print(f"  {name}", highlight=False)
        for processes, devices in LAYOUTS:
            timing = Timing(tuple(_seconds(session, name, processes, devices)))
            layout = f"{processes}×{devices}"
            session.rows.append(make_row(name, layout, timing, batch))


def _seconds(session: Session, name: str, processes: int, devices: int) -> list[float]:
    """Seconds of each step, as process 0 has measured them."""
    wanted = session.options
    arguments = (name, wanted.batch, wanted.repeats, int(wanted.small))
    done = subprocess.run(
        [
            *(sys.executable, "launch/local_pod.py", f"--processes={processes}"),
            *(f"--devices={devices}", "--module=benchmarks.pod_step", "--"),
            *map(str, arguments),
        ],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    told = [line for line in done.stdout.splitlines() if '{"seconds"' in line]
    if done.returncode or not told:
        raise UserError(
            f"the step of {name} in {processes}×{devices} failed:\n"
            f"{(done.stdout + done.stderr)[-2000:]}"
        )
    return json.loads(told[0].partition(" ")[2])["seconds"]


if __name__ == "__main__":
    command.run("pods", NAMES, measure)
