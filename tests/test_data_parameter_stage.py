"""Data parameters in a training stage: devices, restarts, records, wrong labels."""

import json
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from four_devices import on_four_devices
from ml_collections import ConfigDict
from tiny_parts import LABELS, killed_after_saving, tiny_config, tiny_parts

from configs import common
from kws_jax import config as configs
from kws_jax.data.corpus import Split
from kws_jax.errors import UserError
from kws_jax.stages import dispatch, learner, networks, runner, train
from kws_jax.stages.data_parameters import StageTable, check
from kws_jax.training import sharding
from kws_jax.training.checkpoints import StageCheckpoints
from kws_jax.training.optimizers import create_optimizer
from kws_jax.training.state import DATA_PARAMETERS, WEIGHTS, create_train_state
from kws_jax.training.step import make_train_step

BATCH, CLIPS, STEPS, EVAL_EVERY = 8, 23, 9, 3


class Tiny(nn.Module):
    """Logits from means over time; compiles in no time."""

    @nn.compact
    def __call__(self, features, *, train):
        return nn.Dense(len(LABELS))(nn.relu(nn.Dense(16)(features.mean(1))))


def table_step(clips, labels, **settings):
    """A step on given features, its initial state, and the transformations."""
    stage = common.train_stage()
    stage.data_parameters.update(settings)
    none = np.array([""] * clips)
    split = Split("train", np.zeros(clips, np.int32), none, none, lambda rows: rows)
    parts = SimpleNamespace(
        features=lambda audio: audio,
        labels=labels,
        task=SimpleNamespace(train=split),
    )
    table = StageTable(parts, stage, Path())
    transformations = {
        WEIGHTS: optax.sgd(0.1, 0.9),
        DATA_PARAMETERS: table.transformation(),
    }
    loss_fn = learner.classification_loss(parts, stage, Tiny(), table=table)
    step = make_train_step(loss_fn, transformations, trained=tuple(transformations))
    variables = Tiny().init(jax.random.key(0), jnp.zeros((1, 1, 6)), train=False)
    trees = {WEIGHTS: variables["params"], **table.trees()}
    return step, lambda: create_train_state(trees, {}, transformations)


def blobs(clips, seed=0):
    """Gaussian clouds round the corners of a cube, one for each label."""
    rng = np.random.default_rng(seed)
    labels = np.arange(clips) % len(LABELS)
    centres = 2 * np.eye(len(LABELS), 6)
    return np.float32(centres[labels] + rng.normal(0, 0.6, (clips, 6))), labels


_PROGRAM = """
import json
import jax
import numpy as np
from jax.sharding import Mesh
from test_data_parameter_stage import blobs, table_step
from tiny_parts import LABELS
from kws_jax.training import sharding

assert len(jax.devices()) == 4
step, fresh = table_step(12, LABELS, mode="joint", class_decay=0.1, instance_decay=0.1)
step, (features, labels) = jax.jit(step), blobs(12)
rng = np.random.default_rng(0)


def batches():
    for number in range(3):
        rows = np.random.default_rng(number).integers(0, 10, 8)
        level = np.where(rng.random(8) < 0.5, 0, 0.5)
        yield {
            "audio": features[rows][:, None],
            "label": np.int32(labels[rows]),
            "index": np.int32(rows),
            "mask": np.arange(8) < 7,
            "noise_level": np.float32(level),
        }


drawn = list(batches())


def steps(mesh):
    state = sharding.replicate(fresh(), mesh)
    for batch in drawn:
        state, _ = step(state, sharding.shard(batch, mesh), jax.random.key(1))
    return jax.device_get(state)


alone = steps(Mesh(np.asarray(jax.devices()[:1]), ("data",)))
of_all = steps(sharding.data_mesh())
gaps = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), alone, of_all)
table = alone.trees["data_parameters"]
start = jax.device_get(fresh().trees["data_parameters"])
print(json.dumps({
    "gap": max(jax.tree.leaves(gaps)),
    "moved": {k: int((np.abs(table[k] - start[k]) > 1e-6).sum()) for k in table},
    "heard": len({(i, bool(l)) for b in drawn
                  for i, l in zip(b["index"][:7].tolist(), b["noise_level"])}),
    "different": len(set(table["instance"].ravel().tolist())),
}))
"""


def test_four_devices_train_the_table_that_one_does():
    found = json.loads(on_four_devices("-c", _PROGRAM).splitlines()[-1])
    assert found["gap"] < 1e-6
    # The clamp lifts every clip from 0.001 to 0.05; those heard go on from there.
    assert found["moved"] == {"class": 4, "instance": 24}
    assert 5 < found["different"] <= found["heard"] + 1


