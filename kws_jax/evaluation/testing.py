"""Tests a network on every clip of a split, clean and in noise, near and far."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from kws_jax import condition_names
from kws_jax.data.conditions import CLEAN, Condition
from kws_jax.data.noise import NoiseBank
from kws_jax.errors import UserError
from kws_jax.evaluation import metrics

ACCURACY = "accuracy"
# Of a quantised network as it was before it was quantised.
FLOAT_ACCURACY = "float_accuracy"
# batch -> probabilities [b, k]
Predict = Callable[[Mapping[str, jax.Array]], jax.Array]
# (condition, noise) -> batches
Batches = Callable[[Condition, NoiseBank | None], Iterable[Mapping[str, jax.Array]]]


def predict_split(
    predict: Predict, batches: Iterable[Mapping[str, jax.Array]]
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [n, k] and labels [n] of every clip, padding left out.

    Raises:
      UserError: where an answer is not finite, of which the largest means nothing.
    """
    probabilities, labels = [], []
    for batch in batches:
        parts = (predict(batch), batch["label"], batch["mask"])
        if jax.process_count() > 1:
            parts = multihost_utils.process_allgather(parts, tiled=True)
        probability, label, mask = (np.asarray(part) for part in parts)
        probabilities.append(probability[mask])
        labels.append(label[mask])
    answers = np.concatenate(probabilities)
    wrong = np.flatnonzero(~np.isfinite(answers).all(-1))
    if len(wrong):
        raise UserError(
            f"The answers to {len(wrong)} of {len(answers)} clips that are tested are "
            f"not finite, first to number {wrong[0]} of them: the network's weights or "
            "statistics are broken, or too large for these clips. Train it again in a "
            "new --workdir, at a lower learning rate."
        )
    return answers, np.concatenate(labels)


def noise_conditions(
    noise: Mapping[str, NoiseBank], snr_db: Sequence[float], *, far: bool = False
) -> dict[str, tuple[Condition, NoiseBank | None]]:
    """The test conditions by name: "clean", "seen 20 dB", …, "unseen -5 dB".

    With `far`, the same again with every clip through a room: "far clean", "far seen
    20 dB", …
    """
    conditions: dict[str, tuple[Condition, NoiseBank | None]] = {
        condition_names.CLEAN: (CLEAN, None)
    }
    for kind, bank in noise.items():
        for snr in snr_db:
            name = condition_names.noisy(kind, snr)
            conditions[name] = (Condition(snr_db=(float(snr),)), bank)
    if far:
        for name, (near, heard) in list(conditions.items()):
            there = dataclasses.replace(near, reverberant_fraction=1.0)
            conditions[condition_names.FAR + name] = there, heard
    return conditions


def test_network(
    predict: Predict,
    batches: Batches,
    *,
    stage: str,
    labels: Sequence[str],
    noise: Mapping[str, NoiseBank],
    snr_db: Sequence[float],
    far: bool,
) -> tuple[list[dict[str, Any]], dict[str, list], dict[str, np.ndarray]]:
    """Accuracy in each condition, recall of each label clean, and confusion matrices.

    `far`: whether `batches` has rooms to hear the clips through.

    Returns:
      Rows for results.json; confusion matrix by condition (rows true, columns
      predicted); and for each condition the predicted labels int32 [n], beside
      "label", the true ones.
    """
    rows: list[dict[str, Any]] = []
    confusion: dict[str, list] = {}
    predictions: dict[str, np.ndarray] = {}
    for name, (condition, bank) in noise_conditions(noise, snr_db, far=far).items():
        probabilities, truth = predict_split(predict, batches(condition, bank))
        predicted = probabilities.argmax(-1).astype(np.int32)
        predictions["label"], predictions[name] = truth, predicted
        rows.append(share_row(stage, name, ACCURACY, predicted == truth))
        confusion[name] = metrics.confusion_matrix(
            truth, predicted, len(labels)
        ).tolist()
        if name == condition_names.CLEAN:
            for index, label in enumerate(labels):
                right = predicted[truth == index] == index
                rows.append(share_row(stage, name, f"recall/{label}", right))
    return rows, confusion, predictions


def share_row(
    stage: str, condition: str, metric: str, right: np.ndarray
) -> dict[str, Any]:
    """The share of test clips for which `right` (bool [n]) holds, with its interval."""
    hits, count = int(right.sum()), len(right)
    return metrics.result(
        stage,
        "test",
        condition,
        metric,
        hits / max(count, 1),
        metrics.wilson_interval(hits, count) if count else None,
        count,
    )
