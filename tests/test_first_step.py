"""A first step under the recipes of configs, with small networks and few frames."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from network_values import QUICK, random_variables
from tiny_parts import tiny_parts

from configs import convmixer, dynamic_filter
from kws_jax.frontends.registry import create_frontend
from kws_jax.models import conv_mixer, res15
from kws_jax.models.front_filter import FILTERS
from kws_jax.models.registry import MODELS
from kws_jax.stages import learner, networks, runner
from kws_jax.stages.epochs import with_epoch
from kws_jax.training.state import WEIGHTS, create_train_state

# Of each class of networks one, as narrow as it can be had.
NARROW = {
    "conv_mixer": {"channels": 8},
    "tc_resnet8": {"width": 0.25},
    "tenet6_narrow": {},
    "res15_narrow": {},
    "mbconv": {"layers": ("E2K3", "SKIP", "SKIP", "E1K5", "SKIP", "E1K3")},
    "searched": {"genotype": "autokws-darts"},
}
# TC-ResNet and TENet are behind filters in test_front_filter.py.
FILTERED = ("conv_mixer", "res15_narrow", "mbconv")
# Filter -> its word in configs/dynamic_filter.py.
WORDS = {"dynamic": "din", "dynamic_conv": "dynamic_conv", "light_conv": "light_conv"}
BANDS = {"conv_mixer": 64}


@pytest.fixture
def first_step(monkeypatch):
    """A function from a config to the gradients and measures of its last stage."""
    # One layer of a kind is enough here, and soon compiled.
    monkeypatch.setattr(conv_mixer, "BLOCKS", conv_mixer.BLOCKS[:1])
    monkeypatch.setattr(res15, "DILATIONS", (1, 2, 4))
    # An optimiser that keeps the gradients it is given.
    keeper = optax.GradientTransformation(
        lambda params: params, lambda gradients, state, params=None: (gradients,) * 2
    )
    monkeypatch.setattr(learner, "create_optimizer", lambda *_, **__: (keeper, None))

    def run(config):
        parts, stage = small_parts(config)
        model = networks.create_network(parts, Path("none"))
        plan = runner.plan_of(parts, 0, len(parts.task.train))
        learns = learner.create_learner(parts, stage, model, plan)
        params, statistics = networks.split_variables(
            random_variables(model, networks.sample_features(parts))
        )
        state = create_train_state(
            {WEIGHTS: params}, statistics, learns.transformations
        )
        batch = next(parts.host_batches(parts.task.train, stage, 0))
        step = jax.jit(with_epoch(learns.step, model, plan), compiler_options=QUICK)
        new, measures = step(state, batch, runner.stage_key(parts, 0))
        return new.opt_state[WEIGHTS], measures

    return run


def small_parts(config):
    """Parts with the config's front end, 25 frames a clip, and its last stage."""
    config.unlock()
    stage, name = config.stages[-1], config.network.name
    stage.batch_size = 6
    config.stages = (stage,)
    config.network.update(NARROW[name])
    config.frontend.hop_ms = 40.0
    settings = config.frontend.to_dict()
    frontend = create_frontend(settings.pop("name"), **settings)
    assert frontend.shape == (25, BANDS.get(name, 40))
    return dataclasses.replace(tiny_parts(config), frontend=frontend), stage


def assert_learns(gradients, measures):
    assert np.isfinite(measures["loss"])
    assert measures["loss"] > 0
    for path, gradient in jax.tree.leaves_with_path(gradients):
        where = jax.tree_util.keystr(path)
        assert np.all(np.isfinite(gradient)), where
        # A batch norm takes off what some shifts add to a whole channel.
        if gradient.ndim > 1:
            assert np.any(gradient != 0), where


def test_every_class_of_network_and_every_filter_is_tested_here():
    classes = {MODELS[name][0] for name in convmixer.NETWORKS}
    assert {MODELS[name][0] for name in NARROW} == classes
    assert set(WORDS) == set(FILTERS)


@pytest.mark.parametrize("name", NARROW)
def test_conv_mixers_recipe_gives_every_kernel_a_gradient(name, first_step):
    config = convmixer.get_config(f"{name},cpu")
    stage = config.stages[-1]
    assert stage.objective == "binary_cross_entropy"
    assert stage.mixup.probability == stage.condition.reverberant_fraction == 0.5
    assert stage.spec_augment.time_masks == stage.spec_augment.frequency_masks == 1
    assert_learns(*first_step(config))


@pytest.mark.parametrize("name", FILTERED)
@pytest.mark.parametrize("front", FILTERS)
def test_filters_and_networks_behind_them_get_gradients(front, name, first_step):
    config = dynamic_filter.get_config(f"{WORDS[front]},{name},cpu")
    assert config.front_filter.name == front
    gradients, measures = first_step(config)
    assert set(gradients) == {"front_filter", "network"}
    assert_learns(gradients, measures)
