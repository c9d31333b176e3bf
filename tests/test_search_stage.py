"""The stage of DARTS on random clips: when its architecture moves, and how far."""

import functools
import itertools
import json

import jax
import numpy as np
import pytest
from network_values import QUICK
from tiny_parts import tiny_parts

from configs import autokws
from kws_jax.errors import UserError
from kws_jax.stages import dispatch, search

# Of 24 clips one half is for the weights: three steps of four make an epoch.
CLIPS, BATCH = 24, 4


def darts_parts(**changes):
    config = autokws.get_config("darts").unlock()
    config.evaluation.batch_size = 16
    config.search.update(width=1 / 16, operations=("C3", "SKIP"))
    stage = config.stages[0]
    stage.update({"epochs": 2.0, "batch_size": BATCH, "warmup_epochs": 2 / 3})
    stage.update(changes)
    return tiny_parts(config, CLIPS)


@pytest.mark.parametrize(
    ("changes", "moves"),
    [
        ({"warmup_epochs": 0.0}, True),
        ({"warmup_epochs": 5 / 3}, True),
        ({"warmup_epochs": 2.0}, False),
        ({"warmup_epochs": 50.0}, False),
        ({"epochs": 0.0, "steps": 3, "warmup_epochs": 1.0}, False),
        ({"epochs": 0.0, "steps": 4, "warmup_epochs": 1.0}, True),
    ],
)
def test_a_search_without_a_step_of_its_architecture_is_refused(changes, moves):
    parts = darts_parts(**changes)
    if moves:
        search.check(parts, 0)
        return
    told = r"stages\[0\] \('search'\) has 0 steps of its architecture in . steps"
    with pytest.raises(UserError, match=told):
        search.check(parts, 0)


def test_what_leaves_no_step_is_refused_before_training_unless_it_is_given(tmp_path):
    parts = darts_parts(warmup_epochs=2.0)
    with pytest.raises(UserError, match="0 steps of its architecture"):
        dispatch.check(parts, tmp_path)
    parts.config.network.genotype = "autokws-noisydarts"
    dispatch.check(parts, tmp_path)


def test_the_architecture_stands_still_and_then_goes_through_its_whole_schedule(
    tmp_path,
):
    """Two steps of warm-up, then four, in the last of which its rate is 0."""
    parts = darts_parts(eval_every_epochs=1 / 3)
    optimizer = parts.config.stages[0].architecture_optimizer
    optimizer.update(
        learning_rate=0.1, schedule="step", step_at=(0.75,), step_factor=0.0
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=QUICK))
        dispatch.run(parts, 0, tmp_path)
    lines = (tmp_path / "architecture.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert [line["step"] for line in found] == [1, 2, 3, 4, 5, 6]
    # The second layer has two candidates.
    weights = [np.array(line["weights"][1]) for line in found]
    moved = [not np.array_equal(*pair) for pair in itertools.pairwise(weights)]
    assert moved == [False, True, True, True, False]
