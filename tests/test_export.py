"""The command from a workdir to a checked artefact."""

import dataclasses
import importlib.util
import json
import shutil

import jax
import numpy as np
import pytest
from network_values import random_variables
from rich.console import Console
from words import on_words, write_words

from configs import quantized
from kws_jax import experiment
from kws_jax.data.conditions import CLEAN
from kws_jax.deploy import artefacts, check, formats, inference
from kws_jax.errors import UserError
from kws_jax.parts import build_parts
from kws_jax.quantization.network import Bits, QuantizedNetwork
from kws_jax.quantization.sites import find_sites
from kws_jax.stages import detection, dispatch, networks, runner
from kws_jax.stages.quantize import RANGES_FILE
from kws_jax.training.checkpoints import StageCheckpoints
from kws_jax.training.state import create_train_state

QUIET = Console(quiet=True)


def tiny_config(folder):
    config = quantized.get_config("w4a4,cpu").unlock()
    config.network.width = 0.25
    on_words(config, folder)
    config.evaluation.update(snr_db=(), batch_size=16)
    return config


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Parts on tones, and a workdir whose two stages are done, with random weights."""
    folder = tmp_path_factory.mktemp("export")
    write_words(folder / "words")
    parts = build_parts(tiny_config(folder), QUIET)
    workdir = folder / "run"
    experiment.claim_workdir(parts, workdir)
    model = networks.create_network(parts, workdir)
    variables = random_variables(model, networks.sample_features(parts))
    trees = {"weights": variables["params"]}
    keep(parts, workdir, 0, create_train_state(trees, variables["batch_stats"], {}))
    sites = find_sites(model, variables, networks.sample_features(parts))
    bits = Bits(**parts.config.stages[1].bits.to_dict())
    network = QuantizedNetwork(model, sites, bits, {})
    bounds = dict.fromkeys(sites.activation_counts, 4.0)
    state = create_train_state(
        trees | network.initial_trees(bounds), variables["batch_stats"], {}
    )
    keep(parts, workdir, 1, state)
    ranges = dict.fromkeys(bounds, (-4.0, 4.0, 1.0))
    path = runner.stage_folder(parts, 1, workdir) / RANGES_FILE
    path.write_text(json.dumps(ranges))
    return parts, workdir


def keep(parts, workdir, index, state):
    folder = runner.stage_folder(parts, index, workdir)
    checkpoints = StageCheckpoints(folder)
    checkpoints.save_best(1, jax.tree.map(np.asarray, state), {})
    checkpoints.close()
    (folder / runner.DONE_FILE).write_text("[]")


def request(quantize=""):
    return formats.request_of("stablehlo", "", quantize)


def with_stages(parts, count):
    """The same experiment with its first stages alone."""
    config = parts.config.copy_and_resolve_references()
    config.stages = config.stages[:count]
    return dataclasses.replace(parts, config=config)


@pytest.mark.parametrize("stages", [1, 2], ids=["float", "quantized"])
def test_what_is_exported_is_the_network_that_is_tested(made, stages):
    parts, workdir = with_stages(made[0], stages), made[1]
    loaded = inference.load_inference(parts, workdir)
    assert (loaded.quantized is not None) == (stages == 2)
    rng = np.random.default_rng(0)
    audio = rng.integers(-9000, 9000, (2, 16_000)).astype(np.int16)
    expected = dispatch.finished_network(parts, workdir).probabilities(audio)
    answers = jax.jit(loaded.from_waveform)(audio)
    np.testing.assert_allclose(answers, expected, atol=1e-5)
    assert loaded.describe("waveform")["detection"] is None


def test_an_export_is_checked_on_the_test_clips(made):
    parts, workdir = with_stages(made[0], 1), made[1]
    told = artefacts.export(parts, workdir, request(), 0, QUIET)
    kept = json.loads((workdir / "export" / "stablehlo.json").read_text())
    assert kept == told
    assert (workdir / "export" / kept["artefact"]).stat().st_size == kept["bytes"]
    network = dispatch.finished_network(parts, workdir)
    right = [
        np.asarray(network.predict(b).argmax(-1) == b["label"])[np.asarray(b["mask"])]
        for b in parts.eval_batches(parts.task.test, CLEAN)
    ]
    right = np.concatenate(right)
    assert kept["clips"] == len(right) == len(parts.task.test)
    assert kept["accuracy"] == kept["network_accuracy"] == right.mean()
    assert kept["max_difference"] < 1e-5
    assert kept["equal_decisions"] == 1
    assert 0 < kept["milliseconds"] < 10_000
    fewer = artefacts.export(parts, workdir, request(), 5, QUIET)
    assert fewer["clips"] == 5


def test_an_artefact_that_answers_otherwise_is_refused_and_told_of(made, monkeypatch):
    parts, workdir = with_stages(made[0], 1), made[1]

    class Wrong:
        def write(self, inference, request, path):
            path.write_bytes(b"")

        def load(self, path):
            labels = len(parts.labels)
            return formats.Artefact({}, lambda x: np.eye(labels)[[0] * len(x)])

    monkeypatch.setattr(artefacts, "writer_of", lambda name: Wrong())
    with pytest.raises(UserError, match="does not answer as the network"):
        artefacts.export(parts, workdir, request(), 8, QUIET)
    kept = json.loads((workdir / "export" / "stablehlo.json").read_text())
    assert kept["max_difference"] > kept["tolerance"]["difference"]


def test_calibration_hears_training_clips_alone(made, monkeypatch):
    parts, workdir = with_stages(made[0], 1), made[1]
    seen = {}

    class Calibrated:
        def write(self, inference, request, path):
            seen["calibration"] = request.calibration()
            path.write_bytes(b"")

        def load(self, path):
            return formats.Artefact({}, lambda x: np.zeros((len(x), len(parts.labels))))

    monkeypatch.setattr(artefacts, "writer_of", lambda name: Calibrated())
    wanted = formats.request_of("tflite", "", "int8")
    with pytest.raises(UserError):
        artefacts.export(parts, workdir, wanted, 8, QUIET)
    training = [
        np.asarray(parts.frontend(b["audio"]))[np.asarray(b["mask"])]
        for b in parts.eval_batches(parts.task.train, CLEAN)
    ]
    np.testing.assert_allclose(seen["calibration"], np.concatenate(training), atol=1e-4)


def test_thresholds_of_detection_go_along(made, tmp_path):
    parts, workdir = with_stages(made[0], 1), made[1]
    shutil.copytree(workdir, tmp_path / "run")
    stored = {"threshold": 0.5, "thresholds": {"up": 0.4}, "rule": {"hop_ms": 100.0}}
    stored |= {"target_false_alarms_per_hour": 3.0}
    (tmp_path / "run" / detection.FILE).write_text(json.dumps(stored | {"rows": []}))
    loaded = inference.load_inference(parts, tmp_path / "run")
    assert loaded.describe("waveform")["detection"] == stored
    # Those of a network's own scores of frames do not fit what an artefact answers.
    kept = json.dumps(stored | {"scores": "frames"})
    (tmp_path / "run" / detection.FILE).write_text(kept)
    loaded = inference.load_inference(parts, tmp_path / "run")
    assert loaded.describe("waveform")["detection"] is None


def test_measures_are_those_of_their_names():
    network = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
    artefact = np.array([[0.8, 0.2], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7]])
    measures = check.compare(artefact, network, np.array([0, 0, 1, 0]))
    assert measures == {
        "clips": 4,
        "max_difference": pytest.approx(0.2),
        "mean_difference": pytest.approx(0.075),
        "equal_decisions": 0.75,
        "accuracy": 0.5,
        "network_accuracy": 0.75,
    }
    broken = check.compare(artefact * np.nan, network, np.array([0, 0, 1, 0]))
    with pytest.raises(UserError, match="differ by up to nan"):
        check.refuse_mismatch(broken, check.INT8, "kws.tflite")


@pytest.mark.parametrize(
    "allowed", [check.FLOAT, check.ROUNDED, check.PACKED, check.INT8]
)
def test_scores_of_another_scale_are_a_mismatch(allowed):
    logits = np.random.default_rng(0).normal(size=(200, 12)) * 3
    truth = logits.argmax(-1)

    def scores(scale):
        powers = np.exp(scale * logits)
        return powers / powers.sum(-1, keepdims=True)

    check.refuse_mismatch(check.compare(scores(1), scores(1), truth), allowed, "kws")
    # All decisions are equal.
    measures = check.compare(scores(0.2), scores(1), truth)
    with pytest.raises(UserError, match=r"differ by 0\.\d+ in the mean"):
        check.refuse_mismatch(measures, allowed, "kws")


def test_the_time_of_one_input_is_a_median_without_the_first_calls():
    # Seconds that the calls take: the first three are not looked at.
    takes = iter([100.0, 100.0, 100.0, 0.004, 0.001, 0.9, 0.002, 0.003])
    now, given = [0.0], []

    def run(one):
        now[0] += next(takes)
        given.append(one)

    told = check.milliseconds(run, np.ones((1, 4)), times=5, clock=lambda: now[0])
    assert told == pytest.approx(3.0)
    assert len(given) == 8
    slow = iter([0.0, 0.0, 0.0, 1.5, 1.0, 1.0])

    def run_slowly(one):
        now[0] += next(slow)

    told = check.milliseconds(run_slowly, np.ones((1, 4)), clock=lambda: now[0])
    assert told == pytest.approx(1250.0)
    assert next(slow) == 1.0


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (("onx",), "no such format; did you mean 'onnx'"),
        (("onnx", "", "int8"), "--quantize=int8 does not go with --format=onnx"),
        (("tflite", "waveform", "int8"), "give features"),
        (("stablehlo", "audio"), "give waveform or features"),
    ],
)
def test_names_that_do_not_go_together_are_told(asked, told):
    with pytest.raises(UserError, match=told):
        formats.request_of(*asked)


def test_a_missing_package_is_told_with_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs ai_edge_litert.*'\.\[tflite\]'"):
        formats.request_of("tflite")
    with pytest.raises(UserError, match=r"jax2onnx, onnx, onnxruntime.*'\.\[onnx\]'"):
        formats.request_of("onnx")
    # JAX is there in any case.
    formats.request_of("stablehlo")


def test_files_are_named_by_what_is_not_the_default():
    names = {
        (r.file_name, r.report_name)
        for r in (
            formats.request_of("tflite"),
            formats.request_of("tflite", "features"),
            formats.request_of("tflite", "", "int8"),
        )
    }
    assert names == {
        ("kws.tflite", "tflite.json"),
        ("kws-features.tflite", "tflite-features.json"),
        ("kws-int8.tflite", "tflite-int8.json"),
    }
