"""Batches of tuples for metric learning: which clips are met together.

A tuple of N classes is an anchor, a positive of the anchor's class and a negative of
N − 1 other classes: N + 1 rows of the batch. As in `draws`, what a step holds is a pure
function of the seed, the step and the position in the global batch.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from kws_jax.data.draws import Selection, generator, process_part
from kws_jax.data.mixing import DRAWS
from kws_jax.errors import UserError

# Streams of random numbers, apart from those of `draws`; each class has one behind the
# last.
_CLASSES, _TUPLE_DRAWS, _CLIPS = 1001, 1002, 1003


def tuple_selection(
    labels: np.ndarray,
    names: Sequence[str],
    *,
    tuples_per_batch: int,
    seed: int,
    classes: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Callable[[int], Selection]:
    """The selection of a training step in tuples, as a pure function of the step.

    Tuples come in blocks of K, the number of labels. A block has a random order of the
    labels; its tuple r has the label at place r as anchor and those at the next N − 1
    places, cyclically, as negatives. So in a block every label is anchor once and lends
    N + 1 clips. The clips of a label are gone through by permutations, each seen
    equally often; anchor and positive are two different clips.

    Args:
      labels: int [n], the label of each clip of the split.
      names: of the K labels, for messages.
      tuples_per_batch: tuples in a global batch, a multiple of `process_count`.
      seed: integer; order and draws depend on it.
      classes: N, classes in a tuple; 0 is K.
      process_index: which of the `process_count` shares, whole tuples, to give.
      process_count: number of processes that share the global batch.

    Returns:
      A function from step to the rows of this process, in the order (tuple, role): the
      anchor, the positive, then the negatives.

    Raises:
      UserError: a label with fewer than two clips, more classes than there are labels
        or fewer than two, or tuples that the processes cannot share.
    """
    per_tuple = tuple_classes(classes, names)
    part = process_part(
        tuples_per_batch, process_index, process_count, what="number of tuples"
    )
    clips = _ClassClips(_rows_of_each(labels, names), seed)
    blocks = _Blocks(len(names), per_tuple, seed)

    def select(step: int) -> Selection:
        numbers = np.arange(step * tuples_per_batch, (step + 1) * tuples_per_batch)
        rows = [
            clips.row(label, number)
            for tuple_number in numbers[part].tolist()
            for label, number in blocks.members(tuple_number)
        ]
        shape = (tuples_per_batch, per_tuple + 1, len(DRAWS))
        uniforms = generator(seed, _TUPLE_DRAWS, step).random(shape)[part]
        return Selection(
            np.array(rows, np.int64),
            np.ones(len(rows), bool),
            uniforms.reshape(len(rows), len(DRAWS)),
        )

    return select


def tuple_classes(classes: int, names: Sequence[str]) -> int:
    """N, the number of classes in a tuple: `classes`, or for 0 that of the labels.

    Raises:
      UserError: fewer than two classes, or more than there are labels.
    """
    if not (classes == 0 or 2 <= classes <= len(names)) or len(names) < 2:
        raise UserError(
            f"Tuples of {classes or len(names)} classes cannot be made of "
            f"{len(names)} labels; give 2 … {len(names)} classes, or 0 for all, and at "
            "least two labels."
        )
    return classes or len(names)


def _rows_of_each(labels: np.ndarray, names: Sequence[str]) -> list[np.ndarray]:
    rows = [np.flatnonzero(labels == label) for label in range(len(names))]
    for name, clips in zip(names, rows, strict=True):
        if len(clips) < 2:
            raise UserError(
                f"The label {name!r} has {len(clips)} training clip(s), and a tuple "
                "takes an anchor and another clip of its label; give it at least two, "
                "or leave it out of the data."
            )
    return rows


class _ClassClips:
    """The clips of each label as endless streams, one permutation after the other."""

    def __init__(self, rows: list[np.ndarray], seed: int) -> None:
        self._rows, self._seed = rows, seed
        # The present permutation of each label, and that of the threads beside.
        self._order = functools.lru_cache(maxsize=4 * len(rows))(self._make_order)

    def row(self, label: int, number: int) -> int:
        """The row of the split that is number `number` in the stream of `label`."""
        epoch, place = divmod(number, len(self._rows[label]))
        return int(self._order(label, epoch)[place])

    def _make_order(self, label: int, epoch: int) -> np.ndarray:
        """An order that does not start with the clip that the one before ended with.

        Where it was drawn so, its first two clips change places. That leaves its own
        end alone if there are more than two; two clips take turns.
        """
        if len(self._rows[label]) == 2:
            return self._drawn(label, 0)
        order = self._drawn(label, epoch)
        if epoch and order[0] == self._drawn(label, epoch - 1)[-1]:
            order[[0, 1]] = order[[1, 0]]
        return order

    def _drawn(self, label: int, epoch: int) -> np.ndarray:
        drawn = generator(self._seed, _CLIPS + label, epoch)
        return drawn.permutation(self._rows[label])


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """Which labels each tuple holds, and how many clips of them came before."""

    labels: int
    per_tuple: int
    seed: int

    def members(self, number: int) -> list[tuple[int, int]]:
        """(label, number in the label's stream) for each row of tuple `number`."""
        block, r = divmod(number, self.labels)
        order = generator(self.seed, _CLASSES, block).permutation(self.labels)
        places = (r + np.arange(self.per_tuple)) % self.labels
        used = block * (self.per_tuple + 1) + self._used_before(r)[places]
        anchor, *negatives = zip(order[places].tolist(), used.tolist(), strict=True)
        return [anchor, (anchor[0], anchor[1] + 1), *negatives]

    def _used_before(self, r: int) -> np.ndarray:
        """Clips [labels] that tuples 0 … r − 1 of a block took of the label at a place.

        A label at place k is in tuple q where (k − q) mod K < N, and gave the positive
        too where q = k.
        """
        places, earlier = np.arange(self.labels)[:, None], np.arange(r)[None]
        taken = (places - earlier) % self.labels < self.per_tuple
        return taken.sum(1) + (places[:, 0] < r)
