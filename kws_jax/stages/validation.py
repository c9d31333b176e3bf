"""How a stage that trains is validated: objective, condition, measures."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from kws_jax import condition_names
from kws_jax.data.conditions import CLEAN, Condition
from kws_jax.evaluation.metrics import result, wilson_interval
from kws_jax.objectives.registry import OBJECTIVES, Objective
from kws_jax.parts import Parts, condition_of
from kws_jax.training import sharding
from kws_jax.training.state import TrainState

# What is trained in, as results.json names it.
TRAINING_NAME = "as in training"
# (state, features [b, t, f], …) -> logits [b, k]
LogitsOf = Callable[..., Float[Array, "b k"]]
ContextOf = Callable[[TrainState], tuple[Any, ...]]
# (state, measures of validation) -> how good the state is
Score = Callable[[TrainState, dict[str, float]], float]


def objective_of(stage: ConfigDict) -> Objective:
    """The objective of a stage; cross-entropy for kinds of stages without a choice."""
    return OBJECTIVES[stage.get("objective", "cross_entropy")]


def validation_condition(stage: ConfigDict) -> Condition:
    """In what a stage is validated: clean, or the noise and the rooms it trains in.

    Shift and background by volume are left out: they augment, and do not disturb.
    """
    if stage.get("validation", "clean") == "clean":
        return CLEAN
    condition = condition_of(stage)
    if not condition.snr_db and not condition.reverberant_fraction:
        return CLEAN
    return dataclasses.replace(condition, shift_ms=0.0, background_probability=0.0)


def make_validation(
    parts: Parts,
    logits_of: LogitsOf,
    stage: ConfigDict,
    context_of: ContextOf = lambda state: (),
    score: Score | None = None,
    *,
    of_each: Callable[[Callable], Callable] | None = None,
) -> Callable[[TrainState], dict[str, Any]]:
    """A function from state to loss and accuracy over the validation split.

    And to the "score" by which the best state is chosen, if it is given.

    Loss and condition are those of the stage. Every validation hears the same noise, of
    the training part, at the same places. What `context_of` makes of the state once,
    `logits_of` gets behind the features. Where states hold several seeds, `of_each`
    makes the function of one state that of all, and each measure is a list.
    """
    loss_of, condition = objective_of(stage).loss, validation_condition(stage)
    noise = parts.training_noise if condition.snr_db else None

    def measure(
        state: TrainState, batch: dict[str, jax.Array], *context: Any
    ) -> dict[str, jax.Array]:
        logits = logits_of(state, parts.features(batch["audio"]), *context)
        mask = batch["mask"]
        right = (jnp.argmax(logits, -1) == batch["label"]) & mask
        loss = loss_of(logits, batch["label"], mask)
        return {"loss": loss * mask.sum(), "right": right.sum(), "count": mask.sum()}

    jitted = parts.once(
        ("validation", logits_of, loss_of, of_each),
        lambda: sharding.jit_replicated(
            of_each(measure) if of_each else measure, parts.mesh
        ),
    )

    def validate(state: TrainState) -> dict[str, Any]:
        context = context_of(state)
        sums: dict[str, Any] = {"loss": 0.0, "right": 0.0, "count": 0.0}
        for batch in parts.eval_batches(parts.task.validation, condition, noise):
            for name, value in jax.device_get(jitted(state, batch, *context)).items():
                sums[name] += np.float64(value)
        measures = {
            "loss": (sums["loss"] / sums["count"]).tolist(),
            "accuracy": (sums["right"] / sums["count"]).tolist(),
        }
        return measures | ({"score": score(state, measures)} if score else {})

    return validate


def validation_row(
    parts: Parts, stage: ConfigDict, notes: dict[str, Any]
) -> dict[str, Any]:
    """The best state's validation accuracy as a row of results.json."""
    clean = validation_condition(stage) == CLEAN
    condition = condition_names.CLEAN if clean else TRAINING_NAME
    count = len(parts.task.validation)
    value = notes["best_accuracy"]
    interval = wilson_interval(round(value * count), count)
    return result(
        stage.name, "validation", condition, "accuracy", value, interval, count
    )
