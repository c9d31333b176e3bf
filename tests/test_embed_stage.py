"""Two stages, embedding and classifier, on random clips."""

import dataclasses
import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_parts import LABELS, random_split, tiny_config, tiny_parts

from configs import pair_loss
from kws_jax import config as configs
from kws_jax.errors import UserError
from kws_jax.stages import dispatch, embed, networks, runner, train
from kws_jax.stages.validation import make_validation
from kws_jax.training.optimizers import for_part
from kws_jax.training.state import WEIGHTS, create_train_state, variables_of

CLIPS, TUPLES, ROLES = 23, 2, len(LABELS) + 1


def two_stages(**metric):
    config = tiny_config()
    head = config.stages[0]
    # Decay, which moves whatever it reaches without a gradient too.
    head.optimizer.update(weight_decay=0.1, decay_all=True, learning_rate=0.05)
    head.update(steps=3, eval_every_epochs=100.0, trained_part="head")
    first = pair_loss.embed_stage(head, "cn2")
    first.update(steps=3, eval_every_epochs=100.0, tuples_per_batch=TUPLES)
    first.condition.snr_db = (10.0,)
    first.metric.update(metric)
    config.stages = (first, head)
    configs.check(config)
    return config


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def parts():
    return tiny_parts(two_stages(), CLIPS)


@pytest.fixture(scope="module")
def model(parts):
    return networks.create_network(parts, Path("nowhere"))


@pytest.fixture(scope="module")
def finished(parts, model, tmp_path_factory):
    """Variables before, after the embedding and after the classifier; their rows."""
    folder = tmp_path_factory.mktemp("two")
    dispatch.check(parts, folder)
    fresh = train.initial_state(parts, model, {})
    rows, states = [], [fresh]
    for index in range(2):
        rows.append(dispatch.run(parts, index, folder))
        states.append(runner.best_state(parts, index, folder, fresh))
    return [jax.device_get(variables_of(state)) for state in states], rows


def split_head(variables):
    params = dict(variables["params"])
    return params.pop("head"), params


def test_each_stage_trains_its_part_and_leaves_the_other_bit_for_bit(finished):
    fresh, embedded, classified = finished[0]
    head, encoder = zip(*map(split_head, (fresh, embedded, classified)), strict=True)
    chex.assert_trees_all_equal(head[1], head[0])
    chex.assert_trees_all_equal(encoder[2], encoder[1])
    chex.assert_trees_all_equal(classified["batch_stats"], embedded["batch_stats"])
    for one, other in (
        (encoder[0], encoder[1]),
        (fresh["batch_stats"], embedded["batch_stats"]),
        (head[1], head[2]),
    ):
        pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
        assert all((a != b).any() for a, b in pairs)


def test_both_stages_leave_rows_and_the_classifier_is_the_network(finished):
    rows = finished[1]
    assert {r["metric"] for r in rows[0]} == {"seconds", "clips_per_second", "accuracy"}
    assert {"macs", "parameters", "accuracy"} < {r["metric"] for r in rows[1]}
    assert [r["stage"] for r in rows[0] + rows[1]] == ["embed"] * 3 + ["train"] * 6


def test_validation_of_embeddings_is_the_nearest_class_mean(parts, model, finished):
    variables = finished[0][1]
    stage = parts.config.stages[0]

    @jax.jit
    def embeddings_of(audio):
        found = networks.embed(model, variables, parts.frontend(audio))
        return embed.as_measured(stage.metric, found)

    state = create_train_state({WEIGHTS: variables["params"]}, {}, {})
    state = state.replace(batch_stats=variables["batch_stats"])

    def embedding_of(state, features):
        found = networks.embed(model, variables_of(state), features)
        return embed.as_measured(stage.metric, found)

    split, validation = parts.task.train, parts.task.validation
    clips = np.arange(CLIPS)
    found = np.float64(embeddings_of(split.read(clips)))
    expected = [found[split.labels == label].mean(0) for label in range(len(LABELS))]
    (means,) = embed.class_means(parts, embedding_of)(state)
    np.testing.assert_allclose(means, expected, rtol=1e-4, atol=1e-6)

    clips = np.float64(embeddings_of(validation.read(np.arange(len(validation)))))
    squares = ((clips[:, None] - np.array(expected)) ** 2).sum(-1)
    accuracy = (squares.argmin(1) == validation.labels).mean()
    logs = (
        np.log(np.exp(-squares).sum(1))
        + squares[np.arange(len(clips)), validation.labels]
    )
    measures = make_validation(
        parts,
        embed.nearest_mean(embedding_of),
        parts.config.stages[0],
        embed.class_means(parts, embedding_of),
    )(state)
    assert measures["accuracy"] == pytest.approx(accuracy)
    assert measures["loss"] == pytest.approx(logs.mean(), rel=1e-4)


