"""The same batches, made by the device that trains from clips that stay in its memory.

The host sends what `draws.Recipe.inputs` gives, some bytes for each clip; the device
gathers, shifts, convolves, crops, mixes and rounds as `mixing` does, in float32. The
two differ in the last digits of sums: by one unit of int16 at most, and not at all
where nothing is mixed and no room is heard.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kws_jax.data.corpus import CLIP_SAMPLES, FULL_SCALE, SAMPLE_RATE, Split
from kws_jax.data.draws import Inputs, Recipe
from kws_jax.data.mixing import PEAK
from kws_jax.data.noise import NoiseBank
from kws_jax.data.rooms import RoomBank
from kws_jax.errors import UserError

_READ_AT_ONCE = 1024  # clips
_GIB = 2**30


class Resident(NamedTuple):
    """What stays in device memory, all of it on each device.

    Attributes:
      clips: int16 [n, CLIP_SAMPLES], a whole split.
      background, noise: int16 [samples], `NoiseBank.audio`; None where not heard.
      rooms: float32 [r, taps], `RoomBank.responses`; None where not heard.
    """

    clips: Any
    background: Any
    noise: Any
    rooms: Any = None


def read(
    split: Split,
    background: NoiseBank | None,
    noise: NoiseBank | None,
    rooms: RoomBank | None = None,
) -> Resident:
    """All clips of a split, recordings and rooms, as NumPy arrays on the host."""
    clips = np.empty((len(split), CLIP_SAMPLES), np.int16)
    for first in range(0, len(split), _READ_AT_ONCE):
        rows = np.arange(first, min(first + _READ_AT_ONCE, len(split)))
        clips[rows] = split.read(rows)
    return Resident(
        clips,
        None if background is None else background.audio,
        None if noise is None else noise.audio,
        None if rooms is None else rooms.responses,
    )


def check_room(
    clips: int,
    banks: Iterable[NoiseBank | None],
    devices: Iterable[Any],
    rooms: RoomBank | None = None,
) -> None:
    """Raises UserError where what is to stay does not fit into a device's memory.

    Devices that do not tell their memory are taken to have enough.
    """
    samples = [len(bank.audio) for bank in banks if bank is not None]
    if max(samples, default=0) >= 2**31:
        raise UserError(
            "config.data.on_device=True: the noise recordings have more than"
            f" {2**31 / SAMPLE_RATE / 3600:.0f} hours; take fewer of them, or set"
            " config.data.on_device to False."
        )
    needed = 2 * (clips * CLIP_SAMPLES + sum(samples))
    needed += 0 if rooms is None else rooms.responses.nbytes
    for device in devices:
        stats = device.memory_stats() or {}
        if "bytes_limit" not in stats:
            continue
        free = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
        if needed >= free:
            raise UserError(
                f"config.data.on_device=True: {clips:,} training clips, the noise and"
                f" the rooms need {needed / _GIB:.1f} GiB in the memory of each device;"
                f" {device} has {free / _GIB:.1f} GiB free, and the network needs some"
                " too. Set config.data.on_device to False, or take fewer clips."
            )


def stack(split: Split, inputs: Sequence[Inputs]) -> Inputs:
    """What a call of several steps sends: each array [b] of `inputs` as [steps, b].

    `row` int32 is added, the row of the whole split that `split` was cut from. Whole
    numbers become int32, as devices count.
    """
    stacked = {name: np.stack([one[name] for one in inputs]) for name in inputs[0]}
    index = stacked["index"]
    stacked["row"] = index if split.origin is None else split.origin[index]
    return {
        name: value.astype(np.int32) if value.dtype == np.int64 else value
        for name, value in stacked.items()
    }


def make_batch(
    recipe: Recipe, resident: Resident, inputs: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """The batch of one step; a pure function of arrays, to be jitted.

    Args:
      recipe: how to mix; its audio is not read here.
      resident: clips and recordings.
      inputs: one step of what `stack` gives, [b] each.

    Returns:
      A batch as `pipeline.selected_batches` gives it.
    """
    audio = jnp.take(resident.clips, inputs["row"], axis=0, mode="clip")
    if recipe.condition.shift_ms:
        audio = _shifted(audio, inputs["shift"])
    dry, reverberant = audio, None
    if recipe.heard_rooms is not None:
        reverberant = (inputs["room"] >= 0)[:, None]
        response = jnp.take(resident.rooms, inputs["room"], axis=0, mode="clip")
        clip = _to_float(audio)
        audio = jnp.where(reverberant, _reverberant(clip, response), clip)
    background = noise = None
    if recipe.heard_background is not None:
        background = _crops(resident.background, inputs["background_start"])
    if recipe.heard_noise is not None:
        noise = _crops(resident.noise, inputs["noise_start"])
    disturbed = background is not None or noise is not None
    if disturbed or reverberant is not None:
        silence = -1 if recipe.silence_label is None else recipe.silence_label
        audio = _mix(
            audio,
            background,
            inputs["background_gain"],
            noise,
            inputs["noise_level"],
            inputs["label"] == silence,
            recipe.reference_rms,
        )
    if reverberant is not None and not disturbed:
        audio = jnp.where(reverberant, audio, dry)
    mask = inputs["mask"]
    return {
        "audio": jnp.where(mask[:, None], audio, 0),
        "label": inputs["label"],
        "index": inputs["index"],
        "mask": mask,
        "noise_level": inputs["noise_level"],
    }


def _crops(audio: jax.Array, starts: jax.Array) -> jax.Array:
    """int16 [b, CLIP_SAMPLES] from the samples `starts` [b] of int16 [samples] on."""
    return jax.vmap(
        lambda start: jax.lax.dynamic_slice(audio, (start,), (CLIP_SAMPLES,))
    )(starts)


def _shifted(clips: jax.Array, shift: jax.Array) -> jax.Array:
    """As `mixing.shift_clips`, for shifts of a clip's length at most."""
    zeros = jnp.zeros_like(clips)
    padded = jnp.concatenate([zeros, clips, zeros], axis=1)
    return jax.vmap(
        lambda clip, by: jax.lax.dynamic_slice(
            clip, (CLIP_SAMPLES - by,), (CLIP_SAMPLES,)
        )
    )(padded, shift)


