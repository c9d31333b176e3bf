import dataclasses
import json
import re
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import pytest
from tiny_parts import tiny_config, tiny_parts

from configs import autokws, quantized, tc_resnet
from kws_jax.deploy.inference import load_inference
from kws_jax.errors import UserError
from kws_jax.frontends.registry import create_frontend
from kws_jax.models.genotype import load_genotype
from kws_jax.parts import Setup
from kws_jax.stages import dispatch, networks, runner, train
from kws_jax.training.state import WEIGHTS


def setup_of(config):
    return Setup(config, ("up", "down"), create_frontend("mfcc"), mesh=None)


def given(name):
    config = autokws.get_config("cpu")
    config.network.genotype = name
    return setup_of(config)


def test_given_genotype_is_kept_and_makes_the_search_needless(tmp_path, capsys):
    setup = given("autokws-darts")
    networks.keep_given_genotype(setup, tmp_path)
    kept = load_genotype(tmp_path / networks.GENOTYPE_FILE)
    assert kept == load_genotype("autokws-darts")
    assert dispatch.run(setup, 0, tmp_path) == []
    assert "'search' left out" in capsys.readouterr().out
    assert load_genotype(tmp_path / networks.GENOTYPE_FILE) == kept


def test_genotype_file_that_changes_later_does_not_change_the_trained_network(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(load_genotype("autokws-darts").to_json())
    setup = given(str(file))
    networks.keep_given_genotype(setup, tmp_path)
    file.unlink()
    model = networks.create_network(setup, tmp_path)
    assert model.genotype == load_genotype("autokws-darts")


def test_another_genotype_in_the_same_workdir_is_refused(tmp_path):
    networks.keep_given_genotype(given("autokws-darts"), tmp_path)
    with pytest.raises(UserError, match="autokws-noisydarts is not the network"):
        networks.keep_given_genotype(given("autokws-noisydarts"), tmp_path)


@pytest.mark.parametrize("load", [dispatch.finished_network, load_inference])
def test_a_network_that_is_still_searched_for_is_said_to_be_unfinished(load, tmp_path):
    setup = setup_of(autokws.get_config("cpu"))
    with pytest.raises(UserError, match="'train' has not been run to its end"):
        load(setup, tmp_path)


def test_finished_stage_is_not_run_again(tmp_path):
    setup = setup_of(tc_resnet.get_config("8,cpu"))
    done = runner.stage_folder(setup, 0, tmp_path) / runner.DONE_FILE
    done.parent.mkdir(parents=True)
    done.write_text(json.dumps([{"metric": "macs", "value": 7}]))
    # The setup has no data: running the stage would fail.
    assert dispatch.run(setup, 0, tmp_path) == [{"metric": "macs", "value": 7}]


def test_second_training_stage_starts_from_the_best_weights_of_the_first(
    tmp_path, monkeypatch
):
    config = tc_resnet.get_config("8,cpu")
    first = config.stages[0]
    second = first.copy_and_resolve_references()
    second.name = "refine"
    with config.unlocked():
        config.stages = (first, second)
    parts = SimpleNamespace(
        **vars(setup_of(config)),
        task=SimpleNamespace(train=range(200), validation=range(10)),
        train_batches=lambda *arguments: iter(()),
        once=lambda what, make: make(),
    )
    started = []

    def best_state(parts, index, folder, like):
        assert index == 0
        return jax.tree.map(lambda leaf: jnp.full_like(leaf, 7), like)

    def run_stage(parts, index, folder, state, **more):
        started.append(jax.tree.map(jnp.copy, state))
        return state, {"seconds": 1.0, "best_accuracy": 0.5, "best_step": 1}

    monkeypatch.setattr(runner, "best_state", best_state)
    monkeypatch.setattr(runner, "run_stage", run_stage)
    train.run(parts, 0, tmp_path)
    train.run(parts, 1, tmp_path)
    fresh, continued = started
    sevens = jax.tree.map(lambda leaf: jnp.full_like(leaf, 7), fresh.trees[WEIGHTS])
    chex.assert_trees_all_equal(continued.trees[WEIGHTS], sevens)
    chex.assert_trees_all_equal_shapes(fresh.opt_state, continued.opt_state)
    assert int(continued.step) == 0
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(fresh.trees[WEIGHTS], sevens)


@pytest.mark.parametrize(
    ("get_config", "index", "field"),
    [
        (autokws.get_config, 1, "optimizer"),
        (autokws.get_config, 0, "architecture_optimizer"),
        (quantized.get_config, 1, "range_optimizer"),
        (quantized.get_config, 1, "bits_optimizer"),
    ],
)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", "sdg"),
        ("schedule", "cosin"),
        ("step_at", (2.0,)),
        ("step_epochs", (0.0,)),
        ("final_learning_rate", 1e12),
    ],
)
def test_a_wrong_optimiser_is_told_by_its_stage_and_its_group(
    get_config, index, field, name, value, tmp_path
):
    schedules = {
        "step_at": "step",
        "step_epochs": "epoch_step",
        "final_learning_rate": "cosine",
    }
    config = get_config("cpu").unlock()
    settings = config.stages[index][field]
    settings.update(schedule=schedules.get(name, "constant"), learning_rate=0.1)
    settings[name] = value
    told = re.escape(f"config.stages[{index}].{field}.{name} = ")
    with pytest.raises(UserError, match=told):
        dispatch.check(tiny_parts(config), tmp_path)


@pytest.mark.parametrize(
    ("condition", "lacking", "field"),
    [
        ({"background_probability": 0.5}, "background", "config.data.dir"),
        ({"snr_db": (5.0,)}, "training_noise", "config.data.noise_seen"),
        ({"reverberant_fraction": 0.5}, "training_rooms", "config.data.rooms"),
    ],
)
def test_what_a_condition_lacks_is_told_by_the_stage_and_the_field_of_the_data(
    condition, lacking, field, tmp_path
):
    config = tiny_config()
    second = config.stages[0].copy_and_resolve_references()
    config.stages[0].condition.background_probability = 0.0
    second.condition.background_probability = 0.0
    second.update(name="second")
    second.condition.update(condition)
    config.stages = (config.stages[0], second)
    parts = dataclasses.replace(tiny_parts(config), **{lacking: None})
    told = re.escape("config.stages[1].condition: The condition") + f".*{field}"
    with pytest.raises(UserError, match=told):
        dispatch.check(parts, tmp_path)
