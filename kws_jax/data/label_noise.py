"""Wrong labels on purpose, to see what training makes of them."""

import dataclasses

import numpy as np

from kws_jax.data.corpus import SILENCE, Split
from kws_jax.data.protocols import digest
from kws_jax.errors import UserError


def flip_labels(
    split: Split, labels: tuple[str, ...], share: float, seed: int
) -> tuple[Split, np.ndarray]:
    """Replaces the labels of some clips by another label each, all others as likely.

    Which clips and which labels depends on `seed` and the clips' names alone. Silence
    keeps its label and no clip becomes silence, since noise is set against it in
    another way.

    Args:
      split: the clips.
      labels: names of all labels.
      share: of the clips that are not silence, in [0, 1).
      seed: of the choice.

    Returns:
      The split with its new labels, and the rows int [m] that were flipped, rising.

    Raises:
      UserError: a share outside [0, 1), or fewer than two labels to choose from.
    """
    if not 0 <= share < 1:
        raise UserError(
            f"config.data.flip_labels = {share}: give a share in 0 … 1, below 1."
        )
    if not share:
        return split, np.zeros(0, np.int64)
    spoken = [i for i, name in enumerate(labels) if name != SILENCE]
    if len(spoken) < 2:
        raise UserError(
            f"config.data.flip_labels = {share} needs two labels that are not silence; "
            f"there are {', '.join(labels)}. Set it to 0."
        )
    rows = np.flatnonzero(np.isin(split.labels, spoken))
    draws = np.array([digest(f"{seed}/flip", split.names[row]) for row in rows])
    chosen = np.argsort(draws, kind="stable")[: round(share * len(rows))]
    flipped = np.sort(rows[chosen])
    new = split.labels.copy()
    for row in flipped:
        others = [label for label in spoken if label != split.labels[row]]
        new[row] = others[digest(f"{seed}/to", split.names[row]) % len(others)]
    return dataclasses.replace(split, labels=new), flipped
