"""Stage "train": the network learns its weights from labelled clips."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from kws_jax.evaluation.metrics import result
from kws_jax.frontends.spec_augment import spec_augment
from kws_jax.objectives.classification import softmax_cross_entropy
from kws_jax.parts import Parts, Setup
from kws_jax.stages import feeding, networks, runner
from kws_jax.training.optimizers import create_optimizer
from kws_jax.training.state import WEIGHTS, TrainState, create_train_state
from kws_jax.training.step import LossFn, accuracy, make_train_step

PyTree = Any
# (trees, batch_stats, features, rngs) -> (logits, new batch_stats), in training
Infer = Callable[
    [dict[str, PyTree], PyTree, jax.Array, dict[str, jax.Array]],
    tuple[jax.Array, PyTree],
]


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
    infer: Infer | None = None,
) -> LossFn:
    """Cross-entropy of the network's logits, with label smoothing, as a LossFn.

    `infer` gives the logits in place of the model.
    """

    def infer_model(
        trees: dict[str, PyTree],
        batch_stats: PyTree,
        features: jax.Array,
        rngs: dict[str, jax.Array],
    ) -> tuple[jax.Array, PyTree]:
        return networks.infer_in_training(
            model,
            {"params": trees[WEIGHTS], "batch_stats": batch_stats},
            features,
            rngs=rngs,
            compute_dtype=compute_dtype,
        )

    logits_of = infer or infer_model

    def loss_fn(
        trees: dict[str, PyTree], batch_stats: PyTree, batch: Any, key: jax.Array
    ) -> Any:
        mask_key, dropout_key = jax.random.split(key)
        features = features_for_training(parts, stage, mask_key, batch["audio"])
        rngs = {"dropout": dropout_key}
        logits, batch_stats = logits_of(trees, batch_stats, features, rngs)
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
    """Trains the network; returns rows for results.json.

    It starts from the best state of the stage before, if that trained too, else from
    weights that depend on config.seed alone.
    """
    stage = parts.config.stages[index]
    model = networks.create_network(parts, folder)
    plan = runner.plan_of(parts, index, len(parts.task.train))
    transformation, schedule = create_optimizer(stage.optimizer, plan.total_steps)
    transformations = {WEIGHTS: transformation}
    state = initial_state(parts, model, transformations)
    if index and parts.config.stages[index - 1].kind == stage.kind:
        before = runner.best_state(parts, index - 1, folder, state)
        state = state.replace(trees=before.trees, batch_stats=before.batch_stats)
    loss_fn = classification_loss(
        parts, stage, model, compute_dtype=parts.config.compute_dtype
    )
    step = make_train_step(loss_fn, transformations)
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
        logits_of=lambda state, features: networks.infer(
            model, variables_of(state), features
        ),
        plan=plan,
        schedule=schedule,
    )
    sizes = networks.size_of(parts, model, variables_of(state))
    clips = plan.total_steps * plan.clips_per_step
    measures = {
        **sizes,
        "seconds": notes["seconds"],
        "clips_per_second": clips / notes["seconds"],
    }
    rows = [
        result(stage.name, "train", "clean", name, value, None, 1)
        for name, value in measures.items()
    ]
    rows.append(runner.validation_row(parts, stage.name, notes))
    return rows


def initial_state(
    setup: Setup, model: nn.Module, transformations: dict[str, Any]
) -> TrainState:
    """A fresh state; the weights depend on config.seed alone."""
    variables = networks.initial_variables(
        model, jax.random.key(setup.config.seed), networks.sample_features(setup)
    )
    params, batch_stats = networks.split_variables(variables)
    return create_train_state({WEIGHTS: params}, batch_stats, transformations)


def variables_of(state: TrainState) -> dict[str, PyTree]:
    """The Flax variables in a state."""
    return {"params": state.trees[WEIGHTS], "batch_stats": state.batch_stats}


def restore(setup: Setup, index: int, folder: Path) -> networks.Network:
    """The network of a finished stage, at its best step on validation."""
    model = networks.create_network(setup, folder)
    state = best_state(setup, index, folder, model)
    return networks.trained_network(setup, model, variables_of(state))


def best_state(setup: Setup, index: int, folder: Path, model: nn.Module) -> TrainState:
    """The best state of a finished stage, without optimisers."""
    return runner.best_state(setup, index, folder, state_like(setup, model))


def state_like(setup: Setup, model: nn.Module) -> TrainState:
    """Shapes and types of a state of the network, without optimisers."""
    shapes = networks.variable_shapes(model, networks.sample_features(setup))
    params, batch_stats = networks.split_variables(shapes)
    return create_train_state({WEIGHTS: params}, batch_stats, {})
