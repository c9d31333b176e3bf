"""Artefacts of every network answer as the network, in what runs them on a device."""

import dataclasses
import re
import textwrap
import zipfile
from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from deploy_cases import CASES, LABELS, NARROW, Case, example, inference_of

from kws_jax.deploy import formats, stablehlo
from kws_jax.deploy.formats import FEATURES, FORMATS, INT8, WAVEFORM, Request
from kws_jax.errors import UserError
from kws_jax.frontends.registry import FRONTENDS
from kws_jax.models.front_filter import FILTERS, NONE
from kws_jax.models.registry import MODELS
from kws_jax.quantization.network import Bits

pytestmark = pytest.mark.usefixtures("compiled_quickly")
FLOATS = ("tflite", "onnx", "stablehlo")
# All networks in float, on features, which integers begin with, and one that has
# learned with 8 bits; the acoustic model is refused.
IN_INTEGERS = [
    dataclasses.replace(case, input=FEATURES)
    for case in CASES
    if not case.bits and case.network != "acoustic_dnn"
] + [Case("tc_resnet8", bits=Bits(8, 8), settings=NARROW)]


def exported(case, format_name, folder, quantize=""):
    """The path of an artefact of a case."""
    inputs, _ = example(case)
    request = Request(format_name, case.input, quantize, lambda: inputs)
    path = folder / request.file_name
    formats.writer_of(format_name).write(inference_of(case), request, path)
    return path


def assert_answers(run, case, tolerance, times=10):
    """To inputs whose answers differ by more than the tolerance, `times` as much.

    What ignores its input answers some of them wrong by half of their difference.
    """
    inputs, expected = example(case)
    assert np.ptp(expected, axis=0).max() > times * tolerance
    np.testing.assert_allclose(run(inputs), expected, atol=tolerance)


def test_every_registered_network_and_front_end_is_among_the_cases():
    for cases in (CASES, IN_INTEGERS):
        assert len({str(case) for case in cases}) == len(cases)
    assert {case.network for case in CASES} == set(MODELS)
    assert {case.frontend for case in CASES} == set(FRONTENDS)
    assert {case.front_filter for case in CASES} == {NONE, *FILTERS}


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("format_name", FLOATS)
def test_an_artefact_answers_as_its_network(format_name, case, tmp_path):
    path = exported(case, format_name, tmp_path)
    artefact = formats.writer_of(format_name).load(path)
    # What is rounded to few bits may fall to another side of a step.
    assert_answers(artefact.run, case, 2e-2 if case.bits else 1e-5)
    assert artefact.metadata == inference_of(case).describe(case.input)
    if format_name == "tflite":
        assert not foreign_operations(path)


def foreign_operations(path):
    """Operations of a TFLite artefact that small devices have no kernels for."""
    names = Counter(o["op_name"] for o in Interpreter(str(path))._get_ops_details())
    return [n for n in names if re.search("flex|custom|stablehlo|xla", n.lower())]


@pytest.mark.parametrize("case", IN_INTEGERS, ids=str)
def test_full_integers_stay_near_the_network(case, tmp_path):
    path = exported(case, "tflite", tmp_path, INT8)
    # Rounding adds up over layers, to a little over 0.1 in the deepest of the narrow.
    assert_answers(formats.writer_of("tflite").load(path).run, case, 0.15, times=4)
    assert not foreign_operations(path)
    interpreter = Interpreter(str(path))
    kinds = {np.dtype(t["dtype"]).kind for t in interpreter.get_tensor_details()}
    assert "f" not in kinds
    (given,) = interpreter.get_input_details()
    assert given["dtype"] == np.int8


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (lambda case: case.network == "acoustic_dnn", "adds up scores of all frames"),
        (lambda case: case.bits and case.bits.learned, "has taught it others"),
        (lambda case: case.bits and case.bits.activations == 4, "has taught it others"),
    ],
)
def test_integers_are_refused_where_they_cannot_be_had(wanted, told, tmp_path):
    case = next(case for case in CASES if wanted(case))
    with pytest.raises(UserError, match=told):
        exported(case, "tflite", tmp_path, INT8)


@pytest.mark.parametrize("format_name", FLOATS)
def test_the_example_in_the_docstring_runs_without_this_package(
    format_name, tmp_path, monkeypatch, capsys
):
    path = exported(CASES[0], format_name, tmp_path)
    module = formats.writer_of(format_name)
    code = re.search(r"\n\n((?:    .*\n|\n)+)", module.__doc__).group(1)
    assert not re.search(r"import kws_jax|from kws_jax", code)
    assert f'"{path.name}"' in code
    monkeypatch.chdir(tmp_path)
    exec(textwrap.dedent(code), {})
    label, score = capsys.readouterr().out.split()
    silence = jnp.zeros((1, 16_000), jnp.float32)
    answer = np.asarray(inference_of(CASES[0]).from_waveform(silence))[0]
    assert label == LABELS[answer.argmax()]
    assert float(score) == pytest.approx(answer.max(), abs=1e-5)


def test_stablehlo_takes_any_batch_and_is_lowered_for_all_platforms(tmp_path):
    path = exported(CASES[0], "stablehlo", tmp_path)
    artefact = stablehlo.load(path)
    inputs, expected = example(CASES[0])
    for batch in (1, 5):
        some = np.resize(inputs, (batch, *inputs.shape[1:]))
        wanted = np.resize(expected, (batch, len(LABELS)))
        np.testing.assert_allclose(artefact.run(some), wanted, atol=1e-5)
    with zipfile.ZipFile(path) as archive:
        program = stablehlo.export.deserialize(bytearray(archive.read("program.bin")))
    assert set(program.platforms) == {"cpu", "cuda", "tpu"}


def test_metadata_says_all_that_an_application_needs():
    told = inference_of(CASES[0]).describe(WAVEFORM)
    assert told["labels"] == list(LABELS)
    assert told["input"] == {
        "kind": "waveform",
        "dtype": "float32",
        "shape": [16_000],
        "sample_rate": 16_000,
    }
    assert told["frontend"]["name"] == "mfcc"
    assert told["frontend"]["settings"]["window_ms"] == 30
    assert told["detection"]["thresholds"] == {"yes": 0.7, "no": 0.9}
    assert set(FLOATS) <= set(FORMATS)
