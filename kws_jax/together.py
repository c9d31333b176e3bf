"""Where the processes of a pod wait for each other, and what they agree on.

All processes call the same functions of this file in the same order. They talk through
the coordinator, not through their devices: that compiles nothing, and waits as long as
it takes. Where there is a single process, each function does the obvious at once.
"""

import contextlib
import itertools
import json
from collections.abc import Iterator
from typing import TypeVar

import jax

from kws_jax import distributed
from kws_jax.errors import UserError

_WAIT_MS = 24 * 3600 * 1000
_numbers = itertools.count()
T = TypeVar("T")


def is_first() -> bool:
    """Whether this is process 0, which alone writes and speaks."""
    return jax.process_index() == 0


def wait(what: str) -> None:
    """Returns when all processes have come here; `what` tells barriers apart."""
    if jax.process_count() > 1:
        name = f"kws_jax/{next(_numbers)}/{what}"
        distributed.client().wait_at_barrier(name, _WAIT_MS)


@contextlib.contextmanager
def first_process_first(what: str) -> Iterator[None]:
    """Lets the others begin what is inside when process 0 has done it.

    For what process 0 leaves in a file that the others would else make too.
    """
    if not is_first():
        wait(what)
    yield
    if is_first():
        wait(what)


def agreed(value: T) -> T:
    """What process 0 has for `value`, a JSON value, on all processes."""
    if jax.process_count() == 1:
        return value
    key = f"kws_jax/{next(_numbers)}/agreed"
    if is_first():
        distributed.client().key_value_set(key, json.dumps(value))
        return value
    return json.loads(distributed.client().blocking_key_value_get(key, _WAIT_MS))


def of_all(value: T) -> list[T]:
    """`value`, a JSON value, of each process, in their order."""
    count = jax.process_count()
    if count == 1:
        return [value]
    key = f"kws_jax/{next(_numbers)}/all"
    client = distributed.client()
    client.key_value_set(f"{key}/{jax.process_index()}", json.dumps(value))
    told: list[T] = []
    if is_first():
        names = (f"{key}/{number}" for number in range(count))
        told = [json.loads(client.blocking_key_value_get(k, _WAIT_MS)) for k in names]
    return agreed(told)


def any_of(value: bool) -> bool:
    """Whether `value` is true on any process."""
    return any(of_all(value))


def check_same(what: str, value: object) -> None:
    """Raises UserError where this process has another JSON value than process 0."""
    if agreed(value) != value:
        raise UserError(
            f"Process {jax.process_index()} of {jax.process_count()} has {what} other "
            "than process 0: start all processes with the same command, the same "
            "version and the same data."
        )
