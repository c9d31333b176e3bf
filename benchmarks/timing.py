"""Repeated timings, those of several frameworks by turns."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

WARM_UP = 3


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of each repetition of one call."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median in seconds."""
        return float(np.median(self.seconds))

    @property
    def iqr(self) -> float:
        """Distance between the first and the third quartile in seconds."""
        low, high = np.percentile(self.seconds, (25, 75))
        return float(high - low)

    @property
    def best(self) -> float:
        """The shortest repetition in seconds."""
        return min(self.seconds)


def interleaved(
    calls: Mapping[str, Callable[[], Any]],
    *,
    repeats: int,
    warm_up: int = WARM_UP,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Times each call `repeats` times, all calls by turns.

    Turns let a machine that slows down hit all of them alike. Every turn begins with
    an untimed call: the one before has left its own data in the caches, and threads
    that still wait busily for more work.

    Args:
      calls: name -> a call that returns when its result is there.
      repeats: timed turns of each call.
      warm_up: untimed calls before the first turn (compilation, allocation).
      clock: seconds from any origin.

    Returns:
      name -> the timing of its call.
    """
    for call in calls.values():
        for _ in range(warm_up):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            call()
            begin = clock()
            call()
            seconds[name].append(clock() - begin)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def fastest(calls: Sequence[Callable[[], Any]], *, repeats: int) -> float:
    """The shortest time, in seconds, that any of the calls took."""
    named = {str(index): call for index, call in enumerate(calls)}
    return min(timing.best for timing in interleaved(named, repeats=repeats).values())
