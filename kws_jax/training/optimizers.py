"""Optimiser settings of a stage → an optax transformation and its schedule."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kws_jax.errors import UserError, nearest

SCHEDULES = ("constant", "cosine", "rising_cosine", "step")
OPTIMIZERS = ("sgd", "adam")


def create_schedule(settings: Mapping[str, Any], total_steps: int) -> optax.Schedule:
    """The learning rate as a function of the step.

    Args:
      settings: `schedule`, `learning_rate`, `final_learning_rate` (cosine), `step_at`
        (fractions of the stage) and `step_factor` (step), `warmup_fraction` (a linear
        rise from 0, for every schedule).
      total_steps: the length of the stage.

    Raises:
      UserError: for an unknown schedule, or fractions outside (0, 1).
    """
    name, rate = settings["schedule"], settings["learning_rate"]
    if name == "constant":
        schedule = optax.constant_schedule(rate)
    elif name == "cosine":
        alpha = settings["final_learning_rate"] / rate if rate else 0.0
        schedule = optax.cosine_decay_schedule(rate, max(total_steps, 1), alpha)
    elif name == "rising_cosine":
        schedule = _rising_cosine(rate, max(total_steps, 1))
    elif name == "step":
        fractions = settings["step_at"]
        if any(not 0 < f < 1 for f in fractions):
            raise UserError(
                f"optimizer.step_at = {fractions!r}: give fractions of the stage, each "
                "between 0 and 1, for example (0.33, 0.67)."
            )
        steps: dict[int, float] = {}
        for fraction in fractions:
            step = round(fraction * total_steps)
            steps[step] = steps.get(step, 1.0) * settings["step_factor"]
        schedule = optax.piecewise_constant_schedule(rate, steps)
    else:
        raise UserError(
            f"optimizer.schedule = {name!r} is unknown: {nearest(name, SCHEDULES)}"
        )
    warmup = round(settings["warmup_fraction"] * total_steps)
    if not warmup:
        return schedule
    ramp = optax.linear_schedule(0.0, 1.0, warmup)
    return lambda step: schedule(step) * ramp(step)


def _rising_cosine(rate: float, total_steps: int) -> optax.Schedule:
    """Rate · (1 + cos(π(1 + t/2T))), from 0 to `rate`: ProxylessNAS, for α."""
    return lambda step: (
        rate * (1 + jnp.cos(jnp.pi * (1 + jnp.minimum(step / total_steps, 1) / 2)))
    )


def create_optimizer(
    settings: Mapping[str, Any], total_steps: int, *, differentiable: bool = False
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The transformation of one tree and its learning-rate schedule.

    Weight decay is L2 in the gradient, as in the papers' code (before momentum and
    before Adam's scaling), on kernels (two and more axes) unless `decay_all`. Say
    `differentiable` where the update is to be differentiated itself.

    Raises:
      UserError: for an unknown optimiser or schedule.
    """
    schedule = create_schedule(settings, total_steps)
    parts = []
    if settings["clip_norm"] > 0:
        clip = optax.clip_by_global_norm(settings["clip_norm"])
        # XLA takes many minutes to compile the derivative of a norm over hundreds of
        # leaves, but not of that of one vector, whose making costs a little.
        parts.append(optax.flatten(clip) if differentiable else clip)
    if settings["weight_decay"] > 0:
        mask = None if settings["decay_all"] else _is_kernel
        parts.append(optax.add_decayed_weights(settings["weight_decay"], mask))
    name = settings["name"]
    if name == "sgd":
        parts.append(optax.sgd(schedule, settings["momentum"], settings["nesterov"]))
    elif name == "adam":
        parts.append(optax.adam(schedule, settings["b1"], settings["b2"]))
    else:
        raise UserError(
            f"optimizer.name = {name!r} is unknown: {nearest(name, OPTIMIZERS)}"
        )
    return optax.chain(*parts), schedule


def _is_kernel(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, tree)
