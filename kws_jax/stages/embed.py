"""Stage "embed": the encoder learns embeddings from tuples, by a metric loss.

The head stays as it is; a stage "train" with `trained_part='head'` comes after.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from kws_jax.data.conditions import CLEAN
from kws_jax.data.corpus import Split
from kws_jax.data.tuples import tuple_classes
from kws_jax.errors import UserError, nearest
from kws_jax.objectives import metric_learning
from kws_jax.parts import Parts
from kws_jax.stages import networks, runner, train, training_run
from kws_jax.stages.epochs import EPOCH, told_of_epochs
from kws_jax.stages.learner import features_for_training
from kws_jax.stages.validation import LogitsOf
from kws_jax.training import sharding
from kws_jax.training.optimizers import create_optimizer, for_part
from kws_jax.training.state import WEIGHTS, TrainState, variables_of
from kws_jax.training.step import LossFn, make_train_step

PyTree = Any
# (state, features [b, t, f]) -> embeddings [b, d]
EmbeddingOf = Callable[[TrainState, jax.Array], jax.Array]
# Enough for a mean, few enough to be quick beside the validation split.
_CLIPS_PER_MEAN = 50
# Which clips of a batch are anchors: those drawn as such, or all but the positives.
DRAWN_ANCHORS, ALL_ANCHORS = "drawn", "all"


def check(parts: Parts, stage: ConfigDict) -> None:
    """Raises UserError for a stage that cannot run."""
    metric = stage.metric
    for field, known in (
        ("loss", metric_learning.LOSSES),
        ("distance", metric_learning.DISTANCES),
    ):
        if metric[field] not in known:
            raise UserError(
                f"metric.{field} = {metric[field]!r} of stage {stage.name!r} is "
                f"unknown; {nearest(metric[field], known)}"
            )
    if metric.anchors not in (DRAWN_ANCHORS, ALL_ANCHORS):
        raise UserError(
            f"metric.anchors = {metric.anchors!r} of stage {stage.name!r} is unknown; "
            f"give {DRAWN_ANCHORS!r} or {ALL_ANCHORS!r}."
        )
    if metric.anchors == ALL_ANCHORS and (
        tuple_classes(stage.classes, parts.labels) < len(parts.labels)
        or stage.tuples_per_batch < 2
    ):
        raise UserError(
            f"metric.anchors = {ALL_ANCHORS!r} of stage {stage.name!r} takes a clip of "
            "every label from each of two or more tuples: give classes = 0 and "
            "tuples_per_batch of at least 2, or metric.anchors = "
            f"{DRAWN_ANCHORS!r}."
        )
    if metric.lambda_ < 0:
        raise UserError(
            f"metric.lambda_ = {metric.lambda_} of stage {stage.name!r}: give a number "
            "above 0, or 0 for the default of the loss."
        )
    if metric.scale <= 0:
        raise UserError(
            f"metric.scale = {metric.scale} of stage {stage.name!r}: give a number "
            "above 0."
        )
    sharding.check_batch_size(stage.tuples_per_batch, parts.mesh, "tuples_per_batch")
    parts.recipe(parts.task.train, stage)
    parts.selection(parts.task.train, stage)


def tuple_loss(
    stage: ConfigDict, embeddings: jax.Array, labels: jax.Array, roles: int
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The stage's loss over embeddings [b, d] in the order (tuple, role), and measures.

    `labels` [b] are those of the clips. `nearest_positive` is the share of tuples whose
    positive is nearer to the anchor than every negative.
    """
    metric = stage.metric
    tuples = as_measured(metric, embeddings).reshape(-1, roles, embeddings.shape[-1])
    compared = tuples
    if metric.anchors == ALL_ANCHORS:
        compared = metric_learning.every_anchor(tuples, labels.reshape(-1, roles))
    losses = metric_learning.LOSSES[metric.loss](
        compared,
        distance=metric.distance,
        weight=metric.lambda_ or None,
        scale=metric.scale,
    )
    distance = metric_learning.DISTANCES[metric.distance]
    distances = distance(tuples[:, :1], tuples[:, 1:])
    nearest = distances[:, 0] < distances[:, 1:].min(-1)
    loss = losses.mean()
    return loss, {"loss": loss, "nearest_positive": nearest.mean()}


def as_measured(metric: ConfigDict, embeddings: jax.Array) -> jax.Array:
    """Embeddings as the loss takes them: of length one, if it asks for that."""
    return metric_learning.normalise(embeddings) if metric.normalise else embeddings


