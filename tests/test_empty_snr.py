"""What each list of SNRs means where it is empty, although noise is there."""

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_parts import LABELS, tiny_config, tiny_parts

from kws_jax import config as configs
from kws_jax.data.conditions import CLEAN
from kws_jax.evaluation import testing
from kws_jax.stages import embeddings, validation


def first_label(batch):
    return jnp.zeros((len(batch["label"]), len(LABELS))).at[:, 0].set(1.0)


@pytest.mark.parametrize("far", [False, True])
def test_the_final_test_is_clean_near_and_where_there_are_rooms_far(far):
    parts = tiny_parts()
    heard = []

    def batches(condition, bank):
        heard.append((condition.reverberant_fraction, bank))
        return parts.eval_batches(
            parts.task.test, condition, bank, rooms=parts.test_rooms
        )

    rows, confusion, predictions = testing.test_network(
        first_label,
        batches,
        stage="train",
        labels=LABELS,
        noise=parts.noise,
        snr_db=(),
        far=far,
    )
    names = ["clean", "far clean"] if far else ["clean"]
    assert heard == [(0.0, None), (1.0, None)][: len(names)]
    accuracies = {
        row["condition"]: row["value"] for row in rows if row["metric"] == "accuracy"
    }
    share = np.mean(parts.task.test.labels == 0)
    assert accuracies == {name: pytest.approx(share) for name in names}
    assert list(confusion) == names
    assert set(predictions) == {"label", *names}


def test_embeddings_are_measured_clean_alone():
    config = tiny_config()
    config.evaluation.snr_db = ()
    assert list(embeddings._conditions(tiny_parts(config))) == ["clean"]


def test_a_stage_with_noise_but_no_snr_trains_and_is_validated_clean():
    config = tiny_config()
    config.data.noise_seen = "somewhere"
    stage = config.stages[0]
    stage.condition.update(snr_db=(), clean_fraction=0.5, background_probability=0.0)
    stage.validation = "condition"
    configs.check(config)
    parts = tiny_parts(config)
    recipe = parts.recipe(parts.task.train, stage)
    assert recipe.noise is parts.training_noise
    assert recipe.heard_noise is None
    batch = next(parts.host_batches(parts.task.train, stage, 0))
    assert not batch["noise_level"].any()
    inputs = recipe.inputs(parts.selection(parts.task.train, stage)(0))
    assert "noise_start" not in inputs
    assert validation.validation_condition(stage) == CLEAN
