"""Stage "search": a supernet learns weights and architecture on halves of the data."""

import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from kws_jax.data.corpus import Split
from kws_jax.errors import UserError
from kws_jax.evaluation.metrics import result
from kws_jax.models.tc_resnet import BLOCKS, STEM_CHANNELS
from kws_jax.objectives.classification import softmax_cross_entropy
from kws_jax.parts import Parts
from kws_jax.search import methods
from kws_jax.search.bilevel import make_search_step
from kws_jax.search.methods import Darts
from kws_jax.search.space import SearchSpace
from kws_jax.search.supernet import SuperNet
from kws_jax.stages import networks, runner
from kws_jax.stages.train import features_for_training, variables_of
from kws_jax.training.logs import JsonLines
from kws_jax.training.loop import StagePlan
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
    """The search space of the config: TC-ResNet14's skeleton at a width.

    Raises:
      UserError: for settings that the space does not have.
    """
    search = parts.config.search
    return SearchSpace(
        channels=tuple(int(c * search.width) for c in BLOCKS[14][0]),
        stem_channels=int(STEM_CHANNELS * search.width),
        shortcut=search.shortcut,
        se_reduction=search.se_reduction,
    )


def create_method(parts: Parts) -> Darts:
    """The search method of the config.

    Raises:
      UserError: for an unknown method or setting.
    """
    search = parts.config.search
    if search.order not in (1, 2):
        raise UserError(f"config.search.order = {search.order}: give 1 or 2.")
    settings: dict[str, dict[str, Any]] = {
        "fairdarts": {
            "threshold": search.threshold,
            "zero_one_weight": search.zero_one_weight,
        },
        "noisydarts": {"skip_noise": search.skip_noise},
    }
    return methods.create_method(search.method, **settings.get(search.method, {}))


def halves(split: Split, seed: int) -> tuple[Split, Split]:
    """Two disjoint random halves: for the weights, and for the architecture."""
    order = np.random.default_rng([seed, len(split)]).permutation(len(split))
    middle = len(split) // 2
    return (
        split.subset(np.sort(order[:middle]), "train (weights)"),
        split.subset(np.sort(order[middle:]), "train (architecture)"),
    )


def search_loss(
    parts: Parts, stage: ConfigDict, supernet: SuperNet, method: Darts
) -> LossFn:
    """Cross-entropy of the supernet under the method's weights, as a LossFn."""

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
        return loss, (measures, updated["batch_stats"])

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
        batch_norm_momentum=parts.config.network.batch_norm_momentum,
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
        step_fn=_step_fn(parts, index, supernet, method, transformations, plan),
        batches_from=functools.partial(
            _paired_batches, parts, stage, weights_half, architecture_half
        ),
        logits_of=lambda state, features: networks.infer(
            supernet,
            variables_of(state),
            features,
            method.op_weights(state.trees[ARCHITECTURE]),
        ),
        schedule=schedule,
        logs=(log,),
        after_validation=functools.partial(
            _log_architecture, method, supernet.space, log, plan
        ),
    )
    architecture_weights = jax.device_get(state.trees[ARCHITECTURE])
    genotype = method.derive(architecture_weights, supernet.space)
    if jax.process_index() == 0:
        networks.keep_genotype(genotype, folder)
    return [
        result(stage.name, "train", "clean", "seconds", notes["seconds"], None, 1),
        runner.validation_row(parts, stage.name, notes),
    ]


def _initial_state(
    parts: Parts, supernet: SuperNet, method: Darts, transformations: dict[str, Any]
) -> TrainState:
    weights_key, architecture_key = jax.random.split(jax.random.key(parts.config.seed))
    architecture = supernet.space.init_architecture(architecture_key)
    variables = networks.initial_variables(
        supernet,
        weights_key,
        networks.sample_features(parts),
        method.op_weights(architecture),
    )
    params, batch_stats = networks.split_variables(variables)
    trees = {WEIGHTS: params, ARCHITECTURE: architecture}
    return create_train_state(trees, batch_stats, transformations)


def _step_fn(
    parts: Parts,
    index: int,
    supernet: SuperNet,
    method: Darts,
    transformations: dict[str, Any],
    plan: StagePlan,
) -> Callable[[TrainState, Any], tuple[TrainState, Any]]:
    """The jitted search step; during the warm-up the architecture stands still."""
    stage = parts.config.stages[index]
    loss_fn = search_loss(parts, stage, supernet, method)
    key = runner.stage_key(parts, index)
    warm_up = round(stage.warmup_epochs * plan.steps_per_epoch)

    def jitted(update_architecture: bool) -> Any:
        step = make_search_step(
            loss_fn,
            transformations,
            order=parts.config.search.order,
            update_architecture=update_architecture,
            regulariser=method.regulariser,
        )
        return jax.jit(
            lambda state, weights, architecture: step(
                state, weights, architecture, jax.random.fold_in(key, state.step)
            ),
            donate_argnums=0,
        )

    steps = {update: jitted(update) for update in (False, True)}

    def step_fn(state: TrainState, batches: Any) -> tuple[TrainState, Any]:
        number, *halves_of_batch = batches
        return steps[number >= warm_up](state, *halves_of_batch)

    return step_fn


def _paired_batches(
    parts: Parts, stage: ConfigDict, first: Split, second: Split, start_step: int
) -> Iterator[tuple[int, Any, Any]]:
    """Step number, batch for the weights and, drawn apart, one for the architecture."""
    return zip(
        itertools.count(start_step),
        parts.train_batches(first, stage, start_step),
        parts.train_batches(second, stage, start_step, stream=1),
    )


def _log_architecture(
    method: Darts,
    space: SearchSpace,
    log: JsonLines,
    plan: StagePlan,
    step: int,
    state: TrainState,
) -> None:
    if jax.process_index() != 0:
        return
    weights = method.op_weights(jax.device_get(state.trees[ARCHITECTURE]))
    log.append(
        stage=plan.name,
        step=step,
        epoch=step / plan.steps_per_epoch,
        ops=space.candidates,
        weights=[layer.tolist() for layer in weights],
    )
