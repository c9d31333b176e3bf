"""Stage "search": a supernet learns weights and architecture on halves of the data."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from kws_jax import together
from kws_jax.data.corpus import Split
from kws_jax.errors import UserError
from kws_jax.models.genotype import OPERATIONS
from kws_jax.models.tc_resnet import BLOCKS, STEM_CHANNELS
from kws_jax.objectives.classification import softmax_cross_entropy
from kws_jax.parts import Parts
from kws_jax.search import methods
from kws_jax.search.architecture import init_architecture
from kws_jax.search.bilevel import make_search_step
from kws_jax.search.methods import Darts
from kws_jax.search.space import SearchSpace
from kws_jax.search.supernet import SuperNet
from kws_jax.stages import feeding, networks, runner, training_run
from kws_jax.stages.epochs import EPOCH, tell_of_temperature, with_epoch
from kws_jax.stages.learner import features_for_training
from kws_jax.training.logs import JsonLines
from kws_jax.training.loop import StagePlan
from kws_jax.training.optimizers import create_optimizer
from kws_jax.training.state import (
    ARCHITECTURE,
    WEIGHTS,
    TrainState,
    create_train_state,
    variables_of,
)
from kws_jax.training.step import LossFn, accuracy

PyTree = Any
ARCHITECTURE_LOG = "architecture.jsonl"


def create_space(parts: Parts) -> SearchSpace:
    """The search space of the config: TC-ResNet14's skeleton, its operations.

    Raises:
      UserError: for settings that the space does not have.
    """
    search = parts.config.search
    return SearchSpace(
        channels=tuple(int(c * search.width) for c in BLOCKS[14][0]),
        stem_channels=int(STEM_CHANNELS * search.width),
        shortcut=search.shortcut,
        se_reduction=search.se_reduction,
        # Workdirs of before have no such field.
        operations=tuple(search.get("operations", ())) or OPERATIONS,
    )


def create_method(parts: Parts) -> Darts:
    """The search method of the config.

    Raises:
      UserError: for an unknown method or setting.
    """
    search = parts.config.search
    if search.order not in (1, 2):
        raise UserError(f"config.search.order = {search.order}: give 1 or 2.")
    if search.order == 2 and parts.config.compute_dtype != "float32":
        raise UserError(
            "config.search.order = 2 takes a difference of gradients that is too small "
            f"for config.compute_dtype = {parts.config.compute_dtype!r}; give order 1, "
            "or compute_dtype 'float32'."
        )
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


def check(parts: Parts, index: int) -> None:
    """Raises UserError where the stage's epochs leave no step for the architecture."""
    stage = parts.config.stages[index]
    weights_half, _ = halves(parts.task.train, parts.config.data.seed)
    plan = runner.plan_of(parts, index, len(weights_half))
    warm_up = _warm_up(stage, plan)
    if warm_up >= plan.total_steps:
        raise UserError(
            f"config.stages[{index}] ({stage.name!r}) has 0 steps of its architecture "
            f"in {plan.total_steps:,} steps: {warm_up:,} come before it (warmup_epochs "
            f"= {stage.warmup_epochs:g}). The network would be one drawn at random: "
            "give more epochs, or fewer of warmup_epochs."
        )


def _warm_up(stage: ConfigDict, plan: StagePlan) -> int:
    """The step up to which the architecture stands still."""
    return round(stage.warmup_epochs * plan.steps_per_epoch)


def search_loss(
    parts: Parts,
    stage: ConfigDict,
    supernet: nn.Module,
    method: Darts,
    *,
    compute_dtype: str = "float32",
    norm_mesh: Mesh | None = None,
) -> LossFn:
    """Cross-entropy of the supernet under the method's weights, as a LossFn.

    `compute_dtype` and `norm_mesh` are those of `networks.infer_in_training`.
    """

    def loss_fn(
        trees: dict[str, PyTree], batch_stats: PyTree, batch: Any, key: jax.Array
    ) -> Any:
        mask_key, dropout_key, noise_key = jax.random.split(key, 3)
        features = features_for_training(parts, stage, mask_key, batch["audio"])
        logits, batch_stats = networks.infer_in_training(
            supernet,
            {"params": trees[WEIGHTS], "batch_stats": batch_stats},
            features,
            method.op_weights(trees[ARCHITECTURE]),
            rngs={"dropout": dropout_key, "noise": noise_key},
            compute_dtype=compute_dtype,
            epoch=batch.get(EPOCH),
            norm_mesh=norm_mesh,
        )
        loss = softmax_cross_entropy(
            logits, batch["label"], batch["mask"], label_smoothing=stage.label_smoothing
        )
        measures = {
            "loss": loss,
            "accuracy": accuracy(logits, batch["label"], batch["mask"]),
        }
        return loss, (measures, batch_stats)

    return loss_fn


