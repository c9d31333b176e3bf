"""What made a training's numbers not finite: a clip, a part of the network, a step.

Batches are a pure function of the step, so what came before is made once more, from the
last checkpoint or from the start of the stage, and the step that failed is looked into.
All processes do so together, and that which holds a clip names it to the others.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from kws_jax import together
from kws_jax.data.corpus import Split
from kws_jax.objectives.data_parameters import INSTANCE
from kws_jax.parts import Parts
from kws_jax.stages import feeding, runner
from kws_jax.training import finiteness, sharding
from kws_jax.training.checkpoints import StageCheckpoints
from kws_jax.training.finiteness import NotFiniteError
from kws_jax.training.loop import StagePlan
from kws_jax.training.state import DATA_PARAMETERS, TrainState

Batch = dict[str, jax.Array]
# So many clips that all fail alone: it is not for the clips.
_ENOUGH = 4


@dataclasses.dataclass(frozen=True)
class Training:
    """All that a stage was trained with.

    Attributes:
      initial: the state at its start, in the host's memory.
      feed: what gave it its batches, and knows where they were drawn from.
      step_at: as `feeding.create_feed` takes it.
    """

    parts: Parts
    index: int
    folder: Path
    plan: StagePlan
    feed: feeding.Feed
    initial: TrainState
    step_at: Callable[[int], feeding.Step]

    @property
    def stage(self) -> ConfigDict:
        """The stage's own part of the config."""
        return self.parts.config.stages[self.index]

    def kept(self) -> TrainState:
        """The state of the last checkpoint, or the initial one."""
        where = runner.stage_folder(self.parts, self.index, self.folder)
        checkpoints = StageCheckpoints(where, read_only=True)
        like = sharding.replicated_like(self.initial, self.parts.mesh)
        restored = checkpoints.restore_last(like)
        checkpoints.close()
        if restored is None:
            return sharding.replicate(self.initial, self.parts.mesh)
        return restored[0]

    def batches(self, number: int) -> list[Batch]:
        """The batch of each stream at step `number` (from 0)."""
        return [
            next(
                self.parts.train_batches(
                    stream.split,
                    self.stage,
                    stream.batch_of(number),
                    stream=stream.number,
                )
            )
            for stream in self.feed.streams
        ]

    def clip(self, number: int, stream: int, place: int, reason: str) -> str:
        """Names the clip at a place of one of these batches, on all processes."""
        drawn = self.feed.streams[stream]
        select = self.parts.selection(drawn.split, self.stage, stream=stream)
        own = select(drawn.batch_of(number)).positions
        holder, here = divmod(place, len(own))
        told = ""
        if holder == jax.process_index():
            told = _clip(drawn.split, int(own[here]), reason)
        name = together.of_all(told)[holder]
        if jax.process_count() > 1:
            name += f" It is in the share of process {holder}."
        return name

    def looked_into(self, number: int) -> Callable[..., tuple[TrainState, Any]]:
        """Step `number` of (state, batches), which tells more than in training."""
        step, key = self.step_at(number), runner.stage_key(self.parts, self.index)

        def told(state: TrainState, batches: list[Batch]) -> tuple[TrainState, Any]:
            with finiteness.observing():
                return step(state, *batches, key)

        return sharding.jit_replicated(told, self.parts.mesh)


def explain(training: Training, error: NotFiniteError) -> str:
    """What the step failed for, in sentences; "" where it does not fail again.

    All processes of a pod must ask, and are told the same.
    """
    number = error.step if error.in_validation else error.step - 1
    state = _state_before(training, number)
    leaf = finiteness.first_leaf((state.trees, state.batch_stats))
    if leaf:
        name = leaf.partition("/")[2]
        return f"The update before it has broken {name}, the first of the state."
    if error.in_validation:
        return next(
            filter(None, together.of_all(_explain_validation(training.parts))), ""
        )
    batches = training.batches(number)
    step = training.looked_into(number)
    after, metrics = step(state, batches)
    told = []
    if leaf := finiteness.first_gradient(metrics):
        told.append(f"The first gradient that is not finite is that of {leaf}.")
    elif broken := finiteness.first_entry(after.trees.get(DATA_PARAMETERS, {})):
        return _explain_data_parameter(training, *broken)
    heard = functools.partial(_heard, training.parts)
    found = _first_unheard(sharding.jit_replicated(heard, training.parts.mesh), batches)
    reason = "its features are not finite"
    if found is None and not finiteness.is_finite(metrics):
        found = _first_failing(training.parts, step, state, batches)
        reason = "a batch of it alone gives the same"
    if found:
        told.append(training.clip(number, *found, reason))
    elif not finiteness.is_finite(metrics):
        told.append("No single clip was found to be the cause.")
    return " ".join(told)


