"""Batches for training and evaluation, the same from any step and on any process.

Every choice (order, shift, crops, levels) is a pure function of the seed, the step and
the position in the global batch, made by NumPy's counter-based Philox generator. So a
run that resumes at any step sees the batches it would have seen, and the processes of a
pod together see the global batch that one process would.
"""

import atexit
import contextlib
import dataclasses
import functools
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from itertools import islice

import numpy as np
import tensorflow as tf

from kws_jax.data.conditions import Condition
from kws_jax.data.corpus import CLIP_SAMPLES, Split
from kws_jax.data.mixing import (
    DRAWS,
    FULL_SCALE,
    REFERENCE_RMS,
    check_condition,
    draw,
    mix,
    shift_clips,
)
from kws_jax.data.noise import NoiseBank
from kws_jax.errors import UserError

# Streams of random numbers that must not overlap under one seed.
_ORDER, _TRAIN_DRAWS, _EVAL_DRAWS = 1, 2, 3

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Slice:
    """One process's part of a global batch: what to read and how to disturb it."""

    positions: np.ndarray  # int64 [b], rows of the split
    mask: np.ndarray  # bool [b], False where the row is padding
    uniforms: np.ndarray  # float64 [b, len(DRAWS)]


def train_batches(
    split: Split,
    condition: Condition,
    *,
    batch_size: int,
    seed: int,
    background: NoiseBank | None = None,
    noise: NoiseBank | None = None,
    start_step: int = 0,
    num_steps: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    silence_label: int | None = None,
    reference_rms: float = REFERENCE_RMS,
    threads: int = 2,
    prefetch: int = 2,
) -> Iterator[Batch]:
    """An endless stream of epochs, each a permutation of the split, cut in batches.

    Global position n = step · batch_size + p lies in epoch n div len(split), whose
    permutation depends on (seed, epoch) alone; batches run across the epochs' borders.

    Args:
      split: the clips.
      condition: the disturbance drawn anew for each clip.
      batch_size: clips in a global batch, a multiple of `process_count`.
      seed: integer; order and draws depend on it.
      background: recordings added by volume, if the condition asks for it.
      noise: recordings added at an SNR, if the condition asks for it.
      start_step: the first step; the batch of a step does not depend on it.
      num_steps: how many batches, None for no end.
      process_index: which of the `process_count` slices of each batch to give.
      process_count: number of processes that share the global batch.
      silence_label: clips of this label hold no speech (see `mixing.mix`).
      reference_rms: level of speech that noise over silence is set against.
      threads: threads of the pipeline; few, since training runs beside it.
      prefetch: batches made ahead.

    Returns:
      An iterator of dicts: `audio` int16 [b, CLIP_SAMPLES], `label` int32 [b], `index`
      int32 [b] (row of the split), `mask` bool [b] (all True), with b = batch_size /
      process_count.

    Raises:
      UserError: an empty split, a condition that makes no sense or lacks its
        recordings, or a batch size that the processes cannot share.
    """
    _check(split, condition, background, noise)
    part = _process_part(batch_size, process_index, process_count)
    clips = len(split)

    @functools.lru_cache(maxsize=4)
    def permutation(epoch: int) -> np.ndarray:
        return _generator(seed, _ORDER, epoch).permutation(clips)

    def plan(step: int) -> _Slice:
        positions = np.arange(step * batch_size, (step + 1) * batch_size)[part]
        epochs, places = np.divmod(positions, clips)
        rows = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            rows[here] = permutation(epoch)[places[here]]
        uniforms = _generator(seed, _TRAIN_DRAWS, step).random((batch_size, len(DRAWS)))
        return _Slice(rows, np.ones(len(rows), bool), uniforms[part])

    stop = np.iinfo(np.int64).max if num_steps is None else start_step + num_steps
    mixer = _Mixer(split, condition, background, noise, silence_label, reference_rms)
    return _stream(plan, mixer, range(start_step, stop), threads, prefetch)


