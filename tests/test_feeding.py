"""Training fed from the host and on the device, in calls of one step and of several."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_parts import killed_after_saving, tiny_config, tiny_parts

from kws_jax.stages import feeding, networks, runner, search, train
from kws_jax.training import sharding
from kws_jax.training.checkpoints import StageCheckpoints
from kws_jax.training.loop import StagePlan
from kws_jax.training.optimizers import create_optimizer
from kws_jax.training.state import WEIGHTS, create_train_state

pytestmark = pytest.mark.usefixtures("compiled_once")
STEPS, EVAL_EVERY, CLIPS = 11, 5, 24


def trained(folder, **changes):
    """The state in which the training of a tiny network ends."""
    config = tiny_config(steps=STEPS, **changes)
    # Small steps: gradients that are rounded differently lead to the same place.
    config.stages[0].optimizer.learning_rate = 0.01
    config.stages[0].eval_every_epochs = EVAL_EVERY * 8 / CLIPS
    parts = tiny_parts(config, CLIPS)
    train.run(parts, 0, folder)
    optimizer, _ = create_optimizer(
        config.stages[0].optimizer, STEPS, steps_per_epoch=1.0
    )
    model = networks.create_network(parts, folder)
    like = train.initial_state(parts, model, {WEIGHTS: optimizer})
    kept = StageCheckpoints(runner.stage_folder(parts, 0, folder), read_only=True)
    state, _ = kept.restore_last(sharding.replicate(like, parts.mesh))
    kept.close()
    assert int(state.step) == STEPS
    return jax.device_get(state)


def test_no_stage_hears_the_draws_of_another():
    config = tiny_config()
    first = config.stages[0]
    second = first.copy_and_resolve_references()
    second.name = "second"
    config.stages = (first, second)
    parts = tiny_parts(config)
    select = [parts.selection(parts.task.train, stage) for stage in (first, second)]
    for step in (0, 5):
        one, other = (each(step) for each in select)
        assert (one.positions != other.positions).any()
        # Their shifts, noises and pieces of them.
        assert not (one.uniforms == other.uniforms).any()


@pytest.fixture(scope="module")
def in_calls_of_four(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("four"), on_device=True, steps_per_call=4)


@pytest.mark.parametrize(
    ("on_device", "tolerance"),
    # The host's audio differs by one unit of int16 in a few samples.
    [(True, 1e-5), (False, 1e-4)],
)
def test_calls_of_several_steps_train_as_single_steps(
    on_device, tolerance, in_calls_of_four, tmp_path
):
    single = trained(tmp_path, on_device=on_device)
    chex.assert_trees_all_equal_shapes_and_dtypes(single, in_calls_of_four)
    for one, other in (
        (single.trees, in_calls_of_four.trees),
        (single.batch_stats, in_calls_of_four.batch_stats),
    ):
        chex.assert_trees_all_close(one, other, rtol=tolerance, atol=tolerance)


def test_a_training_in_calls_goes_on_bit_for_bit(in_calls_of_four, tmp_path):
    with killed_after_saving():
        trained(tmp_path, on_device=True, steps_per_call=4)
    again = trained(tmp_path, on_device=True, steps_per_call=4)
    chex.assert_trees_all_equal(again, in_calls_of_four)


def test_a_search_draws_its_halves_apart_and_changes_its_step_at_the_break():
    parts = tiny_parts(tiny_config(on_device=True, steps_per_call=4))
    stage, halves = parts.config.stages[0], search.halves(parts.task.train, 0)
    plan = StagePlan("search", 9, 1.0, 9, 9, 8, steps_per_call=4, breaks=(3,))

    def step_of(architecture):
        def step(state, weights, other, key):
            found = {"index": weights["index"], "other": other["index"]}
            audio = weights["audio"].astype(jnp.float32).std()
            state = state.replace(step=state.step + 1)
            return state, {**found, "audio": audio, "architecture": architecture}

        return step

    steps = {late: step_of(late) for late in (False, True)}
    feed = feeding.create_feed(
        parts, stage, plan, jax.random.key(0), halves, lambda number: steps[number >= 3]
    )
    state = create_train_state({WEIGHTS: jnp.zeros(2)}, {}, {})
    found = []
    for inputs in feed.batches_from(0):
        state, metrics = feed.step_fn(state, inputs)
        found.append(jax.device_get(metrics))
    assert [len(call["index"]) for call in found] == [1, 1, 1, 4, 1, 1]
    flags = np.concatenate([call["architecture"] for call in found])
    np.testing.assert_array_equal(flags, np.arange(9) >= 3)
    for stream, name in enumerate(("index", "other")):
        batches = parts.host_batches(halves[stream], stage, 0, stream=stream)
        batches = list(itertools.islice(batches, 9))
        index = np.concatenate([call[name] for call in found])
        np.testing.assert_array_equal(index, [batch["index"] for batch in batches])
        if name == "index":
            levels = [batch["audio"].astype(np.float64).std() for batch in batches]
            audio = np.concatenate([call["audio"] for call in found])
            np.testing.assert_allclose(audio, levels, rtol=1e-4)


def test_a_call_keeps_no_second_copy_of_the_clips(monkeypatch):
    parts = tiny_parts(tiny_config(on_device=True, steps_per_call=4), clips=400)
    stage, plan = parts.config.stages[0], runner.plan_of(parts, 0, 400)
    jit, programs = jax.jit, []

    def remember(*arguments, **settings):
        programs.append(jit(*arguments, **settings))
        return programs[-1]

    def step(state, batch, key):
        return state.replace(step=state.step + 1), {"loss": batch["audio"].std()}

    key, state = jax.random.key(0), create_train_state({WEIGHTS: jnp.zeros(2)}, {}, {})
    feed = feeding.create_feed(
        parts, stage, plan, key, [parts.task.train], lambda number: step
    )
    number, inputs = next(iter(feed.batches_from(0)))
    monkeypatch.setattr(jax, "jit", remember)
    state, _ = feed.step_fn(state, (number, inputs))
    monkeypatch.undo()
    lowered = programs[0].lower(state, parts.resident, inputs, key)
    memory = lowered.compile().memory_analysis()
    clips = parts.resident.clips.nbytes
    assert memory.argument_size_in_bytes > clips
    assert memory.temp_size_in_bytes < clips / 2
    assert memory.generated_code_size_in_bytes < clips / 2


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("start", [0, 4])
def test_batches_are_repeated_the_same_from_every_start(on_device, start):
    parts = tiny_parts(tiny_config(on_device=on_device), CLIPS)
    stage = parts.config.stages[0]
    plan = StagePlan("search", 7, 3.0, 100, 100, 8)

    def step(state, first, second, key):
        return state, {"first": first["index"], "second": second["index"]}

    feed = feeding.create_feed(
        parts,
        stage,
        plan,
        jax.random.key(0),
        [parts.task.train, parts.task.train],
        lambda number: step,
        repeats=(1, 3),
    )
    batches = feed.batches_from(start)
    got = [feed.step_fn(jnp.zeros(()), next(batches))[1] for _ in range(start, 7)]
    select = [parts.selection(parts.task.train, stage, stream=n) for n in (0, 1)]
    for number, metrics in enumerate(got, start=start):
        first, second = select[0](number), select[1](number // 3)
        np.testing.assert_array_equal(np.ravel(metrics["first"]), first.positions)
        np.testing.assert_array_equal(np.ravel(metrics["second"]), second.positions)
