"""How often what is no keyword is taken for one: other words, unheard ones, background.

Each measure is the share of clips whose most probable label is a keyword:

    false_accept/heard         other words that training may have heard: the unknown
                               clips of the ordinary test
    false_accept/unheard       words of config.data.unheard_words, all their clips
    false_accept/unheard_rare  together; those of them with fewer than
                               `held_out.FEW_CLIPS` (20) clips of test speakers
    false_accept/unheard/WORD  together; and each word alone
    false_accept/background    the test split's recordings of background, second by
                               second, none of which overlap

What a network makes of a word it makes of most clips of that word, so the interval of
words together comes from a bootstrap over the words (`metrics.clustered_interval`): it
tells what other such words would give. That of a single word tells what other clips of
this word would give, and so do all other intervals here: that of background what other
seconds of these recordings would, not what other places would.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from kws_jax.condition_names import CLEAN
from kws_jax.data.corpus import TEST, UNKNOWN, Split
from kws_jax.data.held_out import HeldOut, background_crops
from kws_jax.evaluation import metrics
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

    Rows of several words together name these, as "words".

    Args:
      predict: batch -> probabilities [b, k].
      batches: clean batches of a split, every clip once.
      held_out: what the ordinary splits leave out.
      predictions: "label" and "clean" of the ordinary test, int32 [n].
      stage: name of the stage that is tested.
      labels: the k labels, keywords first.
      keywords: how many of them are keywords.
    """
    rows = []
    if UNKNOWN in labels:
        unknown = predictions["label"] == list(labels).index(UNKNOWN)
        rows += _clip_rows(stage, "heard", predictions[CLEAN][unknown] < keywords)
    if held_out.unheard is not None:
        answers, numbers = _answers(predict, batches(held_out.unheard.split), keywords)
        words = held_out.unheard.words
        each = {word: answers[numbers == n] for n, word in enumerate(words)}
        rare = [word for word, few in zip(words, held_out.unheard.rare) if few]
        rows.append(_pooled_row(stage, "unheard", each))
        if rare:
            rows.append(_pooled_row(stage, "unheard_rare", {w: each[w] for w in rare}))
        for word, clips in each.items():
            rows += _clip_rows(stage, f"unheard/{word}", clips)
    if TEST in held_out.background:
        crops = background_crops(held_out.background[TEST])
        answers, _ = _answers(predict, batches(crops), keywords)
        rows += _clip_rows(stage, "background", answers)
    return rows


def _clip_rows(stage: str, name: str, taken: np.ndarray) -> list[dict[str, Any]]:
    """The share of the clips, none where there are no clips."""
    if not len(taken):
        return []
    return [share_row(stage, CLEAN, f"{METRIC}/{name}", taken)]


def _pooled_row(
    stage: str, name: str, taken: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """The share of all clips, with its interval over the words."""
    hits = np.array([clips.sum() for clips in taken.values()])
    counts = np.array([len(clips) for clips in taken.values()])
    row = metrics.result(
        stage,
        "test",
        CLEAN,
        f"{METRIC}/{name}",
        hits.sum() / counts.sum(),
        metrics.clustered_interval(hits, counts),
        counts.sum(),
    )
    return row | {"words": list(taken)}


def _answers(
    predict: Predict, batches: Iterable[Mapping[str, jax.Array]], keywords: int
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each clip is taken for a keyword, and its label: bool and int32 [n]."""
    probabilities, labels = predict_split(predict, batches)
    return probabilities.argmax(-1) < keywords, labels
