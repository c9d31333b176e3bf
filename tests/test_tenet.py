import jax
import numpy as np
import pytest
from network_values import QUICK, conv_same, random_variables
from tiny_parts import tiny_config, tiny_parts

from kws_jax.deploy.inference import load_inference
from kws_jax.models import front_filter, fusion, tenet
from kws_jax.models.counting import count_macs, count_parameters
from kws_jax.models.learned_frontend import FreeConv, WithFrontend
from kws_jax.models.registry import create_model
from kws_jax.stages import networks, runner, train
from kws_jax.training.checkpoints import StageCheckpoints
from kws_jax.training.state import WEIGHTS, create_train_state

RNG = np.random.default_rng(0)


def infer(module, variables, x):
    return jax.jit(
        lambda x: module.apply(variables, x, train=False), compiler_options=QUICK
    )(x)


def norm(x, params, stats, name):
    x = (x - stats[name]["mean"]) / np.sqrt(stats[name]["var"] + 1e-3)
    assert set(params[name]) == {"bias"}
    return x + params[name]["bias"]


def bottleneck(x, p, s, stride):
    y = np.maximum(norm(conv_same(x, p["expand"]["kernel"]), p, s, "expand_bn"), 0)
    total = 0.0
    p2, s2 = p["temporal"], s["temporal"]
    for k in (3, 5, 7, 9):
        if f"conv{k}" in p2:
            kernel = p2[f"conv{k}"]["kernel"]
            full = kernel * np.eye(kernel.shape[-1])
            total = total + norm(conv_same(y, full, stride), p2, s2, f"bn{k}")
    y = conv_same(np.maximum(total, 0), p["project"]["kernel"])
    y = norm(y, p, s, "project_bn")
    if stride == 2:
        x = norm(conv_same(x, p["shortcut_conv"]["kernel"], 2), p, s, "shortcut_bn")
    return x + y


@pytest.mark.parametrize("frames", [12, 13])
@pytest.mark.parametrize(("stride", "mtconv"), [(1, False), (2, False), (2, True)])
def test_inverted_bottleneck_follows_its_definition(frames, stride, mtconv):
    layer = tenet.InvertedBottleneck(stride, mtconv)
    x = RNG.normal(size=(2, frames, 4)).astype(np.float32)
    variables = random_variables(layer, x)
    p, s = variables["params"], variables["batch_stats"]
    assert set(p["temporal"]) == {
        f"{part}{k}"
        for part in ("conv", "bn")
        for k in ((3, 5, 7, 9) if mtconv else (9,))
    }
    expected = bottleneck(np.float64(x), p, s, stride)
    np.testing.assert_allclose(
        infer(layer, variables, x), expected, rtol=1e-4, atol=1e-5
    )


def test_network_is_its_layers_in_order():
    model = tenet.TENet(3, channels=4, depth=6)
    x = RNG.normal(size=(2, 21, 5)).astype(np.float32)
    variables = random_variables(model, x)
    p, s = variables["params"], variables["batch_stats"]
    y = conv_same(np.float64(x), p["stem"]["conv"]["kernel"])
    y = np.maximum(norm(y, p["stem"], s["stem"], "bn"), 0)
    for i, stride in enumerate([2, 1] * 3):
        y = bottleneck(y, p[f"layers_{i}"], s[f"layers_{i}"], stride)
    logits = y.mean(axis=1) @ p["head"]["linear"]["kernel"]
    np.testing.assert_allclose(
        infer(model, variables, x), logits, rtol=1e-3, atol=1e-4 * abs(logits).max()
    )


def behind(network, filters):
    """A network behind a dynamic filter, or behind learned filters too."""
    network = front_filter.filtered(network, "dynamic", 5, din=True)
    if filters == "learned":
        network = WithFrontend(FreeConv(taps=5, num_filters=5), network)
    return network


@pytest.mark.parametrize("filters", ["front", "learned"])
def test_any_network_infers_with_its_branches_fused(filters):
    branches = behind(tenet.TENet(3, channels=4, depth=6, mtconv=True), filters)
    single = behind(tenet.TENet(3, channels=4, depth=6), filters)
    x = RNG.normal(size=(2, 20, 5)).astype(np.float32)
    variables = random_variables(branches, x)
    model, fused = fusion.at_inference(branches, variables)
    assert model == single
    assert jax.tree.structure(fused) == jax.tree.structure(random_variables(single, x))
    expected = infer(branches, variables, x)
    scale = abs(expected).max()
    np.testing.assert_allclose(infer(model, fused, x), expected, atol=1e-4 * scale)
    # Nothing is left to be fused.
    assert fusion.at_inference(model, fused) == (model, fused)