def _reverberant(clips: jax.Array, responses: jax.Array) -> jax.Array:
    """As `mixing.reverberate`, for float32 clips in units of full scale."""
    samples = clips.shape[1]
    # A power of two, which every device has a fast transform for.
    size = 1 << (samples + responses.shape[1] - 2).bit_length()
    spectrum = jnp.fft.rfft(clips, size) * jnp.fft.rfft(responses, size)
    return jnp.fft.irfft(spectrum, size)[:, :samples]


def _mix(
    speech: jax.Array,
    background: jax.Array | None,
    background_gain: jax.Array,
    noise: jax.Array | None,
    noise_level: jax.Array,
    speechless: jax.Array,
    reference_rms: float,
) -> jax.Array:
    """As `mixing.mix`."""
    clip = _to_float(speech)
    mixture = clip
    if background is not None:
        mixture += background_gain[:, None] * _to_float(background)
    if noise is not None:
        level = _rms(clip)
        level = jnp.where(speechless | (level == 0), reference_rms, level)
        crop = _to_float(noise)
        gain = _divide_no_nan(level * noise_level, _rms(crop))
        mixture += gain[:, None] * crop
    peak = jnp.abs(mixture).max(1)
    scale = FULL_SCALE * jnp.minimum(1, _divide_no_nan(jnp.float32(PEAK), peak))
    return jnp.round(mixture * scale[:, None]).astype(jnp.int16)


def _rms(audio: jax.Array) -> jax.Array:
    # Not a matrix product, which accelerators compute with fewer digits.
    return jnp.sqrt(jnp.mean(audio * audio, axis=1))


def _divide_no_nan(dividend: jax.Array, divisor: jax.Array) -> jax.Array:
    zero = divisor == 0
    return jnp.where(zero, 0, dividend / jnp.where(zero, 1, divisor))


def _to_float(audio: jax.Array) -> jax.Array:
    floating = jnp.issubdtype(audio.dtype, jnp.floating)
    return audio if floating else audio.astype(jnp.float32) / FULL_SCALE
