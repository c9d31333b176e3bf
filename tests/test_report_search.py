"""What the report draws of a ProxylessNAS search and of learned filters."""

import json
import re

import numpy as np
import pytest

from kws_jax.comparison import size_plot
from kws_jax.models.mbconv import layers_to_json
from kws_jax.report.entropy import entropy
from kws_jax.report.filters import filters
from kws_jax.report.network_drawing import draw_network
from kws_jax.report.workdir import Run, read_run

LAYERS = ("E6K7", "SKIP", "E1K3", "E2K5", "SKIP", "E4K3")


def run_with(**fields):
    return Run(workdir=None, config={}, results=[], **fields)


def test_network_of_bottlenecks_is_drawn_with_its_own_sizes():
    genotype = json.loads(layers_to_json(LAYERS, round_widths=True))
    drawing = draw_network(genotype, 12, frames=98, features=60)
    assert re.findall(r'data-op="(\w+)"', drawing) == list(LAYERS)
    for size in ("98 × 60", "49 × 16", "25 × 24", "13 × 40"):
        assert f">{size}<" in drawing
    assert "kernel 7 × 7, expansion 6" in drawing


def test_entropy_has_a_line_and_a_name_for_each_layer():
    lines = [
        {"stage": "search", "step": e, "epoch": e, "entropy": [1 - e / 4, 1.0, 0.5]}
        for e in range(1, 4)
    ]
    drawing = entropy(run_with(architecture=lines))
    names = re.findall(r'y="([\d.]+)"[^>]*>layer (\d)<', drawing)
    assert sorted(number for _, number in names) == ["1", "2", "3"]
    places = sorted(float(y) for y, _ in names)
    assert min(np.diff(places)) >= 16.9
    assert "layer 1: 0.250" in drawing
    assert entropy(run_with(architecture=[{"stage": "s", "step": 1}])) is None


@pytest.mark.parametrize("learned", ["sinc", "conv1d"])
def test_filters_are_drawn_before_and_after_where_their_start_is_known(learned):
    state = {"response": [[0.0, 1.0, 0.2], [1.0, 0.5, 0.0]]}
    found = {"sample_rate": 16_000, "frequencies": [0.0, 4000.0, 8000.0]}
    found["after"] = state
    if learned == "sinc":
        edges = {"low": [2000.0, 50.0], "high": [6000.0, 100.0]}
        found |= {"before": state | edges, "after": state | edges}
    drawing = filters(run_with(filters=found))
    assert ("Before training" in drawing) == (learned == "sinc")
    assert drawing.count("2000 – 6000 Hz") == (2 if learned == "sinc" else 0)
    assert "After training" in drawing
    assert filters(run_with()) is None


def test_filters_are_read_from_the_workdir(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "results.json").write_text("[]")
    (tmp_path / "filters.json").write_text('{"after": 1}')
    assert read_run(tmp_path).filters == {"after": 1}


def test_dots_of_the_size_plot_have_areas_like_the_operations():
    points = [
        size_plot.Point("a", True, "small", 20e3, 4e6, 0.93),
        size_plot.Point("a", True, "large", 80e3, 16e6, 0.955),
        size_plot.Point("b <i>", False, "other", 40e3, 9e6, 0.94),
    ]
    page = size_plot.draw(points)
    dots = re.findall(r'cx="([\d.]+)" cy="([\d.]+)" r="([\d.]+)" style', page)
    x, y, r = np.array(dots, float).T
    np.testing.assert_allclose(r**2 / r[0] ** 2, [1, 4, 9 / 4], rtol=0.01)
    # linear scales: parameters to the right, accuracy upwards
    np.testing.assert_allclose((x[2] - x[0]) / (x[1] - x[0]), 1 / 3, atol=0.01)
    np.testing.assert_allclose((y[2] - y[0]) / (y[1] - y[0]), 0.4, atol=0.01)
    assert "large: 95.50 %, 80,000 parameters, 16.00 M MACs" in page
    assert "<i>" not in page
