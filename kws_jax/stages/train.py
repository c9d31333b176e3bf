"""Stage "train": the network learns its weights from labelled clips."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from ml_collections import ConfigDict, FrozenConfigDict

from kws_jax import recipes
from kws_jax.data.conditions import CLEAN
from kws_jax.errors import UserError
from kws_jax.evaluation.metrics import result
from kws_jax.frontends.spec_augment import spec_augment
from kws_jax.models.acoustic_dnn import AcousticDNN
from kws_jax.parts import Parts, Setup
from kws_jax.stages import acoustic, data_parameters, feeding, networks, runner
from kws_jax.stages.epochs import EPOCH, with_epoch
from kws_jax.training.loop import StagePlan
from kws_jax.training.mixup import with_mixup
from kws_jax.training.optimizers import create_optimizer, for_part, updates_made
from kws_jax.training.state import (
    DATA_PARAMETERS,
    WEIGHTS,
    TrainState,
    create_train_state,
)
from kws_jax.training.step import LossFn, accuracy, make_train_step

PyTree = Any
# Fields of a stage that no program is made from.
_BESIDE_PROGRAM = (
    "name",
    "epochs",
    "steps",
    "eval_every_epochs",
    "condition",
    "validation",
    "stop",
    "optimizer_start",
)
_NEVER = np.iinfo(np.int32).max  # later than any step
# (trees, batch_stats, features, rngs, …) -> (logits, new batch_stats), in training
Infer = Callable[..., tuple[jax.Array, PyTree]]


def features_for_training(
    parts: Parts, stage: ConfigDict, key: jax.Array, audio: jax.Array
) -> jax.Array:
    """Features [b, t, f] of int16 audio [b, s], masked as the stage asks."""
    features = parts.frontend(audio)
    masks = stage.spec_augment
    if masks.time_masks or masks.frequency_masks:
        features = spec_augment(key, features, **masks.to_dict())
    return features


def classification_loss(
    parts: Parts,
    stage: ConfigDict,
    model: nn.Module,
    *,
    compute_dtype: str = "float32",
    table: data_parameters.StageTable | None = None,
    infer: Infer | None = None,
) -> LossFn:
    """The stage's objective on the network's logits, smoothed, as a LossFn.

    Where a batch has a `target` [b, k], as after mixup, it stands for the `label`.
    With a `table`, its data parameters divide the logits and are trained too. `infer`
    gives the logits in place of the model.
    """
    loss_of = runner.objective_of(stage).loss
    head_alone = stage.get("trained_part", "all") == "head"

    def infer_model(
        trees: dict[str, PyTree],
        batch_stats: PyTree,
        features: jax.Array,
        rngs: dict[str, jax.Array],
        **told: Any,
    ) -> tuple[jax.Array, PyTree]:
        infer_part: Infer = networks.infer_in_training
        if head_alone:
            infer_part = networks.infer_with_frozen_encoder
        variables = {"params": trees[WEIGHTS], "batch_stats": batch_stats}
        return infer_part(
            model, variables, features, rngs=rngs, compute_dtype=compute_dtype, **told
        )

    logits_of = infer or infer_model

    def loss_fn(
        trees: dict[str, PyTree], batch_stats: PyTree, batch: Any, key: jax.Array
    ) -> Any:
        mask_key, dropout_key = jax.random.split(key)
        features = features_for_training(parts, stage, mask_key, batch["audio"])
        told = {"epoch": batch[EPOCH]} if EPOCH in batch else {}
        rngs = {"dropout": dropout_key}
        logits, batch_stats = logits_of(trees, batch_stats, features, rngs, **told)
        scaled = table.scale(trees, logits, batch) if table else logits
        loss = loss_of(
            scaled,
            batch.get("target", batch["label"]),
            batch["mask"],
            label_smoothing=stage.label_smoothing,
        )
        measures = {
            "loss": loss,
            "accuracy": accuracy(logits, batch["label"], batch["mask"]),
        }
        if table:
            measures["penalty"] = table.penalty(trees, batch)
            loss += measures["penalty"]
        return loss, (measures, batch_stats)

    return loss_fn


@dataclasses.dataclass(frozen=True)
class Learner:
    """What a stage learns with; stages that differ in their data alone share it.

    Attributes:
      transformations: label -> optax transformation.
      schedule: number of an update -> learning rate.
      step: (state, batch, key) -> (state, metrics).
      logits_of: (state, features [b, t, f]) -> logits [b, k].
    """

    transformations: dict[str, optax.GradientTransformation]
    schedule: optax.Schedule
    step: feeding.Step
    logits_of: runner.LogitsOf


def create_learner(
    parts: Parts,
    stage: ConfigDict,
    model: nn.Module,
    plan: StagePlan,
    table: data_parameters.StageTable | None = None,
) -> Learner:
    """The learner of a stage, the same object for stages that would have equal ones.

    A stage with a `table` of data parameters has one of its own.
    """
    if table:
        return _create_learner(parts, stage, model, plan, table)
    depends = (
        recipes.depends_on_length(stage.optimizer)
        or _mixup_ends(stage)
        or isinstance(model, AcousticDNN)
    )
    what = (
        model,
        FrozenConfigDict({k: v for k, v in stage.items() if k not in _BESIDE_PROGRAM}),
        plan.total_steps if depends else None,
        plan.steps_per_epoch,
    )
    return parts.once(what, lambda: _create_learner(parts, stage, model, plan, None))


def _create_learner(
    parts: Parts,
    stage: ConfigDict,
    model: nn.Module,
    plan: StagePlan,
    table: data_parameters.StageTable | None,
) -> Learner:
    transformation, schedule = create_optimizer(
        stage.optimizer, plan.total_steps, steps_per_epoch=plan.steps_per_epoch
    )
    transformations = {WEIGHTS: for_part(transformation, stage.trained_part)}
    if table:
        transformations[DATA_PARAMETERS] = table.transformation()
    loss_fn = _loss_of(parts, stage, model, plan, table)
    step: feeding.Step = make_train_step(
        loss_fn, transformations, trained=tuple(transformations)
    )
    if stage.mixup.probability:
        step = with_mixup(
            step,
            num_labels=len(parts.labels),
            probability=stage.mixup.probability,
            alpha=stage.mixup.alpha,
            until_step=round(stage.mixup.until * plan.total_steps)
            if _mixup_ends(stage)
            else _NEVER,
        )

    def logits_of(state: TrainState, features: jax.Array) -> jax.Array:
        return networks.infer(model, variables_of(state), features)

    return Learner(transformations, schedule, step, logits_of)


def _loss_of(
    parts: Parts,
    stage: ConfigDict,
    model: nn.Module,
    plan: StagePlan,
    table: data_parameters.StageTable | None,
) -> LossFn:
    compute_dtype = parts.config.compute_dtype
    if not isinstance(model, AcousticDNN):
        return classification_loss(
            parts, stage, model, compute_dtype=compute_dtype, table=table
        )
    return acoustic.frame_loss(
        parts,
        stage,
        model,
        functools.partial(features_for_training, parts, stage),
        round(stage.alignment.flat_fraction * plan.total_steps),
        compute_dtype=compute_dtype,
        table=table,
    )


def _mixup_ends(stage: ConfigDict) -> bool:
    return stage.mixup.probability > 0 and stage.mixup.until < 1


def check(parts: Parts, stage: ConfigDict) -> None:
    """Raises UserError where the stage's rules ask for clips that are not there."""
    if stage.stop.rule != "length" and not len(parts.task.validation):
        raise UserError(
            f"Stage {stage.name!r} ends by stop.rule = {stage.stop.rule!r}, which "
            "needs validation clips, and there are none: give some, or stop.rule "
            "'length'."
        )
    if runner.validation_condition(stage) != CLEAN and len(parts.task.validation):
        parts.recipe(parts.task.validation, stage)


