"""A small folder of tones in place of words, and what a run on it leaves behind."""

import json
from pathlib import Path

import numpy as np
import soundfile

from kws_jax.data.splits import which_set

ROOT = Path(__file__).parents[1]
RATE = 16_000
# Word -> its tone in Hz; the last three are unknown words.
WORDS = {"up": 300, "down": 700, "stop": 1500, "cat": 2500, "dog": 3500, "tree": 5000}
KEYWORDS = ("up", "down", "stop")
LABELS = (*KEYWORDS, "_unknown_", "_silence_")
SPEAKERS = {"train": 12, "validation": 4, "test": 4}
# Keyword clips, and of unknown and silence a tenth of them each, rounded up.
TEST_CLIPS = 3 * 4 + 2 + 2
# What no two runs have in common.
CLOCK = ("seconds", "clips_per_second")


def speakers(split: str) -> list[str]:
    """Names that Google's rule puts into the split."""
    found: list[str] = []
    number = 0
    while len(found) < SPEAKERS[split]:
        name = f"{number:08x}"
        file = f"up/{name}_nohash_0.wav"
        if which_set(file, validation_fraction=0.1, test_fraction=0.1) == split:
            found.append(name)
        number += 1
    return found


def write_words(folder: Path) -> None:
    """Tones in noise, each a word, in the layout of Speech Commands."""
    rng = np.random.default_rng(0)
    time_axis = np.arange(RATE) / RATE
    for word, hertz in WORDS.items():
        (folder / word).mkdir(parents=True)
        for speaker in (s for split in SPEAKERS for s in speakers(split)):
            tone = np.sin(2 * np.pi * hertz * rng.uniform(0.95, 1.05) * time_axis)
            envelope = np.exp(-(((time_axis - rng.uniform(0.4, 0.6)) / 0.15) ** 2))
            clip = 0.3 * tone * envelope + 0.003 * rng.normal(size=RATE)
            soundfile.write(folder / word / f"{speaker}_nohash_0.wav", clip, RATE)
    (folder / "_background_noise_").mkdir()
    for name in ("fan", "rain", "road"):
        noise = 0.05 * rng.normal(size=3 * RATE)
        soundfile.write(folder / "_background_noise_" / f"{name}.wav", noise, RATE)


def on_words(config, folder):
    """Has an experiment take the tones that `write_words(folder / "words")` made."""
    config.data.update(
        source="folder",
        dir=str(folder / "words"),
        cache_dir=str(folder / "cache"),
        keywords=",".join(KEYWORDS),
    )


def data_flags(speech: Path) -> list[str]:
    return [
        "--config.data.source=folder",
        f"--config.data.dir={speech}",
        f"--config.data.keywords={','.join(KEYWORDS)}",
        "--config.evaluation.snr_db=(10,)",
        "--config.evaluation.batch_size=16",
        "--config.log_every_steps=3",
    ]


def lines_of(workdir: Path, log: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (workdir / log).read_text().splitlines()]


def rows_of(workdir: Path) -> list[dict]:
    return json.loads((workdir / "results.json").read_text())


def without_clock(lines: list[dict]) -> list[dict]:
    return [{k: v for k, v in s.items() if k not in CLOCK} for s in lines]
