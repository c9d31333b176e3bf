"""The project's own programs as calls to time, and what they have to do at least."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from benchmarks.results import Work
from configs import autokws, common, end_to_end_nas
from kws_jax.frontends.registry import Frontend, create_frontend
from kws_jax.models.counting import count_macs
from kws_jax.models.searched import MixedLayer
from kws_jax.objectives.data_parameters import JOINT
from kws_jax.parts import Setup
from kws_jax.search.architecture import init_architecture
from kws_jax.search.bilevel import make_search_step
from kws_jax.search.mbconv_space import Cost, MBConvSpace
from kws_jax.search.methods import create_method
from kws_jax.search.path_net import PathNet
from kws_jax.search.proxyless import Objective, make_path_step
from kws_jax.search.space import SearchSpace
from kws_jax.search.supernet import SuperNet
from kws_jax.stages import networks, stacked_seeds
from kws_jax.stages.data_parameters import StageTable
from kws_jax.stages.learner import classification_loss
from kws_jax.stages.proxyless import path_loss
from kws_jax.stages.search import search_loss
from kws_jax.training import sharding
from kws_jax.training.optimizers import create_optimizer
from kws_jax.training.state import (
    ARCHITECTURE,
    DATA_PARAMETERS,
    WEIGHTS,
    TrainState,
    create_train_state,
)
from kws_jax.training.step import make_train_step

PyTree = Any
Call = Callable[[], Any]

# Products of one forward pass that a pass needs: one forward, one for the gradient by
# the input and one for that by the weights. The architecture needs no gradient by the
# weights.
TRAIN_PASSES, ARCHITECTURE_PASSES = 3, 2
# Small, so that the loss stays finite however often the same batch is repeated.
LEARNING_RATE = 0.01


def random_features(frontend: Frontend, batch: int) -> np.ndarray:
    """Normal features float32 [b, t, f]; one batch for both frameworks."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(batch, *frontend.shape)).astype(np.float32)


def random_audio(batch: int) -> np.ndarray:
    """Noise int16 [b, 16000]."""
    rng = np.random.default_rng(1)
    return rng.integers(-8000, 8000, (batch, 16_000)).astype(np.int16)


def random_labels(batch: int, num_labels: int) -> np.ndarray:
    """Uniform labels int32 [b]."""
    return np.random.default_rng(2).integers(0, num_labels, batch).astype(np.int32)


def work_of(fn: Callable[..., PyTree], *args: PyTree, operations: float = 0) -> Work:
    """Bytes of the arguments and results of `fn(*args)`, with these operations."""
    return Work(operations, _bytes(args) + _bytes(jax.eval_shape(fn, *args)))


def inference(
    model: nn.Module, features: np.ndarray
) -> tuple[Callable[[], jax.Array], Work]:
    """Features to logits: the call and its work."""
    variables = _variables(model, features)
    infer = functools.partial(networks.infer, model)
    inputs = jnp.asarray(features)
    jitted = jax.jit(infer)
    macs = count_macs(infer, variables, inputs)
    work = work_of(infer, variables, inputs, operations=2 * macs)
    return lambda: jax.block_until_ready(jitted(variables, inputs)), work


def window(
    model: nn.Module, frontend: Frontend, audio: np.ndarray
) -> tuple[Callable[[], np.ndarray], Work]:
    """Waveform to probabilities as `kws_jax.predict` does it: the call and its work."""
    labels = tuple(map(str, range(_num_labels(model))))
    setup = Setup(ConfigDict(), labels, frontend, sharding.data_mesh())
    variables = _variables(model, random_features(frontend, 1))
    network = networks.trained_network(setup, model, variables)

    def logits(variables: PyTree, audio: np.ndarray) -> jax.Array:
        return networks.infer(model, variables, frontend(jnp.asarray(audio)))

    macs = count_macs(logits, variables, audio)
    work = work_of(logits, variables, audio, operations=2 * macs)
    return lambda: np.asarray(network.probabilities(audio)), work


def training(model: nn.Module, features: np.ndarray) -> tuple[Call, Work]:
    """A whole training step on given features: the call and its work."""
    step, arguments, infer = training_step(model, features)
    work = work_of(step, *arguments, operations=2 * TRAIN_PASSES * count_macs(*infer))
    return _stepper(step, *arguments), work


