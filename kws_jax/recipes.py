"""Checks of what stages of kind "train" say of their recipe; no JAX here."""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from kws_jax.errors import UserError, nearest

# The functions of these names are in objectives/registry.py.
OBJECTIVES = ("cross_entropy", "binary_cross_entropy")
STOP_RULES = ("length", "criterion")
VALIDATIONS = ("clean", "condition")
OPTIMIZER_STARTS = ("restart", "continue")
TRAINED_PARTS = ("all", "head")
# Schedules that are stretched over the stage, so that its length is part of them.
_STRETCHED = ("cosine", "rising_cosine", "step")


def depends_on_length(optimizer: Mapping[str, Any]) -> bool:
    """Whether the learning rate is another one in a stage of another length."""
    return optimizer["schedule"] in _STRETCHED or optimizer["warmup_fraction"] > 0


def check(stages: Sequence[ConfigDict]) -> None:
    """Raises UserError for recipes that cannot work, before anything slow is done."""
    for index, stage in enumerate(stages):
        if stage.kind != "train":
            continue
        where = f"config.stages[{index}]"
        for field, known in {
            "objective": OBJECTIVES,
            "validation": VALIDATIONS,
            "optimizer_start": OPTIMIZER_STARTS,
            "trained_part": TRAINED_PARTS,
            "stop.rule": STOP_RULES,
        }.items():
            _check_word(_value(stage, field), known, f"{where}.{field}")
        if stage.trained_part == "head" and not index:
            raise UserError(
                f"{where}.trained_part = 'head' needs an encoder that is trained "
                "already: put a stage of kind 'embed' or 'train' before it, or set "
                "'all'."
            )
        if stage.stop.patience < 1:
            raise UserError(
                f"{where}.stop.patience = {stage.stop.patience}: give at least 1 "
                "validation."
            )
        _check_mixup(stage.mixup, f"{where}.mixup")
        if stage.mixup.probability > 0 and stage.data_parameters.mode != "none":
            raise UserError(
                f"{where}: data parameters belong to one clip and one label, which "
                "mixup takes from it; set mixup.probability to 0, or "
                "data_parameters.mode to 'none'."
            )
        if stage.optimizer_start == "continue" and index:
            _check_continuation(stages[index - 1], stage, where)


def _value(stage: ConfigDict, field: str) -> Any:
    group, _, name = field.rpartition(".")
    return (stage[group] if group else stage)[name]


def _check_word(value: str, known: Sequence[str], where: str) -> None:
    if value not in known:
        raise UserError(f"{where} = {value!r} is unknown; {nearest(value, known)}")


def _check_mixup(mixup: ConfigDict, where: str) -> None:
    for field in ("probability", "until"):
        if not 0 <= mixup[field] <= 1:
            raise UserError(f"{where}.{field} = {mixup[field]}: give 0 … 1.")
    if mixup.alpha <= 0:
        raise UserError(f"{where}.alpha = {mixup.alpha}: give a number above 0.")


def _check_continuation(before: ConfigDict, stage: ConfigDict, where: str) -> None:
    if before.kind != "train":
        return
    for one in (before, stage):
        if one.data_parameters.mode != "none":
            raise UserError(
                f"{where}.optimizer_start = 'continue' does not go with data "
                f"parameters, which stage {one.name!r} has: each stage makes its own "
                "table. Say 'restart', or data_parameters.mode 'none'."
            )
    fields = [f"optimizer.{name}" for name in stage.optimizer]
    for field in (*fields, "batch_size", "trained_part"):
        own, former = _value(stage, field), _value(before, field)
        if own != former:
            raise UserError(
                f"{where}.optimizer_start = 'continue' goes on with the optimiser of "
                f"the stage before, but {field} is {former!r} there and {own!r} here; "
                "make them equal, or say 'restart'."
            )
    if depends_on_length(stage.optimizer):
        raise UserError(
            f"{where}.optimizer_start = 'continue' needs a learning rate that does not "
            "depend on the length of one stage: give optimizer.schedule 'constant' or "
            "'epoch_step' and warmup_fraction 0, or say 'restart'."
        )
