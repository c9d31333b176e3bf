"""What may stand in a field of a config: its type, and how small or large it may be.

What a field means together with others is checked where that is known: in `config`,
`recipes`, and by what is made from the field. No JAX here.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from kws_jax.errors import UserError, nearest

_SHARE = (0.0, 1.0)
_POSITIVE = (0.0, 1e12)
# What is computed in int32, or is a length in steps, must fit.
_INT32 = 2**31 - 1
_COUNT = (1, _INT32)
_ANY = (-1e12, 1e12)
_SEED = (0, 2**32 - 1)

# Whole numbers, numbers and tuples of numbers by name, or by group and name where the
# name has other meanings elsewhere; with the least and the greatest.
WHOLE: dict[str, tuple[int, int]] = {
    "front_filter.kernels": _COUNT,
    "seed": _SEED,
    "seeds": (1, 1_000),
    "task_seed": _SEED,
    "number": (2, 100_000),
    **dict.fromkeys(("weights", "activations"), (1, 8)),
    "most": (2, 8),
    "calibration_batches": _COUNT,
    **dict.fromkeys(("batch_size", "tuples_per_batch"), _COUNT),
    "classes": (0, _INT32),
    **dict.fromkeys(("log_every_steps", "steps_per_call"), _COUNT),
    "batch_norm_devices": _COUNT,
    **dict.fromkeys(("architecture_every", "patience", "steps"), (0, _INT32)),
    **dict.fromkeys(("max_macs", "max_parameters", "min_parameters"), (0, 2**62)),
    "clips_per_word": (1, 1_000_000),
    "threads": (1, 256),
    **dict.fromkeys(("channels", "hidden", "states", "depth"), (1, 100_000)),
    "context": (0, 1_000),
    **dict.fromkeys(("kernel_size", "groups", "heads"), (1, 1_000)),
    "se_reduction": (1, 100_000),
    **dict.fromkeys(("num_mel", "num_coefficients", "num_filters"), (1, 100_000)),
    **dict.fromkeys(("time_masks", "frequency_masks"), (0, 1_000)),
    **dict.fromkeys(("time_width", "frequency_width", "min_width"), (0, 2**30)),
    "order": (1, 2),
}
NUMBERS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("epochs", "warmup_epochs", "temperature_epochs"), (0, 1e5)),
    "eval_every_epochs": (0, 1e5),
    **dict.fromkeys(("learning_rate", "final_learning_rate"), _POSITIVE),
    **dict.fromkeys(("weight_decay", "clip_norm", "step_factor"), _POSITIVE),
    **dict.fromkeys(("warmup_fraction", "label_smoothing"), _SHARE),
    **dict.fromkeys(("momentum", "b1", "b2", "batch_norm_momentum"), _SHARE),
    **dict.fromkeys(("background_volume", "fill"), _ANY),
    "shift_ms": (0.0, 1000.0),
    **dict.fromkeys(("background_probability", "clean_fraction"), _ANY),
    **dict.fromkeys(("reverberant_fraction", "probability", "until", "alpha"), _ANY),
    **dict.fromkeys(("class_initial", "instance_initial", "clamp"), _POSITIVE),
    **dict.fromkeys(("class_decay", "instance_decay", "joint_decay"), _ANY),
    **dict.fromkeys(("class_learning_rate", "instance_learning_rate"), _ANY),
    **dict.fromkeys(("flat_fraction", "energy_share"), _ANY),
    **dict.fromkeys(("lambda_", "acoustic_scale", "temperature", "dropout"), _ANY),
    **dict.fromkeys(("weight_bits_penalty", "activation_bits_penalty"), _POSITIVE),
    **dict.fromkeys(("threshold",), _SHARE),
    **dict.fromkeys(("zero_one_weight", "skip_noise", "beta", "scale"), _POSITIVE),
    "reference_macs": _ANY,
    "width": (1 / 16, 100),
    **dict.fromkeys(("window_ms", "hop_ms"), (0.0, 1e6)),
    **dict.fromkeys(("low_hz", "high_hz", "min_low_hz", "min_band_hz"), _ANY),
    **dict.fromkeys(("unit_hz", "log_offset", "preemphasis", "first_gain"), _ANY),
    **dict.fromkeys(("unknown_percent", "silence_percent"), _ANY),
    **dict.fromkeys(("validation_fraction", "test_fraction", "train_fraction"), _ANY),
    **dict.fromkeys(("noise_test_fraction", "rooms_test_fraction"), _ANY),
    **dict.fromkeys(("noise_hours", "flip_labels"), _ANY),
    # Hours of audio are held in memory.
    "hours": (0.0, 1_000.0),
    **dict.fromkeys(("keywords_per_hour", "speech_share", "noise_share"), _ANY),
    **dict.fromkeys(("smoothing_ms", "refractory_ms", "tolerance_ms"), (0.0, 1e9)),
    "target_false_alarms_per_hour": _POSITIVE,
    "rate": _ANY,
}
# Of each of the numbers; the fewest and the most of them.
SEVERAL: dict[str, tuple[float, float, int, int]] = {
    "snr_db": (-100.0, 100.0, 0, 1_000),
    "snr_edges_db": (-100.0, 100.0, 0, 1_000),
    "step_at": (*_SHARE, 0, 1_000),
    "step_epochs": (*_POSITIVE, 0, 1_000),
    **dict.fromkeys(("length_m", "width_m", "height_m"), (0.0, 1_000.0, 2, 2)),
    "t60_s": (0.0, 100.0, 2, 2),
    "distance_m": (0.0, 1_000.0, 2, 2),
    "search.expansions": (1, 100, 1, 100),
    "search.kernels": (1, 99, 1, 100),
}
FLAGS = {
    *("decay_all", "din", "embeddings", "final_test", "gated", "learned", "mtconv"),
    *("nested", "nesterov", "normalise", "normalized", "on_device", "per_channel"),
    *("resets", "residual", "round_widths", "skip_corrupt", "ties"),
}
TEXTS = {
    *("activation", "anchors", "architecture_data", "batch_size_of", "builder"),
    *("cache_dir", "compute_dtype", "dir", "distance", "first_filters", "genotype"),
    *("keywords", "kind"),
    *("batch_norm_of", "seeds_at_once"),
    *("learning_rate_scaling", "loss", "method", "mode", "name", "scores"),
    *("noise_seen", "noise_unseen", "objective", "optimizer_start", "post"),
    *("protocol", "rooms", "rule", "schedule", "shortcut", "silence", "source"),
    *("trained_part", "unheard_words", "validation", "window_function", "words"),
}
SEVERAL_TEXTS = {"keep_float", "operations"}
# What the registries know, which cannot be asked without JAX.
NAMES = {
    "network.name": (
        *("acoustic_dnn", "conv_mixer", "mbconv", "res15", "res15_narrow", "searched"),
        *("tc_resnet14", "tc_resnet8", "tenet12", "tenet12_narrow", "tenet6"),
        "tenet6_narrow",
    ),
    "frontend.name": ("conv1d", "log_mel", "mfcc", "sinc"),
    "front_filter.name": ("dynamic", "dynamic_conv", "light_conv", "none"),
}
_LONGEST = 100_000  # characters of a text


def check(config: Mapping[str, Any]) -> None:
    """Raises UserError for the first field whose value cannot be.

    Of fields that are not known here, numbers must be finite.
    """
    for path, value in _fields(config, "config"):
        _, _, known = path.rpartition("config.")
        group, _, name = known.rpartition(".")
        names = NAMES.get(known)
        if names and isinstance(value, str) and value not in names:
            raise UserError(f"{path} = {value!r} is unknown; {nearest(value, names)}")
        wanted = _wanted(f"{group.rpartition('.')[2]}.{name}", name, value)
        if wanted:
            raise UserError(f"{path} = {_shown(value)}: give {wanted}.")


def _fields(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) or hasattr(node, "items"):
        for name in node:
            yield from _fields(node[name], f"{path}.{name}")
    elif isinstance(node, tuple | list) and any(hasattr(n, "items") for n in node):
        for index, entry in enumerate(node):
            yield from _fields(entry, f"{path}[{index}]")
    else:
        yield path, node


def _wanted(grouped: str, name: str, value: Any) -> str:
    """What should stand there in place of `value`; "" where it may."""
    for key in (grouped, name):
        if key in WHOLE:
            low, high = WHOLE[key]
            return "" if _whole(value, low, high) else _between("a whole", low, high)
        if key in NUMBERS:
            ends = NUMBERS[key]
            return "" if _number(value, *ends) else _between("a", *ends)
        if key in SEVERAL:
            return _of_several(value, *SEVERAL[key])
    if name in FLAGS:
        return "" if isinstance(value, bool) else "True or False"
    if name in TEXTS:
        fits = isinstance(value, str) and "\0" not in value and len(value) < _LONGEST
        return "" if fits else "a text"
    if name in SEVERAL_TEXTS:
        texts = isinstance(value, tuple | list)
        texts = texts and all(isinstance(text, str) for text in value)
        return "" if texts else "texts in brackets, with commas"
    return _of_unknown(value)


def _of_several(value: Any, low: float, high: float, fewest: int, most: int) -> str:
    each = isinstance(value, tuple | list) and all(_number(v, low, high) for v in value)
    if each and fewest <= len(value) <= most:
        return ""
    count = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    return f"{count} numbers from {low:g} to {high:g} in brackets, with commas"


def _of_unknown(value: Any) -> str:
    values = value if isinstance(value, tuple | list) else (value,)
    if all(v is None or isinstance(v, bool | str) or _number(v) for v in values):
        return ""
    return "True or False, a text, finite numbers, or several of them in brackets"


def _whole(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int) and _number(value, low, high)


def _number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return bool(low <= value <= high) and abs(value) < 2**1023


def _between(what: str, low: float, high: float) -> str:
    if isinstance(low, int) and high == low + 1:
        return f"{low} or {high}"
    ends = (str(end) if isinstance(end, int) else f"{end:g}" for end in (low, high))
    return f"{what} number from {' to '.join(ends)}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 100 else f"{text[:100]}…"
