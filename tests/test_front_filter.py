"""Front filters before networks, and those the dynamic filter is compared with."""

from types import SimpleNamespace
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from network_values import QUICK, conv_same, random_variables
from tiny_parts import tiny_config, tiny_parts

from configs import autokws, dynamic_filter, pair_loss
from configs.common import spec_augment
from kws_jax.errors import UserError
from kws_jax.frontends.registry import create_frontend
from kws_jax.models.dynamic_conv import DynamicConv
from kws_jax.models.front_filter import FILTERS, FilteredNetwork, filtered
from kws_jax.models.learned_frontend import WithFrontend
from kws_jax.models.light_conv import LightConv
from kws_jax.models.registry import create_model
from kws_jax.models.tenet import TENet
from kws_jax.parts import Setup
from kws_jax.search.architecture import init_architecture
from kws_jax.search.methods import create_method
from kws_jax.search.space import SearchSpace
from kws_jax.search.supernet import SuperNet
from kws_jax.stages import dispatch, embed, learner, networks, runner, search
from kws_jax.stages.epochs import (
    EPOCH,
    tell_of_temperature,
    told_of_epochs,
    with_epoch,
)
from kws_jax.training.checkpoints import StageCheckpoints
from kws_jax.training.optimizers import for_part
from kws_jax.training.state import ARCHITECTURE, WEIGHTS, create_train_state
from kws_jax.training.step import make_train_step

B, T, F, K = 2, 12, 8, 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(B, T, F)).astype(np.float32)
STAGE = ConfigDict(
    {
        "label_smoothing": 0.0,
        "spec_augment": spec_augment(),
        "trained_part": "all",
    }
)
# "audio" of a batch holds features already.
PARTS = SimpleNamespace(features=lambda audio: audio)
PLAN = SimpleNamespace(steps_per_epoch=4.0)
BATCH = {
    "audio": jnp.asarray(X),
    "label": jnp.arange(B),
    "mask": jnp.ones(B, bool),
}


