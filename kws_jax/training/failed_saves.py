"""Keeps a save that fails to the one error that it raises."""

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator

from absl import logging as absl_logging

# TensorStore ends its other writes when the first has failed already, and the loop that
# waited for them is gone: from threads that nobody can join, it tells of each.
_AFTERWARDS = "Event loop is closed"


@contextlib.contextmanager
def told_once() -> Iterator[None]:
    """Orbax, asyncio and TensorStore are silent of what fails, but for the exception.

    Each would write a traceback for each array that could not be written. What comes
    later than the exception is kept silent as well.
    """
    verbosity = absl_logging.get_verbosity()
    hook = sys.unraisablehook
    absl_logging.set_verbosity(absl_logging.FATAL)
    sys.unraisablehook = _without_echoes(hook)
    try:
        yield
    except BaseException:
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        warnings.filterwarnings("ignore", "coroutine .* never awaited", RuntimeWarning)
        raise
    else:
        sys.unraisablehook = hook
        absl_logging.set_verbosity(verbosity)


def _without_echoes(hook):
    def told(unraisable) -> None:
        if _AFTERWARDS not in str(unraisable.exc_value):
            hook(unraisable)

    return told