def run(parts: Parts, index: int, folder: Path) -> list[dict[str, Any]]:
    """Trains the network; returns rows for results.json."""
    stage = parts.config.stages[index]
    model = networks.create_network(parts, folder)
    plan = runner.plan_of(parts, index, len(parts.task.train))
    table = data_parameters.create_stage_table(parts, index, folder)
    learner = create_learner(parts, stage, model, plan, table)
    state = starting_state(
        parts,
        index,
        folder,
        model,
        learner.transformations,
        table.trees() if table else {},
    )
    updates = updates_made(state.opt_state[WEIGHTS])
    step = learner.step
    if not runner.follows_training(parts, index):
        # What changes with the epochs has come to its end where a stage goes on.
        step = with_epoch(step, model, plan)
    feed = feeding.create_feed(
        parts,
        stage,
        plan,
        runner.stage_key(parts, index),
        [parts.task.train],
        lambda number: step,
    )
    state, notes = runner.run_stage(
        parts,
        index,
        folder,
        state,
        step_fn=feed.step_fn,
        batches_from=feed.batches_from,
        logits_of=learner.logits_of,
        plan=plan,
        schedule=lambda step: learner.schedule(updates + step),
        **(table.hooks(plan) if table else {}),
    )
    if table:
        table.write_summary(state)
    steps = int(state.step)
    measures = {
        **networks.size_of(parts, model, variables_of(state)),
        "seconds": notes["seconds"],
        "clips_per_second": steps * plan.clips_per_step / notes["seconds"],
    }
    rows = [
        result(stage.name, "train", runner.CLEAN_NAME, name, value, None, 1)
        for name, value in measures.items()
    ]
    rows += runner.ending_rows(plan, steps, notes)
    clean = runner.validation_condition(stage) == CLEAN
    condition = runner.CLEAN_NAME if clean else runner.TRAINING_NAME
    rows.append(runner.validation_row(parts, stage.name, notes, condition))
    return rows


