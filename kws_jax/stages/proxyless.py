"""Stage "proxyless_search": ProxylessNAS over the MBConv network, or its warm-up.

A stage whose `architecture_every` is 0 is the warm-up: weights learn on random paths.
A stage goes on from the last state of the one before, if that is of this kind too.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from kws_jax import together
from kws_jax.data.corpus import Split
from kws_jax.errors import UserError
from kws_jax.objectives.classification import softmax_cross_entropy
from kws_jax.parts import Parts
from kws_jax.search import proxyless
from kws_jax.search.architecture import Architecture, init_architecture
from kws_jax.search.limits import Limits
from kws_jax.search.mbconv_space import Cost, MBConvSpace
from kws_jax.search.path_net import PathNet
from kws_jax.stages import networks, runner, training_run
from kws_jax.stages.learner import features_for_training
from kws_jax.stages.proxyless_space import KIND, costs_of, create_space, derive
from kws_jax.stages.search import ARCHITECTURE_LOG, halves
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
from kws_jax.training.step import accuracy

PyTree = Any


def run(parts: Parts, index: int, folder: Path) -> list[dict[str, Any]]:
    """Searches, writes genotype.json and returns rows; the warm-up finds nothing."""
    stage = parts.config.stages[index]
    space = create_space(parts)
    costs, bounds = costs_of(parts, space)
    network = create_supernet(parts, space)
    weights_split, architecture_split = splits(parts)
    plan = runner.plan_of(parts, index, len(weights_split))
    transformations, schedule = _optimizers(stage, plan)
    if index and parts.config.stages[index - 1].kind == KIND:
        last = _last_state(parts, index - 1, folder, network, space)
        state = create_train_state(last.trees, last.batch_stats, transformations)
    else:
        state = _initial_state(parts, network, space, transformations)
    every = stage.architecture_every
    log = JsonLines(folder / ARCHITECTURE_LOG)
    more: dict[str, Any] = {}
    if every:
        tell = functools.partial(_log_architecture, space, log, plan)
        more = {"logs": (log,), "after_validation": tell}
    trained = training_run.run(
        parts,
        index,
        folder,
        state,
        plan=plan,
        splits=[weights_split, architecture_split] if every else [weights_split],
        step_at=_step_at(
            parts, stage, plan, network, space, costs, bounds, transformations
        ),
        repeats=(1, every) if every else (1,),
        logits_of=lambda state, features: networks.infer(
            network,
            variables_of(state),
            features,
            proxyless.likeliest_path(state.trees[ARCHITECTURE]),
        ),
        schedule=schedule,
        **more,
    )
    if every and together.is_first():
        found = jax.device_get(trained.state.trees[ARCHITECTURE])
        networks.keep_layers(parts, derive(found, space, costs, bounds), folder)
    return trained.rows(trained.duration)


def create_supernet(parts: Parts, space: MBConvSpace) -> Any:
    """The supernet of the config, behind the front end's filters if it learns them."""
    network = parts.config.network
    supernet = PathNet(
        len(parts.labels), space, network.activation, network.batch_norm_momentum
    )
    return networks.behind_front(parts, supernet)


def splits(parts: Parts) -> tuple[Split, Split]:
    """Clips that the weights, and that the architecture is trained on."""
    if parts.config.search.architecture_data == "half":
        return halves(parts.task.train, parts.config.data.seed)
    return parts.task.train, parts.task.validation


def check(parts: Parts, index: int) -> None:
    """Raises UserError where the stage's epochs leave no step for the architecture."""
    stage = parts.config.stages[index]
    plan = runner.plan_of(parts, index, len(splits(parts)[0]))
    if stage.architecture_every and not architecture_steps(stage, plan):
        raise UserError(
            f"config.stages[{index}] ({stage.name!r}) has 0 steps of its architecture "
            f"in {plan.total_steps:,} steps: {_start(stage, plan):,} come before it "
            f"(warmup_epochs = {stage.warmup_epochs:g}), then one comes after every "
            f"{stage.architecture_every} (architecture_every). The network would be "
            "one drawn at random: give more epochs, or less of these."
        )


