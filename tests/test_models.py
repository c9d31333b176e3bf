import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_values import conv_same, random_variables

from configs import dynamic_filter, network
from kws_jax.errors import UserError
from kws_jax.frontends.registry import create_frontend
from kws_jax.models import blocks, front_filter, registry
from kws_jax.models.counting import (
    count_macs,
    count_parameters,
    count_parameters_with_statistics,
)
from kws_jax.models.genotype import Genotype

# (name, settings) -> trainable parameters, and with batch statistics
PARAMETERS = [
    ("tc_resnet8", {}, 65_168, 65_824),
    ("tc_resnet8", {"width": 1.5}, 144_264, 145_248),
    ("tc_resnet14", {}, 135_856, 136_928),
    ("tc_resnet14", {"width": 1.5}, 303_000, 304_608),
    ("searched", {"genotype": "autokws-darts"}, 70_338, 71_322),
    ("searched", {"genotype": "autokws-fairdarts"}, 161_571, 163_035),
    ("searched", {"genotype": "autokws-noisydarts"}, 121_692, 122_820),
    ("conv_mixer", {}, 119_620, 121_292),
    ("res15", {}, 237_882, 239_052),
    ("res15_narrow", {}, 42_648, 43_142),
    # Of the published 109,622 two for each of 60 filters belong to the front end.
    ("mbconv", {}, 109_502, 113_642),
    ("tenet6", {}, 50_816, 53_760),
    ("tenet12", {}, 94_208, 99_840),
    ("tenet12", {"mtconv": True}, 114_944, 127_488),
    ("tenet6_narrow", {}, 15_424, 16_896),
    ("tenet12_narrow", {}, 27_904, 30_720),
    # 247·64 + 64 + 4·(64·64 + 64) + 64·62 + 62, with six states for each of ten words;
    # mean and deviation of 13 features, 62 shares of states, a count.
    ("acoustic_dnn", {}, 36_542, 36_631),
]
# (front filter, settings) -> trainable parameters and MACs at 98 frames of 40 features
FILTERS = [
    ("dynamic", {}, 5_378, 75_720),
    ("dynamic", {"din": False}, 2_258, 72_520),
    ("dynamic_conv", {}, 5_414, 123_000),
    ("light_conv", {}, 4_976, 497_840),
    ("light_conv", {"gated": False}, 56, 27_440),
]
# Features of one second that a network's paper uses, where they are not 40 MFCCs.
BANDS = {"conv_mixer": 64, "acoustic_dnn": 13}


def model_shapes(model, bands=40):
    features = jax.ShapeDtypeStruct((1, 98, bands), jnp.float32)
    return jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False), features
    )


@pytest.mark.parametrize(("name", "settings", "trainable", "with_stats"), PARAMETERS)
def test_parameter_counts_are_exact(name, settings, trainable, with_stats):
    model = registry.create_model(name, 12, **settings)
    variables = model_shapes(model, BANDS.get(name, 40))
    assert count_parameters(variables["params"]) == trainable
    assert count_parameters_with_statistics(variables) == with_stats


@pytest.mark.parametrize(("name", "settings", "parameters", "macs"), FILTERS)
def test_counts_of_front_filters_are_exact(name, settings, parameters, macs):
    model = front_filter.create_filter(name, 40, **settings)
    variables = model_shapes(model)
    assert count_parameters(variables["params"]) == parameters
    assert count_parameters_with_statistics(variables) == parameters
    features = jax.ShapeDtypeStruct((1, 98, 40), jnp.float32)
    counted = count_macs(
        lambda v, x: model.apply(v, x, train=False), variables, features
    )
    assert counted == macs


def test_every_front_filter_has_known_counts_and_a_word_of_its_config():
    assert {name for name, *_ in FILTERS} == set(front_filter.FILTERS)
    words = {settings["name"] for settings in dynamic_filter.FILTERS.values()}
    assert words == {front_filter.NONE, *front_filter.FILTERS}


def test_network_behind_a_filter_has_the_parameters_of_both():
    tenet = registry.create_model("tenet12", 12)
    variables = model_shapes(front_filter.filtered(tenet, "dynamic", 40))
    own, plain = variables["params"]["network"], model_shapes(tenet)["params"]
    assert set(variables["params"]) == {"front_filter", "network"}
    assert jax.tree.structure(own) == jax.tree.structure(plain)
    assert count_parameters(variables["params"]) == 94_208 + 5_378
    assert count_parameters_with_statistics(variables) == 105_218


