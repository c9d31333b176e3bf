"""Checks of what stages say of their recipe; no JAX here."""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from kws_jax import stage_fields
from kws_jax.errors import UserError, nearest

# The functions of these names are in objectives/registry.py.
OBJECTIVES = ("cross_entropy", "binary_cross_entropy")
STOP_RULES = ("length", "criterion")
VALIDATIONS = ("clean", "condition")
OPTIMIZER_STARTS = ("restart", "continue")
TRAINED_PARTS = ("all", "head")
# Schedules that are the same in a stage of any length; others are stretched over it.
_OF_ANY_LENGTH = ("constant", "epoch_step")
# Words of a stage, by field, that it may have.
_WORDS = {
    "objective": OBJECTIVES,
    "validation": VALIDATIONS,
    "optimizer_start": OPTIMIZER_STARTS,
    "trained_part": TRAINED_PARTS,
    "stop.rule": STOP_RULES,
}


def depends_on_length(optimizer: Mapping[str, Any]) -> bool:
    """Whether the learning rate is another one in a stage of another length."""
    return (
        optimizer["schedule"] not in _OF_ANY_LENGTH or optimizer["warmup_fraction"] > 0
    )


def check(stages: Sequence[ConfigDict]) -> None:
    """Raises UserError for recipes that cannot work, before anything slow is done."""
    for index, stage in enumerate(stages):
        where = f"config.stages[{index}]"
        for field, known in _WORDS.items():
            if (value := _value(stage, field)) is not None:
                _check_word(value, known, f"{where}.{field}")
        if stage.kind != "train":
            continue
        before = stages[index - 1] if index else None
        if stage.trained_part == "head":
            _check_encoder(before, where)
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
        if stage.optimizer_start == "continue" and before is not None:
            _check_continuation(before, stage, where)


def _value(stage: ConfigDict, field: str) -> Any:
    """What stands there, None where the stage has no such field."""
    group, _, name = field.rpartition(".")
    return (stage.get(group, {}) if group else stage).get(name)


def _check_word(value: str, known: Sequence[str], where: str) -> None:
    if value not in known:
        raise UserError(f"{where} = {value!r} is unknown; {nearest(value, known)}")


def _check_encoder(before: ConfigDict | None, where: str) -> None:
    kinds = " or ".join(repr(kind) for kind in stage_fields.TRAINS_NETWORK)
    if before is None or before.kind not in stage_fields.TRAINS_NETWORK:
        there = "none" if before is None else f"one of kind {before.kind!r}"
        raise UserError(
            f"{where}.trained_part = 'head' needs an encoder that the stage right "
            f"before it has trained, which is {there}: put one of kind {kinds} there, "
            "or set 'all'."
        )


def _check_mixup(mixup: ConfigDict, where: str) -> None:
    for field in ("probability", "until"):
        if not 0 <= mixup[field] <= 1:
            raise UserError(f"{where}.{field} = {mixup[field]}: give 0 … 1.")
    if mixup.alpha <= 0:
        raise UserError(f"{where}.alpha = {mixup.alpha}: give a number above 0.")


def _check_continuation(before: ConfigDict, stage: ConfigDict, where: str) -> None:
    if before.kind != stage.kind:
        raise UserError(
            f"{where}.optimizer_start = 'continue' goes on with the optimiser of a "
            f"stage of kind {stage.kind!r} right before it, and that is of kind "
            f"{before.kind!r}: say 'restart'."
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