def test_dynamic_convolution_mixes_kernels_by_attention_whose_temperature_falls():
    model = DynamicConv(kernels=3, kernel_size=5, groups=2, temperature_epochs=10.0)
    variables = random_variables(model, X)
    run = jax.jit(
        lambda x, epoch: model.apply(variables, x, train=True, epoch=epoch),
        compiler_options=QUICK,
    )
    p, weights = variables["params"], []
    for epoch, temperature in ((0.0, 30.0), (2.5, 22.75), (10.0, 1.0), (50.0, 1.0)):
        expected = []
        for x in X.astype(np.float64):
            hidden = x.mean(axis=0) @ p["squeeze"]["kernel"] + p["squeeze"]["bias"]
            scores = np.maximum(hidden, 0) @ p["attend"]["kernel"] + p["attend"]["bias"]
            pi = np.exp(scores / temperature)
            pi /= pi.sum()
            weights.append(pi)
            kernel = sum(w * k for w, k in zip(pi, p["kernel"], strict=True))
            # Two groups: a kernel over all features that is 0 between them.
            full = np.zeros((5, F, F))
            full[:, :4, :4], full[:, 4:, 4:] = kernel[..., :4], kernel[..., 4:]
            expected.append(conv_same(x[None], full)[0] + pi @ p["bias"] + x)
        found = run(X, jnp.float32(epoch))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert np.ptp(weights[0]) < 0.1 * np.ptp(weights[-1])
    trained = jax.jit(
        lambda x: model.apply(variables, x, train=False), compiler_options=QUICK
    )
    np.testing.assert_allclose(trained(X), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gated", [True, False])
def test_light_convolution_is_its_sum_over_taps(gated):
    model = LightConv(kernel_size=5, heads=2, gated=gated, residual=not gated)
    variables = random_variables(model, X)
    p, x = variables["params"], X.astype(np.float64)
    if gated:
        both = x @ p["expand"]["kernel"] + p["expand"]["bias"]
        x = both[..., :F] / (1 + np.exp(-both[..., F:]))
    y = np.zeros_like(x)
    for t in range(T):
        for c in range(F):
            taps = np.exp(np.float64(p["taps"][0 if c < F // 2 else 1]))
            for i in range(5):
                if 0 <= t + i - 2 < T:
                    y[:, t, c] += taps[i] / taps.sum() * x[:, t + i - 2, c]
    y = y @ p["project"]["kernel"] + p["project"]["bias"] if gated else y + X
    run = jax.jit(
        lambda x: model.apply(variables, x, train=False), compiler_options=QUICK
    )
    np.testing.assert_allclose(run(X), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("network", "front"),
    [
        (TENet(K, channels=4, depth=3), "dynamic"),
        (create_model("tc_resnet8", K, width=0.25), "dynamic_conv"),
    ],
)
def test_a_step_trains_filter_and_network(network, front):
    model = filtered(network, front, F)
    variables = random_variables(model, X)
    params, statistics = networks.split_variables(variables)
    transformations = {WEIGHTS: optax.sgd(0.1)}
    loss_fn = learner.classification_loss(PARTS, STAGE, model)
    step = with_epoch(make_train_step(loss_fn, transformations), model, PLAN)
    state = create_train_state({WEIGHTS: params}, statistics, transformations)
    new, metrics = jax.jit(step, compiler_options=QUICK)(
        state, BATCH, jax.random.key(0)
    )
    assert np.isfinite(metrics["loss"])
    moved = jax.tree.map(lambda a, b: np.any(a != b), new.trees[WEIGHTS], params)
    assert all(jax.tree.leaves(moved["front_filter"])), moved["front_filter"]
    assert all(jax.tree.leaves((moved["network"]["stem"], moved["network"]["head"])))
    assert set(new.batch_stats) == {"network"}


def test_embedding_is_that_of_the_network_for_the_filtered_features():
    network = create_model("tc_resnet8", K, width=0.25)
    model = filtered(network, "light_conv", F)
    variables = random_variables(model, X)
    of_filter = {"params": variables["params"]["front_filter"]}
    of_network = {name: tree["network"] for name, tree in variables.items()}

    def both(x):
        clean = FILTERS["light_conv"]().apply(of_filter, x, train=False)
        expected = network.apply(of_network, clean, train=False, method="embed")
        return model.apply(variables, x, train=False, method="embed"), expected

    found, expected = jax.jit(both, compiler_options=QUICK)(X)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_step_tells_filtered_networks_alone_how_many_epochs_were_made():
    told = []

    def step(state, *inputs):
        told.append(inputs)
        return state, {}

    network = create_model("tc_resnet8", K)
    assert with_epoch(step, network, PLAN) is step
    model = FilteredNetwork(DynamicConv(), network)
    for made in (0, 6):
        state = SimpleNamespace(step=jnp.int32(made))
        with_epoch(step, model, PLAN)(state, {"a": 1}, {"b": 2}, "key")
    epochs = [[float(batch.pop(EPOCH)) for batch in inputs[:2]] for inputs in told]
    assert epochs == [[0.0, 0.0], [1.5, 1.5]]
    assert told[0] == ({"a": 1}, {"b": 2}, "key")


@pytest.mark.parametrize(
    ("model", "epochs", "reached"),
    [
        (DynamicConv(), 2.5, "22.8"),
        (DynamicConv(temperature_epochs=40.0), 10, "22.8"),
        (DynamicConv(), 10, None),
        (DynamicConv(temperature_epochs=0.0), 1, None),
        (DynamicConv(temperature=1.0), 1, None),
        (LightConv(), 1, None),
        (None, 1, None),
    ],
)
@pytest.mark.parametrize("learned", [False, True])
def test_a_stage_too_short_for_the_temperature_says_so(
    model, epochs, reached, learned, capsys
):
    network = create_model("tc_resnet8", K)
    network = FilteredNetwork(model, network) if model else network
    network = WithFrontend(None, network) if learned else network
    plan = SimpleNamespace(name="tune", total_steps=4 * epochs, steps_per_epoch=4.0)
    tell_of_temperature(network, plan)
    told = capsys.readouterr().err
    if reached is None:
        assert told == ""
        return
    assert f"the {epochs:g} epochs of stage 'tune' are fewer than" in told
    assert f"front_filter.temperature_epochs = {model.temperature_epochs:g}:" in told
    assert f"falls to {reached} alone" in told
    assert f"at most {epochs:g}." in told


def behind_dynamic_convolution(*stages):
    """Parts of 23 clips: trainings in batches of 4, with changes; None is an embed."""
    config = tiny_config(steps=2, batch_size=4).unlock()
    config.front_filter = ConfigDict({"name": "dynamic_conv", "groups": 4})
    (train,) = config.stages
    made = []
    for index, changes in enumerate(stages):
        stage = train.copy_and_resolve_references()
        if changes is None:
            stage = pair_loss.embed_stage(train, "cn2")
            stage.update(tuples_per_batch=2)
            changes = {}
        stage.update({"name": f"stage {index}", **changes})
        made.append(stage)
    config.stages = tuple(made)
    return tiny_parts(config, clips=23)


def test_trainings_behind_dynamic_convolution_tell_its_temperature(tmp_path, capsys):
    """The second goes on where the first has ended, and does not begin anew."""
    parts = behind_dynamic_convolution({}, None)
    dispatch.run(parts, 0, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        # What is told is told before.
        patch.setattr(embed.training_run, "run", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            dispatch.run(parts, 1, tmp_path)
    told = capsys.readouterr().err
    assert told.count("temperature_epochs = 10") == 2
    both = 2 / (23 / 4) + 2 / (23 / 10)
    until = f"the {both:.3g} epochs up to the end of stage 'stage 1' are fewer than"
    assert told.count(until) == 2
    assert told.count(f"falls to {30 - 29 * both / 10:.3g} alone") == 2


HEAD, SHORT, LONG = {"trained_part": "head", "steps": 100}, {}, {"steps": 60}
QUANTIZE = {"kind": "quantize", "steps": 100}


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        # 60 steps are 10.4 epochs, 2 are 0.348.
        ((SHORT, LONG), ""),
        ((SHORT, HEAD, SHORT, LONG), ""),
        ((SHORT,), "the 0.348 epochs of stage 'stage 0' are"),
        ((SHORT, HEAD), "the 0.348 epochs of stage 'stage 0' are"),
        ((SHORT, QUANTIZE, LONG), "the 0.348 epochs of stage 'stage 0' are"),
        ((SHORT, HEAD, SHORT), "the 0.696 epochs up to the end of stage 'stage 2' are"),
    ],
)
def test_temperature_that_a_later_stage_brings_to_its_end_is_not_told(
    stages, told, tmp_path, capsys
):
    parts = behind_dynamic_convolution(*stages)
    model = networks.create_network(parts, tmp_path)
    plan = runner.plan_of(parts, 0, 23)
    told_of_epochs(Mock(), parts, 0, tmp_path, model, plan)
    error = capsys.readouterr().err
    assert told in error
    assert bool(error) == bool(told)


def test_epochs_that_stages_really_made_go_on_in_the_next(tmp_path):
    long = {"steps": 100}
    parts = behind_dynamic_convolution(
        long, long, {**long, "trained_part": "head"}, long, long
    )
    # The first two ended early, the second one at its best; the head's made no epoch.
    for index, steps in enumerate(((3, 6), (23,), (50,), (40,))):
        checkpoints = StageCheckpoints(runner.stage_folder(parts, index, tmp_path))
        for step in steps:
            checkpoints.save_last(step, {"a": jnp.zeros(1)}, {})
        checkpoints.close()
    model, told = FilteredNetwork(DynamicConv(), create_model("tc_resnet8", K)), []

    def step(state, *inputs):
        told.append(float(inputs[0][EPOCH]))
        return state, {}

    def step_of(index):
        plan = runner.plan_of(parts, index, 23)
        return told_of_epochs(step, parts, index, tmp_path, model, plan)

    for index in (0, 1, 3):
        step_of(index)(SimpleNamespace(step=jnp.int32(5)), {}, "key")
    epochs = [5 / (23 / 4), (6 + 5) / (23 / 4), (6 + 23 + 5) / (23 / 4)]
    assert told == pytest.approx(epochs, rel=1e-6)
    assert step_of(2) is step
    # After 12 epochs the temperature is at 1.
    assert step_of(4) is step


def test_filter_of_a_supernet_is_trained_with_its_weights():
    method = create_method("darts")
    space = SearchSpace(strides=(2,), channels=(4,), stem_channels=4)
    model = filtered(SuperNet(K, space), "dynamic", F)
    architecture = init_architecture(jax.random.key(0), space.candidates)
    shapes = networks.variable_shapes(model, X, method.op_weights(architecture))
    params, statistics = networks.split_variables(shapes)
    assert set(params) == {"front_filter", "network"}
    loss_fn = search.search_loss(PARTS, STAGE, model, method)
    gradient, _ = jax.eval_shape(
        jax.grad(loss_fn, has_aux=True),
        {WEIGHTS: params, ARCHITECTURE: architecture},
        statistics,
        {**BATCH, EPOCH: jnp.float32(0)},
        jax.random.key(0),
    )
    assert jax.tree.structure(gradient[WEIGHTS]) == jax.tree.structure(params)


@pytest.mark.parametrize("name", FILTERS)
def test_filters_keep_the_type_they_compute_in(name):
    model = FILTERS[name]()
    shapes = networks.variable_shapes(model, X)
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, "bfloat16"), shapes)
    y = jax.eval_shape(
        lambda v, x: model.apply(v, x, train=True, epoch=jnp.float32(1)),
        half,
        jax.ShapeDtypeStruct(X.shape, "bfloat16"),
    )
    assert (y.shape, y.dtype) == (X.shape, jnp.bfloat16)


def setup_of(config):
    return Setup(config, ("up", "down"), create_frontend("mfcc"), mesh=None)


def test_config_puts_the_filter_before_the_network(tmp_path):
    config = dynamic_filter.get_config("no_din,res15_narrow").unlock()
    model = networks.create_network(setup_of(config), tmp_path)
    assert isinstance(model, FilteredNetwork)
    assert not model.front_filter.din
    plain = dynamic_filter.get_config("tenet,res15_narrow")
    expected = create_model("res15_narrow", 2, batch_norm_momentum=0.9)
    assert networks.create_network(setup_of(plain), tmp_path) == expected
    # As experiments were stored before there were filters.
    del config["front_filter"]
    assert networks.create_network(setup_of(config), tmp_path) == expected


@pytest.mark.parametrize(
    ("front", "message"),
    [
        ({"name": "dynamc"}, "no front filter is named 'dynamc': did you mean 'dynami"),
        ({"name": "dynamic", "dni": True}, "no setting 'dni': did you mean 'din'"),
        ({"name": "dynamic", "din": 1}, "'din' .* must be True or False, got 1"),
        ({"name": "none", "din": True}, "'none' has no settings, got din"),
        ({"name": "light_conv", "kernel_size": 4}, "'kernel_size' .* an odd number"),
        ({"name": "light_conv", "heads": 7}, "'heads' .* a divisor of the 40 feat"),
        ({"name": "dynamic_conv", "groups": 0}, "'groups' .* a divisor of the 40 fe"),
        ({"name": "dynamic_conv", "temperature": 0.5}, "'temperature' .* at least 1"),
    ],
)
def test_filters_that_do_not_fit_are_refused_before_and_after_a_search(
    front, message, tmp_path
):
    config = dynamic_filter.get_config("").unlock()
    config.front_filter = ConfigDict(front)
    with pytest.raises(UserError, match=message):
        networks.create_network(setup_of(config), tmp_path)
    config = autokws.get_config("").unlock()
    config.front_filter = ConfigDict(front)
    with pytest.raises(UserError, match=message):
        networks.stand_in(setup_of(config))


def test_the_head_behind_a_filter_is_trained_alone():
    tiny = TENet(num_labels=K, depth=6, channels=4, batch_norm_momentum=0.9)
    model = filtered(tiny, "light_conv", F, heads=2)
    variables = random_variables(model, X)
    head_only = for_part(optax.sgd(1.0), "head")

    def loss(params):
        logits, _ = networks.infer_with_frozen_encoder(
            model,
            {**variables, "params": params},
            jnp.asarray(X),
            rngs={"dropout": jax.random.key(0)},
        )
        return (logits**2).sum()

    params = variables["params"]
    gradient = jax.jit(jax.grad(loss), compiler_options=QUICK)(params)
    updates, _ = head_only.update(gradient, head_only.init(params), params)
    moved = {
        tuple(key.key for key in path)[:2]
        for path, update in jax.tree_util.tree_leaves_with_path(updates)
        if np.any(update)
    }
    assert moved == {("network", "head")}