def architecture_steps(stage: ConfigDict, plan: StagePlan) -> int:
    """How many steps of the stage train the architecture."""
    every = stage.architecture_every
    return max(0, plan.total_steps // every - _start(stage, plan) // every)


def _start(stage: ConfigDict, plan: StagePlan) -> int:
    """The step up to which the architecture stands still."""
    return round(stage.warmup_epochs * plan.steps_per_epoch)


def _optimizers(stage: ConfigDict, plan: StagePlan) -> tuple[dict[str, Any], Any]:
    weights, schedule = create_optimizer(
        stage.optimizer, plan.total_steps, steps_per_epoch=plan.steps_per_epoch
    )
    every = stage.architecture_every
    if not every:
        return {WEIGHTS: weights}, schedule
    # Its epochs count from where it begins to move.
    architecture, _ = create_optimizer(
        stage.architecture_optimizer,
        (plan.total_steps - _start(stage, plan)) // every,
        steps_per_epoch=plan.steps_per_epoch / every,
    )
    return {WEIGHTS: weights, ARCHITECTURE: architecture}, schedule


def _initial_state(
    parts: Parts, network: Any, space: MBConvSpace, transformations: dict[str, Any]
) -> TrainState:
    weights_key, architecture_key = jax.random.split(jax.random.key(parts.config.seed))
    variables = networks.initial_variables(network, weights_key, *_inputs(parts, space))
    architecture = init_architecture(architecture_key, space.candidates)
    return _state_of(variables, architecture, transformations)


def _last_state(
    parts: Parts, index: int, folder: Path, network: Any, space: MBConvSpace
) -> TrainState:
    """The state at the end of an earlier stage of this kind."""
    plan = runner.plan_of(parts, index, len(splits(parts)[0]))
    transformations, _ = _optimizers(parts.config.stages[index], plan)
    shapes = networks.variable_shapes(network, *_inputs(parts, space))
    architecture = init_architecture(jax.random.key(0), space.candidates)
    like = jax.eval_shape(
        lambda shapes: _state_of(shapes, architecture, transformations), shapes
    )
    return runner.last_state(parts, index, folder, like)


def _inputs(parts: Parts, space: MBConvSpace) -> tuple[jax.Array, np.ndarray]:
    """One clip's features and a path, to initialise with."""
    path = np.zeros(len(space.candidates), np.int32)
    return networks.sample_features(parts), path


def _state_of(
    variables: PyTree, architecture: Architecture, transformations: dict[str, Any]
) -> TrainState:
    params, batch_stats = networks.split_variables(variables)
    trees = {WEIGHTS: params, ARCHITECTURE: architecture}
    return create_train_state(trees, batch_stats, transformations)


def path_loss(
    parts: Parts, stage: ConfigDict, network: Any, *, label_smoothing: float
) -> proxyless.PathLoss:
    """Cross-entropy of a path's logits, as a PathLoss."""

    def loss_fn(
        trees: dict[str, PyTree],
        batch_stats: PyTree,
        batch: Any,
        key: jax.Array,
        path: jax.Array,
        gates: Any,
    ) -> Any:
        logits, batch_stats = networks.infer_in_training(
            network,
            {"params": trees[WEIGHTS], "batch_stats": batch_stats},
            features_for_training(parts, stage, key, batch["audio"]),
            path,
            gates,
            rngs={},
            compute_dtype=parts.config.compute_dtype,
            norm_mesh=networks.mesh_of_norms(parts),
        )
        loss = softmax_cross_entropy(
            logits, batch["label"], batch["mask"], label_smoothing=label_smoothing
        )
        right = accuracy(logits, batch["label"], batch["mask"])
        return loss, ({"loss": loss, "accuracy": right}, batch_stats)

    return loss_fn


def _step_at(
    parts: Parts,
    stage: ConfigDict,
    plan: StagePlan,
    network: Any,
    space: MBConvSpace,
    costs: tuple[Cost, ...],
    bounds: Limits,
    transformations: dict[str, Any],
) -> Any:
    search = parts.config.search
    loss = functools.partial(path_loss, parts, stage, network)
    step = proxyless.make_path_step(
        loss(label_smoothing=stage.label_smoothing),
        # as in the authors' code, which smooths in weight steps alone
        loss(label_smoothing=0.0),
        transformations,
        space,
        proxyless.Objective(
            costs, bounds.fixed_macs, search.reference_macs, search.beta, search.scale
        ),
        every=stage.architecture_every,
        start=_start(stage, plan),
    )
    return lambda number: step


def _log_architecture(
    space: MBConvSpace, log: JsonLines, plan: StagePlan, step: int, state: TrainState
) -> None:
    if not together.is_first():
        return
    alphas = jax.device_get(state.trees[ARCHITECTURE])
    log.append(
        stage=plan.name,
        step=step,
        epoch=step / plan.steps_per_epoch,
        ops=space.candidates,
        weights=[np.asarray(jax.nn.softmax(layer)).tolist() for layer in alphas],
        entropy=proxyless.entropies(alphas),
    )