def _state_before(training: Training, number: int) -> TrainState:
    """The state before step `number` (from 0), made as it was made in training."""
    state = training.kept()
    done = int(state.step)
    inputs = iter(training.feed.batches_from(done))
    for call in training.plan.calls(done):
        if call.stop > number:
            break
        state, _ = training.feed.step_fn(state, next(inputs))
        done = call.stop
    # The first steps of a call that makes several.
    for step in range(done, number):
        state, _ = training.looked_into(step)(state, training.batches(step))
    return state


def _heard(parts: Parts, audio: jax.Array) -> jax.Array:
    """Whether the features of each clip [b, s] are finite, bool [b]."""
    return jnp.isfinite(parts.frontend(audio)).all(axis=(1, 2))


def _first_unheard(
    heard: Callable[[jax.Array], jax.Array], batches: Sequence[Batch]
) -> tuple[int, int] | None:
    """Batch and place of the first clip whose features are not finite."""
    for stream, batch in enumerate(batches):
        wrong = np.flatnonzero(~np.asarray(heard(batch["audio"])))
        if len(wrong):
            return stream, int(wrong[0])
    return None


def _first_failing(
    parts: Parts,
    step: Callable[..., Any],
    state: TrainState,
    batches: Sequence[Batch],
) -> tuple[int, int] | None:
    """Batch and place of the first clip that fails where all of its batch are it.

    A mask would not do: 0 times an infinite slope is no number either. None where no
    clip fails, or where all do.
    """

    @jax.jit
    def all_like(batch: Batch, place: int) -> Batch:
        alone = {k: jnp.broadcast_to(v[place], v.shape) for k, v in batch.items()}
        return sharding.keep_split(alone, parts.mesh)

    whole = sharding.jit_replicated(lambda mask: mask, parts.mesh)
    for stream, batch in enumerate(batches):
        failed: list[int] = []
        places = np.flatnonzero(np.asarray(whole(batch["mask"]))).tolist()
        for tried, place in enumerate(places, 1):
            changed = [*batches]
            changed[stream] = all_like(batch, place)
            if not finiteness.is_finite(step(state, changed)[1]):
                failed.append(place)
            if failed and (len(failed) < tried or len(places) == 1):
                return stream, failed[0]
            if len(failed) == _ENOUGH:
                break
    return None


def _explain_data_parameter(
    training: Training, kind: str, index: tuple[int, ...]
) -> str:
    """Names the data parameter that a step has broken: a clip's, or a class's."""
    told = f"The update has broken {DATA_PARAMETERS}/{kind}, entry {index}."
    if kind != INSTANCE:
        return told
    split = training.parts.task.train
    return f"{told} {_clip(split, index[0], 'it is the one that the entry is of')}"


def _explain_validation(parts: Parts) -> str:
    split = parts.task.validation
    rows = np.arange(len(split))
    # Every process goes through all of them by itself.
    heard = jax.jit(functools.partial(_heard, parts))
    for first in range(0, len(split), 64):
        here = rows[first : first + 64]
        found = _first_unheard(heard, [{"audio": jnp.asarray(split.read(here))}])
        if found:
            return _clip(split, int(here[found[1]]), "its features are not finite")
    return ""


def _clip(split: Split, row: int, reason: str) -> str:
    return (
        f"The first clip is {str(split.names[row])!r}, number {row} of the "
        f"{split.name} clips: {reason}."
    )
