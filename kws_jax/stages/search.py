"""Stage "search": weights and architecture of a supernet, each on its half of the data."""

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from kws_jax.data.corpus import Split
from kws_jax.evaluation.metrics import result
from kws_jax.objectives.classification import softmax_cross_entropy
from kws_jax.parts import Parts
from kws_jax.search.bilevel import make_search_step
from kws_jax.search.methods import SearchMethod
from kws_jax.search.methods import create_method as _create_method
from kws_jax.search.space import SearchSpace, scaled_space
from kws_jax.search.supernet import SuperNet
from kws_jax.stages import networks, runner
from kws_jax.stages.train import features_for_training
from kws_jax.training.logs import JsonLines
from kws_jax.training.optimizers import create_optimizer
from kws_jax.training.state import (
    ARCHITECTURE,
    WEIGHTS,
    TrainState,
    create_train_state,
)
from kws_jax.training.step import LossFn, accuracy

PyTree = Any
ARCHITECTURE_LOG = "architecture.jsonl"


def create_space(parts: Parts) -> SearchSpace:
    """The search space of the config.

    Raises:
      UserError: for settings that the space does not have.
    """
    search = parts.config.search
    return scaled_space(
        search.width, shortcut=search.shortcut, se_reduction=search.se_reduction
    )


def create_method(parts: Parts) -> SearchMethod:
    """The search method of the config, over its space.

    Raises:
      UserError: for an unknown method or setting.
    """
    search = parts.config.search
    settings: dict[str, dict[str, Any]] = {
        "fairdarts": {
            "threshold": search.threshold,
            "zero_one_weight": search.zero_one_weight,
        },
        "noisydarts": {"noise_factor": search.noise_factor},
    }
    return _create_method(
        search.method, create_space(parts), **settings.get(search.method, {})
    )


def halves(split: Split, seed: int) -> tuple[Split, Split]:
    """Two disjoint random halves: for the weights, and for the architecture."""
    order = np.random.default_rng([seed, len(split)]).permutation(len(split))
    middle = len(split) // 2
    return (
        split.subset(np.sort(order[:middle]), "train (weights)"),
        split.subset(np.sort(order[middle:]), "train (architecture)"),
    )


def search_loss(
    parts: Parts, stage: ConfigDict, supernet: SuperNet, method: SearchMethod
) -> LossFn:
    """Cross-entropy of the supernet, plus what the method adds for the architecture."""

    def loss_fn(
        trees: dict[str, PyTree], batch_stats: PyTree, batch: Any, key: jax.Array
    ) -> Any:
        mask_key, dropout_key, noise_key = jax.random.split(key, 3)
        features = features_for_training(parts, stage, mask_key, batch["audio"])
        logits, updated = supernet.apply(
            {"params": trees[WEIGHTS], "batch_stats": batch_stats},
            features,
            method.op_weights(trees[ARCHITECTURE]),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key, "noise": noise_key},
        )
        loss = softmax_cross_entropy(
            logits, batch["label"], batch["mask"], label_smoothing=stage.label_smoothing
        )
        measures = {
            "loss": loss,
            "accuracy": accuracy(logits, batch["label"], batch["mask"]),
        }
        total = loss + method.regulariser(trees[ARCHITECTURE])
        return total, (measures, updated["batch_stats"])

    return loss_fn


def run(parts: Parts, index: int, folder: Path) -> list[dict[str, Any]]:
    """Searches, writes genotype.json and returns rows for results.json."""
    stage = parts.config.stages[index]
    method = create_method(parts)
    supernet = SuperNet(
        num_labels=len(parts.labels),
        space=create_space(parts),
        dropout=parts.config.network.dropout,
        skip_noise=method.skip_noise,
    )
    weights_half, architecture_half = halves(parts.task.train, parts.config.data.seed)
    plan = runner.plan_of(parts, index, len(weights_half))
    weights, schedule = create_optimizer(stage.optimizer, plan.total_steps)
    architecture, _ = create_optimizer(stage.architecture_optimizer, plan.total_steps)
    transformations = {WEIGHTS: weights, ARCHITECTURE: architecture}
    log = JsonLines(folder / ARCHITECTURE_LOG)
    state, notes = runner.run_stage(
        parts,
        index,
        folder,
        _initial_state(parts, supernet, method, transformations),
        plan=plan,
        step_fn=_step_fn(parts, index, supernet, method, transformations, plan, schedule),
        batches_from=functools.partial(
            _paired_batches, parts, stage, weights_half, architecture_half
        ),
        logits_of=lambda state, features: supernet.apply(
            {"params": state.trees[WEIGHTS], "batch_stats": state.batch_stats},
            features,
            method.op_weights(state.trees[ARCHITECTURE]),
            train=False,
        ),
        schedule=schedule,
        logs=(log,),
        after_validation=functools.partial(_log_architecture, method, log, plan),
    )
    genotype = method.derive(jax.device_get(state.trees[ARCHITECTURE]))
    if jax.process_index() == 0:
        genotype.save(folder / networks.GENOTYPE_FILE)
    return [
        result(stage.name, "train", "clean", "seconds", notes["seconds"], None, 1),
        runner.validation_row(parts, stage.name, notes),
    ]
