"""Numbers that are not finite stop training, with the clip and the leaf they are of."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_pods import rehearse
from tiny_parts import tiny_config, tiny_parts

from kws_jax.data.corpus import CLIP_SAMPLES
from kws_jax.errors import UserError
from kws_jax.evaluation import testing
from kws_jax.frontends.registry import FRONTENDS, as_float, create_frontend
from kws_jax.models.learned_frontend import create_filters
from kws_jax.search.bilevel import make_search_step
from kws_jax.stages import runner, training_run
from kws_jax.training import finiteness
from kws_jax.training.sparse_momentum import sparse_momentum
from kws_jax.training.state import (
    ARCHITECTURE,
    DATA_PARAMETERS,
    WEIGHTS,
    create_train_state,
)
from kws_jax.training.step import make_train_step

NAN, INF = float("nan"), float("inf")
STEP = 3


def weights():
    return {"a": jnp.ones((4,)), "b": {"kernel": jnp.full((4,), 0.5)}}


def trained(folder, config, *, wrong, rate=0.01, bad=-1, hears=False):
    """Trains a linear toy on the loudness of clips, in which `wrong` happens.

    With `hears`, features that are not finite spoil its logits.
    """
    parts = tiny_parts(config)
    transformations = {
        WEIGHTS: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(rate))
    }

    def logits_of_weights(tree, loudness):
        return loudness[:, None] * tree["a"] + tree["b"]["kernel"]

    def loss_fn(trees, batch_stats, batch, key):
        loudness = jnp.abs(batch["audio"] / 32768.0).mean(1)
        if hears:
            loudness += 0 * parts.frontend(batch["audio"]).mean((1, 2))
        logits = logits_of_weights(trees[WEIGHTS], loudness)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        each = wrong(each, batch["index"] == bad, trees[WEIGHTS])
        loss = jnp.where(batch["mask"], each, 0).sum() / batch["mask"].sum()
        return loss, ({"loss": loss, "accuracy": loss}, batch_stats)

    step = make_train_step(loss_fn, transformations)
    state = create_train_state({WEIGHTS: weights()}, {}, transformations)
    return training_run.run(
        parts,
        0,
        folder,
        state,
        plan=runner.plan_of(parts, 0, len(parts.task.train)),
        splits=[parts.task.train],
        step_at=lambda number: step,
        logits_of=lambda state, features: logits_of_weights(
            state.trees[WEIGHTS], features.mean((1, 2))
        ),
        schedule=lambda step: rate,
    )


def clip_first_met_at(step, config):
    """A clip that is in the batch of this step, from 1, and in none before it."""
    parts = tiny_parts(config)
    select = parts.selection(parts.task.train, config.stages[0])
    before = np.concatenate([select(n).positions for n in range(step - 1)])
    return next(c for c in select(step - 1).positions.tolist() if c not in before)


def config_of(**changes):
    config = tiny_config(steps=9, **changes)
    config.log_every_steps = 4
    config.stages[0].eval_every_epochs = 0.7  # two steps, each with a checkpoint
    return config


def no_number(each, bad, tree):
    return each * jnp.where(bad, NAN, 1.0)


def no_gradient(each, bad, tree):
    """The value stays finite: the square root of 0, whose slope is infinite."""
    zero = jnp.where(bad, 0.0, 1.0) * tree["b"]["kernel"][0]
    return each + jnp.sqrt(zero)


@pytest.mark.parametrize(
    ("wrong", "leaf", "said"),
    [
        (no_number, "weights/a", "The loss became nan"),
        (no_gradient, "weights/b/kernel", "The gradient norm became"),
    ],
)
def test_the_first_clip_and_the_first_leaf_are_named(tmp_path, wrong, leaf, said):
    config = config_of()
    bad = clip_first_met_at(STEP, config)
    with pytest.raises(UserError) as failed:
        trained(tmp_path, config, wrong=wrong, bad=bad)
    told = str(failed.value)
    assert said in told
    assert f"at step {STEP} of stage 'train'" in told
    assert f"that of {leaf}." in told
    assert f"'train{bad}', number {bad} of the train clips" in told
    # Made again from the checkpoint of the step before.
    assert (tmp_path / "stages" / "0-train" / "last" / str(STEP - 1)).is_dir()


def as_it_is(each, bad, tree):
    return each


@pytest.mark.parametrize("name", ["train", "validation"])
def test_a_clip_without_finite_features_is_named(tmp_path, monkeypatch, name):
    config = config_of()
    silent = {"background_probability": 0.0, "shift_ms": 0.0, "snr_db": ()}
    config.stages[0].condition.update(silent)
    bad = clip_first_met_at(STEP, config) if name == "train" else 5
    split = getattr(tiny_parts(config).task, name)
    clip = as_float(jnp.asarray(split.read(np.array([bad]))))
    mfcc = FRONTENDS["mfcc"]

    @functools.wraps(mfcc)
    def deaf_to_it(audio, **settings):
        features = mfcc(audio, **settings)
        return jnp.where((audio == clip).all(-1)[:, None, None], NAN, features)

    monkeypatch.setitem(FRONTENDS, "mfcc", deaf_to_it)
    with pytest.raises(UserError) as failed:
        trained(tmp_path, config, wrong=as_it_is, hears=name == "train")
    told = str(failed.value)
    assert f"The first clip is {str(split.names[bad])!r}, number {bad} of the" in told
    assert "its features are not finite" in told
    # The first validation is made after two steps.
    assert f"at step {STEP if name == 'train' else 2} of stage 'train'" in told


def test_answers_that_are_not_finite_are_no_result():
    batches = [
        {"label": np.zeros(4, int), "mask": np.ones(4, bool)},
        {"label": np.zeros(4, int), "mask": np.array([1, 0, 1, 1], bool)},
    ]
    answers = [np.full((4, 2), 0.5), np.full((4, 2), 0.5)]
    answers[1][1] = NAN  # padding
    assert len(testing.predict_split(lambda _: answers.pop(0), batches)[0]) == 7
    answers = [np.full((4, 2), 0.5), np.full((4, 2), 0.5)]
    answers[1][2, 1] = NAN
    with pytest.raises(UserError, match=r"1 of 7 clips .* first to number 5 of them"):
        testing.predict_split(lambda _: answers.pop(0), batches)


def test_several_steps_a_call_and_mixing_on_the_device_tell_the_same(tmp_path):
    config = config_of(on_device=True, steps_per_call=2)
    bad = clip_first_met_at(STEP, config)
    with pytest.raises(UserError) as failed:
        trained(tmp_path, config, wrong=no_number, bad=bad)
    assert f"at step {STEP} of" in str(failed.value)
    assert f"'train{bad}', number {bad} of the train clips" in str(failed.value)


def test_what_all_clips_do_is_laid_to_none(tmp_path):
    with pytest.raises(UserError) as failed:
        trained(tmp_path, config_of(), wrong=lambda each, bad, tree: each * NAN)
    told = str(failed.value)
    assert "at step 1 of stage 'train'" in told
    assert "No single clip" in told


def test_an_update_that_breaks_the_weights_is_told_by_its_leaf(tmp_path):
    with pytest.raises(UserError) as failed:
        trained(tmp_path, config_of(), wrong=lambda each, bad, tree: each, rate=1e39)
    assert "The update before it has broken weights/a" in str(failed.value)


def searched(folder, config, *, wrong, bad):
    """A linear search: α is added to the logits, and learns from the second half.

    `bad` is a row of the half that α learns from.
    """
    parts = tiny_parts(config, clips=63)
    transformations = {WEIGHTS: optax.sgd(0.01), ARCHITECTURE: optax.sgd(0.01)}

    def logits_of(trees, loudness):
        return loudness[:, None] * trees[WEIGHTS]["a"] + trees[ARCHITECTURE]["alpha"]

    def loss_fn(trees, batch_stats, batch, key):
        loudness = jnp.abs(batch["audio"] / 32768.0).mean(1)
        logits = logits_of(trees, loudness)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        each = wrong(
            each, batch["index"] == bad, {"b": {"kernel": trees[ARCHITECTURE]["alpha"]}}
        )
        loss = jnp.where(batch["mask"], each, 0).sum() / batch["mask"].sum()
        return loss, ({"loss": loss, "accuracy": loss}, batch_stats)

    def step(update_architecture):
        made = make_search_step(
            loss_fn, transformations, update_architecture=update_architecture
        )
        return lambda state, *inputs: made(state, *inputs)

    steps = {update: step(update) for update in (False, True)}
    trees = {
        WEIGHTS: {"a": jnp.ones((4,))},
        ARCHITECTURE: {"alpha": jnp.full((4,), 0.5)},
    }
    half = len(parts.task.train) // 2
    splits = [
        parts.task.train.subset(np.arange(half), "train (weights)"),
        parts.task.train.subset(np.arange(half, 2 * half), "train (architecture)"),
    ]
    plan = runner.plan_of(parts, 0, half)
    return training_run.run(
        parts,
        0,
        folder,
        create_train_state(trees, {}, transformations),
        plan=dataclasses.replace(plan, breaks=(1,)),
        splits=splits,
        # The first step is one of the warm-up, and has other measures.
        step_at=lambda number: steps[number >= 1],
        logits_of=lambda state, features: logits_of(state.trees, features.mean((1, 2))),
        schedule=lambda step: 0.01,
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (no_number, "The architecture loss became nan"),
        (no_gradient, "The architecture gradient norm became"),
    ],
)
def test_the_clip_and_the_leaf_of_an_architecture_are_named(tmp_path, wrong, said):
    config = config_of()
    config.stages[0].update(eval_every_epochs=4.0, batch_size=4)
    parts = tiny_parts(config, clips=63)
    half = len(parts.task.train) // 2
    split = parts.task.train.subset(np.arange(half), "")
    drawn = [
        [parts.selection(split, config.stages[0], stream=stream)(step).positions]
        for stream, step in ((0, 0), (0, 1), (1, 0), (1, 1))
    ]
    # A clip that α meets at the second step; clips of both halves have these numbers.
    bad = next(c for c in drawn[-1][0].tolist() if c not in np.concatenate(drawn[:-1]))
    with pytest.raises(UserError) as failed:
        searched(tmp_path, config, wrong=wrong, bad=bad)
    told = str(failed.value)
    assert said in told
    assert "at step 2 of stage 'train'" in told
    assert "that of architecture/alpha." in told
    assert f"'train{half + bad}', number {bad} of the train (architecture)" in told


def run_with(step, state, parts, folder):
    """Trains the only stage by a step; its validation sees the leaf "a" alone."""
    return training_run.run(
        parts,
        0,
        folder,
        state,
        plan=runner.plan_of(parts, 0, len(parts.task.train)),
        splits=[parts.task.train],
        step_at=lambda number: step,
        logits_of=lambda state, features: (
            features.mean((1, 2))[:, None] * state.trees[WEIGHTS]["a"]
        ),
        schedule=lambda step: 0.01,
    )


def test_what_no_measure_shows_is_found_before_it_is_saved(tmp_path):
    config = config_of()

    def step(state, batch, key):
        """Breaks a tree that neither the loss nor the validation takes."""
        alpha = jnp.where(state.step == 3, INF, state.trees[ARCHITECTURE]["alpha"])
        trees = {**state.trees, ARCHITECTURE: {"alpha": alpha}}
        return state.replace(step=state.step + 1, trees=trees), {"loss": 0.5}

    trees = {WEIGHTS: weights(), ARCHITECTURE: {"alpha": jnp.ones(3)}}
    parts = tiny_parts(config)
    with pytest.raises(UserError) as failed:
        run_with(step, create_train_state(trees, {}, {}), parts, tmp_path)
    assert "at step 4 of stage 'train'" in str(failed.value)
    assert "The update before it has broken architecture/alpha" in str(failed.value)
    # Validated after each second step.
    saved = tmp_path / "stages" / "0-train" / "last"
    assert [path.name for path in saved.iterdir()] == ["2"]


def test_a_broken_data_parameter_is_told_with_its_clip(tmp_path):
    config = config_of()
    config.stages[0].eval_every_epochs = 4.0
    bad, parts = clip_first_met_at(STEP, config), tiny_parts(config)
    transformations = {
        WEIGHTS: optax.sgd(0.01),
        # The gradient is finite, and the update is not.
        DATA_PARAMETERS: sparse_momentum(1e39, 0.0),
    }

    def loss_fn(trees, batch_stats, batch, key):
        temperatures = trees[DATA_PARAMETERS]["instance"][batch["index"], 0]
        loss = jnp.where(batch["index"] == bad, temperatures, 0.0).sum()
        loss += (trees[WEIGHTS]["a"] ** 2).sum()
        return loss, ({"loss": loss, "accuracy": loss}, batch_stats)

    table = {"class": jnp.zeros(4), "instance": jnp.ones((len(parts.task.train), 2))}
    trees = {WEIGHTS: weights(), DATA_PARAMETERS: table}
    step = make_train_step(loss_fn, transformations, trained=tuple(transformations))
    with pytest.raises(UserError) as failed:
        run_with(step, create_train_state(trees, {}, transformations), parts, tmp_path)
    told = str(failed.value)
    assert f"The data parameters norm became inf at step {STEP} of" in told
    assert f"The update has broken data_parameters/instance, entry ({bad}, 0)." in told
    assert f"'train{bad}', number {bad} of the train clips" in told


def test_the_program_that_trains_is_the_same_as_without_looking():
    tree = {"b": jnp.array([1.0, INF]), "a": jnp.ones(2)}
    assert finiteness.observed(tree) == {}
    with finiteness.observing():
        flags = finiteness.observed(tree)
    assert finiteness.observed(tree) == {}
    assert finiteness.first_gradient(flags) == "b"
    assert finiteness.first_gradient({}) == ""
    assert finiteness.first_leaf({"x": [np.ones(2), np.array(NAN)]}) == "x/1"
    assert finiteness.first_leaf(tree | {"b": np.int32(3)}) == ""


def sounds():
    """Clips [n, s] that no microphone makes, by name."""
    time = np.arange(CLIP_SAMPLES)
    impulse = np.zeros(CLIP_SAMPLES)
    impulse[8_000] = 32_767
    square = np.where(time // 20 % 2, 32_767, -32_768)
    named = {
        "silent": 0 * time,
        "least": (time == 5) * 1,
        "constant": 0 * time + 1_000,
        "full scale": 0 * time + 32_767,
        "least constant": 0 * time - 1,
        "full-scale square": square,
        "fastest square": np.where(time % 2, 32_767, -32_768),
        "single impulse": impulse,
        "step": np.where(time < 8_000, -32_768, 32_767),
    }
    return {name: audio.astype(np.int16) for name, audio in named.items()}


@pytest.mark.parametrize("name", sorted(FRONTENDS))
def test_sounds_of_every_extreme_have_finite_features_and_gradients(name):
    frontend = create_frontend(name)
    filters = create_filters(name, frontend.settings, frontend.shape[1])
    clips = sounds()
    audio = jnp.asarray(np.stack([*clips.values()]), jnp.float32) / 32768
    params = {}
    if filters is not None:
        params = filters.init(jax.random.key(0), frontend(audio[:1]))

    def features(params, audio):
        frames = frontend(audio)
        return filters.apply(params, frames) if filters is not None else frames

    @jax.jit
    @jax.vmap
    def each(clip):
        def total(params, clip):
            heard = features(params, clip[None])
            return jnp.sum(heard**2), heard

        gradients, heard = jax.grad(total, argnums=(0, 1), has_aux=True)(params, clip)
        return heard, gradients

    heard, (by_params, by_audio) = jax.device_get(each(audio))
    for place, sound in enumerate(clips):
        one = jax.tree.map(
            lambda leaf, at=place: leaf[at], (heard, by_params, by_audio)
        )
        assert not finiteness.first_leaf(one), sound


@pytest.mark.parametrize("layout", [(2, 1), (1, 2)])
def test_the_process_that_holds_a_clip_names_it(tmp_path, layout):
    config = config_of()
    parts = tiny_parts(config)
    select = parts.selection(parts.task.train, config.stages[0])
    before = np.concatenate([select(n).positions for n in range(STEP - 1)])
    # The second half of a batch of eight is that of the second process.
    bad = next(c for c in select(STEP - 1).positions[4:].tolist() if c not in before)
    output, _ = rehearse(
        layout, tmp_path, "broken", "no_gradient", str(bad), expected=2
    )
    assert f"at step {STEP} of stage 'train'" in output
    assert "that of weights/b/kernel." in output
    assert f"'train{bad}', number {bad} of the train clips: a batch" in output
    assert ("It is in the share of process 1." in output) == (layout[0] == 2)