def starting_state(
    parts: Parts,
    index: int,
    folder: Path,
    model: nn.Module,
    transformations: dict[str, Any],
    more_trees: Mapping[str, PyTree] = MappingProxyType({}),
) -> TrainState:
    """Where a stage begins; `more_trees` are what it trains beside the weights.

    After a stage that trained the network, that is its best weights and statistics, and
    where optimizer_start says 'continue' also its optimiser as it was in the end, so
    that the schedule goes on. Else it is weights that depend on config.seed alone.
    """
    if not runner.follows_training(parts, index):
        return initial_state(parts, model, transformations, more_trees)
    like = _state_shapes(parts, model, {WEIGHTS: transformations[WEIGHTS]})
    best = runner.best_state(parts, index - 1, folder, like)
    trees = {**best.trees, **more_trees}
    state = create_train_state(trees, best.batch_stats, transformations)
    if runner.continues_optimizer(parts, index):
        last = runner.last_state(parts, index - 1, folder, like)
        state = state.replace(opt_state=last.opt_state)
    return state


def _state_shapes(
    setup: Setup, model: nn.Module, transformations: dict[str, Any]
) -> TrainState:
    """Shapes and types of `initial_state`, without computing it."""
    shapes = networks.variable_shapes(model, networks.sample_features(setup))
    params, batch_stats = networks.split_variables(shapes)
    return jax.eval_shape(
        functools.partial(create_train_state, transformations=transformations),
        {WEIGHTS: params},
        batch_stats,
    )


def initial_state(
    setup: Setup,
    model: nn.Module,
    transformations: dict[str, Any],
    more_trees: Mapping[str, PyTree] = MappingProxyType({}),
) -> TrainState:
    """A fresh state; the weights depend on config.seed alone."""
    variables = networks.initial_variables(
        model, jax.random.key(setup.config.seed), networks.sample_features(setup)
    )
    params, batch_stats = networks.split_variables(variables)
    trees = {WEIGHTS: params, **more_trees}
    return create_train_state(trees, batch_stats, transformations)


def variables_of(state: TrainState) -> dict[str, PyTree]:
    """The Flax variables in a state."""
    return {"params": state.trees[WEIGHTS], "batch_stats": state.batch_stats}


def restore(setup: Setup, index: int, folder: Path) -> networks.Network:
    """The network of a finished stage, at its best step on validation."""
    model = networks.create_network(setup, folder)
    state = best_state(setup, index, folder, model)
    objective = runner.objective_of(setup.config.stages[index])
    return networks.trained_network(
        setup,
        model,
        variables_of(state),
        probabilities_of=objective.probabilities,
    )


def best_state(setup: Setup, index: int, folder: Path, model: nn.Module) -> TrainState:
    """The best state of a finished stage, without optimisers."""
    return runner.best_state(setup, index, folder, state_like(setup, model))


def state_like(setup: Setup, model: nn.Module) -> TrainState:
    """Shapes and types of a state of the network, without optimisers."""
    return _state_shapes(setup, model, {})
