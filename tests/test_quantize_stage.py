"""The stage that quantises, from the config to what is tested and predicted."""

import dataclasses
import io
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from network_values import QUICK, random_variables
from rich.console import Console
from test_stages import setup_of
from words import KEYWORDS, on_words, write_words

from configs import autokws, dynamic_filter, end_to_end_nas, quantized, tc_resnet
from kws_jax import config as configs
from kws_jax import experiment
from kws_jax.data.audio_files import read_audio
from kws_jax.data.conditions import CLEAN
from kws_jax.deploy import packed_writer
from kws_jax.deploy.formats import request_of
from kws_jax.deploy.inference import load_inference
from kws_jax.errors import UserError
from kws_jax.evaluation.testing import predict_split
from kws_jax.frontends.registry import create_frontend
from kws_jax.models.genotype import load_genotype
from kws_jax.parts import load_setup
from kws_jax.quantization.integers import to_integers
from kws_jax.quantization.network import Bits, QuantizedNetwork
from kws_jax.report.terminal import print_summary
from kws_jax.report.workdir import read_run
from kws_jax.stages import dispatch, networks, quantize, train

STEPS = 6


def tiny(folder):
    """A shallow network, trained for some steps on tones, then quantised."""
    config = quantized.get_config("learned_bits,mbconv").unlock()
    config.network.layers = ("E1K3", "SKIP", "SKIP") * 2
    on_words(config, folder)
    config.evaluation.update(snr_db=(), batch_size=16)
    for stage in config.stages:
        stage.update(steps=STEPS, batch_size=8, eval_every_epochs=3 * 8 / 44)
    config.stages[1].update(keep_float=("head/*",), calibration_batches=2)
    # Fast enough for bits to be given away in so few steps.
    config.stages[1].bits_optimizer.learning_rate = 0.5
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder of the run, rows of its results, quantised network, its best state)."""
    folder = tmp_path_factory.mktemp("quantized")
    write_words(folder / "words")
    config = tiny(folder)
    configs.check(config)
    workdir = folder / "run"
    rows = experiment.run(config, str(workdir))
    return (
        workdir,
        rows,
        *quantize.restore_quantized(load_setup(workdir), 1, workdir),
    )


def test_rates_may_fall_after_epochs_in_every_optimiser_of_the_stage():
    stage = quantized.get_config("learned_bits,cpu").unlock().stages[-1]
    for name in ("optimizer", "range_optimizer", "bits_optimizer"):
        stage[name].update(schedule="epoch_step", step_epochs=(2.0,), step_factor=0.0)
        stage[name].update(weight_decay=0.0)
    made, schedule = quantize.transformations_of(stage, 50, steps_per_epoch=10.0)
    assert [schedule(step) > 0 for step in (19, 20)] == [True, False]
    assert len(made) == 3
    for label, transformation in made.items():
        values = {"kernel": jnp.full((1, 1), 3.0)}
        state, moves = transformation.init(values), []
        for _ in range(22):
            updates, state = transformation.update(values, state, values)
            moves.append(float(updates["kernel"][0, 0]) != 0)
        assert moves == [True] * 20 + [False] * 2, label


def test_rows_give_bits_by_layer_that_agree_with_their_means(finished):
    _, rows, network, _ = finished
    found = {r["metric"]: r["value"] for r in rows if r["stage"] == "quantize"}
    for name, counts in (
        ("weight_bits", network.sites.weight_counts),
        ("activation_bits", network.sites.activation_counts),
    ):
        bits = [found[f"{name}/{layer}"] for layer in counts]
        assert all(b in range(2, 9) for b in bits)
        assert found[name] == pytest.approx(
            np.average(bits, weights=[*counts.values()])
        )
        assert found[name] < 8
    counts = network.sites.weight_counts
    held = sum(counts[n] * found[f"weight_bits/{n}"] for n in counts) / 8
    labels = len(KEYWORDS) + 2
    assert found["weight_bytes"] == pytest.approx(held + 4 * 80 * labels)


def test_the_quantised_network_is_what_is_tested_and_predicts(finished):
    workdir, rows, network, state = finished
    setup = load_setup(workdir)
    answers = dispatch.finished_network(setup, workdir).probabilities
    file = next((workdir.parent / "words" / "up").iterdir())
    clip = jnp.asarray(read_audio(file))[None]
    logits = network.infer(state.trees, state.batch_stats, setup.frontend(clip))
    np.testing.assert_allclose(answers(clip), jax.nn.softmax(logits), atol=1e-5)
    float_network = train.restore(setup, 0, workdir)
    assert np.abs(answers(clip) - float_network.probabilities(clip)).max() > 1e-4
    tested = [r for r in rows if r["split"] == "test" and r["metric"] == "accuracy"]
    assert [r["stage"] for r in tested] == ["quantize"]


def test_the_network_is_tested_in_float_too_and_both_are_told(finished):
    workdir, rows, _, _ = finished
    config = tiny(workdir.parent)
    parts = experiment.build_parts(config, Console(quiet=True))
    network = train.restore(load_setup(workdir), 0, workdir)
    batches = parts.eval_batches(parts.task.test, CLEAN)
    probabilities, truth = predict_split(network.predict, batches)
    tested = [r for r in rows if r["metric"] == "float_accuracy"]
    assert [(r["stage"], r["split"], r["condition"]) for r in tested] == [
        ("quantize", "test", "clean")
    ]
    assert tested[0]["value"] == np.mean(probabilities.argmax(-1) == truth)
    console = Console(file=io.StringIO(), width=100)
    print_summary(workdir, console)
    told = console.file.getvalue()
    of = {r["metric"]: r["value"] for r in rows if r["stage"] == "quantize"}
    assert "before, in float" in told
    assert f"{100 * of['float_accuracy']:.1f} %" in told
    assert f"{of['weight_bits']:.3g} a weight" in told
    assert f"{of['weight_bytes']:,.0f} bytes" in told
    in_float = 80 * (len(KEYWORDS) + 2)
    assert of["weights_in_float"] == in_float
    assert f"a weight (but for {in_float} weights in float)" in told
    page = (workdir / "report.html").read_text()
    assert "were before, in float." in page
    row = page[page.index(">float_accuracy<") :]
    assert f"{100 * of['float_accuracy']:.2f} %" in row[: row.index("</tr>")]


def test_the_size_of_the_packed_file_is_that_of_the_file(finished, tmp_path):
    workdir, rows, _, _ = finished
    (size,) = (r["value"] for r in rows if r["metric"] == "packed_bytes")
    path = tmp_path / "kws.kwsp"
    inference = load_inference(load_setup(workdir), workdir)
    packed_writer.write(inference, request_of("packed", "", ""), path)
    assert path.stat().st_size == size
    assert (
        f"and the packed file <b>{size:,.0f} bytes</b>"
        in (workdir / "report.html").read_text()
    )


def test_embeddings_are_those_of_the_quantised_network(finished):
    workdir, _, _, state = finished
    network = dispatch.finished_network(load_setup(workdir), workdir)
    clips = np.random.default_rng(0).integers(-9000, 9000, (3, 16000), np.int16)
    # The head is kept in float, so that it can be written down.
    head = state.trees["weights"]["head"]["linear"]
    logits = network.embeddings(clips) @ head["kernel"] + head.get("bias", 0.0)
    np.testing.assert_allclose(
        jax.nn.softmax(logits), network.probabilities(clips), atol=1e-6
    )


def test_running_statistics_follow_and_all_trees_are_trained(finished):
    workdir, _, network, state = finished
    setup = load_setup(workdir)
    before = train.best_state(setup, 0, workdir, network.model)
    followed = jax.tree.map(
        lambda a, b: bool(np.abs(a - b).max() > 0),
        before.batch_stats,
        state.batch_stats,
    )
    assert all(jax.tree.leaves(followed))
    ranges = json.loads(
        (workdir / "stages/1-quantize" / quantize.RANGES_FILE).read_text()
    )
    assert set(ranges) == set(state.trees["quantization_bounds"])
    moved = jax.tree.map(
        lambda a, b: bool(np.abs(a - b).max() > 0),
        before.trees["weights"],
        state.trees["weights"],
    )
    assert all(jax.tree.leaves(moved))


def test_a_network_quantised_with_norms_inside_is_refused(finished, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(finished[0], copy)
    stage = copy / "stages/1-quantize"
    (stage / quantize.RANGES_FILE).rename(stage / "ranges.json")
    with pytest.raises(UserError, match="quantised by an earlier version"):
        dispatch.finished_network(load_setup(copy), copy)


def test_the_trained_network_has_integers(finished):
    _, _, network, state = finished
    given = to_integers(network, state.trees, state.batch_stats)
    assert given.kept == ("head/linear",)
    for name, weights in network.weights_of(state.trees, state.batch_stats).items():
        layer = given.layers[name]
        np.testing.assert_allclose(layer.weights * layer.scale, weights, rtol=1e-6)
        assert np.abs(layer.weights).max() == 2 ** (layer.bits - 1) - 1


def test_the_report_draws_bits_and_the_log_tells_how_they_fell(finished):
    workdir = finished[0]
    page = (workdir / "report.html").read_text()
    assert "Bits of weights and activations by layer" in page
    assert "stem/conv: " in page
    lines = [m for m in read_run(workdir).metrics if m["stage"] == "quantize"]
    scores = [m["score"] for m in lines if m["split"] == "validation"]
    losses = [m["loss"] for m in lines if m["split"] == "validation"]
    assert all(score < -loss for score, loss in zip(scores, losses, strict=True))
    assert all("weight_bits" in m for m in lines if m["split"] == "train")


def test_a_finished_run_goes_on_from_its_files(finished):
    workdir, rows, _, _ = finished
    config = tiny(workdir.parent)
    assert experiment.run(config, str(workdir))[-1] == rows[-1]


def test_a_network_that_is_not_trained_before_is_refused(tmp_path):
    config = quantized.get_config("w8a8,cpu").unlock()
    config.stages = (config.stages[1],)
    with pytest.raises(UserError, match="a stage of kind 'train' right before"):
        quantize.check(setup_of(config), 0, tmp_path)


def test_patterns_are_checked_before_training_where_the_network_is_known(tmp_path):
    config = quantized.get_config("w8a8,cpu").unlock()
    config.stages[1].keep_float = ("heads/*",)
    with pytest.raises(UserError, match=r"no layer is named 'heads/\*'"):
        quantize.check(setup_of(config), 1, tmp_path)


@pytest.mark.parametrize(
    ("config", "layer"),
    [
        (autokws.get_config("w4a4,cpu").unlock(), "layers_4/C7*"),
        (end_to_end_nas.get_config("mfcc10,w4a4,cpu").unlock(), "blocks_1/*"),
    ],
    ids=["autokws", "mbconv"],
)
def test_layers_that_a_found_network_may_lack_can_be_kept(config, layer, tmp_path):
    last = len(config.stages) - 1
    config.stages[last].keep_float = (layer, "head/*")
    quantize.check(setup_of(config), last, tmp_path)
    # A found network that lacks it is quantised as one that has it.
    setup = setup_of(config)
    if "genotype" in config.network:
        networks.keep_genotype(load_genotype("autokws-noisydarts"), tmp_path)
    else:
        found = ("E2K3", "SKIP", "E1K3", "E2K3", "SKIP", "E1K3")
        networks.keep_layers(setup, found, tmp_path)
    quantize.check(setup, last, tmp_path)
    model = networks.create_network(setup, tmp_path)
    sites = quantize._sites(setup, config.stages[last], model)
    assert "head/linear" in sites.kept
    config.stages[last].keep_float = ("heads/*",)
    with pytest.raises(UserError, match=r"no layer is named 'heads/\*'"):
        quantize.check(setup, last, tmp_path)


@pytest.mark.parametrize("word", [w for w in dynamic_filter.FILTERS if w != "tenet"])
def test_a_network_behind_a_filter_is_quantised_and_its_filter_is_not(word, tmp_path):
    config = dynamic_filter.get_config(f"{word},tenet6,w2a3,cpu").unlock()
    setup = setup_of(config)
    quantize.check(setup, 1, tmp_path)
    model = networks.create_network(setup, tmp_path)
    sites = quantize._sites(setup, config.stages[1], model)
    assert all(name.startswith("front_filter/") for name in sites.kept)
    assert sites.kept
    assert "network/head/linear" in sites.layers
    # Whatever the stage itself says.
    for keep in ((), ("*/head/*",)):
        config.stages[1].keep_float = keep
        quantize.check(setup, 1, tmp_path)
        again = quantize._sites(setup, config.stages[1], model)
        assert set(again.kept) == {
            *sites.kept,
            *(["network/head/linear"] if keep else []),
        }


def test_a_filter_that_the_config_gets_by_an_override_learns_in_float(tmp_path):
    config = quantized.get_config("w4a4,cpu").unlock()
    config.network.width = 0.25
    config.front_filter = dynamic_filter.get_config("din,cpu").front_filter
    setup = setup_of(config)
    quantize.check(setup, 1, tmp_path)
    model = networks.create_network(setup, tmp_path)
    sites = quantize._sites(setup, config.stages[1], model)
    x = np.random.default_rng(0).normal(size=(4, *setup.frontend.shape))
    variables = random_variables(model, np.float32(x))
    flat = traverse_util.flatten_dict(variables["params"], sep="/")
    kernels = {name.removesuffix("/kernel") for name in flat if flat[name].ndim > 1}
    own = {name for name in kernels if name.startswith("front_filter/")}
    assert len(own) > 1
    assert set(sites.kept) == own
    assert set(sites.layers) == kernels - own
    signed = dict.fromkeys(sites.activation_counts, True)
    network = QuantizedNetwork(model, sites, Bits(4, 4), signed)
    more = network.initial_trees(dict.fromkeys(signed, 4.0))

    def loss(params):
        told = {**variables, "params": {"weights": params, **more}}
        rngs = {"dropout": jax.random.key(0)}
        settings = {"train": True, "mutable": ["batch_stats"], "rngs": rngs}
        logits, _ = network.apply(told, np.float32(x), **settings)
        return (logits * jnp.arange(logits.shape[1])).sum()

    learn = jax.jit(jax.grad(loss), compiler_options=QUICK)
    for leaf in jax.tree.leaves(learn(variables["params"])["front_filter"]):
        assert np.isfinite(leaf).all()
        assert np.abs(leaf).max() > 0


@pytest.mark.parametrize("frontend", end_to_end_nas.FRONTENDS)
def test_what_cannot_be_quantised_is_told_before_a_search(frontend, tmp_path):
    config = end_to_end_nas.get_config(f"{frontend},w4a4").unlock()
    last, settings = len(config.stages) - 1, dict(config.frontend)
    setup = dataclasses.replace(
        setup_of(config), frontend=create_frontend(settings.pop("name"), **settings)
    )
    quantize.check(setup, last, tmp_path)
    # Filters that are learned tap by tap stay in float unasked.
    config.stages[last].keep_float = ()
    quantize.check(setup, last, tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("weights", 0, "bits.weights = 0: give a whole number from 1 to 8"),
        ("activations", 9, "bits.activations = 9: give a whole number from 1 to 8"),
    ],
)
def test_bits_out_of_range_are_refused(field, value, told):
    config = quantized.get_config("w8a8,cpu").unlock()
    config.stages[1].bits[field] = value
    with pytest.raises(UserError, match=told):
        configs.check(config)


@pytest.mark.parametrize("dtype", configs.COMPUTE_DTYPES)
def test_that_bfloat16_is_not_for_few_bits_is_told(dtype, tmp_path, capsys):
    config = quantized.get_config("w8a8,cpu").unlock()
    config.compute_dtype = dtype
    quantize.check(setup_of(config), 1, tmp_path)
    told = "stage 'quantize' is computed in float32, not in config.compute_dtype = 'bf"
    assert (told in capsys.readouterr().err) == (dtype == "bfloat16")


def test_learned_bits_out_of_range_are_refused():
    config = quantized.get_config("learned_bits,cpu").unlock()
    config.stages[1].bits.weights = 1
    with pytest.raises(UserError, match="give 2 to 8 where bits are learned"):
        configs.check(config)
    config.stages[1].bits.update(weights=8, most=9)
    with pytest.raises(
        UserError, match=r"bits\.most = 9: give a whole number from 2 to 8"
    ):
        configs.check(config)


def test_a_config_of_another_paper_takes_the_stage():
    config = quantized.add_quantization(tc_resnet.get_config("14,cpu"), "w2a3")
    first, last = config.stages
    assert (last.bits.weights, last.bits.activations) == (2, 3)
    assert last.epochs == first.epochs / 3
    assert first.kind == "train"
    configs.check(config)
