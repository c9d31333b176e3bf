"""The steps that pods take, of every kind of training: what devices say to each other.

Features are given, but where clips are mixed before there are any.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from benchmarks import search, steps
from benchmarks.networks import CASES, LABELS
from configs import convmixer, quantized
from kws_jax.frontends.registry import create_frontend
from kws_jax.parts import Setup
from kws_jax.quantization.network import Bits, QuantizedNetwork
from kws_jax.quantization.sites import find_sites
from kws_jax.stages import networks, quantize
from kws_jax.stages.learner import classification_loss
from kws_jax.training import sharding
from kws_jax.training.mixup import with_mixup
from kws_jax.training.optimizers import create_optimizer
from kws_jax.training.state import WEIGHTS, create_train_state
from kws_jax.training.step import make_train_step

# A step, and its arguments: a state, batches to be split, and a key.
Step = tuple[Callable[..., Any], tuple[Any, ...]]
_NETWORK = "tc_resnet8"


def step_of(name: str, batch: int, clips: int, *, small: bool) -> Step:
    """A step of `pods.NAMES` on a batch; the table of parameters has `clips` rows.

    It is for the devices that there are.
    """
    if name == "curriculum":
        return _curriculum(batch, small)
    network, _, own_norms = name.partition("-")
    if own_norms:
        case, mesh = CASES[network], sharding.data_mesh()
        norm_mesh = mesh if mesh.size > 1 else None
        features = steps.random_features(create_frontend(case.frontend), batch)
        model = case.create(small=small)
        return steps.training_step(model, features, norm_mesh=norm_mesh)[:2]
    features = steps.random_features(create_frontend("mfcc"), batch)
    if name == "autokws":
        return steps.search_step(search.space_for(small), features, LABELS)[:2]
    model = CASES[_NETWORK].create(small=small)
    if name == "learned_bits":
        return _learned_bits(model, features)
    rows = clips if name == "data_parameters" else 0
    return steps.training_step(model, features, clips=rows)[:2]


def _curriculum(batch: int, small: bool) -> Step:
    """A step of the last stage of ConvMixer's curriculum, from the waveform on."""
    config = convmixer.get_config(f"curriculum,{_NETWORK}")
    stage = config.stages[-1]
    settings = config.frontend.to_dict()
    frontend = create_frontend(settings.pop("name"), **settings)
    model = CASES[_NETWORK].create(small=small)
    transformation, _ = create_optimizer(stage.optimizer, 1000, steps_per_epoch=100)
    transformations = {WEIGHTS: transformation}
    variables = networks.initial_variables(
        model, jax.random.key(0), np.zeros((1, *frontend.shape), np.float32)
    )
    params, batch_stats = networks.split_variables(variables)
    state = create_train_state({WEIGHTS: params}, batch_stats, transformations)
    setup: Any = Setup(config, (), frontend, sharding.data_mesh())
    step = with_mixup(
        make_train_step(classification_loss(setup, stage, model), transformations),
        num_labels=LABELS,
        probability=stage.mixup.probability,
        alpha=stage.mixup.alpha,
        until_step=2**31 - 1,
        mesh=setup.mesh,
    )
    return step, (state, _batch(steps.random_audio(batch)), jax.random.key(0))


def _learned_bits(model: Any, features: np.ndarray) -> Step:
    """A step of quantised training in which each layer learns its bits."""
    stage = quantized.get_config("learned_bits").stages[-1]
    variables = networks.initial_variables(model, jax.random.key(0), features[:1])
    params, batch_stats = networks.split_variables(variables)
    sites = find_sites(model, variables, features[:1])
    signed = dict.fromkeys(sites.activation_counts, True)
    network = QuantizedNetwork(model, sites, Bits(**stage.bits.to_dict()), signed)
    trees = {WEIGHTS: params, **network.initial_trees(dict.fromkeys(signed, 1.0))}
    transformations, _ = quantize.transformations_of(stage, 1000, steps_per_epoch=100.0)
    transformations = {label: transformations[label] for label in trees}
    state = create_train_state(trees, batch_stats, transformations)
    parts: Any = SimpleNamespace(
        features=lambda values: values, config=SimpleNamespace(batch_norm_of="global")
    )
    step = make_train_step(
        quantize.quantized_loss(parts, stage, network),
        transformations,
        trained=tuple(trees),
    )
    return step, (state, _batch(features), jax.random.key(0))


def _batch(audio: np.ndarray) -> dict[str, np.ndarray]:
    size = len(audio)
    return {
        "audio": audio,
        "label": steps.random_labels(size, LABELS),
        "mask": np.ones(size, bool),
    }
