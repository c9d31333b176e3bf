"""The states of several seeds in one, and where their checkpoints lie."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kws_jax.errors import UserError
from kws_jax.parts import Parts
from kws_jax.stages import feeding, runner
from kws_jax.training.checkpoints import StageCheckpoints
from kws_jax.training.state import TrainState
from kws_jax.training.stopping import Notes, Verdict

PyTree = Any
# Which leaves of a state have the seeds as their first axis.
_AXES: dict[str, Any] = {"step": None, "trees": 0, "opt_state": 0, "batch_stats": 0}
_STACKED = TrainState(**_AXES)
# Notes of the loop.
_BEST, _IMPROVED, _BEST_STEPS = "best_accuracies", "improved", "best_steps"


@dataclasses.dataclass(frozen=True)
class Member:
    """One of the seeds: its parts, which share their data, and its workdir."""

    parts: Parts
    folder: Path


def stacked(states: Sequence[TrainState]) -> TrainState:
    """The states [n] of n seeds in one, at the step of the first."""
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    return state.replace(step=states[0].step)


def of_member(state: TrainState, number: int) -> TrainState:
    """One seed's state out of the stacked ones, on the host."""
    own = jax.tree.map(lambda leaf: np.asarray(leaf)[number], state.replace(step=()))
    return own.replace(step=np.asarray(state.step))


def of_each(function: Callable) -> Callable:
    """A function of a state and a batch as one of the stacked states."""
    return jax.vmap(function, in_axes=(_STACKED, None))


def step_of_each(step: feeding.Step) -> feeding.Step:
    """A step of one seed as one of `stacked` states, with keys [n], on one batch.

    Its metrics are means, and NAME/NUMBER for each of the seeds.
    """

    def stepped(state: TrainState, *inputs: Any) -> tuple[TrainState, Any]:
        *batches, keys = inputs
        mapped = jax.vmap(
            step,
            in_axes=(_STACKED, *(None for _ in batches), 0),
            out_axes=(_STACKED, 0),
        )
        state, metrics = mapped(state, *batches, keys)
        return state, told_of_each(metrics)

    return stepped


def told_of_each(measures: Mapping[str, Any]) -> dict[str, Any]:
    """Measures [n] of n seeds as scalars: means, and NAME/NUMBER for each seed."""
    means = {name: sum(values) / len(values) for name, values in measures.items()}
    return means | {
        f"{name}/{number}": value
        for name, values in measures.items()
        for number, value in enumerate(values)
    }


class EachHighest:
    """A `stopping.Rule`: of each seed the first state of its highest accuracy."""

    starts_from_best = False
    may_end_early = False

    def __init__(self, count: int) -> None:
        self._count = count
        self.first_notes: Notes = {_BEST: [-1.0] * count, _IMPROVED: []}

    def judge(self, notes: Notes, measures: Mapping[str, float]) -> Verdict:
        """See `stopping.Rule`."""
        now = [measures[f"accuracy/{number}"] for number in range(self._count)]
        before = notes[_BEST]
        improved = [n for n in range(self._count) if now[n] > before[n]]
        best = [max(pair) for pair in zip(before, now, strict=True)]
        return Verdict(bool(improved), notes={_BEST: best, _IMPROVED: improved})


class SeedCheckpoints(StageCheckpoints):
    """The last states lie stacked in the whole's workdir, the best in each seed's."""

    def __init__(self, members: Sequence[Member], index: int, folder: Path) -> None:
        super().__init__(runner.stage_folder(members[0].parts, index, folder))
        self._members = [
            StageCheckpoints(runner.stage_folder(m.parts, index, m.folder))
            for m in members
        ]
        self._best_steps = [-1] * len(members)

    def save_last(self, step: int, state: PyTree, notes: dict[str, Any]) -> None:
        """Saves the stacked states, and where the best of each lies."""
        super().save_last(step, state, {**notes, _BEST_STEPS: self._best_steps})

    def restore_last(self, like: PyTree) -> tuple[PyTree, dict[str, Any]] | None:
        """The stacked states and notes, if the best of each are still there.

        Raises:
          UserError: also where they are not.
        """
        restored = super().restore_last(like)
        if restored is not None:
            self._best_steps = list(restored[1][_BEST_STEPS])
            for checkpoints, noted in zip(self._members, self._best_steps, strict=True):
                found = checkpoints.best_step()
                # A later one was saved just before a kill, and will be again.
                if noted >= 0 and (found is None or found < noted):
                    raise UserError(
                        f"{checkpoints.directory} has lost its best state, of step "
                        f"{noted}, and all seeds of this stage are trained together: "
                        f"remove {self.directory}, and they are trained anew."
                    )
        return restored

    def save_best(self, step: int, state: PyTree, notes: dict[str, Any]) -> None:
        """Saves the states of the seeds that got better."""
        for number in notes[_IMPROVED]:
            self._best_steps[number] = step
            own = self.notes_of(notes, number)
            self._members[number].save_best(step, of_member(state, number), own)

    def keep_last(self, state: TrainState, notes: dict[str, Any]) -> None:
        """Leaves each seed the state that its stage ended with."""
        for number, checkpoints in enumerate(self._members):
            own = of_member(state, number)
            checkpoints.save_last(int(own.step), own, self.notes_of(notes, number))

    def notes_of(self, notes: Mapping[str, Any], number: int) -> dict[str, Any]:
        """What the loop of one seed would note; its time is a share of that of all."""
        return {
            "best_accuracy": notes[_BEST][number],
            "best_step": self._best_steps[number],
            "seconds": notes["seconds"] / len(self._members),
        }

    def close(self) -> None:
        """Ends Orbax's background threads."""
        super().close()
        for checkpoints in self._members:
            checkpoints.close()
