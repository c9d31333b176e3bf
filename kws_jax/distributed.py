"""Several processes as one program: how they find each other, and how they end.

Flags or environment variables say which process this is; without them JAX's own
detection of clusters does (TPU pods, SLURM, Kubernetes, Open MPI). Where that finds
none, or a single process, the program runs alone and nothing of this is used. No JAX is
imported before `start`.
"""

import dataclasses
import json
import logging
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from absl import flags

from kws_jax import clusters
from kws_jax.errors import REQUESTED, UserError

# Setting -> environment variable that stands in for its flag.
VARIABLES = {
    "coordinator": "KWS_JAX_COORDINATOR",
    "num_processes": "KWS_JAX_NUM_PROCESSES",
    "process_id": "KWS_JAX_PROCESS_ID",
    "cluster": "KWS_JAX_CLUSTER",
}
_PLACE = tuple(name for name in VARIABLES if name != "cluster")
# A process that has not been heard of for so long takes the others down.
_HEARTBEAT_SECONDS = 30
# For all processes to be there in the beginning, and to be done in the end.
_START_SECONDS, _END_SECONDS = 300, 300
# For the others to read why one ends, before it does.
_FAREWELL_SECONDS = 1.0
_FAILURE = "kws_jax/failure"
# Set when this process has ended its part.
OVER = threading.Event()
_threads: list[threading.Thread] = []
_DAY_MS = 24 * 3600 * 1000


@dataclasses.dataclass(frozen=True)
class Place:
    """Which process this is, as the user says it.

    Attributes:
      coordinator: HOST:PORT of process 0.
      num_processes: how many there are.
      process_id: which of them this is, from 0.
    """

    coordinator: str
    num_processes: int
    process_id: int


def define_flags() -> None:
    """Makes a flag of each setting."""
    helps = {
        "coordinator": "HOST:PORT of process 0, where there are several processes.",
        "num_processes": "How many processes there are.",
        "process_id": "Which of them this is, from 0.",
        "cluster": f"One of {', '.join(clusters.NAMES)}: who says the "
        "same where these flags do not.",
    }
    for name, variable in VARIABLES.items():
        flags.DEFINE_string(name, None, f"{helps[name]} Else ${variable}.")


def settings(given: Mapping[str, str | None]) -> dict[str, str]:
    """Each setting: its flag in `given`, else its environment variable, else ''."""
    return {
        name: given.get(name) or os.environ.get(variable, "")
        for name, variable in VARIABLES.items()
    }


def start_by_flags() -> bool:
    """`start` with what flags and environment say."""
    return start(settings({name: flags.FLAGS[name].value for name in VARIABLES}))


def place_of(given: Mapping[str, str]) -> Place | None:
    """The place that settings describe, None where they describe none.

    Raises:
      UserError: for settings that are half given, or make no sense.
    """
    told = [name for name in _PLACE if given[name]]
    if not told:
        return None
    if given["cluster"] not in ("", clusters.AUTO, clusters.NONE):
        raise UserError(
            f"--cluster={given['cluster']} finds out what --{told[0]} "
            f"({VARIABLES[told[0]]}) says: give one of them."
        )
    missing = [name for name in _PLACE if not given[name]]
    if missing:
        raise UserError(
            f"{_named(told)} given, but not {_named(missing)}: one of several "
            "processes needs all three, for example --coordinator=10.0.0.1:8476 "
            "--num_processes=4 --process_id=0. For a single process give none."
        )
    if not re.fullmatch(r".+:\d{1,5}", given["coordinator"]):
        raise UserError(
            f"--coordinator={given['coordinator']}: give HOST:PORT of process 0, the "
            "same for all processes."
        )
    count, number = (_whole(given, name) for name in ("num_processes", "process_id"))
    if not 0 <= number < count:
        raise UserError(
            f"--process_id={number} is not one of --num_processes={count}; give each "
            f"process another number in 0 … {count - 1}."
        )
    return Place(given["coordinator"], count, number)


def _named(names: list[str]) -> str:
    return " and ".join(f"--{name} ({VARIABLES[name]})" for name in names)


def _whole(given: Mapping[str, str], name: str) -> int:
    try:
        return int(given[name])
    except ValueError as error:
        raise UserError(
            f"--{name}={given[name]} ({VARIABLES[name]}): give a whole number."
        ) from error


