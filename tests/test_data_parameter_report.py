"""Data parameters on the page, from a made-up workdir, and their config."""

import json
import re

import pytest

from configs import data_parameters as config_file
from kws_jax import config as configs
from kws_jax.errors import UserError
from kws_jax.models.registry import create_model
from kws_jax.report.page import write_report

WORDS = ["yes", "no", "up", "down", "left", "right", "stop", "_unknown_"]
EPOCHS = 8


def line(epoch):
    early = 2.0 ** (-epoch / 3)
    instance = {"clean": 0.9 - 0.05 * epoch, "noisy": 0.9 + early, "flipped": 3.0}
    if epoch > 1:
        instance["-5 dB"] = 1.1 + early
    by_class = {word: 1 + 0.02 * i * epoch for i, word in enumerate(WORDS)}
    fields = {"stage": "train", "step": 10 * epoch, "epoch": float(epoch)}
    return fields | {"instance": instance, "class": by_class}


@pytest.fixture
def workdir(tmp_path):
    config = {"stages": [{"name": "train"}], "data": {"source": "synthetic"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "results.json").write_text("[]")
    lines = [json.dumps(line(epoch)) for epoch in range(1, EPOCHS + 1)]
    (tmp_path / "data_parameters.jsonl").write_text("\n".join(lines) + '\n{"stage')
    rows = [
        {"name": f"clip <{i}>", "label": "yes", "noisy": i % 2 == 0, "sigma": 20 - i}
        for i in range(20)
    ]
    rows[0]["label_before"] = "_unknown_"
    summary = {"mode": "joint", "largest": rows, "flipped": 40}
    summary["flipped_in_top_fifth"] = 34
    (tmp_path / "data_parameters.json").write_text(json.dumps({"train": summary}))
    return tmp_path


def test_curves_and_clips_are_on_the_page(workdir):
    page = write_report(workdir).read_text()
    section = page[page.index('id="data-parameters"') :]
    section = section[: section.index("</section>")]
    charts = re.findall(r"<figure>.*?</figure>", section)
    assert len(charts) == 2
    clips, labels = charts
    tips = re.findall(r"<title>(.*?)</title>", clips)
    assert tips == ["clean: 0.5", "noisy: 1.06", "flipped: 3", "-5 dB: 1.26"]
    assert [len(d.split("L")) for d in re.findall(r'd="M([^"]*L[^"]*)"', clips)] == [
        *[EPOCHS] * 3,
        EPOCHS - 1,
    ]
    # Of eight labels the two highest and the two lowest have a colour of their own.
    assert len(re.findall(r'<path class="line clean" d="M[^"]*L', labels)) == 4
    keys = re.findall(r"</svg> (.*?)</span>", labels)
    assert keys == ["unknown", "stop", "no", "yes", "others"]
    assert section.count("<tr>") == 21
    assert "clip &lt;0&gt;" in section
    assert "Of 40 clips with a wrong label on purpose, 34 (85.0 %)" in section
    assert section.count("in noise") == 10


def test_without_data_parameters_there_is_no_section(workdir):
    for name in ("data_parameters.jsonl", "data_parameters.json"):
        (workdir / name).unlink()
    assert "data-parameters" not in write_report(workdir).read_text()


@pytest.mark.parametrize("mode", config_file.MODES)
@pytest.mark.parametrize("size", config_file.SIZES)
def test_every_mode_has_a_config(mode, size):
    config = config_file.get_config(f"{mode},{size}")
    configs.check(config)
    assert config.stages[0].data_parameters.mode == mode
    assert min(config.stages[0].condition.snr_db) == -10


def test_every_network_of_the_config_can_be_made():
    for name in config_file.NETWORKS:
        config = config_file.get_config(name)
        settings = {k: v for k, v in config.network.items() if k != "name"}
        create_model(config.network.name, 12, **settings)
    assert config_file.get_config().stages[0].data_parameters.mode == "joint"
    with pytest.raises(UserError, match="did you mean 'joint'"):
        config_file.get_config("jiont")
