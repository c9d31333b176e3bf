"""Ends a run on request, SIGTERM of a scheduler or Ctrl-C, without losing a step.

The request is only noted while the loop makes steps, and answered between two of them,
when the state is whole. Elsewhere there is nothing to be saved that is not saved yet,
and it is answered at once.
"""

import contextlib
import dataclasses
import functools
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

import jax

from kws_jax import distributed
from kws_jax.errors import Interrupted
from kws_jax.training.stopping_together import StoppingTogether

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclasses.dataclass
class _Request:
    """What this process was asked, and whether the answer has to wait.

    Signals belong to the process, and so does this.
    """

    signal: int | None = None
    waits: bool = False


_request = _Request()


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Within it, SIGTERM and Ctrl-C end the run by raising `Interrupted`.

    A process of a pod that leaves takes the others with it (`distributed.leave`). A
    signal that the parent process has set to be ignored (as `nohup` does) stays so, and
    threads other than the main one change nothing.
    """
    _request.signal, _request.waits = None, False
    _agreement()  # listens from here on
    handled = {}
    if threading.current_thread() is threading.main_thread():
        handled = {
            number: signal.signal(number, _note)
            for number in _SIGNALS
            if signal.getsignal(number) != signal.SIG_IGN
        }
    try:
        yield
    finally:
        for number, before in handled.items():
            # None is a handler that was not set from Python.
            signal.signal(number, signal.SIG_DFL if before is None else before)
        _request.signal = None


@functools.cache
def _agreement() -> StoppingTogether | None:
    """That of the process, for all that it runs; None where it is alone."""
    client = distributed.client()
    if client is None:
        return None
    found = StoppingTogether(
        client,
        jax.process_index(),
        jax.process_count(),
        lambda: _request.signal is not None,
        distributed.OVER,
    )
    distributed.in_background(found.listen, "requests")
    return found


@contextlib.contextmanager
def answered_between_steps() -> Iterator[None]:
    """Within it, a request waits for `asked_to_stop`, or else for the end.

    Raises:
      Interrupted: at the end, where a request came that nobody has asked for.
    """
    before, _request.waits = _request.waits, True
    try:
        yield
    finally:
        _request.waits = before
    if _request.signal is not None and not before:
        stop()


@contextlib.contextmanager
def answered_at_once() -> Iterator[None]:
    """Within it, a request raises `Interrupted` at once; in a pod it still waits."""
    before, _request.waits = _request.waits, jax.process_count() > 1
    try:
        if _request.signal is not None and not _request.waits:
            stop()
        yield
    finally:
        _request.waits = before


def asked_to_stop() -> bool:
    """Whether to save now and to end; called between the same steps by all processes.

    Those of a pod agree: a request to one of them is one to all.
    """
    agreement = _agreement()
    return _request.signal is not None if agreement is None else agreement.is_time()


def stop(saved: str = "") -> NoReturn:
    """Raises `Interrupted` with what was asked and what was `saved`."""
    raise Interrupted(_request.signal or signal.SIGTERM, saved)


def _note(number: int, frame: FrameType | None) -> None:
    """Handles a signal. Schedulers repeat theirs; a second Ctrl-C is impatience."""
    repeated, _request.signal = _request.signal is not None, number
    if repeated and number == signal.SIGINT:
        raise KeyboardInterrupt
    if not repeated and not _request.waits:
        stop()