def test_its_rate_may_fall_after_epochs(tmp_path):
    config = two_stages()
    config.log_every_steps = 1
    config.stages[0].optimizer.update(
        schedule="epoch_step", step_epochs=(1.0,), step_factor=0.5
    )
    dispatch.run(tiny_parts(config, CLIPS), 0, tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line).get("learning_rate") for line in lines]
    # An epoch of 23 clips has 2.3 steps of two tuples with five clips each.
    assert [rate for rate in found if rate] == pytest.approx([0.05, 0.05, 0.025])


# Of TUPLES tuples: the anchor's label twice, then the others in an order of their own.
LABELS_OF_BATCH = jnp.array([2, 2, 0, 3, 1, 1, 1, 3, 0, 2])


def test_every_class_of_a_tuple_can_lend_the_anchor():
    rng = np.random.default_rng(1)
    z = rng.normal(size=(TUPLES * ROLES, 6))
    metric = {"loss": "npair", "lambda_": 0.7, "scale": 0.5, "anchors": "all"}
    stage = two_stages(normalise=False, **metric).stages[0]
    loss, _ = embed.tuple_loss(stage, jnp.float32(z), LABELS_OF_BATCH, ROLES)
    labels = np.asarray(LABELS_OF_BATCH).reshape(TUPLES, ROLES)
    tuples = z.reshape(TUPLES, ROLES, 6)
    of = [
        {label: tuples[m, r] for r, label in enumerate(labels[m]) if r != 1}
        for m in range(TUPLES)
    ]
    pairs = [(tuples[m, 0], tuples[m, 1], m, labels[m, 0]) for m in range(TUPLES)]
    pairs += [
        (of[m][label], of[(m + 1) % TUPLES][label], m, label)
        for m in range(TUPLES)
        for label in range(4)
    ]
    losses = []
    for anchor, positive, m, label in pairs:
        far = [np.linalg.norm(anchor - of[m][j]) for j in range(4) if j != label]
        near = np.linalg.norm(anchor - positive)
        losses.append(math.log1p(math.exp(0.5 * (near - 0.7 * sum(far)))))
    assert loss == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_loss_of_a_batch_is_the_mean_of_its_tuples():
    rng = np.random.default_rng(0)
    batch = rng.normal(size=(TUPLES * ROLES, 6))
    metric = {"lambda_": 0.2, "scale": 1.0, "anchors": "drawn"}
    stage = two_stages(distance="euclid", **metric).stages[0]
    loss, measures = embed.tuple_loss(stage, jnp.float32(batch), LABELS_OF_BATCH, ROLES)
    losses, nearest = [], []
    for z in batch.reshape(TUPLES, ROLES, 6):
        z = z / np.linalg.norm(z, axis=1, keepdims=True)
        pairs = itertools.combinations(np.delete(z, 1, axis=0), 2)
        between = sum(np.linalg.norm(x - y) for x, y in pairs)
        positive, *negatives = np.linalg.norm(z[1:] - z[0], axis=1)
        losses.append(math.log1p(math.exp(positive - 0.2 * between)))
        nearest.append(positive < min(negatives))
    assert loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert measures["nearest_positive"] == pytest.approx(np.mean(nearest))


def test_a_batch_of_the_stage_holds_tuples_on_the_host_and_on_the_device(parts):
    stage = parts.config.stages[0]
    on_device = dataclasses.replace(
        parts, config=parts.config.copy_and_resolve_references()
    )
    on_device.config.data.on_device = True
    batch = next(parts.host_batches(parts.task.train, stage, 5))
    assert len(batch["audio"]) == runner.clips_per_step(parts, stage) == TUPLES * ROLES
    labels = batch["label"].reshape(TUPLES, ROLES)
    assert (labels[:, 0] == labels[:, 1]).all()
    assert all(sorted(row[1:]) == [0, 1, 2, 3] for row in labels)
    inputs = on_device.recipe(parts.task.train, stage).inputs(
        on_device.selection(parts.task.train, stage)(5)
    )
    np.testing.assert_array_equal(inputs["index"], batch["index"])


