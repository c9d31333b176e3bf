"""The curriculum from its config to its report, with a small network on tones."""

import dataclasses
import json
import logging
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from tiny_parts import killed_after_saving, tiny_config, tiny_parts
from words import SPEAKERS, lines_of, on_words, without_clock, write_words

from configs import convmixer
from kws_jax import config as configs
from kws_jax import experiment
from kws_jax.data import pipeline
from kws_jax.data.conditions import Condition
from kws_jax.errors import UserError
from kws_jax.parts import load_setup
from kws_jax.report.page import render
from kws_jax.report.workdir import read_run
from kws_jax.stages import dispatch, networks, runner, train, validation
from kws_jax.training.optimizers import create_optimizer, updates_made
from kws_jax.training.state import WEIGHTS, create_train_state

pytestmark = pytest.mark.usefixtures("compiled_once")
# Of the keywords, unknown and silence.
TRAIN_CLIPS, BATCH = 3 * SPEAKERS["train"] + 4 + 4, 16
VALIDATED_EVERY, MOST_STEPS, PATIENCE = 3, 9, 1  # 2.75 steps an epoch, three epochs
STAGES = tuple(convmixer.CURRICULUM)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_words(folder / "words")
    config = convmixer.get_config("tc_resnet8,demo")
    config.network.width = 0.25
    config.log_every_steps = 1
    on_words(config, folder)
    config.evaluation.update(snr_db=(10.0,), batch_size=16)
    for stage in config.stages:
        stage.update(batch_size=BATCH, epochs=3.0)
        stage.optimizer.step_epochs = (1.0, 4.0, 7.0)
        stage.stop.patience = PATIENCE
    configs.check(config)
    return config


@pytest.fixture(scope="module")
def compiled():
    """Names of the programs that were compiled in `finished`."""
    return []


@pytest.fixture(scope="module")
def finished(config, compiled, tmp_path_factory):
    """The workdir of an undisturbed curriculum."""

    class Listener(logging.Handler):
        def emit(self, record):
            match = re.match(r"Compiling (\S+) with global", record.getMessage())
            if match:
                compiled.append(match[1])

    workdir, listener = tmp_path_factory.mktemp("finished") / "run", Listener()
    logger = logging.getLogger("jax")
    logger.addHandler(listener)
    with jax.log_compiles():
        experiment.run(config, str(workdir))
    logger.removeHandler(listener)
    return workdir


def values_of(workdir):
    rows = json.loads((workdir / "results.json").read_text())
    return {
        (r["stage"], r["split"], r["condition"], r["metric"]): r["value"] for r in rows
    }


def last_state(config, folder, index):
    setup = load_setup(folder)
    model = networks.create_network(setup, folder)
    settings = create_optimizer(
        config.stages[index].optimizer, 1, steps_per_epoch=TRAIN_CLIPS / BATCH
    )
    like = train._state_shapes(setup, model, {WEIGHTS: settings[0]})
    return jax.device_get(runner.last_state(setup, index, folder, like))


def test_stages_of_equal_shape_are_compiled_once(config, finished, compiled):
    # Four mix clips to their end, and the last of this size not at all.
    *before, last = [stage.mixup.until for stage in config.stages]
    assert (set(before), last) == ({1.0}, 0.0)
    steps = [name for name in compiled if "mixing_step" in name]
    validations = [name for name in compiled if "measure" in name]
    assert (len(steps), len(validations)) == (2, 2), compiled


def test_each_stage_tells_how_it_ended(finished):
    values = values_of(finished)
    for name in STAGES:
        lines = [line for line in lines_of(finished) if line["stage"] == name]
        validations = [line for line in lines if line["split"] == "validation"]
        steps = validations[-1]["step"]
        epochs = values[name, "train", "clean", "epochs"]
        assert epochs == pytest.approx(steps * BATCH / TRAIN_CLIPS)
        early = values[name, "train", "clean", "stopped_early"]
        assert early == (steps < MOST_STEPS)
        assert validations[-1]["since_best"] == PATIENCE or steps == MOST_STEPS
        assert all(line["since_best"] < PATIENCE for line in validations[:-1])
        # The last of those whose criterion is the highest, 0 or more.
        top = max(0.0, *(line["criterion"] for line in validations))
        best = [line for line in validations if line["criterion"] == top][-1]
        best_epoch = values[name, "train", "clean", "best_epoch"]
        assert best_epoch == pytest.approx(best["step"] * BATCH / TRAIN_CLIPS)
        condition = "clean" if name == "clean" else "as in training"
        accuracy = values[name, "validation", condition, "accuracy"]
        assert accuracy == pytest.approx(best["accuracy"])
        speed = values[name, "train", "clean", "clips_per_second"]
        seconds = values[name, "train", "clean", "seconds"]
        assert speed * seconds == pytest.approx(steps * BATCH)
    page = render(read_run(finished))
    for name in STAGES:
        epochs = values[name, "train", "clean", "epochs"]
        assert f"“{name}”, {epochs:.1f} epochs" in page


