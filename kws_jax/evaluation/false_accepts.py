"""How often what is no keyword is taken for one: other words, unheard ones, background.

Each measure is the share of clips whose most probable label is a keyword:

    false_accept/heard         other words that training may have heard: the unknown
                               clips of the ordinary test
    false_accept/unheard       words of config.data.unheard_words, and of each of them
    false_accept/unheard/WORD  alone
    false_accept/background    seconds of the test split's recordings of background
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from kws_jax.data.corpus import TEST, UNKNOWN, Split
from kws_jax.data.held_out import HeldOut, background_crops
from kws_jax.evaluation.testing import Predict, predict_split, share_row

METRIC = "false_accept"
Batches = Callable[[Split], Iterable[Mapping[str, jax.Array]]]


def test_others(
    predict: Predict,
    batches: Batches,
    held_out: HeldOut,
    predictions: Mapping[str, np.ndarray],
    *,
    stage: str,
    labels: Sequence[str],
    keywords: int,
) -> list[dict[str, Any]]:
    """Rows of results; what there are no clips for has none.

    Args:
      predict: batch -> probabilities [b, k].
      batches: clean batches of a split, every clip once.
      held_out: what the ordinary splits leave out.
      predictions: "label" and "clean" of the ordinary test, int32 [n].
      stage: name of the stage that is tested.
      labels: the k labels, keywords first.
      keywords: how many of them are keywords.
    """
    taken: dict[str, np.ndarray] = {}
    if UNKNOWN in labels:
        unknown = predictions["label"] == list(labels).index(UNKNOWN)
        taken["heard"] = predictions["clean"][unknown] < keywords
    if held_out.unheard is not None:
        answers, words = _answers(predict, batches(held_out.unheard.split), keywords)
        taken["unheard"] = answers
        for number, word in enumerate(held_out.unheard.words):
            taken[f"unheard/{word}"] = answers[words == number]
    if TEST in held_out.background:
        crops = background_crops(held_out.background[TEST])
        taken["background"], _ = _answers(predict, batches(crops), keywords)
    return [
        share_row(stage, "clean", f"{METRIC}/{name}", answers)
        for name, answers in taken.items()
        if len(answers)
    ]


def _answers(
    predict: Predict, batches: Iterable[Mapping[str, jax.Array]], keywords: int
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each clip is taken for a keyword, and its label: bool and int32 [n]."""
    probabilities, labels = predict_split(predict, batches)
    return probabilities.argmax(-1) < keywords, labels
