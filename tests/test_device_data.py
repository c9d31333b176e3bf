"""Batches that are mixed on the device are those that tf.data mixes on the host."""

import dataclasses
from itertools import islice
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from four_devices import on_four_devices
from tiny_parts import (
    bank,
    random_split,
    room_bank,
    tiny_config,
    tiny_parts,
    train_batches,
)

from kws_jax.data import device
from kws_jax.data.conditions import CLEAN, Condition
from kws_jax.data.draws import Recipe, training_selection
from kws_jax.errors import UserError
from kws_jax.stages import dispatch, feeding

SHIFTED = Condition(shift_ms=100)
CONDITIONS = {
    "clean": CLEAN,
    "shift": SHIFTED,
    "longest shift": Condition(shift_ms=1000),
    "background": Condition(
        shift_ms=100, background_probability=0.8, background_volume=0.5
    ),
    "noise": Condition(snr_db=(20.0, 0.0, -10.0), clean_fraction=0.2),
    "all": Condition(
        shift_ms=100,
        background_probability=0.8,
        background_volume=0.5,
        snr_db=(20.0, 0.0, -10.0),
        clean_fraction=0.2,
    ),
    "rooms": Condition(shift_ms=100, reverberant_fraction=0.5),
    "all in rooms": Condition(
        shift_ms=100,
        background_probability=0.8,
        background_volume=0.5,
        snr_db=(20.0, 0.0, -10.0),
        clean_fraction=0.2,
        reverberant_fraction=0.5,
    ),
}
STEPS, BATCH = 4, 12
SPLIT = random_split("train", 23, 0)
BANKS = {"background": bank(10), "noise": bank(20)}
MIXING = {
    **BANKS,
    "rooms": room_bank(30, taps=16_000),
    "silence_label": 3,
    "reference_rms": 0.3,
}


def on_host(split, condition, start=0, **mixing):
    return list(
        train_batches(
            split,
            condition,
            batch_size=BATCH,
            seed=3,
            start_step=start,
            num_steps=STEPS,
            **MIXING | mixing,
        )
    )


def on_device(split, condition, start=0, whole=SPLIT, **mixing):
    recipe = Recipe(split, condition, **MIXING | mixing)
    select = training_selection(len(split), batch_size=BATCH, seed=3)
    resident = jax.device_put(
        device.read(
            whole, recipe.heard_background, recipe.heard_noise, recipe.heard_rooms
        )
    )
    drawn = [recipe.inputs(select(step)) for step in range(start, start + STEPS)]
    make = jax.jit(
        lambda resident, inputs: jax.lax.map(
            lambda one: device.make_batch(recipe, resident, one), inputs
        )
    )
    batches = jax.device_get(make(resident, device.stack(split, drawn)))
    return [
        {name: value[step] for name, value in batches.items()} for step in range(STEPS)
    ]


def assert_same(host, made, tolerance):
    assert len(host) == len(made) == STEPS
    for one, other in zip(host, made, strict=True):
        assert {k: (v.dtype, v.shape) for k, v in one.items()} == {
            k: (v.dtype, v.shape) for k, v in other.items()
        }
        for field in ("label", "index", "mask", "noise_level"):
            np.testing.assert_array_equal(one[field], other[field])
        gap = np.abs(one["audio"].astype(int) - other["audio"])
        assert gap.max() <= tolerance
        # Rounding goes the other way now and then, not often.
        assert (gap > 0).mean() < 1e-3


@pytest.mark.parametrize("name", CONDITIONS)
def test_batches_are_those_of_the_host(name):
    condition = CONDITIONS[name]
    mixed = condition not in (CLEAN, SHIFTED, CONDITIONS["longest shift"])
    host = on_host(SPLIT, condition)
    assert_same(host, on_device(SPLIT, condition), tolerance=int(mixed))
    if mixed:
        # The loudest clips do reach the peak at which mixtures are scaled down.
        assert max(np.abs(batch["audio"].astype(int)).max() for batch in host) == 32767


def test_any_step_can_be_the_first():
    condition = CONDITIONS["all"]
    assert_same(on_host(SPLIT, condition, 7), on_device(SPLIT, condition, 7), 1)


def test_part_of_a_part_of_a_split_is_gathered_from_the_whole():
    part = SPLIT.subset(np.arange(3, 20)).subset(np.array([5, 0, 16, 2, 9]))
    made = on_device(part, SHIFTED)
    assert_same(on_host(part, SHIFTED), made, tolerance=0)
    assert max(batch["index"].max() for batch in made) == 4


def test_silent_noise_and_no_silence_label():
    condition = Condition(snr_db=(0.0,))
    silent = BANKS["noise"]
    silent = dataclasses.replace(silent, audio=silent.audio * 0)
    mixing = {"noise": silent, "silence_label": None}
    host = on_host(SPLIT, condition, **mixing)
    assert_same(host, on_device(SPLIT, condition, **mixing), tolerance=0)
    np.testing.assert_array_equal(
        host[0]["audio"], SPLIT.read(host[0]["index"].astype(int))
    )


