"""What a training stage learns with: its loss, its optimisers, its step."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from kws_jax import recipes
from kws_jax.frontends.spec_augment import spec_augment
from kws_jax.models.acoustic_dnn import AcousticDNN
from kws_jax.parts import Parts
from kws_jax.stages import acoustic, data_parameters, feeding, networks, validation
from kws_jax.stages.epochs import EPOCH
from kws_jax.training.loop import StagePlan
from kws_jax.training.mixup import with_mixup
from kws_jax.training.optimizers import create_optimizer, for_part
from kws_jax.training.state import (
    DATA_PARAMETERS,
    WEIGHTS,
    TrainState,
    variables_of,
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
    features = parts.features(audio)
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
    norm_mesh: Mesh | None = None,
    table: data_parameters.StageTable | None = None,
    infer: Infer | None = None,
) -> LossFn:
    """The stage's objective on the network's logits, smoothed, as a LossFn.

    Where a batch has a `target` [b, k], as after mixup, it stands for the `label`.
    With a `table`, its data parameters divide the logits and are trained too. `infer`
    gives the logits in place of the model. `compute_dtype` and `norm_mesh` are those of
    `networks.infer_in_training`.
    """
    loss_of = validation.objective_of(stage).loss
    head_alone = stage.get("trained_part", "all") == "head"

    def infer_model(
        trees: dict[str, PyTree],
        batch_stats: PyTree,
        features: jax.Array,
        rngs: dict[str, jax.Array],
        **told: Any,
    ) -> tuple[jax.Array, PyTree]:
        infer_part: Infer = functools.partial(
            networks.infer_in_training, norm_mesh=norm_mesh
        )
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
    logits_of: validation.LogitsOf


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
            mesh=parts.mesh,
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
    shared: dict[str, Any] = {
        "compute_dtype": parts.config.compute_dtype,
        "norm_mesh": networks.mesh_of_norms(parts),
        "table": table,
    }
    if not isinstance(model, AcousticDNN):
        return classification_loss(parts, stage, model, **shared)
    return acoustic.frame_loss(
        parts,
        stage,
        model,
        functools.partial(features_for_training, parts, stage),
        round(stage.alignment.flat_fraction * plan.total_steps),
        **shared,
    )


def _mixup_ends(stage: ConfigDict) -> bool:
    return stage.mixup.probability > 0 and stage.mixup.until < 1
