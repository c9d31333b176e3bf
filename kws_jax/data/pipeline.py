"""Batches for training and evaluation, the same from any step and on any process.

What is in them is decided in `draws`, as a pure function of the step: a run that
resumes at any step sees the batches it would have seen, and the processes of a pod
together see the global batch that one process would. Here tf.data reads and mixes them
on the host.
"""

import atexit
import contextlib
import dataclasses
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from itertools import islice
from typing import TypedDict, Unpack

import numpy as np
import tensorflow as tf

from kws_jax.data.conditions import Condition
from kws_jax.data.corpus import CLIP_SAMPLES, FULL_SCALE, Split
from kws_jax.data.draws import (
    Recipe,
    Selection,
    evaluation_selection,
)
from kws_jax.data.mixing import (
    mix,
    reverberate,
    shift_clips,
)
from kws_jax.data.noise import NoiseBank
from kws_jax.data.rooms import RoomBank
from kws_jax.errors import UserError

Batch = dict[str, np.ndarray]
# Enough for the median level of speech, few enough to be read at every start.
_CLIPS_OF_MEDIAN = 1000


class _Mixing(TypedDict, total=False):
    """Fields of a `Recipe` beside the split and its condition."""

    background: NoiseBank | None
    noise: NoiseBank | None
    silence_label: int | None
    reference_rms: float
    rooms: RoomBank | None


def selected_batches(
    recipe: Recipe,
    select: Callable[[int], Selection],
    *,
    start_step: int = 0,
    num_steps: int | None = None,
    threads: int = 2,
    prefetch: int = 2,
) -> Iterator[Batch]:
    """The batches that a selection of `draws` or `tuples` describes, step by step.

    Args:
      recipe: what they are mixed from.
      select: which clips and draws are in the batch of a step; the selection of one
        process gives its slice of each batch.
      start_step: the first step; the batch of a step does not depend on it.
      num_steps: how many batches, None for no end.
      threads: threads of the pipeline; few, since training runs beside it.
      prefetch: batches made ahead.

    Returns:
      An iterator of dicts: `audio` int16 [b, CLIP_SAMPLES], `label` int32 [b], `index`
      int32 [b] (row of the split), `mask` bool [b] (False in padding), `noise_level`
      float32 [b] (10^(-snr/20), 0 without noise), with b the rows of the selection.
    """
    stop = np.iinfo(np.int64).max if num_steps is None else start_step + num_steps
    return _stream(select, recipe, range(start_step, stop), threads, prefetch)