def embedding_loss(
    parts: Parts,
    stage: ConfigDict,
    model: nn.Module,
    *,
    compute_dtype: str = "float32",
    norm_mesh: Mesh | None = None,
) -> LossFn:
    """The metric loss of the network's embeddings of a batch of tuples, as a LossFn.

    `compute_dtype` and `norm_mesh` are those of `networks.infer_in_training`.
    """
    roles = runner.clips_per_step(parts, stage) // stage.tuples_per_batch

    def loss_fn(
        trees: dict[str, PyTree], batch_stats: PyTree, batch: Any, key: jax.Array
    ) -> Any:
        mask_key, dropout_key = jax.random.split(key)
        features = features_for_training(parts, stage, mask_key, batch["audio"])
        embeddings, batch_stats = networks.infer_in_training(
            model,
            {"params": trees[WEIGHTS], "batch_stats": batch_stats},
            features,
            rngs={"dropout": dropout_key},
            compute_dtype=compute_dtype,
            method="embed",
            epoch=batch.get(EPOCH),
            norm_mesh=norm_mesh,
        )
        loss, measures = tuple_loss(stage, embeddings, batch["label"], roles)
        return loss, (measures, batch_stats)

    return loss_fn


def some_of_each_class(split: Split) -> Split:
    """At most 50 clips of each label, spread evenly over the split."""
    rows = []
    for label in np.unique(split.labels):
        here = np.flatnonzero(split.labels == label)
        places = np.linspace(0, len(here) - 1, min(_CLIPS_PER_MEAN, len(here)))
        rows.append(here[places.astype(np.int64)])
    return split.subset(np.concatenate(rows), f"{split.name} (means)")


def nearest_mean(embedding_of: EmbeddingOf) -> LogitsOf:
    """A function from state, features [b, t, f] and means [k, d] to −‖e − mean‖²."""

    def logits_of(
        state: TrainState, features: jax.Array, means: jax.Array
    ) -> jax.Array:
        embeddings = embedding_of(state, features)
        return -metric_learning.squared_euclid(embeddings[:, None], means[None])

    return logits_of


def class_means(
    parts: Parts, embedding_of: EmbeddingOf
) -> Callable[[TrainState], tuple[jax.Array]]:
    """A function from state to the means [k, d] of clean training embeddings."""
    some = some_of_each_class(parts.task.train)
    labels = len(parts.labels)

    @functools.partial(sharding.jit_replicated, mesh=parts.mesh)
    def sums(state: TrainState, batch: dict[str, jax.Array]) -> Any:
        embeddings = embedding_of(state, parts.features(batch["audio"]))
        members = jax.nn.one_hot(batch["label"], labels) * batch["mask"][:, None]
        return members.T @ embeddings, members.sum(0)

    def means(state: TrainState) -> tuple[jax.Array]:
        found = [sums(state, batch) for batch in parts.eval_batches(some, CLEAN)]
        total, count = jax.tree.map(lambda *leaves: sum(leaves), *found)
        return (total / count[:, None],)

    return means


def run(parts: Parts, index: int, folder: Path) -> list[dict[str, Any]]:
    """Trains the encoder; returns rows for results.json.

    The best state is that whose class means, of some clean training clips, are nearest
    to most validation clips of their class. Unlike the loss on tuples this can be
    compared between losses, and says what the next stage needs: the nearest mean is a
    linear classifier, here without training. Its validation loss is the cross-entropy
    of softmax(−‖e − mean‖²).
    """
    stage = parts.config.stages[index]
    model = networks.create_network(parts, folder)
    plan = runner.plan_of(parts, index, len(parts.task.train))
    transformation, schedule = create_optimizer(
        stage.optimizer, plan.total_steps, steps_per_epoch=plan.steps_per_epoch
    )
    transformations = {WEIGHTS: for_part(transformation, "encoder")}
    loss_fn = embedding_loss(
        parts,
        stage,
        model,
        compute_dtype=parts.config.compute_dtype,
        norm_mesh=networks.mesh_of_norms(parts),
    )
    step = make_train_step(loss_fn, transformations)
    step = told_of_epochs(step, parts, index, folder, model, plan)

    def embedding_of(state: TrainState, features: jax.Array) -> jax.Array:
        embeddings = networks.embed(model, variables_of(state), features)
        return as_measured(stage.metric, embeddings)

    trained = training_run.run(
        parts,
        index,
        folder,
        train.starting_state(parts, index, folder, model, transformations),
        plan=plan,
        splits=[parts.task.train],
        step_at=lambda number: step,
        logits_of=nearest_mean(embedding_of),
        context_of=class_means(parts, embedding_of),
        schedule=schedule,
    )
    return trained.rows(trained.speed)