@pytest.mark.parametrize(
    ("condition", "background", "noise", "rooms"),
    [
        ({}, True, False, False),
        ({"background_volume": 0.0}, False, False, False),
        ({"background_probability": 0.0, "snr_db": (5.0,)}, False, True, False),
        ({"snr_db": (5.0,), "clean_fraction": 1.0}, True, False, False),
        ({"reverberant_fraction": 0.1}, True, False, True),
    ],
)
def test_only_what_is_heard_takes_memory(condition, background, noise, rooms):
    config = tiny_config()
    config.stages[0].condition.update(condition)
    resident = tiny_parts(config).resident
    assert resident.clips.shape == (23, 16_000)
    assert (resident.background is not None) == background
    assert (resident.noise is not None) == noise
    assert (resident.rooms is not None) == rooms


class FakeDevice(SimpleNamespace):
    def memory_stats(self):
        return self.stats

    def __str__(self):
        return "cuda:0"


@pytest.mark.parametrize(
    ("stats", "fits"),
    [
        (None, True),
        ({}, True),
        ({"bytes_limit": 3 * 2**30}, True),
        ({"bytes_limit": 2**31 + 2**30, "bytes_in_use": 2**30}, False),
        ({"bytes_limit": 2**29}, False),
    ],
)
def test_what_does_not_fit_is_told_before_it_is_read(stats, fits):
    check = [67_109, [None], [FakeDevice(stats=stats)]]  # 2.0 GiB
    if fits:
        device.check_room(*check)
        return
    with pytest.raises(
        UserError, match=r"config.data.on_device=True: 67,109.* 2.0 GiB"
    ):
        device.check_room(*check)


def test_rooms_count_as_memory():
    rooms = SimpleNamespace(responses=np.empty((8, 2**20), np.float32))
    stats = {"bytes_limit": 32_000_000}
    device.check_room(4, [None], [FakeDevice(stats=stats)])
    with pytest.raises(UserError, match=r"the rooms need 0\.0 GiB"):
        device.check_room(4, [None], [FakeDevice(stats=stats)], rooms)


def test_noise_that_32_bits_cannot_count_is_refused():
    endless = SimpleNamespace(audio=range(2**31))
    with pytest.raises(UserError, match=r"config.data.on_device=True.* 37 hours"):
        device.check_room(1, [endless], [])


def test_room_is_checked_before_any_stage(monkeypatch, tmp_path):
    def refuse(clips, banks, devices, rooms):
        assert clips == 23
        assert rooms is None
        assert [bank is not None for bank in banks] == [True, False]
        raise UserError("too large")

    monkeypatch.setattr(device, "check_room", refuse)
    dispatch.check(tiny_parts(tiny_config()), tmp_path)
    with pytest.raises(UserError, match="too large"):
        dispatch.check(tiny_parts(tiny_config(on_device=True)), tmp_path)


@pytest.mark.parametrize("where", [False, True])
def test_speed_alone_is_measured_on_the_batches_of_training(where):
    parts = tiny_parts(tiny_config(on_device=where))
    stage = parts.config.stages[0]
    found = list(islice(feeding.batches_alone(parts, stage), 2))
    expected = list(islice(parts.host_batches(parts.task.train, stage, 0), 2))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one["index"], other["index"])
        np.testing.assert_allclose(one["audio"], other["audio"], atol=1)


_FOUR_DEVICES = """
import jax
import jax.numpy as jnp
import numpy as np
from tiny_parts import tiny_config, tiny_parts

from kws_jax.stages import feeding, runner
from kws_jax.training import sharding
from kws_jax.training.state import WEIGHTS, create_train_state


def step(state, batch, key):
    moved = jax.tree.map(lambda w: w + batch["audio"].sum() / 1e6, state.trees)
    state = state.replace(step=state.step + 1, trees=moved)
    jax.debug.inspect_array_sharding(batch["audio"], callback=shards.append)
    return state, {"loss": batch["audio"].astype(jnp.float32).std(), **batch}


assert len(jax.devices()) == 4
shards = []
parts = tiny_parts(tiny_config(steps=3, on_device=True, steps_per_call=2))
stage, plan = parts.config.stages[0], runner.plan_of(parts, 0, 23)
feed = feeding.create_feed(
    parts, stage, plan, jax.random.key(0), [parts.task.train], lambda number: step
)
state = create_train_state({WEIGHTS: jnp.zeros(2)}, {}, {})
state = sharding.replicate(state, parts.mesh)
inputs = next(iter(feed.batches_from(0)))
state, found = feed.step_fn(state, inputs)
assert {tuple(s.shard_shape((8, 16000))) for s in shards} == {(2, 16000)}, shards
assert parts.resident.clips.sharding.is_fully_replicated
assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
host = parts.host_batches(parts.task.train, stage, 0)
for made, expected in zip(range(2), host):
    np.testing.assert_array_equal(found["index"][made], expected["index"])
    np.testing.assert_allclose(found["audio"][made], expected["audio"], atol=1)
print("same")
"""


def test_four_devices_each_make_their_share():
    assert on_four_devices("-c", _FOUR_DEVICES) == "same\n"