def eval_batches(
    split: Split,
    condition: Condition,
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 2,
    prefetch: int = 2,
    **mixing: Unpack[_Mixing],
) -> Iterator[Batch]:
    """Every clip of the split exactly once, in order; the last batch is padded.

    The draws of a clip depend on (seed, its position in the split) alone, not on the
    batch size. Every process gets the same number of batches, so collective operations
    match; a process's last batch may be padding throughout. Padded rows are silent,
    with label 0, index 0 and mask False.

    Args:
      split: the clips.
      condition: the disturbance of each clip.
      batch_size: clips in a global batch, a multiple of `process_count`.
      seed: what the draws depend on.
      process_index: which of the `process_count` slices of each batch to give.
      process_count: how many slices there are.
      threads: as in `selected_batches`, which has the same result.
      prefetch: the same.
      **mixing: the other fields of `draws.Recipe`, with its defaults.

    Raises:
      UserError: an empty split, a condition that makes no sense or lacks its
        recordings, or a batch size that the processes cannot share.
    """
    recipe = Recipe(split, condition, **mixing)
    select = evaluation_selection(
        len(split),
        batch_size=batch_size,
        seed=seed,
        process_index=process_index,
        process_count=process_count,
    )
    steps = range(-(-len(split) // batch_size))
    return _stream(select, recipe, steps, threads, prefetch)


def median_rms(split: Split, keywords: int) -> float:
    """Median root mean square of the clips with labels below `keywords`, in [-1, 1].

    At most 1000 clips, spread evenly over the split, are read.

    Raises:
      UserError: the split has no clip of a keyword.
    """
    rows = np.flatnonzero(split.labels < keywords)
    if not len(rows):
        raise UserError(f"The {split.name} split has no clip of a keyword.")
    read = min(_CLIPS_OF_MEDIAN, len(rows))
    rows = rows[np.linspace(0, len(rows) - 1, read).astype(np.int64)]
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

    recipe: Recipe

    def cut(self, selection: Selection) -> tuple[np.ndarray, ...]:
        """The arrays that `mix` takes, what is reverberant, label, index and mask."""
        recipe = self.recipe
        inputs = recipe.inputs(selection)
        clips = np.asarray(recipe.split.read(selection.positions), np.int16)
        if recipe.condition.shift_ms:
            clips = shift_clips(clips, inputs["shift"])
        room = inputs.get("room", np.full(len(clips), -1))
        if recipe.heard_rooms is not None:
            clips = _in_rooms(clips, room, recipe.heard_rooms)
        background = noise = np.zeros((0, CLIP_SAMPLES), np.int16)
        if recipe.heard_background is not None:
            background = recipe.heard_background.cut(inputs["background_start"])
        if recipe.heard_noise is not None:
            noise = recipe.heard_noise.cut(inputs["noise_start"])
        return (
            clips,
            background,
            inputs["background_gain"],
            noise,
            inputs["noise_level"],
            room >= 0,
            inputs["label"],
            inputs["index"],
            inputs["mask"],
        )

    def mixed(self, cut: list[tf.Tensor]) -> dict[str, tf.Tensor]:
        """The batch, from what `cut` gave."""
        clips, background, gain, noise, level, reverberant, label, index, mask = cut
        recipe, audio = self.recipe, clips
        has_background = recipe.heard_background is not None
        has_noise = recipe.heard_noise is not None
        has_rooms = recipe.heard_rooms is not None
        if has_background or has_noise or has_rooms:
            speechless = -1 if recipe.silence_label is None else recipe.silence_label
            audio = mix(
                clips,
                background if has_background else None,
                gain,
                noise if has_noise else None,
                level,
                tf.equal(label, speechless),
                recipe.reference_rms,
            )
        if has_rooms and not (has_background or has_noise):
            # Nothing was done to the others: they stay what they were to the last bit.
            dry = tf.cast(clips * FULL_SCALE, tf.int16)
            audio = tf.where(reverberant[:, None], audio, dry)
        audio = tf.where(mask[:, None], audio, tf.zeros_like(audio))
        return {
            "audio": audio,
            "label": label,
            "index": index,
            "mask": mask,
            "noise_level": level,
        }

    @property
    def cut_types(self) -> tuple[tf.DType, ...]:
        """The types of what `cut` gives."""
        clips = tf.int16 if self.recipe.heard_rooms is None else tf.float32
        parts = (tf.int16, tf.float32, tf.int16, tf.float32)
        return (clips, *parts, tf.bool, tf.int32, tf.int32, tf.bool)


def _in_rooms(clips: np.ndarray, room: np.ndarray, rooms: RoomBank) -> np.ndarray:
    """Clips in units of full scale, float32; those with a room (not -1) through it."""
    heard = clips.astype(np.float32) / np.float32(FULL_SCALE)
    rows = np.flatnonzero(room >= 0)
    heard[rows] = reverberate(clips[rows], rooms.responses, room[rows])
    return heard


def _stream(
    select: Callable[[int], Selection],
    recipe: Recipe,
    steps: range,
    threads: int,
    prefetch: int,
) -> Iterator[Batch]:
    """Selects, cuts and mixes each step in tf.data's threads, in the steps' order."""
    mixer = _Mixer(recipe)
    failures: list[UserError] = []

    def cut(step: np.ndarray) -> tuple[np.ndarray, ...]:
        try:
            return mixer.cut(select(int(step)))
        except UserError as error:
            failures.append(error)
            raise

    def batch(step: tf.Tensor) -> dict[str, tf.Tensor]:
        parts = tf.numpy_function(cut, [step], mixer.cut_types, stateful=False)
        for part, rank in zip(parts, (2, 2, 1, 2, 1, 1, 1, 1, 1), strict=True):
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