def eval_batches(
    split: Split,
    condition: Condition,
    *,
    batch_size: int,
    seed: int,
    background: NoiseBank | None = None,
    noise: NoiseBank | None = None,
    process_index: int = 0,
    process_count: int = 1,
    silence_label: int | None = None,
    reference_rms: float = REFERENCE_RMS,
    threads: int = 2,
    prefetch: int = 2,
) -> Iterator[Batch]:
    """Every clip of the split exactly once, in order; the last batch is padded.

    The draws of a clip depend on (seed, its position in the split) alone, not on the
    batch size. Every process gets the same number of batches, so collective operations
    match; a process's last batch may be padding throughout. Padded rows are silent,
    with label 0, index 0 and mask False. Arguments, result and errors are those of
    `train_batches`.
    """
    _check(split, condition, background, noise)
    part = _process_part(batch_size, process_index, process_count)
    clips = len(split)
    all_uniforms = _generator(seed, _EVAL_DRAWS, 0).random((clips, len(DRAWS)))

    def plan(step: int) -> _Slice:
        positions = np.arange(step * batch_size, (step + 1) * batch_size)[part]
        mask = positions < clips
        rows = np.where(mask, positions, 0)
        return _Slice(rows, mask, all_uniforms[rows])

    mixer = _Mixer(split, condition, background, noise, silence_label, reference_rms)
    return _stream(plan, mixer, range(-(-clips // batch_size)), threads, prefetch)


def median_rms(split: Split, keywords: int, *, at_most: int = 1000) -> float:
    """Median root mean square of the clips with labels below `keywords`, in [-1, 1].

    At most `at_most` clips, spread evenly over the split, are read.

    Raises:
      UserError: the split has no clip of a keyword.
    """
    rows = np.flatnonzero(split.labels < keywords)
    if not len(rows):
        raise UserError(f"The {split.name} split has no clip of a keyword.")
    rows = rows[np.linspace(0, len(rows) - 1, min(at_most, len(rows))).astype(np.int64)]
    parts = np.array_split(rows, -(-len(rows) // 100))
    power = [np.mean((split.read(p) / FULL_SCALE) ** 2, axis=1) for p in parts]
    return float(np.median(np.sqrt(np.concatenate(power))))


def measure_throughput(
    batches: Iterator[Batch], count: int, *, warm_up: int = 4
) -> float:
    """Clips per second of the pipeline alone, over `count` batches.

    The first `warm_up` batches (tracing, and those already made ahead) do not count;
    nor does padding.

    Raises:
      UserError: the iterator ends before a batch could be timed.
    """
    for _ in islice(batches, warm_up):
        pass
    begin = time.perf_counter()
    clips = sum(int(batch["mask"].sum()) for batch in islice(batches, count))
    if not clips:
        raise UserError(
            f"The pipeline ended within its {warm_up} warm-up batches; measure it on"
            " more steps."
        )
    return clips / (time.perf_counter() - begin)


@dataclasses.dataclass(frozen=True)
class _Mixer:
    """Reads, cuts and mixes one slice of a batch."""

    split: Split
    condition: Condition
    background: NoiseBank | None
    noise: NoiseBank | None
    silence_label: int | None
    reference_rms: float

    @property
    def has_background(self) -> bool:
        c = self.condition
        return c.background_probability > 0 and c.background_volume > 0

    @property
    def has_noise(self) -> bool:
        return bool(self.condition.snr_db) and self.condition.clean_fraction < 1

    def cut(self, part: _Slice) -> tuple[np.ndarray, ...]:
        """The arrays that `mix` takes, then label, index and mask."""
        column = dict(zip(DRAWS, part.uniforms.T, strict=True))
        what = draw(self.condition, part.uniforms)
        clips = np.asarray(self.split.read(part.positions), np.int16)
        if self.condition.shift_ms:
            clips = shift_clips(clips, what.shift)
        none = np.zeros((0, CLIP_SAMPLES), np.int16)
        background = noise = none
        if self.has_background and self.background is not None:
            background = self.background.crops(
                column["background_recording"], column["background_start"]
            )
        if self.has_noise and self.noise is not None:
            noise = self.noise.crops(column["noise_recording"], column["noise_start"])
        label = np.where(part.mask, self.split.labels[part.positions], 0)
        return (
            clips,
            background,
            what.background_gain,
            noise,
            what.noise_level,
            label.astype(np.int32),
            part.positions.astype(np.int32),
            part.mask,
        )

    def mixed(self, cut: list[tf.Tensor]) -> dict[str, tf.Tensor]:
        """The batch, from what `cut` gave."""
        clips, background, gain, noise, level, label, index, mask = cut
        audio = clips
        speechless = -1 if self.silence_label is None else self.silence_label
        if self.has_background or self.has_noise:
            audio = mix(
                clips,
                background if self.has_background else None,
                gain,
                noise if self.has_noise else None,
                level,
                tf.equal(label, speechless),
                self.reference_rms,
            )
        audio = tf.where(mask[:, None], audio, tf.zeros_like(audio))
        return {"audio": audio, "label": label, "index": index, "mask": mask}


_CUT_TYPES = (
    tf.int16,
    tf.int16,
    tf.float32,
    tf.int16,
    tf.float32,
    tf.int32,
    tf.int32,
    tf.bool,
)


def _stream(
    plan: Callable[[int], _Slice],
    mixer: _Mixer,
    steps: range,
    threads: int,
    prefetch: int,
) -> Iterator[Batch]:
    """Runs plan > cut > mix for each step in tf.data's threads, in the steps' order."""
    failures: list[UserError] = []

    def cut(step: np.ndarray) -> tuple[np.ndarray, ...]:
        try:
            return mixer.cut(plan(int(step)))
        except UserError as error:
            failures.append(error)
            raise

    def batch(step: tf.Tensor) -> dict[str, tf.Tensor]:
        parts = tf.numpy_function(cut, [step], _CUT_TYPES, stateful=False)
        for part, rank in zip(parts, (2, 2, 1, 2, 1, 1, 1, 1), strict=True):
            part.set_shape((None,) if rank == 1 else (None, CLIP_SAMPLES))
        return mixer.mixed(parts)

    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    data = tf.data.Dataset.range(steps.start, steps.stop)
    data = data.map(batch, num_parallel_calls=threads).prefetch(prefetch)
    batches = data.with_options(options).as_numpy_iterator()
    stream = _as_user_errors(batches, failures)
    _open_streams.add(stream)
    return stream


def _as_user_errors(
    batches: Iterator[Batch], failures: list[UserError]
) -> Generator[Batch, None, None]:
    """Gives the reader's own error instead of TensorFlow's wrapping of it."""
    try:
        yield from batches
    except tf.errors.OpError:
        if failures:
            raise failures[0] from None
        raise


# A stream that is still open when the interpreter shuts down would wait for ever: its
# threads need Python for the batches they make ahead. So all are closed just before.
_open_streams: "weakref.WeakSet[Generator[Batch, None, None]]" = weakref.WeakSet()


@atexit.register
def _close_streams() -> None:
    for stream in list(_open_streams):
        # One that another thread is reading at this moment cannot be closed.
        with contextlib.suppress(ValueError):
            stream.close()


def _generator(seed: int, stream: int, step: int) -> np.random.Generator:
    """Philox with key (seed, stream); the counter's high word is the step."""
    key = np.array([seed % 2**64, stream], np.uint64)
    counter = np.array([0, 0, 0, step], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def _process_part(batch_size: int, process_index: int, process_count: int) -> slice:
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"The batch size is {batch_size}; give a positive multiple of the"
            f" {process_count} process(es) that share it."
        )
    if not 0 <= process_index < process_count:
        raise UserError(f"Process {process_index} is not one of {process_count}.")
    local = batch_size // process_count
    return slice(process_index * local, (process_index + 1) * local)


def _check(
    split: Split,
    condition: Condition,
    background: NoiseBank | None,
    noise: NoiseBank | None,
) -> None:
    check_condition(condition)
    if not len(split):
        raise UserError(
            f"The {split.name} split is empty; check the keywords and the split lists."
        )
    if condition.background_probability > 0 and background is None:
        raise UserError(
            "The condition adds background but there are no background recordings; add"
            " some, or set background_probability to 0."
        )
    if condition.snr_db and noise is None:
        raise UserError(
            f"The condition asks for noise at {condition.snr_db} dB but there are no"
            " noise recordings; add some, or leave snr_db empty."
        )
