"""How much is tried, and how it is answered: what all tests with drawn input share.

`KWS_JAX_FUZZ=20` tries twenty times as much, of other cases at each run.
"""

import contextlib
import os
import resource
import signal
from pathlib import Path

from hypothesis import HealthCheck, settings

from kws_jax.errors import UserError

TIMES = float(os.environ.get("KWS_JAX_FUZZ", "1"))
# On a busy machine; what hangs, hangs longer.
SECONDS = 30


def cases(number):
    """Settings of a test that tries `number` cases."""
    return settings(
        max_examples=max(1, round(number * TIMES)),
        derandomize=TIMES == 1,
        deadline=SECONDS * 1000,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def refusal(action, *arguments):
    """The message of the UserError that `action` ends with; "" where it ends well.

    Any other exception is passed on: the user would see a traceback.
    """
    try:
        action(*arguments)
    except UserError as error:
        return str(error)
    return ""


@contextlib.contextmanager
def within(seconds=SECONDS):
    """Raises TimeoutError in what takes longer, a wait in a system call too."""

    def stop(number, frame):
        raise TimeoutError(f"still not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def within_memory(size):
    """Raises MemoryError in what takes more than `size` bytes; on Linux alone."""
    told = Path("/proc/self/statm")
    if not told.exists():
        yield
        return
    pages = int(told.read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + size
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