def test_most_clips_with_a_wrong_label_are_in_the_top_fifth():
    clips, epochs, size = 400, 40, 40
    features, labels = blobs(clips)
    rng = np.random.default_rng(1)
    flipped = rng.choice(clips, clips // 10, replace=False)
    labels[flipped] = (labels[flipped] + rng.integers(1, 4, len(flipped))) % 4
    step, fresh = table_step(clips, LABELS, mode="joint")
    order = np.concatenate([rng.permutation(clips) for _ in range(epochs)])
    rows = jnp.asarray(order.reshape(-1, size), jnp.int32)
    data = {"audio": jnp.asarray(features[:, None]), "label": jnp.asarray(labels)}

    def one(state, rows):
        batch = {name: value[rows] for name, value in data.items()}
        batch |= {"index": rows, "mask": rows >= 0, "noise_level": 0.0 * rows}
        return step(state, batch, jax.random.key(0))[0], None

    state, _ = jax.jit(lambda state: jax.lax.scan(one, state, rows))(fresh())
    sigma = np.asarray(state.trees[DATA_PARAMETERS]["instance"])[:, 0]
    top = np.argsort(-sigma)[: clips // 5]
    assert np.isin(flipped, top).mean() >= 0.8
    # No entry for noise has been heard.
    noisy = np.asarray(state.trees[DATA_PARAMETERS]["instance"])[:, 1]
    assert len(set(noisy.tolist())) == 1


def experiment(clips=CLIPS, **settings):
    config = tiny_config(steps=STEPS, batch_size=BATCH)
    stage = config.stages[0]
    stage.eval_every_epochs = EVAL_EVERY * BATCH / CLIPS
    stage.condition.update(snr_db=(10.0, 0.0), clean_fraction=0.4)
    stage.data_parameters.update({"mode": "joint", **settings})
    return tiny_parts(config, clips)


def last_state(parts, folder):
    transformations = {
        WEIGHTS: create_optimizer(
            parts.config.stages[0].optimizer, STEPS, steps_per_epoch=1.0
        )[0]
    }
    table = StageTable(parts, parts.config.stages[0], folder)
    transformations[DATA_PARAMETERS] = table.transformation()
    like = train.initial_state(parts, Tiny(), transformations, table.trees())
    kept = StageCheckpoints(runner.stage_folder(parts, 0, folder), read_only=True)
    state, _ = kept.restore_last(sharding.replicate(like, parts.mesh))
    kept.close()
    return jax.device_get(state)


@pytest.fixture(scope="module")
def tiny_network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "create_network", lambda setup, folder: Tiny())
        yield


@pytest.fixture(scope="module")
def finished(tiny_network, tmp_path_factory):
    folder, parts = tmp_path_factory.mktemp("finished"), experiment()
    parts = parts.__class__(
        **{**vars(parts), "flipped": (5, 6), "flipped_from": (0, 1)}
    )
    dispatch.run(parts, 0, folder)
    return SimpleNamespace(folder=folder, parts=parts, state=last_state(parts, folder))


def lines(folder):
    text = (folder / "data_parameters.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_the_log_has_the_means_of_what_was_heard_in_the_epoch(finished):
    found = lines(finished.folder)
    assert [line["step"] for line in found] == [3, 6, 9]
    parts, last = finished.parts, found[-1]
    table = finished.state.trees[DATA_PARAMETERS]
    batches = parts.host_batches(parts.task.train, parts.config.stages[0], 6)
    groups = {}
    for batch in islice(batches, 3):
        level = batch["noise_level"].tolist()
        for row, noise in zip(batch["index"].tolist(), level):
            sigma = np.exp(table["instance"][row, int(noise > 0)])
            names = [{1.0: "0 dB"}.get(noise, "10 dB"), "noisy"] if noise else ["clean"]
            names += ["flipped"] * (row in (5, 6))
            for name in names:
                groups.setdefault(name, []).append(sigma)
    assert {"10 dB", "0 dB", "flipped"} < groups.keys()
    expected = {name: np.mean(values) for name, values in groups.items()}
    assert last["instance"] == pytest.approx(expected, abs=1e-5)
    assert last["class"] == pytest.approx(
        dict(zip(LABELS, np.exp(table["class"]))), abs=1e-5
    )
    assert last["instance_by_label"].keys() == set(LABELS)


def test_the_clips_with_the_largest_temperatures_are_named(finished):
    summary = json.loads((finished.folder / "data_parameters.json").read_text())[
        "train"
    ]
    values = finished.state.trees[DATA_PARAMETERS]["instance"]
    assert summary["mode"] == "joint"
    rows = summary["largest"]
    assert len(rows) == 20
    highest = np.sort(np.exp(values), axis=None)[::-1][:20]
    np.testing.assert_allclose([row["sigma"] for row in rows], highest, atol=1e-5)
    train_split = finished.parts.task.train
    for row in rows[:3]:
        place = list(train_split.names).index(row["name"])
        assert row["label"] == LABELS[train_split.labels[place]]
        sigma = np.exp(values[place, int(row["noisy"])])
        assert row["sigma"] == pytest.approx(sigma, abs=1e-5)
    assert summary["flipped"] == 2
    best = np.argsort(-values.max(1), kind="stable")[:5]
    assert summary["flipped_in_top_fifth"] == len({5, 6} & set(best.tolist()))


def test_the_best_state_and_the_answers_need_no_table(finished):
    kept = StageCheckpoints(
        runner.stage_folder(finished.parts, 0, finished.folder), read_only=True
    )
    like = train.initial_state(finished.parts, Tiny(), {})
    best, _ = kept.restore_best(sharding.replicate(like, finished.parts.mesh))
    kept.close()
    assert set(best.trees) == {WEIGHTS}
    network = dispatch.finished_network(finished.parts, finished.folder)
    assert network.predict({"audio": np.zeros((2, 16_000), np.int16)}).shape == (2, 4)


def test_a_run_taken_up_again_ends_as_an_undisturbed_one(finished, tmp_path):
    with killed_after_saving():
        dispatch.run(finished.parts, 0, tmp_path)
    dispatch.run(finished.parts, 0, tmp_path)
    chex.assert_trees_all_equal(last_state(finished.parts, tmp_path), finished.state)
    assert lines(tmp_path) == lines(finished.folder)


@pytest.mark.parametrize(
    "modes", [("joint", "none"), ("none", "class"), ("class", "joint")]
)
def test_weights_keep_their_optimiser_where_tables_come_and_go(
    tiny_network, tmp_path, modes
):
    config = tiny_config(steps=STEPS, batch_size=BATCH)
    later = config.stages[0].copy_and_resolve_references()
    later.update(name="later", optimizer_start="continue")
    config.stages = (config.stages[0], later)
    for stage, mode in zip(config.stages, modes, strict=True):
        stage.data_parameters.mode = mode
        stage.optimizer.schedule = "constant"
    configs.check(config)
    parts = tiny_parts(config, CLIPS)
    dispatch.run(parts, 0, tmp_path)
    transformation, _ = create_optimizer(
        config.stages[0].optimizer, STEPS, steps_per_epoch=1.0
    )
    transformations = {WEIGHTS: transformation}
    table = StageTable(parts, later, tmp_path)
    if modes[1] != "none":
        transformations[DATA_PARAMETERS] = table.transformation()
    more = table.trees() if modes[1] != "none" else {}
    start = train.starting_state(parts, 1, tmp_path, Tiny(), transformations, more)
    assert {*start.opt_state} == {*start.trees} == {*transformations}
    # As the file has it, whatever this program thinks of its structure.
    file = tmp_path / f"stages/0-train/last/{STEPS}/state"
    saved = ocp.StandardCheckpointer().restore(file)["opt_state"][WEIGHTS]
    chex.assert_trees_all_equal(
        jax.tree.leaves(start.opt_state[WEIGHTS]), jax.tree.leaves(saved)
    )
    assert all(np.any(leaf) for leaf in jax.tree.leaves(saved))
    dispatch.run(parts, 1, tmp_path)


def test_a_table_of_other_clips_is_refused(finished):
    check(finished.parts, finished.folder)
    with pytest.raises(UserError, match=r"of 23 clips in 2 .* has 24 clips in 2 "):
        check(experiment(clips=24), finished.folder)
    with pytest.raises(UserError, match="has 23 clips in 3 variants and 4 labels"):
        check(experiment(snr_edges_db=(5.0,)), finished.folder)
    other = experiment()
    other.task.train.names[3] = "another"
    with pytest.raises(UserError, match="has other clips or labels"):
        check(other, finished.folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "both"}, r"stages\[0\]\.data_parameters\.mode = 'both' is unknown"),
        ({"clamp": 1.0}, "clamp = 1.0: give a number above 1"),
        ({"momentum": 1.0}, "momentum = 1.0: give a number of at least 0 and below 1"),
        ({"class_decay": -1.0}, "class_decay = -1.0: give a number of at least 0"),
        ({"class_initial": -1.0}, "class_initial = -1.0: a temperature is above 0"),
        ({"snr_edges_db": (5.0, 0.0)}, r"snr_edges_db = \(5.0, 0.0\)"),
    ],
)
def test_settings_that_cannot_work_are_told_before_training(
    settings, message, tmp_path
):
    with pytest.raises(UserError, match=message):
        check(experiment(**settings), tmp_path)


def test_mixtures_of_labels_are_refused():
    step, fresh = table_step(4, LABELS, mode="class")
    batch = {
        "audio": jnp.zeros((2, 1, 6)),
        "label": jnp.full((2, 4), 0.25),
        "index": jnp.arange(2),
        "mask": jnp.ones(2, bool),
        "noise_level": jnp.zeros(2),
    }
    with pytest.raises(UserError, match="Turn mixup off"):
        step(fresh(), batch, jax.random.key(0))


def test_by_default_there_is_no_table(tmp_path):
    config = tiny_config()
    assert config.stages[0].data_parameters.mode == "none"
    parts = tiny_parts(ConfigDict(config.to_dict()))
    assert train.data_parameters.create_stage_table(parts, 0, tmp_path) is None