@pytest.mark.parametrize("word", dynamic_filter.FILTERS)
def test_configs_give_all_settings_of_a_front_filter(word):
    config = dynamic_filter.get_config(word)
    settings = {k: v for k, v in config.front_filter.items() if k != "name"}
    name = config.front_filter.name
    known = front_filter.filter_settings(name) if name != front_filter.NONE else ()
    assert set(settings) == set(known)


@pytest.mark.parametrize("name", network.NETWORKS)
def test_configs_give_all_settings_of_a_network_and_its_front_end(name):
    config = network.get_config(name)
    settings = {k: v for k, v in config.network.items() if k != "name"}
    assert set(settings) == set(registry.model_settings(name))
    frontend = {k: v for k, v in config.frontend.items() if k != "name"}
    shape = create_frontend(config.frontend.name, **frontend).shape
    model = registry.create_model(name, 12, **settings)
    jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False), jnp.zeros((1, *shape))
    )


def test_every_network_has_a_config():
    assert {*network.NETWORKS, *network.TC_RESNETS} == set(registry.MODELS)


def test_every_registered_model_has_a_known_parameter_count():
    assert {name for name, *_ in PARAMETERS} == set(registry.MODELS)


def parameters_by_hand(genotype, features=40, labels=12):
    total = 3 * features * genotype.stem_channels + 2 * genotype.stem_channels
    before = genotype.stem_channels
    for names, stride, c in zip(genotype.layers, genotype.strides, genotype.channels):
        for name in names:
            if name == "SKIP":
                continue
            k = int(name[1])
            total += k * before * c + k * c * c + 4 * c
            if name.endswith("SE"):
                hidden = c // genotype.se_reduction
                total += c * hidden + hidden + hidden * c + c
            if stride == 2:
                j = 1 if genotype.shortcut == "1x1" else k
                total += j * before * c + 2 * c
        before = c
    return total + before * labels


@pytest.mark.parametrize("shortcut", ["1x1", "jx1"])
@pytest.mark.parametrize("reduction", [4, 16])
def test_searched_parameters_follow_the_formula(shortcut, reduction):
    genotype = Genotype(
        (("C7SE",), ("C9SE", "C5SE"), ("C3SE",), ("C5", "SKIP"), ("C7",), ("SKIP",)),
        shortcut=shortcut,
        se_reduction=reduction,
    )
    variables = model_shapes(registry.create_model("searched", 12, genotype=genotype))
    assert count_parameters(variables["params"]) == parameters_by_hand(genotype)


def test_genotype_setting_takes_a_path(tmp_path):
    genotype = Genotype((("C3",), ("SKIP",)), strides=(2, 1), channels=(4, 4))
    (tmp_path / "genotype.json").write_text(genotype.to_json())
    path = str(tmp_path / "genotype.json")
    model = registry.create_model("searched", 12, genotype=path)
    assert model.genotype == genotype


