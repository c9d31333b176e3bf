"""Trainings too short for the running statistics of batch norms are told."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from ml_collections import ConfigDict
from tiny_parts import tiny_config, tiny_parts

from kws_jax.stages import dispatch, training_run
from kws_jax.training.loop import StagePlan

PLAN = StagePlan("train", 1, 1.0, 1, 1, 1)


def told(momentum, steps, capsys, *, index=0, kinds=("train",)):
    """What is told of the last of stages of these kinds."""
    config = tiny_config(steps=steps)
    config.network.batch_norm_momentum = momentum
    stage = config.stages[0]
    config.stages = tuple(
        ConfigDict({**stage.to_dict(), "kind": kind, "name": f"stage {number}"})
        for number, kind in enumerate(kinds)
    )
    plan = dataclasses.replace(PLAN, total_steps=steps)
    training_run.tell_of_statistics(tiny_parts(config), index, plan)
    return capsys.readouterr().err


def test_what_is_told_is_what_flax_keeps_of_the_first_variance(capsys):
    norm = nn.BatchNorm(use_running_average=False, momentum=0.9)
    # Without variance, all that remains is from the beginning.
    still = jnp.zeros((4, 2))
    variables = norm.init(jax.random.key(0), still)
    for _ in range(20):
        _, changed = norm.apply(variables, still, mutable=["batch_stats"])
        variables = variables | changed
    kept = float(variables["batch_stats"]["var"][0])
    assert f"keep {kept:.1%} of" in told(0.9, 20, capsys)


@pytest.mark.parametrize(("momentum", "steps"), [(0.99, 257), (0.9, 50), (0.997, 2000)])
def test_the_momentum_that_is_proposed_is_not_told_again(momentum, steps, capsys):
    proposed = float(told(momentum, steps, capsys).split("to ")[-1].split(" or")[0])
    assert 0 < proposed < momentum
    assert not told(proposed, steps, capsys)


def test_long_trainings_and_networks_without_batch_norm_are_not_told(capsys):
    assert not told(0.99, 2558, capsys)
    assert not told(0.0, 1, capsys)


def test_networks_that_start_anew_are_told_whichever_stage_it_is(capsys):
    assert "stage 1" in told(0.99, 9, capsys, index=1, kinds=("search", "train"))
    # These go on from statistics that are learned.
    assert not told(0.99, 9, capsys, index=1, kinds=("train", "train"))
    assert not told(0.99, 9, capsys, index=1, kinds=("train", "quantize"))


def test_a_training_tells_it(tmp_path, capsys):
    config = tiny_config(steps=2, batch_size=4)
    dispatch.run(tiny_parts(config), 0, tmp_path)
    assert "the 2 steps of stage 'train' are few" in capsys.readouterr().err