def test_optimizer_and_rate_go_on_through_all_stages(config, finished):
    made = 0
    for name in STAGES:
        lines = [
            line
            for line in lines_of(finished)
            if line["stage"] == name and line["split"] == "train"
        ]
        for line in lines:
            over = (made + line["step"] - 1) * BATCH / TRAIN_CLIPS
            falls = sum(over >= epoch - 1e-9 for epoch in (1, 4, 7))
            # The milestones are rounded to whole steps: 2.75, 11, 19.25.
            if min(abs(over - epoch) for epoch in (1, 4, 7)) * 2.75 < 0.5:
                continue
            assert line["learning_rate"] == pytest.approx(6e-3 * 0.85**falls)
        made += lines[-1]["step"]
    last = last_state(config, finished, len(STAGES) - 1)
    assert updates_made(last.opt_state[WEIGHTS]) == made


def test_the_answers_of_the_trained_network_are_sigmoids(config, finished):
    setup = load_setup(finished)
    network = dispatch.finished_network(setup, finished)
    rng = np.random.default_rng(0)
    audio = jnp.asarray(rng.integers(-9000, 9000, (3, 16_000), np.int16))
    logits = networks.infer(network.model, network.variables, setup.frontend(audio))
    expected = scipy.special.expit(np.asarray(logits, np.float64))
    np.testing.assert_allclose(network.probabilities(audio), expected, rtol=1e-4)


def test_a_curriculum_killed_in_its_third_stage_ends_with_the_same_parameters(
    config, finished, tmp_path
):
    with killed_after_saving("2-") as saves:
        experiment.run(config, str(tmp_path))
    assert saves[-1] == ("2-snr-5", VALIDATED_EVERY)
    experiment.run(config, str(tmp_path))
    for index in (2, len(STAGES) - 1):
        killed, whole = (last_state(config, w, index) for w in (tmp_path, finished))
        chex.assert_trees_all_equal(killed, whole)
    assert without_clock(lines_of(tmp_path)) == without_clock(lines_of(finished))
    clock = ("seconds", "clips_per_second")
    values, expected = (
        {key: value for key, value in values_of(w).items() if key[-1] not in clock}
        for w in (tmp_path, finished)
    )
    assert values == expected


@pytest.mark.parametrize("reverberant_fraction", [0.0, 0.5])
def test_validation_hears_the_stages_noise_and_rooms_the_same_each_time(
    reverberant_fraction,
):
    """Those of training: what the test hears must not choose what is kept."""
    config = tiny_config()
    config.stages[0].validation = "condition"
    config.stages[0].objective = "binary_cross_entropy"
    disturbance = {
        "snr_db": (0.0, -5.0),
        "clean_fraction": 1 / 3,
        "reverberant_fraction": reverberant_fraction,
    }
    config.stages[0].condition.update(disturbance)
    parts = tiny_parts(config)

    def logits_of(state, features):
        return features[:, :4, 0] / 30

    validate = validation.make_validation(parts, logits_of, config.stages[0])
    state = create_train_state({WEIGHTS: {}}, {}, {})
    first = validate(state)
    assert validate(state) == first
    (batch,) = pipeline.eval_batches(
        parts.task.validation,
        Condition(**disturbance),
        batch_size=16,
        seed=config.evaluation.seed,
        noise=parts.training_noise,
        rooms=parts.training_rooms,
        silence_label=3,
        reference_rms=0.05,
    )
    features = parts.frontend(jnp.asarray(batch["audio"]))
    logits = np.asarray(features, np.float64)[:, :4, 0] / 30
    y = np.eye(4)[batch["label"]]
    chances = scipy.special.expit(logits)
    losses = -y * np.log(chances) - (1 - y) * np.log(1 - chances)
    assert first["loss"] == pytest.approx(losses.mean(), rel=1e-4)
    right = (logits.argmax(1) == batch["label"]).mean()
    assert first["accuracy"] == pytest.approx(right)


def test_a_criterion_without_validation_clips_is_refused():
    config = tiny_config()
    config.stages[0].stop.rule = "criterion"
    parts = tiny_parts(config)
    empty = parts.task.validation.subset(np.array([], int), "validation")
    parts = dataclasses.replace(
        parts, task=dataclasses.replace(parts.task, validation=empty)
    )
    with pytest.raises(UserError, match="needs validation clips, and there are none"):
        train.check(parts, config.stages[0])
