"""A stage that lacks a field is told by its place and the field."""

import pytest
from ml_collections import ConfigDict

from configs import autokws, end_to_end_nas, pair_loss, quantized
from kws_jax import config as configs
from kws_jax import stage_fields
from kws_jax.errors import UserError
from kws_jax.stages import dispatch

# Kind -> an experiment, and the place of such a stage in it.
KINDS = {
    "train": (autokws.get_config, 1),
    "search": (autokws.get_config, 0),
    "proxyless_search": (end_to_end_nas.get_config, 1),
    "embed": (pair_loss.get_config, 0),
    "quantize": (quantized.get_config, 1),
}
# Without them a stage is one that does not have what they say.
OPTIONAL = {"quantize": {"objective", "validation"}}


def experiment(kind):
    get_config, index = KINDS[kind]
    config = get_config().unlock()
    assert config.stages[index].kind == kind
    return config, index


def test_every_kind_that_makes_steps_is_in_the_table():
    assert {*KINDS, *stage_fields.WITHOUT_STEPS} == set(configs.STAGE_KINDS)


def test_every_kind_is_run_and_what_is_said_of_kinds_is_said_of_these():
    assert tuple(dispatch.KINDS) == configs.STAGE_KINDS
    assert {*stage_fields.FINDS_GENOTYPE} < {*configs.STAGE_KINDS}
    assert {*stage_fields.WITHOUT_STEPS} <= {*stage_fields.FINDS_GENOTYPE}


@pytest.mark.parametrize("kind", KINDS)
def test_a_stage_without_any_one_of_its_fields_is_refused_by_name(kind):
    whole, index = experiment(kind)
    for field in set(whole.stages[index]) - OPTIONAL.get(kind, set()):
        config, _ = experiment(kind)
        del config.stages[index][field]
        with pytest.raises(UserError, match=rf"stages\[{index}\].* has no {field}: "):
            configs.check(config)


@pytest.mark.parametrize(
    "share", ["clean_fraction", "background_probability", "reverberant_fraction"]
)
def test_a_condition_without_a_share_is_told(share):
    config, index = experiment("train")
    del config.stages[index].condition[share]
    with pytest.raises(UserError, match=f"'train' but has no condition.{share}: take"):
        configs.check(config)


def test_an_own_kind_is_told_what_it_lacks(monkeypatch):
    monkeypatch.setattr(configs, "STAGE_KINDS", (*configs.STAGE_KINDS, "own"))
    config, _ = experiment("train")
    own = ConfigDict({"name": "mine", "kind": "own"})
    config.stages = (own, *config.stages)
    missing = "epochs, steps, batch_size, eval_every_epochs, condition"
    with pytest.raises(UserError, match=rf"\[0\] is of kind 'own' .* no {missing}: "):
        configs.check(config)
    monkeypatch.setattr(stage_fields, "WITHOUT_STEPS", ("own",))
    configs.check(config)


def test_a_misspelt_kind_is_told_before_the_fields_that_it_lacks():
    config, _ = experiment("train")
    config.stages = (ConfigDict({"name": "draw", "kind": "random_serch"}),)
    with pytest.raises(UserError, match="unknown; did you mean 'random_search'"):
        configs.check(config)