def training_step(
    model: nn.Module,
    features: np.ndarray,
    *,
    clips: int = 0,
    norm_mesh: Mesh | None = None,
) -> tuple[Callable[..., Any], Any, Any]:
    """A training step, its (state, batch, key), and inference with its arguments.

    With `clips`, it trains data parameters of so many and of the labels beside. With
    `norm_mesh`, batch norms are those of each of its devices.
    """
    stage = common.train_stage()
    num_labels = _num_labels(model)
    stage.optimizer.update(
        schedule="constant", learning_rate=LEARNING_RATE, weight_decay=0.0
    )
    transformations = {
        WEIGHTS: create_optimizer(stage.optimizer, 1, steps_per_epoch=1.0)[0]
    }
    table = _table(stage, num_labels, clips) if clips else None
    if table:
        transformations[DATA_PARAMETERS] = table.transformation()
    variables = _variables(model, features)
    params, batch_stats = networks.split_variables(variables)
    trees = {WEIGHTS: params, **(table.trees() if table else {})}
    state = create_train_state(trees, batch_stats, transformations)
    loss_fn = classification_loss(
        _GIVEN_FEATURES, stage, model, table=table, norm_mesh=norm_mesh
    )
    step = make_train_step(loss_fn, transformations, trained=tuple(transformations))
    batch = _batch(features, num_labels)
    if table:
        size = len(features)
        batch |= {"index": jnp.arange(size), "noise_level": jnp.zeros(size)}
    infer = (functools.partial(networks.infer, model), variables, batch["audio"])
    return step, (state, batch, jax.random.key(0)), infer


def seeds(
    model: nn.Module, features: np.ndarray, count: int
) -> tuple[Call, Call, Work]:
    """A training step of each of `count` seeds: in turn, at once, and their work."""
    step, (state, batch, key), infer = training_step(model, features)
    work = work_of(step, state, batch, key)
    operations = 2 * TRAIN_PASSES * count_macs(*infer)
    keys = jax.random.split(key, count)
    each = [_stepper(step, jax.tree.map(jnp.copy, state), batch, one) for one in keys]
    stacked = stacked_seeds.stacked([state] * count)
    at_once = _stepper(stacked_seeds.step_of_each(step), stacked, batch, keys)

    def in_turn() -> None:
        for call in each:
            call()

    return in_turn, at_once, Work(count * operations, count * work.bytes)


class SeparateSuperNet(SuperNet):
    """The supernet with the candidates of a layer computed one after the other."""

    layer = MixedLayer


def search(
    space: SearchSpace,
    features: np.ndarray,
    labels: int,
    supernet: type[SuperNet] = SuperNet,
) -> tuple[Call, Work]:
    """A first-order DARTS step, architecture then weights: the call and its work."""
    step, arguments, infer = search_step(space, features, labels, supernet)
    passes = TRAIN_PASSES + ARCHITECTURE_PASSES
    work = work_of(step, *arguments, operations=2 * passes * count_macs(*infer))
    return _stepper(step, *arguments), work


def search_step(
    space: SearchSpace,
    features: np.ndarray,
    labels: int,
    create: type[SuperNet] = SuperNet,
) -> tuple[Callable[..., Any], Any, Any]:
    """A search step, its (state, batch, batch, key), and inference with arguments."""
    stage = autokws.get_config("darts").stages[0]
    stage.optimizer.update(schedule="constant", learning_rate=LEARNING_RATE)
    transformations = {
        WEIGHTS: create_optimizer(stage.optimizer, 1, steps_per_epoch=1.0)[0],
        ARCHITECTURE: create_optimizer(
            stage.architecture_optimizer, 1, steps_per_epoch=1.0
        )[0],
    }
    method = create_method("darts")
    supernet = create(labels, space)
    architecture = init_architecture(jax.random.key(1), space.candidates)
    op_weights = method.op_weights(architecture)
    variables = _variables(supernet, features, op_weights)
    params, batch_stats = networks.split_variables(variables)
    state = create_train_state(
        {WEIGHTS: params, ARCHITECTURE: architecture}, batch_stats, transformations
    )
    loss_fn = search_loss(_GIVEN_FEATURES, stage, supernet, method)
    step = make_search_step(loss_fn, transformations, regulariser=method.regulariser)
    batches = [_batch(values, labels) for values in (features, features[::-1].copy())]
    infer = (
        functools.partial(networks.infer, supernet),
        variables,
        jnp.asarray(features),
        op_weights,
    )
    return step, (state, *batches, jax.random.key(0)), infer


