"""The report page and the terminal's table, from a made-up but realistic workdir."""

import html.parser
import io
import json
import math
import re

import numpy as np
import pytest
from rich.console import Console

from kws_jax.errors import UserError
from kws_jax.report import network_drawing
from kws_jax.report.chart import Scale
from kws_jax.report.markup import Markup, tag
from kws_jax.report.page import write_report
from kws_jax.report.terminal import print_summary, progress_bar
from kws_jax.report.workdir import read_run

WORDS = "yes no up down left right on off stop go".split()
LABELS = [*WORDS, "_unknown_", "_silence_"]
LAYERS = [["C9SE"], ["C3SE", "C5"], ["C9"], ["SKIP"], ["C5SE"], ["SKIP"]]
GENOTYPE = {
    "layers": LAYERS,
    "strides": [2, 1, 2, 1, 2, 1],
    "channels": [36, 36, 48, 48, 72, 72],
    "stem_channels": 24,
    "shortcut": "1x1",
    "se_reduction": 4,
}
BLOCKS = [f"C{k}{se}" for k in (3, 5, 7, 9) for se in ("", "SE")]
SEARCH_EPOCHS, TRAIN_EPOCHS, STEPS = 20, 40, 89


def config():
    return {
        "name": "autokws",
        "seed": 3,
        "network": {"name": "searched", "genotype": ""},
        "search": {"method": "noisydarts", "order": 1},
        "frontend": {"name": "mfcc", "window_ms": 30.0, "hop_ms": 10.0},
        "data": {"source": "folder", "dir": "my clips", "keywords": ",".join(WORDS)},
        "stages": [
            {"name": "search", "kind": "search", "epochs": SEARCH_EPOCHS},
            {"name": "train", "kind": "train", "epochs": TRAIN_EPOCHS},
        ],
    }


def wilson(right, count):
    p, z = right / count, 1.959964
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count**2))
    half /= 1 + z * z / count
    return [middle - half, middle + half]


def confusion(rng, recall, clips=90):
    matrix = np.zeros((len(LABELS), len(LABELS)), int)
    for i in range(len(LABELS)):
        share = min(0.999, recall + rng.uniform(-0.04, 0.03))
        wrong = rng.dirichlet(np.full(len(LABELS) - 1, 0.3)) * (1 - share)
        matrix[i] = rng.multinomial(clips + i, np.insert(wrong, i, share))
    return matrix


def results(matrices):
    def row(metric, value, condition=None, count=None, ci95=None, **more):
        fields = {"stage": "train", "split": "test", "condition": condition}
        fields |= {"metric": metric, "value": value, "ci95": ci95, "count": count}
        return fields | more

    rows = []
    for condition, matrix in matrices.items():
        right, count = int(np.trace(matrix)), int(matrix.sum())
        interval = wilson(right, count)
        rows.append(row("accuracy", right / count, condition, count, interval))
    for i, label in enumerate(LABELS):
        right, count = int(matrices["clean"][i, i]), int(matrices["clean"][i].sum())
        interval = wilson(right, count)
        rows.append(row(f"recall/{label}", right / count, "clean", count, interval))
    rows += [
        row("parameters", 122456),
        row("parameters_with_statistics", 123789),
        row("macs", 3201234),
        row("clips_per_second", 1612.4),
        row("seconds", 725.2, split=None),
        row("seconds", 1830.0, stage="search", split=None),
    ]
    return rows


def curve(rng, stage, epochs, rate):
    for step in range(0, epochs * STEPS + 1, 20):
        done = step / (epochs * STEPS)
        loss = 2.4 * math.exp(-5 * done) + 0.12 + rng.normal(0, 0.02)
        yield {
            "stage": stage,
            "step": step,
            "epoch": step / STEPS,
            "split": "train",
            "loss": loss,
            "accuracy": 1 - 0.3 * loss,
            "learning_rate": rate * (1 + math.cos(math.pi * done)) / 2,
            "clips_per_second": 1600 + rng.normal(0, 30),
        }
    for epoch in range(1, epochs + 1):
        loss = 2.0 * math.exp(-5 * epoch / epochs) + 0.17 + rng.normal(0, 0.02)
        fields = {"stage": stage, "step": epoch * STEPS, "epoch": float(epoch)}
        yield fields | {"split": "validation", "loss": loss, "accuracy": 1 - 0.2 * loss}


def architecture_lines(rng):
    ops = [BLOCKS + ["SKIP"] * (i % 2) for i in range(6)]
    goals = [rng.normal(0, 1, len(names)) for names in ops]
    for goal, names, chosen in zip(goals, ops, LAYERS):
        for op in chosen:
            goal[names.index(op)] = rng.uniform(2, 3)
    for epoch in range(SEARCH_EPOCHS + 1):
        logits = [goal * epoch / SEARCH_EPOCHS for goal in goals]
        weights = [(np.exp(z) / np.exp(z).sum()).tolist() for z in logits]
        fields = {"stage": "search", "step": epoch * STEPS, "epoch": float(epoch)}
        yield fields | {"ops": ops, "weights": weights}


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_workdir(workdir, seed=0):
    """Writes all files of a finished search and training."""
    rng = np.random.default_rng(seed)
    matrices = {"clean": confusion(rng, 0.965)}
    for kind, loss in (("seen", 0.0), ("unseen", 0.06)):
        for snr, recall in ((20, 0.955), (10, 0.93), (5, 0.89), (0, 0.8), (-5, 0.62)):
            matrices[f"{kind} {snr} dB"] = confusion(rng, recall - loss)
    evaluation = {
        "labels": LABELS,
        "confusion": {name: matrix.tolist() for name, matrix in matrices.items()},
    }
    for name, content in (
        ("config", config()),
        ("results", results(matrices)),
        ("genotype", GENOTYPE),
        ("evaluation", evaluation),
    ):
        (workdir / f"{name}.json").write_text(json.dumps(content))
    metrics = [*curve(rng, "search", SEARCH_EPOCHS, 0.05)]
    metrics += curve(rng, "train", TRAIN_EPOCHS, 0.1)
    write_lines(workdir / "metrics.jsonl", metrics)
    write_lines(workdir / "architecture.jsonl", architecture_lines(rng))
    return workdir
