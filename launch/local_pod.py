"""Rehearses a pod on one machine: several processes with several fake devices each.

    python launch/local_pod.py --processes=2 --devices=2 -- \
      --config=configs/autokws.py:demo --workdir=runs/pod

What stands behind `--` goes to every process of `kws_jax.main` (`--module` names
another program). Each line of output has the number of its process before it. Where one
process fails, the others are given `--grace` seconds to end by themselves, then they
are killed, and the exit code is that of the first failure. SIGTERM and Ctrl-C are
handed on to all, which then have a minute.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_POLL_SECONDS = 0.1
# From a signal that is handed on to the kill of those that still run.
_NOTICE_SECONDS = 60.0


def main(argv: Sequence[str]) -> int:
    """Runs all processes to their end; returns the exit code of the first failure."""
    options, arguments = _parse(argv)
    address = f"localhost:{free_port()}"
    pod = [
        _start(number, options, address, arguments)
        for number in range(options.processes)
    ]
    signalled: list[float] = []

    def hand_on(number: int, frame: object) -> None:
        signalled.append(time.monotonic())
        _send(pod, number)

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, hand_on)
    tellers = [
        threading.Thread(target=_tell, args=(number, process))
        for number, process in enumerate(pod)
    ]
    for teller in tellers:
        teller.start()
    code = _wait(pod, options.grace, signalled)
    for teller in tellers:
        teller.join()
    return code


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    own, arguments = list(argv), []
    if "--" in own:
        place = own.index("--")
        own, arguments = own[:place], own[place + 1 :]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=_positive, default=2)
    parser.add_argument("--devices", type=_positive, default=1, help="of each process")
    parser.add_argument("--module", default="kws_jax.main", help="run as python -m")
    parser.add_argument("--grace", type=float, default=5.0, help="seconds")
    return parser.parse_args(own), arguments


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("give at least 1")
    return number


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def _start(
    number: int, options: argparse.Namespace, address: str, arguments: list[str]
) -> subprocess.Popen:
    paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(options.devices),
        "KWS_JAX_COORDINATOR": address,
        "KWS_JAX_NUM_PROCESSES": str(options.processes),
        "KWS_JAX_PROCESS_ID": str(number),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", options.module, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        # Ctrl-C comes to this program alone, which hands it on.
        start_new_session=True,
    )
    cores = _share_of_cores(number, options.processes)
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(process.pid, cores)
    return process


def _share_of_cores(number: int, processes: int) -> list[int]:
    """The cores of one process, so that none has another's; [] where they are few."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))
    return cores[number::processes] if len(cores) >= processes else []


def _tell(number: int, process: subprocess.Popen) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        print(f"[{number}] {line.rstrip()}", flush=True)


def _wait(
    pod: Sequence[subprocess.Popen], grace: float, signalled: Sequence[float]
) -> int:
    """Waits for all to end, not long after a failure; returns the first failure."""
    code, deadline = 0, float("inf")
    while True:
        running = [process for process in pod if process.poll() is None]
        failed = [process.returncode for process in pod if process.returncode]
        if failed and not code:
            # Of a process that signal n has killed it is -n, which shells call 128 + n.
            code = failed[0] if failed[0] > 0 else 128 - failed[0]
            deadline = time.monotonic() + grace
        if not running:
            return code
        if signalled:
            deadline = min(deadline, signalled[0] + _NOTICE_SECONDS)
        if time.monotonic() > deadline:
            _send(pod, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)


def _send(pod: Sequence[subprocess.Popen], number: int) -> None:
    for process in pod:
        if process.poll() is None:
            process.send_signal(number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