def path(
    space: MBConvSpace, layers: Sequence[str], features: np.ndarray, labels: int
) -> Call:
    """A weight step of ProxylessNAS along these layers, as a call."""
    step, arguments = path_step(space, layers, features, labels)
    return _stepper(step, *arguments)


def path_step(
    space: MBConvSpace, layers: Sequence[str], features: np.ndarray, labels: int
) -> tuple[Callable[..., Any], Any]:
    """A weight step that has no other path, and its (state, batch, key)."""
    stage = end_to_end_nas.get_config().stages[0]
    stage.optimizer.update(schedule="constant", learning_rate=LEARNING_RATE)
    transformations = {
        WEIGHTS: create_optimizer(stage.optimizer, 1, steps_per_epoch=1.0)[0]
    }
    supernet = PathNet(labels, space)
    places = [names.index(own) for names, own in zip(space.candidates, layers)]
    architecture = tuple(
        jnp.where(jnp.arange(len(names)) == place, 0.0, -1e4)
        for names, place in zip(space.candidates, places)
    )
    variables = _variables(supernet, features, np.array(places, np.int32))
    params, batch_stats = networks.split_variables(variables)
    trees = {WEIGHTS: params, ARCHITECTURE: architecture}
    state = create_train_state(trees, batch_stats, transformations)
    loss = path_loss(_GIVEN_FEATURES, stage, supernet, label_smoothing=0.0)
    # Of the architecture, which rests.
    ones = [np.ones(len(names)) for names in space.candidates]
    costs = tuple(Cost(one, one) for one in ones)
    objective = Objective(costs, 0, reference_macs=2.0, beta=1.0)
    step = make_path_step(loss, loss, transformations, space, objective, every=0)
    return step, (state, _batch(features, labels), jax.random.key(0))


def features_of(name: str, audio: np.ndarray) -> tuple[Call, Work]:
    """The front end `name` on int16 audio [b, s]: the call and its work.

    Its Fourier transforms are not counted, its matrix products are.
    """
    frontend = create_frontend(name)
    inputs = jnp.asarray(audio)
    jitted = jax.jit(frontend)
    work = work_of(frontend, inputs, operations=2 * count_macs(frontend, inputs))
    return lambda: jax.block_until_ready(jitted(inputs)), work


# Stands for the parts of an experiment: "audio" of a batch holds features already.
_GIVEN_FEATURES: Any = SimpleNamespace(
    features=lambda features: features,
    config=SimpleNamespace(compute_dtype="float32", batch_norm_of="global"),
)


def _table(stage: ConfigDict, num_labels: int, clips: int) -> StageTable:
    stage.data_parameters.mode = JOINT
    task = SimpleNamespace(train=range(clips))
    parts: Any = SimpleNamespace(labels=tuple(map(str, range(num_labels))), task=task)
    return StageTable(parts, stage, Path())


def _batch(features: np.ndarray, num_labels: int) -> dict[str, jax.Array]:
    size = len(features)
    return {
        "audio": jnp.asarray(features),
        "label": jnp.asarray(random_labels(size, num_labels)),
        "mask": jnp.ones(size, bool),
    }


def _num_labels(model: Any) -> int:
    return model.num_labels


def _variables(model: nn.Module, features: np.ndarray, *arguments: PyTree) -> PyTree:
    one = jnp.asarray(features[:1])
    return networks.initial_variables(model, jax.random.key(0), one, *arguments)


def _stepper(step: Callable[..., Any], state: TrainState, *arguments: PyTree) -> Call:
    """A call that goes on from the state of the call before, in its memory."""
    jitted = jax.jit(step, donate_argnums=0)

    def call() -> None:
        nonlocal state
        state, metrics = jitted(state, *arguments)
        jax.block_until_ready((state, metrics))

    return call


def _bytes(tree: PyTree) -> int:
    return sum(
        leaf.size * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )
