"""Small training sets: the clips of some of the training speakers."""

import hashlib

import numpy as np

from kws_jax.data.corpus import SILENCE, Split, Task
from kws_jax.errors import UserError


def keep_speakers(task: Task, fraction: float, seed: int) -> Task:
    """The task with about `fraction` of its training clips, those of whole speakers.

    Speakers, ordered by a hash of (seed, speaker), are taken until they have spoken the
    share. Rows of silence, which nobody speaks, are taken by a hash of their names. So
    the clips of a smaller share are among those of a larger one with the same seed.
    Validation and test stay whole. Where the source tells no speakers (TFDS's own
    builder does not), every clip is its own speaker.

    Args:
      task: with its whole training split.
      fraction: above 0; 1 keeps all.
      seed: of the order of the speakers.

    Raises:
      UserError: a label of which no clip is left.
    """
    if fraction >= 1:
        return task
    train, labels = task.train, np.asarray(task.labels)
    silent = labels[train.labels] == SILENCE
    kept = np.zeros(len(train), bool)
    for units, members in ((train.speakers, ~silent), (train.names, silent)):
        kept[members] = _first_share(units[members], fraction, seed)
    missing = sorted(set(range(len(labels))) - set(train.labels[kept].tolist()))
    if missing:
        raise UserError(
            f"config.data.train_fraction = {fraction} leaves no training clip of "
            f"{', '.join(labels[missing])} ({kept.sum()} of {len(train)} clips). Give "
            "a larger share, or another config.data.task_seed"
        )
    return Task(
        task.protocol, task.labels, _whole(train, kept), task.validation, task.test
    )


def told(kept: Split, whole: Split) -> str:
    """A line on whose clips were kept."""
    spoken, all_spoken = (s.speakers[s.speakers != SILENCE] for s in (kept, whole))
    speakers, all_speakers = map(len, map(np.unique, (spoken, all_spoken)))
    share = f"Training share: {len(spoken):,} of {len(all_spoken):,} spoken clips"
    if all_speakers == len(all_spoken):
        return f"{share}, drawn one by one, since the source tells no speakers"
    return f"{share}, those of {speakers:,} of {all_speakers:,} speakers"


def _first_share(units: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Which clips [n] are of the first units that have `fraction` of all clips."""
    known, unit_of, counts = np.unique(units, return_inverse=True, return_counts=True)
    order = np.argsort([_place(seed, unit) for unit in known.tolist()], kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    taken = np.zeros(len(known), bool)
    taken[order[before < fraction * len(units)]] = True
    return taken[unit_of]


def _place(seed: int, unit: str) -> str:
    return hashlib.sha256(f"train_fraction/{seed}/{unit}".encode()).hexdigest()


def _whole(train: Split, kept: np.ndarray) -> Split:
    """The kept clips as a training split of its own, not as a part of the other."""
    positions = np.flatnonzero(kept)
    part = train.subset(positions)
    return Split(part.name, part.labels, part.names, part.speakers, part.read)