def test_unknown_model_and_setting_name_the_nearest():
    with pytest.raises(UserError, match="tc_resnet8"):
        registry.create_model("tcresnet8", 12)
    with pytest.raises(UserError, match="'width'"):
        registry.create_model("tc_resnet8", 12, witdh=1.5)
    with pytest.raises(UserError, match="no setting 'depth'"):
        registry.create_model("tc_resnet8", 12, depth=14)
    with pytest.raises(UserError, match="genotype"):
        registry.create_model("searched", 12)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("tc_resnet8", {"width": 0.0}), ("tc_resnet8", {"dropout": 1.0})],
)
def test_settings_out_of_range_are_refused(name, settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        registry.create_model(name, 12, **settings)


def block_by_hand(x, variables, stride, *, se):
    p, s = variables["params"], variables["batch_stats"]

    def norm(y, name):
        y = (y - s[name]["mean"]) / np.sqrt(s[name]["var"] + 1e-3)
        return y * p[name]["scale"] + p[name]["bias"]

    y = np.maximum(norm(conv_same(x, p["conv1"]["kernel"], stride), "bn1"), 0)
    y = norm(conv_same(y, p["conv2"]["kernel"], 1), "bn2")
    if se:
        q = p["se"]
        h = y.mean(axis=1) @ q["squeeze"]["kernel"] + q["squeeze"]["bias"]
        h = np.maximum(h, 0) @ q["excite"]["kernel"] + q["excite"]["bias"]
        y = y / (1 + np.exp(-h))[:, None]
    if "shortcut_conv" in p:
        x = conv_same(x, p["shortcut_conv"]["kernel"], stride)
        x = np.maximum(norm(x, "shortcut_bn"), 0)
    return np.maximum(x + y, 0)


@pytest.mark.parametrize(
    ("stride", "channels", "se", "shortcut"),
    [(1, 8, False, "1x1"), (2, 12, True, "1x1"), (2, 8, False, "jx1")],
)
def test_tc_block_follows_its_definition(stride, channels, se, shortcut):
    block = blocks.TCBlock(5, channels, stride, se=se, shortcut=shortcut)
    x = np.random.default_rng(1).normal(size=(2, 11, 8)).astype(np.float32)
    variables = random_variables(block, x)
    expected_shortcut = stride == 2
    assert ("shortcut_conv" in variables["params"]) == expected_shortcut
    if expected_shortcut:
        kernel = variables["params"]["shortcut_conv"]["kernel"]
        assert len(kernel) == (1 if shortcut == "1x1" else 5)
    got = jax.jit(lambda x: block.apply(variables, x, train=False))(x)
    expected = block_by_hand(np.float64(x), variables, stride, se=se)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_training_normalises_with_the_batch_and_moves_the_statistics():
    block = blocks.TCBlock(3, 4)
    x = np.random.default_rng(1).normal(2.0, 3.0, size=(5, 9, 4)).astype(np.float32)
    variables = random_variables(block, x)
    before = variables["batch_stats"]["bn1"]
    moved = jax.jit(
        lambda x: block.apply(variables, x, train=True, mutable=["batch_stats"])[1]
    )(x)
    y = conv_same(np.float64(x), variables["params"]["conv1"]["kernel"], 1)
    stats = moved["batch_stats"]["bn1"]
    mean, var = y.mean((0, 1)), y.var((0, 1))
    for name, value in (("mean", mean), ("var", var)):
        expected = 0.997 * before[name] + 0.003 * value
        np.testing.assert_allclose(stats[name], expected, rtol=1e-4, atol=1e-6)


def test_tc_resnet_is_its_blocks_in_order():
    model = registry.create_model("tc_resnet14", 3, width=0.25)
    x = np.random.default_rng(2).normal(size=(2, 13, 6)).astype(np.float32)
    variables = random_variables(model, x)
    p, s = variables["params"], variables["batch_stats"]

    y = conv_same(np.float64(x), p["stem"]["conv"]["kernel"], 1)
    y = (y - s["stem"]["bn"]["mean"]) / np.sqrt(s["stem"]["bn"]["var"] + 1e-3)
    y = np.maximum(y * p["stem"]["bn"]["scale"] + p["stem"]["bn"]["bias"], 0)
    for i, stride in enumerate([2, 1, 2, 1, 2, 1]):
        part = {"params": p[f"blocks_{i}"], "batch_stats": s[f"blocks_{i}"]}
        y = block_by_hand(y, part, stride, se=False)
    embedding = y.mean(axis=1)

    def run(x, method):
        return model.apply(variables, x, train=False, method=method)

    run = jax.jit(run, static_argnames="method")
    np.testing.assert_allclose(run(x, "embed"), embedding, rtol=1e-3)
    got = run(x, "__call__")
    logits = embedding @ p["head"]["linear"]["kernel"]
    np.testing.assert_allclose(got, logits, rtol=1e-3, atol=1e-3 * abs(logits).max())


def test_dropout_keeps_the_expected_share_of_the_embedding():
    head = blocks.Head(1, dropout=0.25)
    embedding = jnp.ones((2000, 1))
    variables = {"params": {"linear": {"kernel": jnp.ones((1, 1))}}}
    key = jax.random.key(3)
    out = head.apply(variables, embedding, train=True, rngs={"dropout": key})
    values = np.unique(np.round(out, 4))
    np.testing.assert_allclose(values, [0, 4 / 3], atol=1e-4)
    assert abs(np.mean(out > 0) - 0.75) < 0.04
