"""What of a training depends on the number of devices; no JAX.

Batches may grow with it, and learning rates with them; batch norms may see the rows of
one device alone.

Reference for the rules: Goyal et al., "Accurate, Large Minibatch SGD", arXiv 1706.02677
(linear); Krizhevsky, "One weird trick", arXiv 1404.5997, section 5 (square root).
"""

import math
from collections.abc import Callable

from ml_collections import ConfigDict

from kws_jax.errors import UserError, nearest

GLOBAL, DEVICE = "global", "device"
RULES: dict[str, Callable[[int], float]] = {
    "none": lambda devices: 1.0,
    "linear": float,
    "sqrt": math.sqrt,
}
_SIZES = ("batch_size", "tuples_per_batch")
_RATES = ("learning_rate", "final_learning_rate")


def check(config: ConfigDict) -> None:
    """Raises UserError for a scaling that is unknown, or has nothing to scale by."""
    for field, known in {
        "batch_size_of": (GLOBAL, DEVICE),
        "learning_rate_scaling": tuple(RULES),
        "batch_norm_of": (GLOBAL, DEVICE),
    }.items():
        value = config.get(field, known[0])
        if value not in known:
            raise UserError(
                f"config.{field} = {value!r} is unknown; {nearest(value, known)}"
            )
    rule = config.get("learning_rate_scaling", "none")
    if rule != "none" and config.batch_size_of == GLOBAL:
        raise UserError(
            f"config.learning_rate_scaling = {rule!r} scales by the devices that a "
            "batch_size of each device is multiplied by, and config.batch_size_of is "
            f"{GLOBAL!r}: say {DEVICE!r}, or scaling 'none' and the rate itself."
        )


def resolve(
    config: ConfigDict, devices: int, tell: Callable[[str], None]
) -> ConfigDict:
    """The experiment with all that the number of devices makes of it.

    Where `batch_norm_of` is 'device', `batch_norm_devices` says how many there are, so
    that a training goes on with as many.

    Where `batch_size_of` is 'device', sizes are multiplied by `devices`, and the rates
    of the networks' weights (`optimizer`) by what the rule makes of `devices`; rates of
    other trees stay. The result says 'global' and 'none', so that a workdir holds what
    was done; `tell` gets a line for each stage that is changed.
    """
    if config.get("batch_norm_of", GLOBAL) == DEVICE:
        config = config.copy_and_resolve_references().unlock()
        config.batch_norm_devices = devices
        config.lock()
    if config.get("batch_size_of", GLOBAL) == GLOBAL:
        return config
    rule = config.learning_rate_scaling
    scaled = config.copy_and_resolve_references().unlock()
    scaled.stages = tuple(
        _scaled(stage, devices, RULES[rule](devices)) for stage in config.stages
    )
    scaled.update(batch_size_of=GLOBAL, learning_rate_scaling="none")
    for before, after in zip(config.stages, scaled.stages, strict=True):
        for line in _told(before, after, devices, rule):
            tell(line)
    return scaled.lock()


def _scaled(stage: ConfigDict, devices: int, factor: float) -> ConfigDict:
    stage = stage.copy_and_resolve_references().unlock()
    for field in _SIZES:
        if field in stage:
            stage[field] *= devices
    if "optimizer" in stage:
        for field in _RATES:
            stage.optimizer[field] *= factor
    return stage


def _told(before: ConfigDict, after: ConfigDict, devices: int, rule: str) -> list[str]:
    return [
        f"Stage {before.name!r}: {field} {before[field]} × {devices} devices = "
        f"{after[field]}; learning rate {before.optimizer.learning_rate:g} -> "
        f"{after.optimizer.learning_rate:g} ({rule})"
        for field in _SIZES
        if field in before
    ]