def start(given: Mapping[str, str]) -> bool:
    """Joins this process to the others; returns whether there are others.

    To be called once, before the first use of JAX's devices. From then on process 0
    alone writes to standard output, and a process that ends by an error ends all.

    Args:
      given: what `settings` gives.

    Raises:
      UserError: see `place_of`; or a cluster that is unknown, is not here, or cannot
        be asked; or processes that do not come within five minutes.
    """
    place = place_of(given)
    cluster = None if place else clusters.detected(given["cluster"] or clusters.AUTO)
    if place is None and cluster is None:
        return False
    if place is not None and place.num_processes == 1:
        return False
    _initialize(place, cluster)
    _speak_alone()
    _meet()
    in_background(_watch, "failures")
    return True


def in_background(target: Callable[[], None], name: str) -> None:
    """Runs what asks the coordinator in a thread, which `finish` waits for.

    It returns soon after `OVER` is set or its question fails, whichever comes first.
    """
    thread = threading.Thread(target=target, daemon=True, name=name)
    _threads.append(thread)
    thread.start()


def _initialize(place: Place | None, cluster: Any) -> None:
    import jax

    told: dict[str, Any] = {"local_device_ids": None}
    if place is not None:
        told = {**dataclasses.asdict(place), "cluster_detection_method": "deactivate"}
        told["coordinator_address"] = told.pop("coordinator")
    where = f"at {place.coordinator}" if place else f"by {cluster.__name__}"
    print(
        f"Several processes, joined {where}: waiting for all of them, "
        f"{_START_SECONDS} s at most (--cluster=none runs alone)",
        file=sys.stderr,
    )
    logging.getLogger("jax._src.distributed").setLevel(logging.WARNING)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM away from Python, and do nothing with it.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **told,
            initialization_timeout=_START_SECONDS,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_END_SECONDS,
        )
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(
            f"The processes, joined {where}, did not find each other: {error}\nStart "
            "all of them within five minutes, with the same --coordinator and "
            "--num_processes, and let them reach its port."
        ) from error


def _meet() -> None:
    """Opens the connections between CPU devices while all processes are at hand.

    Gloo gives the first use of all devices 30 seconds, in which the slowest process
    must have compiled what the fastest one waits in; later ones have no limit.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    if jax.default_backend() != "cpu":
        return
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    split = jax.NamedSharding(mesh, jax.P("data"))
    ones = jax.make_array_from_callback(
        (mesh.size,), split, lambda index: np.ones(1, np.float32)
    )
    client().wait_at_barrier("kws_jax/meeting", _START_SECONDS * 1000)
    jax.block_until_ready(jax.jit(jnp.sum)(ones))


def _speak_alone() -> None:
    import jax

    if jax.process_index():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for as long as the process)


def client() -> Any:
    """JAX's connection to the coordinator, None where this process is alone."""
    if "jax" not in sys.modules:
        return None
    from jax._src import distributed

    return distributed.global_state.client


def finish() -> None:
    """Ends this process's part when all have come to their end."""
    if client() is not None:
        import jax

        jax.distributed.shutdown()
        # Until then others may have asked. Should a thread ask on while the interpreter
        # ends, Python ends it in the midst of C++, which aborts the process.
        OVER.set()
        for thread in _threads:
            thread.join(_END_SECONDS)


def leave(code: int, message: object) -> NoReturn:
    """Ends the program with an exit code, and with it all other processes.

    Of several processes, an ordinary exit would wait for the others, which may wait for
    this one; so they are told, and this one ends at once.
    """
    connection = client()
    if connection is None:
        sys.exit(code)
    import jax

    told = json.dumps([jax.process_index(), code, str(message)])
    try:
        connection.key_value_set(_FAILURE, told)
        time.sleep(_FAREWELL_SECONDS)
    except RuntimeError:
        pass  # another was first, or the coordinator is gone: all end anyway
    _exit(code)


def leave_after(error: BaseException) -> NoReturn:
    """`leave` after an error that is not the user's, with its traceback."""
    traceback.print_exception(error)
    leave(1, repr(error))


def _watch() -> None:
    """Ends this process when another tells that it ends before its time."""
    told = None
    while told is None:
        try:
            told = client().blocking_key_value_get(_FAILURE, _DAY_MS)
        except RuntimeError as error:
            # A day is over, and the run may last for weeks; else the program ends.
            if "DEADLINE_EXCEEDED" not in str(error):
                return
    import jax

    number, code, message = json.loads(told)
    if number != jax.process_index():
        what = f"error: process {number} has failed"
        hint = "\nThe same command goes on from the last checkpoint."
        if code in REQUESTED:
            # Its message ends in such a hint.
            what, hint = f"process {number} was asked to stop", ""
        print(
            f"{what}, so process {jax.process_index()} ends too: {message}{hint}",
            file=sys.stderr,
        )
        if jax.process_index() == 0:
            time.sleep(2 * _FAREWELL_SECONDS)  # all hear of it through this one
        _exit(code)


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
