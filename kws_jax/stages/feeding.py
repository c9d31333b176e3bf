"""How the step of a stage gets its batches: from the host, or made where it runs."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from kws_jax.data import device, draws
from kws_jax.data.corpus import Split
from kws_jax.parts import Parts
from kws_jax.training import sharding
from kws_jax.training.loop import StagePlan
from kws_jax.training.state import TrainState

# (state, a batch of each split …, key) -> (state, metrics), pure
Step = Callable[..., tuple[TrainState, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class Stream:
    """The batches of a split, drawn apart from those of other streams.

    Attributes:
      number: of the stream, from 0; its draws depend on it.
      times: how many steps in a row get the same batch.
    """

    number: int
    split: Split
    times: int

    def batch_of(self, step: int) -> int:
        """The number of the batch, from 0, that step `step` gets."""
        return step // self.times


@dataclasses.dataclass(frozen=True)
class Feed:
    """`step_fn` and `batches_from` as `loop.train_stage` takes them; whence they draw.

    Attributes:
      streams: where the batches of a step come from, one of each.
    """

    step_fn: Callable[[TrainState, Any], tuple[TrainState, Any]]
    batches_from: Callable[[int], Iterator[Any]]
    streams: Sequence[Stream]


def create_feed(
    parts: Parts,
    stage: ConfigDict,
    plan: StagePlan,
    key: jax.Array,
    splits: Sequence[Split],
    step_at: Callable[[int], Step],
    *,
    repeats: Sequence[int] | None = None,
) -> Feed:
    """Jits a stage's step for the way in which the config has its batches made.

    Args:
      parts: the data; `config.data.on_device` chooses the way.
      stage: condition and batch size.
      plan: what steps a call makes.
      key: given to every step.
      splits: the training split, or parts of it; each is drawn from independently.
      step_at: number of a step, from 0 -> the step to be made. It changes at
        `plan.breaks` alone, and gives the same function for the same step.
      repeats: for each split, how many steps in a row get the same batch of it; 1 each
        where None.
    """
    each = zip(splits, repeats or (1,) * len(splits), strict=True)
    streams = [Stream(number, *drawn) for number, drawn in enumerate(each)]
    if parts.config.data.on_device:
        return _on_device(parts, stage, plan, key, streams, step_at)
    return _from_host(parts, stage, key, streams, step_at)


def batches_alone(parts: Parts, stage: ConfigDict) -> Iterator[dict[str, Any]]:
    """Batches as the stage gets them, each complete when given, to time them alone."""
    if not parts.config.data.on_device:
        return parts.host_batches(parts.task.train, stage, start_step=0)
    return _device_batches(parts, stage)


def _device_batches(parts: Parts, stage: ConfigDict) -> Iterator[dict[str, Any]]:
    split = parts.task.train
    recipe, select = parts.recipe(split, stage), parts.selection(split, stage)

    @jax.jit
    def make(resident: device.Resident, inputs: dict[str, jax.Array]) -> Any:
        return _make_batch(
            parts, recipe, resident, jax.tree.map(lambda x: x[0], inputs)
        )

    for step in itertools.count():
        stacked = device.stack(split, [recipe.inputs(select(step))])
        inputs = sharding.shard(stacked, parts.mesh, axis=1)
        yield jax.block_until_ready(make(parts.resident, inputs))


def _from_host(
    parts: Parts,
    stage: ConfigDict,
    key: jax.Array,
    streams: Sequence[Stream],
    step_at: Callable[[int], Step],
) -> Feed:
    def jitted(step: Step) -> Callable[..., tuple[TrainState, Any]]:
        return parts.once(
            ("from host", step),
            lambda: sharding.jit_replicated(step, parts.mesh, donate_argnums=0),
        )

    def batches_from(start: int) -> Iterator[tuple[Any, ...]]:
        each = (_batches_from(parts, stage, stream, start) for stream in streams)
        return zip(itertools.count(start), *each)

    def step_fn(state: TrainState, numbered: Any) -> tuple[TrainState, Any]:
        number, *batches = numbered
        return jitted(step_at(number))(state, *batches, key)

    return Feed(step_fn, batches_from, streams)


def _batches_from(
    parts: Parts, stage: ConfigDict, stream: Stream, start: int
) -> Iterator[Any]:
    """The batch of a stream for each step from `start` on."""
    batches = parts.train_batches(
        stream.split, stage, stream.batch_of(start), stream=stream.number
    )
    each = (batch for batch in batches for _ in range(stream.times))
    return itertools.islice(each, start % stream.times, None)


def _on_device(
    parts: Parts,
    stage: ConfigDict,
    plan: StagePlan,
    key: jax.Array,
    streams: Sequence[Stream],
    step_at: Callable[[int], Step],
) -> Feed:
    recipes = [parts.recipe(stream.split, stage) for stream in streams]
    selections = [
        parts.selection(stream.split, stage, stream=stream.number) for stream in streams
    ]

    def inputs_from(start: int) -> Iterator[tuple[int, list[Any]]]:
        for call in plan.calls(start):
            stacks = (
                device.stack(
                    stream.split,
                    [recipe.inputs(select(stream.batch_of(n))) for n in call],
                )
                for recipe, select, stream in zip(
                    recipes, selections, streams, strict=True
                )
            )
            yield call.start, [sharding.shard(s, parts.mesh, axis=1) for s in stacks]

    # A recipe tells the program which recordings there are and whether clips are moved;
    # all else that it says is in the inputs.
    mixed_alike = tuple(
        (frozenset(recipe.inputs(select(0))), recipe.condition.shift_ms > 0)
        for recipe, select in zip(recipes, selections, strict=True)
    )

    def jitted(step: Step) -> Callable[..., tuple[TrainState, Any]]:
        return parts.once(("on device", step, mixed_alike), lambda: compiled(step))

    def compiled(step: Step) -> Callable[..., tuple[TrainState, Any]]:
        def call(
            state: TrainState, resident: device.Resident, inputs: Any, key: jax.Array
        ) -> tuple[TrainState, Any]:
            def one(state: TrainState, inputs: Any) -> tuple[TrainState, Any]:
                batches = (
                    _make_batch(parts, recipe, resident, drawn)
                    for recipe, drawn in zip(recipes, inputs, strict=True)
                )
                return step(state, *batches, key)

            return jax.lax.scan(one, state, inputs)

        return sharding.jit_replicated(call, parts.mesh, donate_argnums=0)

    def step_fn(state: TrainState, numbered: Any) -> tuple[TrainState, Any]:
        number, inputs = numbered
        return jitted(step_at(number))(state, parts.resident, inputs, key)

    return Feed(step_fn, inputs_from, streams)


def _make_batch(
    parts: Parts, recipe: draws.Recipe, resident: device.Resident, inputs: draws.Inputs
) -> dict[str, jax.Array]:
    """Each device makes its own rows of a batch."""
    make = functools.partial(device.make_batch, recipe)
    made: dict[str, jax.Array] = sharding.by_rows(make, parts.mesh, whole=1)(
        resident, inputs
    )
    return made
