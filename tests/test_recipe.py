"""ConvMixer's recipe: its objective, its schedule, its fields and their mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf

from configs import autokws, convmixer, end_to_end_nas, pair_loss, quantized
from kws_jax import config as configs
from kws_jax import recipes
from kws_jax.errors import UserError
from kws_jax.frontends import log_mel
from kws_jax.objectives.binary import sigmoid_cross_entropy
from kws_jax.objectives.registry import OBJECTIVES
from kws_jax.training.optimizers import (
    SCHEDULES,
    create_optimizer,
    create_schedule,
    updates_made,
)

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 4, (6, 5)).astype(np.float32)
LABELS = np.array([0, 4, 2, 2, 1, 3], np.int32)
SOFT = RNG.dirichlet(np.ones(5), 6).astype(np.float32)


def of_tensorflow(logits, targets):
    losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=targets, logits=logits)
    return float(tf.reduce_mean(losses))


@pytest.mark.usefixtures("strict_ranks")
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("labels", [LABELS, SOFT], ids=["hard", "soft"])
def test_binary_cross_entropy_is_tensorflows(labels, smoothing):
    targets = np.eye(5, dtype=np.float32)[labels] if labels.ndim == 1 else labels
    targets = (1 - smoothing) * targets + np.float32(smoothing / 5)
    loss = sigmoid_cross_entropy(
        jnp.asarray(LOGITS), jnp.asarray(labels), label_smoothing=smoothing
    )
    np.testing.assert_allclose(loss, of_tensorflow(LOGITS, targets), rtol=1e-5)


@pytest.mark.usefixtures("strict_ranks")
def test_padding_adds_nothing_to_binary_cross_entropy_even_if_it_is_nan():
    mask = np.array([True, True, False, True, False, True])
    logits = np.where(mask[:, None], LOGITS, np.nan).astype(np.float32)
    loss, gradient = jax.value_and_grad(sigmoid_cross_entropy)(
        jnp.asarray(logits), jnp.asarray(SOFT), jnp.asarray(mask)
    )
    kept = of_tensorflow(LOGITS[mask], SOFT[mask])
    np.testing.assert_allclose(loss, kept, rtol=1e-5)
    expected = np.zeros((6, 5))
    expected[mask] = (1 / (1 + np.exp(-LOGITS[mask])) - SOFT[mask]) / (4 * 5)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
    nothing = sigmoid_cross_entropy(
        jnp.asarray(logits), jnp.asarray(SOFT), jnp.zeros(6, bool)
    )
    assert float(nothing) == 0


def test_every_objective_that_a_config_may_name_is_there():
    assert tuple(OBJECTIVES) == recipes.OBJECTIVES


def paper_rate(epoch):
    """6e-3, × 0.85 after 5, 9, 13, …, 69 epochs; `epoch` counts those that are over."""
    return 6e-3 * 0.85 ** sum(epoch >= milestone for milestone in range(5, 70, 4))


def test_the_schedule_is_the_official_one():
    settings = convmixer.get_config().stages[0].optimizer
    schedule = create_schedule(settings, 1, steps_per_epoch=668.0)
    steps = np.array([[668 * e, 668 * e + 333, 668 * (e + 1) - 1] for e in range(100)])
    expected = np.array([[paper_rate(e)] * 3 for e in range(100)])
    np.testing.assert_allclose(
        jax.vmap(schedule)(steps.ravel()), expected.ravel(), 1e-5
    )
    # Seventeen milestones.
    assert paper_rate(99) == pytest.approx(6e-3 * 0.85**17)


def test_the_rate_of_an_optimizer_that_goes_on_is_that_of_all_its_updates():
    settings = convmixer.get_config().stages[0].optimizer.copy_and_resolve_references()
    settings.update(step_epochs=(1.0, 1.5), weight_decay=0.0)
    transformation, _ = create_optimizer(settings, 1, steps_per_epoch=2.0)
    weights = {"w": jnp.ones(2)}
    state, sizes = transformation.init(weights), []
    for made in range(5):
        assert updates_made(state) == made
        # Under a constant gradient, Adam's update is the rate itself.
        updates, state = transformation.update({"w": jnp.ones(2)}, state, weights)
        sizes.append(-float(updates["w"][0]))
    expected = [6e-3, 6e-3, 6e-3 * 0.85, 6e-3 * 0.85**2, 6e-3 * 0.85**2]
    np.testing.assert_allclose(sizes, expected, rtol=1e-4)


def test_a_schedule_in_epochs_needs_epochs():
    settings = convmixer.get_config().stages[0].optimizer.copy_and_resolve_references()
    for epochs in ((5, 0), ()):
        settings.step_epochs = epochs
        with pytest.raises(UserError, match=r"step_epochs = \(.*\): give numbers"):
            create_schedule(settings, 10, steps_per_epoch=2.0)


def test_masked_cells_are_0_before_the_features_are_normalised():
    masks = convmixer.get_config().stages[0].spec_augment
    normalized = log_mel.normalize(jnp.zeros((1, 1, 1)))
    assert masks.fill == pytest.approx(float(normalized[0, 0, 0]), rel=1e-6)
    assert (masks.min_width, masks.time_width, masks.frequency_width) == (1, 25, 25)


def test_the_curriculum_hears_each_of_its_conditions_equally_often():
    stages = convmixer.get_config().stages
    for stage, noises in zip(stages, (0, 1, 2, 3, 3), strict=True):
        condition = stage.condition
        assert condition.snr_db == (0.0, -5.0, -10.0)[:noises]
        assert condition.clean_fraction == pytest.approx(1 / (1 + noises))
        assert condition.background_probability == 0
    assert [s.condition.reverberant_fraction for s in stages] == [0, 0, 0, 0, 0.5]


@pytest.mark.parametrize("size", convmixer.SIZES)
def test_the_plain_trainings_are_as_long_as_the_curriculum_at_most(size):
    curriculum = convmixer.get_config(size).stages
    for plan in ("multicondition", "clean"):
        (stage,) = convmixer.get_config(f"{plan},{size}").stages
        assert stage.epochs == sum(s.epochs for s in curriculum)
        assert stage.optimizer == curriculum[-1].optimizer
        condition = curriculum[-1 if plan == "multicondition" else 0].condition
        assert stage.condition == condition


@pytest.mark.parametrize("size", convmixer.SIZES)
def test_clips_are_mixed_for_as_long_with_the_curriculum_as_without(size):
    curriculum = convmixer.get_config(size).stages
    (plain,) = convmixer.get_config(f"multicondition,{size}").stages
    mixed = [stage.mixup.until * stage.epochs for stage in curriculum]
    assert sum(mixed) == pytest.approx(0.85 * plain.epochs)
    assert mixed[:-1] == [stage.epochs for stage in curriculum[:-1]]
    assert plain.mixup.until == 0.85


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("objective", "cros_entropy", "unknown; did you mean 'cross_entropy'"),
        ("validation", "cleen", "'cleen' is unknown; did you mean 'clean'"),
        ("optimizer_start", "go", "'go' is unknown; known: restart, continue"),
        ("stop.rule", "criterium", "'criterium' is unknown; did you mean 'criterion'"),
        ("stop.patience", 0, "stop.patience = 0: give at least 1"),
        ("mixup.probability", 1.5, "mixup.probability = 1.5: give 0 … 1"),
        ("mixup.probability", -0.1, "mixup.probability = -0.1: give 0 … 1"),
        ("mixup.until", 85.0, "mixup.until = 85.0: give 0 … 1"),
        ("mixup.alpha", 0.0, "mixup.alpha = 0.0: give a number above 0"),
        ("batch_size", 64, "but batch_size is 128 there and 64 here"),
        ("optimizer.b1", 0.9, "but optimizer.b1 is 0.95 there and 0.9 here"),
    ],
)
def test_recipes_that_cannot_work_are_refused(field, value, message):
    config = convmixer.get_config()
    *groups, name = field.split(".")
    here = config.stages[1]
    for group in groups:
        here = here[group]
    here[name] = value
    with pytest.raises(UserError) as caught:
        configs.check(config)
    assert "config.stages[1]" in str(caught.value)
    assert message in str(caught.value)


def test_a_stage_of_another_kind_does_not_become_training_by_its_name():
    config = autokws.get_config()
    config.stages[0].kind = "train"
    with pytest.raises(
        UserError, match=r"stages\[0\] is of kind 'train' but has no obj"
    ):
        configs.check(config)


@pytest.mark.parametrize("schedule", ["cosine", "rising_cosine", "step"])
def test_a_schedule_over_one_stage_cannot_go_on_in_the_next(schedule):
    config = convmixer.get_config()
    for stage in config.stages:
        stage.optimizer.schedule = schedule
    with pytest.raises(UserError, match=r"'continue' needs a learning rate that does"):
        configs.check(config)


@pytest.mark.parametrize("fraction", [0.0, 0.5])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_rate_depends_on_the_length_where_two_lengths_have_others(name, fraction):
    settings = convmixer.get_config().stages[0].optimizer.copy_and_resolve_references()
    settings.update(
        schedule=name, warmup_fraction=fraction, step_at=(0.5,), step_epochs=(1.0,)
    )
    short, long = (
        create_schedule(settings, steps, steps_per_epoch=3.0) for steps in (6, 12)
    )
    differ = any(float(short(step)) != float(long(step)) for step in range(6))
    assert recipes.depends_on_length(settings) == differ


def test_a_schedule_that_is_not_known_here_may_depend_on_the_length():
    settings = convmixer.get_config().stages[0].optimizer.copy_and_resolve_references()
    settings.schedule = "one_cycle"
    assert recipes.depends_on_length(settings)


def with_stage_behind(config, **changes):
    """The experiment with its last stage of training once more behind all others."""
    config.unlock()
    last = [s for s in config.stages if s.kind == "train"][-1]
    last = last.copy_and_resolve_references()
    last.optimizer.schedule = "constant"
    last.update({"name": "behind", **changes})
    config.stages = (*config.stages, last)
    return config


# Kind of a stage -> an experiment whose stages end with it when the last is left out.
BEFORE = {
    "search": (autokws, "demo"),
    "random_search": (autokws, "random,demo"),
    "proxyless_search": (end_to_end_nas, "demo"),
    "embed": (pair_loss, "demo"),
}


def behind(kind, **changes):
    """A stage of training behind one of this kind."""
    if kind == "quantize":
        return with_stage_behind(quantized.get_config("w8a8,demo"), **changes)
    file, words = BEFORE[kind]
    config = file.get_config(words).unlock()
    config.stages[-1].optimizer.schedule = "constant"
    config.stages[-1].update(changes)
    assert config.stages[-2].kind == kind
    return config


@pytest.mark.parametrize("kind", [*sorted({*BEFORE} - {"embed"}), "quantize"])
def test_a_head_alone_needs_an_encoder_that_is_trained_right_before(kind):
    told = rf"'head' needs an encoder .* which is one of kind '{kind}': put one of kind"
    with pytest.raises(UserError, match=told):
        configs.check(behind(kind, trained_part="head"))


def test_a_head_may_be_trained_behind_stages_that_train_the_network():
    configs.check(behind("embed", trained_part="head"))
    config = convmixer.get_config("clean,demo")
    head = {"trained_part": "head", "optimizer_start": "restart"}
    configs.check(with_stage_behind(config, **head))


@pytest.mark.parametrize("kind", [*BEFORE, "quantize"])
def test_only_an_optimiser_of_training_can_go_on(kind):
    told = rf"'continue' goes on .* that is of kind '{kind}': say 'restart'"
    with pytest.raises(UserError, match=told):
        configs.check(behind(kind, optimizer_start="continue"))


@pytest.mark.parametrize("field", ["objective", "validation"])
def test_words_of_a_quantised_training_are_checked_too(field):
    config = quantized.get_config("w4a4,demo")
    config.stages[1][field] = "x"
    with pytest.raises(UserError, match=rf"stages\[1\]\.{field} = 'x' is unknown"):
        configs.check(config)
