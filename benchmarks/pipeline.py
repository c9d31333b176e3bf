"""Times the input pipeline alone: `python -m benchmarks.pipeline`.

Clips come from memory. shift_background is the training condition of TC-ResNet,
snr_noise adds noise at an exact SNR; growth/N is time a batch over a split of N clips,
whole epochs with their permutations.
"""

from collections.abc import Iterator

import numpy as np

from benchmarks import command
from benchmarks.command import Session
from benchmarks.results import Work, make_row
from benchmarks.timing import Timing

TF_DATA = "tf.data"
GROWTH = (1_000, 10_000, 100_000)
_SMALL_GROWTH = (20, 40)
NAMES = ("clean", "shift_background", "snr_noise", "growth")
# Clips that are really in memory: a longer split repeats them, so that its length
# alone is what grows.
_POOL = 1_000
# Of one repetition: several epochs where the split is shorter.
_LEAST_CLIPS = 10_000
_BATCHES_PER_REPEAT, _SMALL_BATCHES = 20, 2
_BYTES_PER_CLIP = 2 * 16_000


def measure(session: Session, chosen: list[str]) -> None:
    """The chosen conditions, and the growth with the number of clips."""
    small = session.options.small
    for name in chosen:
        if name == "growth":
            for clips in _SMALL_GROWTH if small else GROWTH:
                batches = max(clips, _LEAST_CLIPS) // session.options.batch
                per_repeat = _SMALL_BATCHES if small else max(1, batches)
                _measure(session, f"growth/{clips}", "clean", clips, per_repeat)
        else:
            per_repeat = _SMALL_BATCHES if small else _BATCHES_PER_REPEAT
            _measure(session, name, name, _POOL, per_repeat)


def _measure(
    session: Session, name: str, condition: str, clips: int, per_repeat: int
) -> None:
    """Each repetition is the mean time of `per_repeat` batches in a row."""
    from kws_jax.data import pipeline

    session.console.print(f"  {name}", highlight=False)
    batch, threads = session.options.batch, session.threads
    stream = _batches(condition, clips, batch, threads)
    pipeline.measure_throughput(stream, per_repeat)
    seconds = [
        batch / pipeline.measure_throughput(stream, per_repeat, warm_up=0)
        for _ in range(session.options.repeats)
    ]
    work = Work(0, _clips_moved(condition) * _BYTES_PER_CLIP * batch)
    floor = work.floor(session.limits.flops, session.limits.bandwidth)
    timing = Timing(tuple(seconds))
    session.rows.append(make_row(name, TF_DATA, timing, batch, floor))


def _clips_moved(condition: str) -> int:
    """A clip is read, a mixture written; noise or background is read too."""
    return 2 if condition == "clean" else 3


def _batches(condition: str, clips: int, batch: int, threads: int) -> Iterator:
    from configs.common import training_condition
    from kws_jax.data import pipeline
    from kws_jax.data.conditions import CLEAN, Condition
    from kws_jax.data.corpus import Recording, Split
    from kws_jax.data.draws import Recipe, training_selection
    from kws_jax.data.noise import NoiseBank

    rng = np.random.default_rng(0)
    pool = rng.integers(-6000, 6000, (min(clips, _POOL), 16_000)).astype(np.int16)
    noise = [
        Recording(str(i), rng.integers(-6000, 6000, 320_000).astype(np.int16))
        for i in range(3)
    ]
    names = np.array([f"clip{i}" for i in range(clips)])
    labels = np.arange(clips, dtype=np.int32) % 12
    split = Split("train", labels, names, names, lambda rows: pool[rows % len(pool)])
    conditions = {
        "clean": CLEAN,
        "shift_background": Condition(**training_condition().to_dict()),
        "snr_noise": Condition(snr_db=(20.0, 10.0, 5.0, 0.0, -5.0)),
    }
    bank = NoiseBank.from_recordings(noise)
    recipe = Recipe(split, conditions[condition], background=bank, noise=bank)
    select = training_selection(clips, batch_size=batch, seed=0)
    return pipeline.selected_batches(recipe, select, threads=threads)


if __name__ == "__main__":
    command.run("pipeline", NAMES, measure)
