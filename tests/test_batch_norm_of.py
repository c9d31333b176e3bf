"""Batch norms of each device's own rows; four devices are faked in other processes."""

import json

import pytest
from four_devices import on_four_devices
from test_pods import check_alike, gap, rehearse
from tiny_parts import tiny_config, tiny_parts

from configs import tc_resnet
from kws_jax import config as configs
from kws_jax import scaling
from kws_jax.errors import UserError
from kws_jax.models.registry import MODELS
from kws_jax.stages import networks

# Of the networks, those that are tried at every run; all others are slow together.
FEW = ("tc_resnet8", "gates", "quantized")


def measured(*arguments):
    """What a part of `device_norms` prints."""
    return json.loads(
        on_four_devices("-m", "device_norms", *arguments).splitlines()[-1]
    )


def check_as_separate_batches(found):
    for name, gaps in found.items():
        for what in ("logits", "statistics", "gradients"):
            assert gaps[what] < 1e-4, (name, what)
        # A comparison of what is far apart otherwise.
        assert gaps["whole batch"] > 1e-2, name
        assert gaps["moved"] > 1e-3, name


def test_a_norm_is_the_formula_over_the_rows_of_each_device():
    gaps = measured("literal")
    assert max(gaps.values()) < 1e-6


def test_networks_and_searches_compute_four_separate_batches():
    found = measured("compared_networks", *FEW)
    assert set(found) == set(FEW)
    check_as_separate_batches(found)


@pytest.mark.slow
def test_every_network_computes_four_separate_batches():
    found = measured("compared_networks")
    assert set(found) >= {*MODELS, *FEW, "embeddings"}
    check_as_separate_batches(found)


def test_a_step_is_that_of_the_mean_of_separate_gradients():
    gaps = measured("one_step")
    # Updates are differences of weights, of which they are a hundredth.
    assert gaps.pop("updates") < 1e-4
    assert max(gaps.values()) < 1e-6


def test_devices_drop_out_different_entries_of_the_same_clips():
    assert measured("draws") == {"differ": True}


@pytest.mark.slow
def test_every_kind_of_stage_does_it_where_it_is_asked_to():
    for kind, (without, asked) in measured("stages").items():
        assert without == 0, kind
        assert asked > 0, kind


@pytest.mark.slow
def test_processes_of_devices_train_as_one_process_of_them(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    rehearse((1, 4), one, 4, "own_norms:0", "data_parameters:0")
    rehearse((2, 2), other, 4, "own_norms:0")
    check_alike(one, other, "own_norms")
    # Global norms train otherwise.
    (one / "data_parameters.npz").rename(other / "own_norms.npz")
    assert gap(one, other, "own_norms") > 1e-3


def test_one_device_has_the_norms_of_the_whole_batch():
    parts = tiny_parts(tiny_config(batch_norm_of="device"))
    assert parts.mesh.size == 1
    assert networks.mesh_of_norms(parts) is None


def of_devices(**changes):
    config = tc_resnet.get_config("8").unlock()
    config.update(changes)
    configs.check(config)
    return config


def test_a_training_goes_on_with_as_many_devices(tmp_path):
    config = of_devices(batch_norm_of="device")
    four, two = (scaling.resolve(config, n, pytest.fail) for n in (4, 2))
    configs.check(four)
    assert four.batch_norm_devices == 4
    configs.check_same(four, scaling.resolve(config, 4, pytest.fail), tmp_path)
    with pytest.raises(UserError, match="batch_norm_devices: 4 there, 2 here"):
        configs.check_same(two, four, tmp_path)
    with pytest.raises(UserError, match="batch_norm_of: 'device' there, 'global' here"):
        configs.check_same(of_devices(), four, tmp_path)


def test_workdirs_of_before_had_global_norms(tmp_path):
    before = of_devices()
    del before.batch_norm_of
    configs.check_same(of_devices(), before, tmp_path)
    with pytest.raises(UserError, match="batch_norm_of: 'global' there, 'device' here"):
        configs.check_same(of_devices(batch_norm_of="device"), before, tmp_path)


def test_other_names_are_refused():
    with pytest.raises(UserError, match=r"batch_norm_of = 'devise'.*mean 'device'"):
        of_devices(batch_norm_of="devise")