def run(parts: Parts, index: int, folder: Path) -> list[dict[str, Any]]:
    """Searches, writes genotype.json and returns rows for results.json."""
    stage = parts.config.stages[index]
    method = create_method(parts)
    space = create_space(parts)
    network = networks.behind_front(
        parts,
        SuperNet(
            num_labels=len(parts.labels),
            space=space,
            dropout=parts.config.network.dropout,
            skip_noise=method.skip_noise,
            batch_norm_momentum=parts.config.network.batch_norm_momentum,
        ),
    )
    weights_half, architecture_half = halves(parts.task.train, parts.config.data.seed)
    plan = runner.plan_of(parts, index, len(weights_half))
    warm_up = _warm_up(stage, plan)
    plan = dataclasses.replace(plan, breaks=(warm_up,))
    tell_of_temperature(network, plan)
    weights, schedule = create_optimizer(
        stage.optimizer,
        plan.total_steps,
        steps_per_epoch=plan.steps_per_epoch,
        differentiable=parts.config.search.order == 2,
    )
    # Its steps and epochs count from where it begins to move.
    architecture, _ = create_optimizer(
        stage.architecture_optimizer,
        plan.total_steps - warm_up,
        steps_per_epoch=plan.steps_per_epoch,
    )
    transformations = {WEIGHTS: weights, ARCHITECTURE: architecture}
    log = JsonLines(folder / ARCHITECTURE_LOG)
    trained = training_run.run(
        parts,
        index,
        folder,
        _initial_state(parts, network, space, method, transformations),
        plan=plan,
        splits=[weights_half, architecture_half],
        step_at=_step_at(parts, stage, network, method, transformations, plan, warm_up),
        logits_of=lambda state, features: networks.infer(
            network,
            variables_of(state),
            features,
            method.op_weights(state.trees[ARCHITECTURE]),
        ),
        schedule=schedule,
        logs=(log,),
        after_validation=functools.partial(_log_architecture, method, space, log, plan),
    )
    architecture_weights = jax.device_get(trained.state.trees[ARCHITECTURE])
    genotype = method.derive(architecture_weights, space)
    if together.is_first():
        networks.keep_genotype(genotype, folder)
    return trained.rows(trained.duration)


def _initial_state(
    parts: Parts,
    supernet: nn.Module,
    space: SearchSpace,
    method: Darts,
    transformations: dict[str, Any],
) -> TrainState:
    weights_key, architecture_key = jax.random.split(jax.random.key(parts.config.seed))
    architecture = init_architecture(architecture_key, space.candidates)
    variables = networks.initial_variables(
        supernet,
        weights_key,
        networks.sample_features(parts),
        method.op_weights(architecture),
    )
    params, batch_stats = networks.split_variables(variables)
    trees = {WEIGHTS: params, ARCHITECTURE: architecture}
    return create_train_state(trees, batch_stats, transformations)


def _step_at(
    parts: Parts,
    stage: ConfigDict,
    supernet: nn.Module,
    method: Darts,
    transformations: dict[str, Any],
    plan: StagePlan,
    warm_up: int,
) -> Callable[[int], feeding.Step]:
    """The search step of each number; before `warm_up` the architecture stands still.

    It takes a batch for the weights and, drawn apart, one for the architecture.
    """
    loss_fn = search_loss(
        parts,
        stage,
        supernet,
        method,
        compute_dtype=parts.config.compute_dtype,
        norm_mesh=networks.mesh_of_norms(parts),
    )

    def of(update_architecture: bool) -> feeding.Step:
        step = make_search_step(
            loss_fn,
            transformations,
            order=parts.config.search.order,
            update_architecture=update_architecture,
            regulariser=method.regulariser,
        )
        return with_epoch(step, supernet, plan)

    steps = {update: of(update) for update in (False, True)}
    return lambda number: steps[number >= warm_up]


def _log_architecture(
    method: Darts,
    space: SearchSpace,
    log: JsonLines,
    plan: StagePlan,
    step: int,
    state: TrainState,
) -> None:
    if not together.is_first():
        return
    weights = method.op_weights(jax.device_get(state.trees[ARCHITECTURE]))
    log.append(
        stage=plan.name,
        step=step,
        epoch=step / plan.steps_per_epoch,
        ops=space.candidates,
        weights=[layer.tolist() for layer in weights],
    )