def test_a_transformation_for_a_part_leaves_the_others_and_their_norm_out():
    params = {"head": {"w": jnp.full(2, 3.0)}, "body": {"w": jnp.full(2, 4.0)}}
    for part, other in (("head", "body"), ("encoder", "head")):
        moved = "head" if part == "head" else "body"
        clip = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0))
        transformation = for_part(clip, part)
        updates, _ = transformation.update(params, transformation.init(params), params)
        np.testing.assert_array_equal(updates[other]["w"], 0)
        np.testing.assert_allclose(updates[moved]["w"], -(0.5**0.5), rtol=1e-6)
    assert for_part(clip, "all") is clip


def test_the_frozen_encoder_infers_and_the_head_drops(parts, model, finished):
    variables = finished[0][2]
    features = jnp.float32(
        np.random.default_rng(0).normal(size=(64, *parts.frontend.shape))
    )

    @jax.jit
    def both(key):
        logits, stats = networks.infer_with_frozen_encoder(
            model, variables, features, rngs={"dropout": key}
        )
        return logits, stats, networks.embed(model, variables, features)

    logits, stats, embedding = jax.device_get(both(jax.random.key(0)))
    chex.assert_trees_all_equal(stats, variables["batch_stats"])
    kernel = variables["params"]["head"]["linear"]["kernel"]
    # Half of the entries are dropped, the others doubled: right on average.
    scale = np.linalg.lstsq((embedding @ kernel).ravel()[:, None], logits.ravel())[0]
    assert 0.8 < scale[0] < 1.2
    assert np.abs(logits - embedding @ kernel).max() > 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.metric.update(loss="cn3"), "metric.loss = 'cn3'"),
        (lambda s: s.metric.update(distance="l1"), "metric.distance = 'l1'"),
        (lambda s: s.metric.update(lambda_=-1.0), "metric.lambda_ = -1"),
        (lambda s: s.metric.update(scale=0.0), "metric.scale = 0"),
        (lambda s: s.metric.update(anchors="some"), "metric.anchors = 'some'"),
        (
            lambda s: (s.metric.update(anchors="all"), s.update(classes=3)),
            "give classes = 0",
        ),
        (
            lambda s: (s.metric.update(anchors="all"), s.update(tuples_per_batch=1)),
            "at least 2",
        ),
        (lambda s: s.update(classes=5), "Tuples of 5 classes"),
    ],
)
def test_a_stage_that_cannot_run_is_refused_before_training(change, message):
    config = two_stages()
    change(config.stages[0])
    parts = tiny_parts(config, CLIPS)
    with pytest.raises(UserError, match=message):
        embed.check(parts, config.stages[0])


def test_tuples_that_the_devices_cannot_share_are_refused():
    parts = tiny_parts(two_stages(), CLIPS)
    pod = dataclasses.replace(parts, mesh=SimpleNamespace(size=4))
    with pytest.raises(UserError, match=r"tuples_per_batch = 2 cannot .* example 4"):
        embed.check(pod, parts.config.stages[0])


def test_a_label_with_one_clip_is_refused_before_training(tmp_path):
    parts = tiny_parts(two_stages(), CLIPS)
    few = random_split("train", 7, 0)
    parts = dataclasses.replace(parts, task=dataclasses.replace(parts.task, train=few))
    with pytest.raises(UserError, match="'_silence_' has 1 training clip"):
        dispatch.check(parts, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.stages[1].update(trained_part="tail"), "'tail' is unknown"),
        (lambda c: c.update(stages=c.stages[1:]), "needs an encoder"),
        (lambda c: c.stages[0].update(tuples_per_batch=0), "tuples_per_batch = 0"),
        (lambda c: c.stages[0].update(epochs=1.0), "epochs = 1 and steps = 3"),
    ],
)
def test_a_config_that_cannot_work_is_refused(change, message):
    config = two_stages()
    change(config)
    with pytest.raises(UserError, match=message):
        configs.check(config)
