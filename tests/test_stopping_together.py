"""Where the processes of a pod end, agreed through a coordinator in memory."""

import threading
import time

import pytest

from kws_jax.training import stopping_together
from kws_jax.training.stopping_together import StoppingTogether


class Coordinator:
    """Keys and values as JAX's; a process's calls of the given numbers fail."""

    def __init__(self):
        self.values, self.changed = {}, threading.Condition()

    def client(self, failing=()):
        return Client(self, failing)


class Client:
    def __init__(self, coordinator, failing):
        self.coordinator, self.failing, self.calls = coordinator, failing, 0

    def _call(self):
        self.calls += 1
        if self.calls in self.failing or "always" in self.failing:
            raise RuntimeError("UNAVAILABLE: connection reset")

    def key_value_set(self, key, value, allow_overwrite=False):
        self._call()
        with self.coordinator.changed:
            assert allow_overwrite
            self.coordinator.values[key] = value
            self.coordinator.changed.notify_all()

    def key_value_try_get(self, key):
        self._call()
        if key not in self.coordinator.values:
            raise RuntimeError(f"NOT_FOUND: {key}")
        return self.coordinator.values[key]

    def blocking_key_value_get(self, key, milliseconds):
        self._call()
        with self.coordinator.changed:
            found = self.coordinator.changed.wait_for(
                lambda: key in self.coordinator.values, milliseconds / 1000
            )
        if not found:
            raise RuntimeError("DEADLINE_EXCEEDED")
        return self.coordinator.values[key]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(stopping_together, "_POLL_SECONDS", 0.01)


def run(asked_at, failing=(), steps=400):
    """The steps after which each of the processes ends, None where it goes on.

    Steps are collective: none is made before all have made the one before. `asked_at`
    is the step in which each is asked, or None; calls of `failing` of process 1 fail.
    """
    coordinator, count = Coordinator(), len(asked_at)
    together, over = threading.Barrier(count, timeout=20), threading.Event()
    asked, ended = [threading.Event() for _ in asked_at], [None] * count

    def loop(number):
        agreement = StoppingTogether(
            coordinator.client(failing if number == 1 else ()),
            number,
            count,
            asked[number].is_set,
            over,
        )
        threading.Thread(target=agreement.listen, daemon=True).start()
        for step in range(1, steps + 1):
            together.wait()
            if step == asked_at[number]:
                asked[number].set()
            # One is behind the others in each step.
            time.sleep(0.004 * (number == step % count))
            if agreement.is_time():
                ended[number] = step
                return

    threads = [
        threading.Thread(target=loop, args=(number,), daemon=True)
        for number in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return ended


@pytest.mark.parametrize(
    "asked_at",
    [(5, None, None), (None, None, 5), (1, 1, 1), (7, None, 9)],
    ids=["the first", "the last", "all at once", "two"],
)
@pytest.mark.parametrize("failing", [(), (1, 2, 3), (4,), (5, 6, 7)])
def test_all_end_after_the_same_step(asked_at, failing):
    ended = run(asked_at, failing)
    assert len(set(ended)) == 1
    first = min(step for step in asked_at if step)
    assert first <= ended[0] < 200


def test_none_ends_that_was_not_asked():
    assert run((None, None, None), steps=50) == [None] * 3


def test_without_a_coordinator_the_loop_goes_on(monkeypatch):
    monkeypatch.setattr(stopping_together, "_PATIENCE_SECONDS", 0.05)
    client, over = Coordinator().client(("always",)), threading.Event()
    alone = StoppingTogether(client, 0, 1, lambda: True, over)
    threading.Thread(target=alone.listen, daemon=True).start()
    time.sleep(0.2)
    assert not any(alone.is_time() for _ in range(5))


@pytest.mark.parametrize("failing", [(), ("always",)])
def test_no_thread_asks_after_the_end(failing):
    client, over = Coordinator().client(failing), threading.Event()
    agreement = StoppingTogether(client, 0, 1, lambda: False, over)
    thread = threading.Thread(target=agreement.listen, daemon=True)
    thread.start()
    time.sleep(0.1)
    assert thread.is_alive()
    over.set()
    thread.join(2)
    assert not thread.is_alive()