def test_the_largest_network_is_fused_to_within_rounding():
    branches = tenet.TENet(12, channels=32, depth=12, mtconv=True)
    x = RNG.normal(size=(2, 98, 40)).astype(np.float32)
    variables = random_variables(branches, x)
    model, fused = fusion.at_inference(branches, variables)
    expected = infer(branches, variables, x)
    scale = abs(expected).max()
    np.testing.assert_allclose(infer(model, fused, x), expected, atol=1e-4 * scale)


def test_a_trained_network_answers_with_its_branches_fused(tmp_path):
    config = tiny_config()
    config.network = {
        "name": "tenet6_narrow",
        "mtconv": True,
        "dropout": 0.5,
        "batch_norm_momentum": 0.99,
    }
    parts = tiny_parts(config)
    model = networks.create_network(parts, tmp_path)
    features = RNG.normal(size=(4, *parts.frontend.shape)).astype(np.float32)
    variables = random_variables(model, features)
    kept = StageCheckpoints(runner.stage_folder(parts, 0, tmp_path))
    params, stats = networks.split_variables(variables)
    kept.save_best(1, create_train_state({WEIGHTS: params}, stats, {}), {})
    kept.close()
    (kept.directory / runner.DONE_FILE).write_text("[]")
    network = train.restore(parts, 0, tmp_path)
    assert not network.model.mtconv
    expected = infer(model, variables, features)
    scale = abs(expected).max()
    np.testing.assert_allclose(
        infer(network.model, network.variables, features), expected, atol=1e-4 * scale
    )
    # What is exported answers as it, and has the size that the results tell.
    loaded = load_inference(parts, tmp_path)
    assert not loaded.model.mtconv
    answers = jax.jit(loaded.from_features, compiler_options=QUICK)(features)
    np.testing.assert_allclose(answers, jax.nn.softmax(expected), atol=1e-4)
    told = networks.size_of(parts, network.model, network.variables)
    assert count_parameters(loaded.trees) == told["parameters"]
    macs = count_macs(loaded.from_features, networks.sample_features(parts))
    assert macs == told["macs"]
    with_branches = networks.size_of(parts, model, variables)
    assert told["parameters"] < with_branches["parameters"]
    assert told["macs"] < with_branches["macs"]


@pytest.mark.parametrize("frames", [20, 23])
def test_fused_network_infers_as_the_one_with_branches(frames):
    branches = tenet.TENet(3, channels=4, depth=6, mtconv=True)
    single = tenet.TENet(3, channels=4, depth=6)
    x = RNG.normal(size=(2, frames, 5)).astype(np.float32)
    variables = random_variables(branches, x)
    fused = tenet.fuse_mtconv(variables)
    assert jax.tree.structure(fused) == jax.tree.structure(random_variables(single, x))
    expected = infer(branches, variables, x)
    np.testing.assert_allclose(infer(single, fused, x), expected, atol=1e-4)
    untouched = fused["params"]["stem"]["conv"]["kernel"]
    np.testing.assert_array_equal(
        untouched, variables["params"]["stem"]["conv"]["kernel"]
    )


def test_a_network_without_branches_is_not_fused():
    x = RNG.normal(size=(1, 12, 5)).astype(np.float32)
    variables = random_variables(tenet.TENet(3, channels=2, depth=6), x)
    with pytest.raises(ValueError, match="MTConv"):
        tenet.fuse_mtconv(variables)


def macs_by_hand(channels, depth, *, expansion_at_output):
    """The paper counts the expansion of a layer of stride 2 at its output's rate."""
    total, frames = 98 * 3 * 40 * channels + channels * 12, 98
    for i in range(depth):
        first = i % (depth // 3) == 0
        out = -(-frames // 2) if first else frames
        expanded = out if expansion_at_output else frames
        total += 3 * channels * (expanded * channels + out * (9 + channels))
        total += first * out * channels**2
        frames = out
    return total


# variant -> channels, depth, thousands of MACs as published and as they are
SIZES = {
    "tenet6_narrow": (16, 6, 553, 618),
    "tenet12_narrow": (16, 12, 895, 961),
    "tenet6": (32, 6, 1_680, 1_950),
    "tenet12": (32, 12, 2_900, 3_170),
}


@pytest.mark.parametrize("name", SIZES)
def test_macs_are_those_of_the_table(name):
    channels, depth, published, true = SIZES[name]
    model = create_model(name, 12)
    x = jax.ShapeDtypeStruct((1, 98, 40), np.float32)
    variables = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False), x
    )
    counted = count_macs(lambda v, x: model.apply(v, x, train=False), variables, x)
    assert counted == macs_by_hand(channels, depth, expansion_at_output=False)
    as_published = macs_by_hand(channels, depth, expansion_at_output=True)
    # One unit of the last digit in print.
    unit = 10 if channels == 32 else 1
    assert as_published / 1000 == pytest.approx(published, abs=unit)
    assert counted / 1000 == pytest.approx(true, abs=unit)
