"""What is recorded of data parameters: their means over time, and the largest."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from kws_jax.objectives import data_parameters as objective
from kws_jax.parts import Parts
from kws_jax.training.checkpoints import write_json
from kws_jax.workdirs import read_json

LOG_FILE, SUMMARY_FILE = "data_parameters.jsonl", "data_parameters.json"
LARGEST = 20
_SNR_STEP = 5.0  # dB, the width of a group of SNRs in the log


def epoch_measures(
    parts: Parts,
    settings: ConfigDict,
    class_names: tuple[str, ...],
    table: Mapping[str, np.ndarray],
    index: np.ndarray,
    noise_level: np.ndarray,
) -> dict[str, Any]:
    """Means of σ over the examples of an epoch, by group.

    Args:
      parts: labels and training split.
      settings: the stage's `data_parameters`.
      class_names: of what the class parameters belong to.
      table: ln σ, as `objectives.data_parameters` has it.
      index: int [m], the clip of each example.
      noise_level: float [m], 10^(-snr/20), 0 without noise.

    Returns:
      "class": name -> σ_class; "instance": group -> mean of σ_inst, where the groups
      are "clean", "noisy", "… dB" for SNRs nearest to a multiple of 5 dB, and "flipped"
      where labels were; "instance_by_label": label -> mean. Only what there is.
    """
    measures: dict[str, Any] = {}
    if objective.CLASS in table:
        sigma = np.exp(table[objective.CLASS])
        measures["class"] = _rounded(dict(zip(class_names, sigma, strict=True)))
    if objective.INSTANCE in table:
        variant = np.asarray(objective.variants_of(noise_level, settings.snr_edges_db))
        sigma = np.exp(table[objective.INSTANCE][index, variant])
        groups = _noise_groups(noise_level)
        if len(parts.flipped):
            groups["flipped"] = np.isin(index, parts.flipped)
        labels = parts.task.train.labels[index]
        spoken = {name: labels == i for i, name in enumerate(parts.labels)}
        measures["instance"] = _means(sigma, groups)
        measures["instance_by_label"] = _means(sigma, spoken)
    return measures


def write_summary(
    parts: Parts,
    stage: ConfigDict,
    folder: Path,
    class_names: tuple[str, ...],
    table: Mapping[str, np.ndarray],
    start: Mapping[str, Any],
) -> None:
    """Adds a stage to `folder`/data_parameters.json.

    The entry of a stage has "mode", "class" (name -> σ), and, with instance
    parameters, "largest": the examples with the largest σ, each with name of the clip,
    label, whether it was noisy, σ, and the label before it was flipped, if it was.
    Where labels were flipped, "flipped" counts them, and "flipped_in_top_fifth" those
    of them that are among the fifth of all clips with the largest σ.
    """
    path = folder / SUMMARY_FILE
    summary = read_json(path) if path.exists() else {}
    entry: dict[str, Any] = {"mode": stage.data_parameters.mode}
    if objective.CLASS in table:
        sigma = np.exp(table[objective.CLASS])
        entry["class"] = _rounded(dict(zip(class_names, sigma, strict=True)))
    if objective.INSTANCE in table:
        entry |= _largest(parts, stage, table, start)
    summary[stage.name] = entry
    write_json(path, summary)


def _largest(
    parts: Parts,
    stage: ConfigDict,
    table: Mapping[str, np.ndarray],
    start: Mapping[str, Any],
) -> dict[str, Any]:
    values = table[objective.INSTANCE]
    bound = np.log(stage.data_parameters.clamp)
    untouched = np.clip(np.asarray(start[objective.INSTANCE]), -bound, bound)
    # What was never heard is where it began, once the clamp had moved it.
    heard = np.abs(values - untouched) > 1e-6
    order = np.argsort(np.where(heard, -values, np.inf), axis=None, kind="stable")
    order = order[: min(LARGEST, int(heard.sum()))]
    rows, variants = np.unravel_index(order, values.shape)
    train, before = parts.task.train, dict(zip(parts.flipped, parts.flipped_from))
    largest = []
    for row, variant in zip(rows.tolist(), variants.tolist()):
        fields = {
            "name": str(train.names[row]),
            "label": parts.labels[train.labels[row]],
            "noisy": variant > 0,
            "sigma": round(float(np.exp(values[row, variant])), 5),
        }
        if row in before:
            fields["label_before"] = parts.labels[before[row]]
        largest.append(fields)
    entry: dict[str, Any] = {"largest": largest}
    if before:
        highest = np.where(heard, values, -np.inf).max(1)
        top = np.argsort(-highest, kind="stable")[: -(-len(train) // 5)]
        entry["flipped"] = len(before)
        entry["flipped_in_top_fifth"] = int(np.isin(top, parts.flipped).sum())
    return entry


def _noise_groups(noise_level: np.ndarray) -> dict[str, np.ndarray]:
    noisy = noise_level > 0
    groups = {"clean": ~noisy, "noisy": noisy}
    snr = -20 * np.log10(np.where(noisy, noise_level, 1.0))
    nearest = _SNR_STEP * np.round(snr / _SNR_STEP) + 0.0  # no minus zero
    for value in sorted(set(nearest[noisy].tolist()), reverse=True):
        groups[f"{value:g} dB"] = noisy & (nearest == value)
    return groups


def _means(values: np.ndarray, groups: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The mean of each group that has members."""
    return _rounded(
        {name: values[group].mean() for name, group in groups.items() if group.any()}
    )


def _rounded(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: round(float(value), 5) for name, value in values.items()}
