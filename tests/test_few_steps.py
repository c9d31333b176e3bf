"""Trainings too short for the running statistics of batch norms are told."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from ml_collections import ConfigDict
from tiny_parts import tiny_config, tiny_parts

from kws_jax.stages import dispatch, training_run


def told(momentum, steps, capsys):
    network = ConfigDict({"name": "any", "batch_norm_momentum": momentum})
    training_run._tell_of_statistics(network, steps)
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
    network = ConfigDict({"name": "acoustic_dnn"})
    training_run._tell_of_statistics(network, 1)
    assert not capsys.readouterr().err


def test_a_training_tells_it(tmp_path, capsys):
    config = tiny_config(steps=2, batch_size=4)
    dispatch.run(tiny_parts(config), 0, tmp_path)
    assert "2 steps are few" in capsys.readouterr().err
