"""An experiment whose batches are made on the device, from its data to its report."""

import json

import numpy as np
import pytest
import soundfile
from words import SPEAKERS, TEST_CLIPS, on_words, write_words

from configs import tc_resnet
from kws_jax import config as configs
from kws_jax import experiment

# Of the keywords, unknown and silence.
TRAIN_CLIPS = 3 * SPEAKERS["train"] + 4 + 4
BATCH, STEPS, EVAL_EVERY, LOG_EVERY = 8, 13, 6, 5


@pytest.fixture
def config(tmp_path):
    write_words(tmp_path / "words")
    for i in range(3):
        room = np.random.default_rng(i).normal(size=800) * 0.99 ** np.arange(800)
        (tmp_path / "rooms").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "rooms" / f"{i}.wav", 0.1 * room, 16_000)
    config = tc_resnet.get_config("8")
    config.network.width = 0.25
    on_words(config, tmp_path)
    config.data.update(on_device=True, rooms=str(tmp_path / "rooms"))
    config.update(steps_per_call=4, compute_dtype="bfloat16", log_every_steps=LOG_EVERY)
    config.evaluation.update(snr_db=(10.0,), batch_size=16)
    (stage,) = config.stages
    stage.update(
        steps=STEPS,
        batch_size=BATCH,
        eval_every_epochs=EVAL_EVERY * BATCH / TRAIN_CLIPS,
    )
    stage.condition.update(snr_db=(20.0, 5.0), reverberant_fraction=0.5)
    return config


def test_a_run_on_the_device_trains_logs_and_tests(config, tmp_path, capsys):
    configs.check(config)
    workdir = tmp_path / "run"
    rows = experiment.run(config, str(workdir))
    assert json.loads((workdir / "results.json").read_text()) == rows
    measured = {(r["split"], r["condition"], r["metric"]): r for r in rows}
    for condition in ("clean", "seen 10 dB", "far clean", "far seen 10 dB"):
        row = measured["test", condition, "accuracy"]
        assert row["count"] == TEST_CLIPS
        assert row["ci95"][0] <= row["value"] <= row["ci95"][1]
    speed = measured["train", "clean", "clips_per_second"]["value"]
    seconds = measured["train", "clean", "seconds"]["value"]
    assert speed * seconds == pytest.approx(STEPS * BATCH)
    assert "Input pipeline alone, mixed on the device: " in capsys.readouterr().out
    assert (workdir / "report.html").exists()
    lines = [
        json.loads(x) for x in (workdir / "metrics.jsonl").read_text().split("\n")[:-1]
    ]
    assert [(line["step"], line["split"]) for line in lines] == [
        (5, "train"),
        (6, "train"),
        (6, "validation"),
        (10, "train"),
        (12, "train"),
        (12, "validation"),
        (13, "train"),
        (13, "validation"),
    ]
    assert all(np.isfinite(line["loss"]) for line in lines)
