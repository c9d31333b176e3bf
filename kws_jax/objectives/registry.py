"""Objectives by name: what a network's k outputs are trained by, and what they mean."""

import dataclasses
from collections.abc import Callable

import jax

from kws_jax.objectives.binary import sigmoid_cross_entropy
from kws_jax.objectives.classification import softmax_cross_entropy


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss and the probabilities that belong to it.

    Attributes:
      loss: (logits [b, k], labels, mask, *, label_smoothing) -> scalar, see
        `softmax_cross_entropy`.
      probabilities: logits [b, k] -> probabilities [b, k]. Those of sigmoids do not add
        up to 1. The largest is that of the largest logit either way.
    """

    loss: Callable[..., jax.Array]
    probabilities: Callable[[jax.Array], jax.Array]


# The names are those that kws_jax/recipes.py lets pass.
OBJECTIVES = {
    "cross_entropy": Objective(softmax_cross_entropy, jax.nn.softmax),
    "binary_cross_entropy": Objective(sigmoid_cross_entropy, jax.nn.sigmoid),
}
