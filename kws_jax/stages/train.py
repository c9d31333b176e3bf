"""Stage "train": the network learns its weights from labelled clips."""

import functools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import optax
from ml_collections import ConfigDict

from kws_jax.data.conditions import CLEAN
from kws_jax.errors import UserError
from kws_jax.models import fusion
from kws_jax.parts import Parts, Setup
from kws_jax.stages import (
    data_parameters,
    networks,
    runner,
    training_run,
    validation,
)
from kws_jax.stages.epochs import told_of_epochs
from kws_jax.stages.learner import create_learner
from kws_jax.training.optimizers import updates_made
from kws_jax.training.state import (
    DATA_PARAMETERS,
    WEIGHTS,
    TrainState,
    create_train_state,
    variables_of,
)

PyTree = Any


def check(parts: Parts, stage: ConfigDict) -> None:
    """Raises UserError where the stage's rules ask for clips that are not there."""
    if stage.stop.rule != "length" and not len(parts.task.validation):
        raise UserError(
            f"Stage {stage.name!r} ends by stop.rule = {stage.stop.rule!r}, which "
            "needs validation clips, and there are none: give some, or stop.rule "
            "'length'."
        )
    if validation.validation_condition(stage) != CLEAN and len(parts.task.validation):
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
    step = told_of_epochs(learner.step, parts, index, folder, model, plan)
    trained = training_run.run(
        parts,
        index,
        folder,
        state,
        plan=plan,
        splits=[parts.task.train],
        step_at=lambda number: step,
        logits_of=learner.logits_of,
        schedule=lambda step: learner.schedule(updates + step),
        **(table.hooks(plan) if table else {}),
    )
    if table:
        table.write_summary(trained.state)
    inferring = fusion.at_inference(model, variables_of(trained.state))
    size = networks.size_of(parts, *inferring)
    return trained.rows({**size, **trained.speed})


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
    where optimizer_start says 'continue' also their optimiser as it was in the end, so
    that the schedule goes on; the trees beside the weights begin anew. Else it is
    weights that depend on config.seed alone.
    """
    if not runner.follows_training(parts, index):
        return initial_state(parts, model, transformations, more_trees)
    like = _state_shapes(parts, model, {WEIGHTS: transformations[WEIGHTS]})
    best = runner.best_state(parts, index - 1, folder, like)
    trees = {**best.trees, **more_trees}
    state = create_train_state(trees, best.batch_stats, transformations)
    if runner.continues_optimizer(parts, index):
        own = transformations[WEIGHTS]
        opt_state = _last_of_weights(parts, index - 1, folder, model, own)
        state = state.replace(opt_state={**state.opt_state, WEIGHTS: opt_state})
    return state


def _last_of_weights(
    parts: Parts,
    index: int,
    folder: Path,
    model: nn.Module,
    transformation: optax.GradientTransformation,
) -> PyTree:
    """The weights' optimiser at the end of stage `index`."""
    transformations, trees = {WEIGHTS: transformation}, {}
    table = data_parameters.stage_table(parts, index, folder)
    if table:
        transformations[DATA_PARAMETERS] = table.transformation()
        trees = table.trees()
    like = _state_shapes(parts, model, transformations, trees)
    return runner.last_state(parts, index, folder, like).opt_state[WEIGHTS]


def _state_shapes(
    setup: Setup,
    model: nn.Module,
    transformations: dict[str, Any],
    more_trees: Mapping[str, PyTree] = MappingProxyType({}),
) -> TrainState:
    """Shapes and types of `initial_state`, without computing it."""
    shapes = networks.variable_shapes(model, networks.sample_features(setup))
    params, batch_stats = networks.split_variables(shapes)
    return jax.eval_shape(
        functools.partial(create_train_state, transformations=transformations),
        {WEIGHTS: params, **more_trees},
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


def restore(setup: Setup, index: int, folder: Path) -> networks.Network:
    """The network of a finished stage, at its best step on validation."""
    model = networks.create_network(setup, folder)
    state = best_state(setup, index, folder, model)
    objective = validation.objective_of(setup.config.stages[index])
    return networks.trained_network(
        setup,
        *fusion.at_inference(model, variables_of(state)),
        probabilities_of=objective.probabilities,
    )


def best_state(setup: Setup, index: int, folder: Path, model: nn.Module) -> TrainState:
    """The best state of a finished stage, without optimisers."""
    return runner.best_state(setup, index, folder, state_like(setup, model))


def state_like(setup: Setup, model: nn.Module) -> TrainState:
    """Shapes and types of a state of the network, without optimisers."""
    return _state_shapes(setup, model, {})
