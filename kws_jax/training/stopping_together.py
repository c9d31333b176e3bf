"""Between which steps the processes of a pod end, where one of them is asked to.

That depends on where each of them is, and their loops cannot ask each other: one may be
within a validation that needs the others. So a thread of each process tells where its
loop is and holds it there until all have told; they end behind the foremost. JAX's own
preemption service does the same, but takes the signals away from Python.
"""

import functools
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

_KEY = "kws_jax/asked to stop"
_POLL_SECONDS = 0.5
# So long may the coordinator not answer; else the run is over, or about to be.
_PATIENCE_SECONDS = 300
_WAIT_MS = 60_000
T = TypeVar("T")


class StoppingTogether:
    """The agreement of one process with the others; one thread in a run listens."""

    def __init__(
        self,
        client: Any,
        number: int,
        count: int,
        asked: Callable[[], bool],
        over: threading.Event,
    ) -> None:
        """Begins before the first step.

        Args:
          client: JAX's connection to the coordinator.
          number: of this process.
          count: how many there are.
          asked: whether this process was asked to stop.
          over: set where there is nothing to agree on any more.
        """
        self._client, self._number, self._count = client, number, count
        self._asked, self._over = asked, over
        self._lock = threading.Lock()
        self._place, self._stop = 0, -1

    def is_time(self) -> bool:
        """Whether all end here; called between steps, by all at the same places."""
        with self._lock:
            self._place += 1
            return self._place == self._stop

    def listen(self) -> None:
        """Until it is time or `over`; for a thread of its own."""
        try:
            while not self._patiently(self._heard):
                if self._over.wait(_POLL_SECONDS):
                    return
            with self._lock:
                self._patiently(self._tell_place)
                self._stop = 1 + max(
                    self._patiently(functools.partial(self._place_of, number))
                    for number in range(self._count)
                )
        except RuntimeError:
            # The run is over, or `distributed` ends it.
            return

    def _heard(self) -> bool:
        """Whether any process was asked; tells the others where it was this one."""
        if self._asked():
            self._client.key_value_set(_KEY, "yes", allow_overwrite=True)
            return True
        try:
            self._client.key_value_try_get(_KEY)
        except RuntimeError as error:
            if "NOT_FOUND" not in str(error):
                raise
            return False
        return True

    def _tell_place(self) -> None:
        own = f"{_KEY}/{self._number}"
        self._client.key_value_set(own, str(self._place), allow_overwrite=True)

    def _place_of(self, number: int) -> int:
        name = f"{_KEY}/{number}"
        return int(self._client.blocking_key_value_get(name, _WAIT_MS))

    def _patiently(self, ask: Callable[[], T]) -> T:
        """What the coordinator answers; asks again where it fails now and then."""
        until = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                return ask()
            except RuntimeError:
                if time.monotonic() > until or self._over.wait(_POLL_SECONDS):
                    raise
