"""One run from the search to the packed file, as configs/end_to_end_nas.py promises."""

import io

import numpy as np
import pytest
from rich.console import Console
from words import on_words, write_words

from configs import end_to_end_nas
from kws_jax import config as configs
from kws_jax import experiment
from kws_jax.deploy import artefacts, packed_reader
from kws_jax.deploy.formats import request_of
from kws_jax.models.mbconv import SKIP, load_layers
from kws_jax.report.terminal import print_summary
from kws_jax.stages import networks

CHOSEN = ("E1K3", "E2K3", SKIP)


def tiny(folder):
    config = end_to_end_nas.get_config("sinc40,learned_bits,cpu").unlock()
    on_words(config, folder)
    # As few as are filters still; the parameters are those of the waveform's network.
    config.frontend.num_filters = 8
    config.evaluation.update(snr_db=(), batch_size=16)
    # As few as leave something to be chosen and skipped.
    config.search.update(expansions=(1, 2), kernels=(3,), max_parameters=16_000)
    for stage in config.stages:
        stage.update(epochs=0.0, steps=4, batch_size=8, eval_every_epochs=2 * 8 / 44)
    for stage in config.stages[:2]:
        stage.update(warmup_epochs=0.0)
    config.stages[1].architecture_every = 2
    config.stages[3].calibration_batches = 2
    # One that no network lacks, and one that the found network may lack.
    config.stages[3].keep_float = ("encoder/head/*", "encoder/blocks_1/*")
    return config


@pytest.mark.slow
def test_a_run_goes_from_a_search_to_a_packed_file_and_tells_all_of_it(tmp_path):
    write_words(tmp_path / "words")
    config, workdir = tiny(tmp_path), tmp_path / "run"
    configs.check(config)
    rows = experiment.run(config, str(workdir))
    path = str(workdir / networks.GENOTYPE_FILE)
    layers = load_layers(path, round_widths=False)
    assert set(layers) <= set(CHOSEN)

    told = {r["metric"]: r["value"] for r in rows if r["stage"] == "quantize"}
    for metric in ("accuracy", "float_accuracy", "parameters", "macs"):
        assert np.isfinite(told[metric]), metric
    assert told["parameters"] <= 16_000
    assert 2 <= told["weight_bits"] <= 8
    assert 2 <= told["activation_bits"] <= 8
    console = Console(file=io.StringIO(), width=100)
    print_summary(workdir, console)
    assert f"packed file: {told['packed_bytes']:,.0f} bytes" in console.file.getvalue()

    parts = experiment.build_parts(config, Console(quiet=True))
    request = request_of("packed", "", "")
    kept = artefacts.export(parts, workdir, request, 0, Console(quiet=True))
    assert kept["bytes"] == told["packed_bytes"]
    assert kept["clips"] == len(parts.task.test)
    assert kept["accuracy"] == pytest.approx(told["accuracy"])
    network = packed_reader.load(workdir / "export" / request.file_name)
    clip = parts.task.test.read(np.arange(1)).astype(np.float32) / 2**15
    assert network.probabilities(clip).shape == (1, len(parts.labels))
