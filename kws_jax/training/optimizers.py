"""Optimiser settings of a stage → an optax transformation and its schedule."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kws_jax.errors import UserError, nearest
from kws_jax.models.wrapped import HOLDERS

SCHEDULES = ("constant", "cosine", "rising_cosine", "step", "epoch_step")
OPTIMIZERS = ("sgd", "adam")
# From the first rate to the last; beyond float32 it would be no number.
_LARGEST_RISE = 1e9


def create_schedule(
    settings: Mapping[str, Any],
    total_steps: int,
    *,
    steps_per_epoch: float,
    where: str = "optimizer",
) -> optax.Schedule:
    """The learning rate as a function of the step.

    Args:
      settings: `schedule`, `learning_rate`, `final_learning_rate` (cosine), `step_at`
        (fractions of the stage), `step_epochs` (epoch_step: the rate falls when so many
        epochs are over), `step_factor` (step, epoch_step), `warmup_fraction` (a linear
        rise from 0, for every schedule).
      total_steps: the length of the stage.
      steps_per_epoch: updates in an epoch, for epoch_step.
      where: what the settings are called in messages.

    Raises:
      UserError: for an unknown schedule, fractions outside (0, 1), epochs that are not
        above 0, or none where they are needed.
    """
    name, rate = settings["schedule"], settings["learning_rate"]
    if name == "constant":
        schedule = optax.constant_schedule(rate)
    elif name == "cosine":
        alpha = settings["final_learning_rate"] / rate if rate else 0.0
        if alpha > _LARGEST_RISE:
            raise UserError(
                f"{where}.final_learning_rate = {settings['final_learning_rate']:g} "
                f"is more than {_LARGEST_RISE:g} times {where}.learning_rate = "
                f"{rate:g}: give a smaller one, or a learning rate of 0."
            )
        schedule = optax.cosine_decay_schedule(rate, max(total_steps, 1), alpha)
    elif name == "rising_cosine":
        schedule = _rising_cosine(rate, max(total_steps, 1))
    elif name == "step":
        fractions = settings["step_at"]
        if any(not 0 < f < 1 for f in fractions):
            raise UserError(
                f"{where}.step_at = {fractions!r}: give fractions of the stage, each "
                "between 0 and 1, for example (0.33, 0.67)."
            )
        steps = [round(fraction * total_steps) for fraction in fractions]
        schedule = _stepwise(rate, steps, settings["step_factor"])
    elif name == "epoch_step":
        epochs = settings["step_epochs"]
        if not epochs or any(e <= 0 for e in epochs):
            raise UserError(
                f"{where}.step_epochs = {epochs!r}: give numbers of epochs above 0, "
                "for example (5, 9, 13)."
            )
        steps = [round(epoch * steps_per_epoch) for epoch in epochs]
        schedule = _stepwise(rate, steps, settings["step_factor"])
    else:
        raise UserError(
            f"{where}.schedule = {name!r} is unknown: {nearest(name, SCHEDULES)}"
        )
    warmup = round(settings["warmup_fraction"] * total_steps)
    if not warmup:
        return schedule
    ramp = optax.linear_schedule(0.0, 1.0, warmup)
    return lambda step: schedule(step) * ramp(step)


def _stepwise(rate: float, steps: Sequence[int], factor: float) -> optax.Schedule:
    """`rate`, times `factor` from each of `steps` on; a step may be named twice."""
    factors: dict[int, float] = {}
    for step in steps:
        factors[step] = factors.get(step, 1.0) * factor
    return optax.piecewise_constant_schedule(rate, factors)


def updates_made(opt_state: Any) -> int:
    """How many updates an optimiser has made: where its schedule stands."""
    counts = optax.tree_utils.tree_get_all_with_path(opt_state, "count")
    return int(counts[0][1])


def _rising_cosine(rate: float, total_steps: int) -> optax.Schedule:
    """Rate · (1 + cos(π(1 + t/2T))), from 0 to `rate`: ProxylessNAS, for α."""
    return lambda step: (
        rate * (1 + jnp.cos(jnp.pi * (1 + jnp.minimum(step / total_steps, 1) / 2)))
    )


def create_optimizer(
    settings: Mapping[str, Any],
    total_steps: int,
    *,
    steps_per_epoch: float,
    differentiable: bool = False,
    where: str = "optimizer",
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The transformation of one tree and its learning-rate schedule.

    Weight decay is L2 in the gradient, as in the papers' code (before momentum and
    before Adam's scaling), on kernels (two and more axes) unless `decay_all`. Say
    `differentiable` where the update is to be differentiated itself; `where` is what
    the settings are called in messages.

    Raises:
      UserError: for an unknown optimiser or schedule.
    """
    schedule = create_schedule(
        settings, total_steps, steps_per_epoch=steps_per_epoch, where=where
    )
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
            f"{where}.name = {name!r} is unknown: {nearest(name, OPTIMIZERS)}"
        )
    return optax.chain(*parts), schedule


def for_part(
    transformation: optax.GradientTransformation, part: str
) -> optax.GradientTransformation:
    """The transformation for a part of a network's parameters; the others stay.

    `part` is "all", "head" (the linear layer behind the embedding) or "encoder" (all
    but the head). Norms and weight decay are those of the part.
    """
    if part == "all":
        return transformation

    frozen = {"head": optax.set_to_zero(), "encoder": optax.set_to_zero()}
    return optax.partition({**frozen, part: transformation}, _parts_of)


def keep_within(low: float, high: float) -> optax.GradientTransformation:
    """Changes updates so that all parameters are in [low, high] after them.

    That is true of the parameters that had no update too, to one rounding of float32.
    It stands last in a chain.
    """

    def update(
        updates: Any, state: optax.EmptyState, params: Any = None
    ) -> tuple[Any, optax.EmptyState]:
        if params is None:
            raise ValueError("keep_within needs the parameters: update(…, params).")
        kept = jax.tree.map(
            lambda u, p: jnp.clip(p + u, low, high) - p, updates, params
        )
        return kept, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def has_head(params: Mapping[str, Any]) -> bool:
    """Whether there is something in a network's parameters for the part "head"."""
    return "head" in jax.tree.leaves(_parts_of(params))


def _parts_of(params: Mapping[str, Any]) -> Any:
    def part_of(path: tuple[Any, ...], leaf: Any) -> str:
        names = (getattr(step, "key", None) for step in path)
        inner = itertools.dropwhile(lambda name: name in HOLDERS, names)
        return "head" if next(inner, None) == "head" else "encoder"

    return jax.tree_util.tree_map_with_path(part_of, params)


def _is_kernel(tree: Any) -> Any:
    """Whether each leaf is a kernel: of several axes, and not what is added.

    A dynamic convolution has a bias of two, with a row for each of its kernels.
    """

    def is_kernel(path: Any, leaf: Any) -> bool:
        return leaf.ndim > 1 and getattr(path[-1], "key", "") != "bias"

    return jax.tree_util.tree_map_with_path(is_kernel, tree)
