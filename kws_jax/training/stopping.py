"""When a stage ends and which of its states is the best: rules as pure functions."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

Notes = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a rule says after a validation.

    Attributes:
      best: the state just validated is the one to keep.
      ends: the stage is over.
      notes: what the rule has to remember; replaces entries of the same name.
      measures: for the log.
    """

    best: bool
    ends: bool = False
    notes: Notes = dataclasses.field(default_factory=dict)
    measures: dict[str, float] = dataclasses.field(default_factory=dict)


class Rule(Protocol):
    """Judges validations; all that it remembers is in the notes of the loop."""

    # Notes that a stage begins with, beside the loop's own.
    first_notes: Notes
    # Whether the state that the stage starts from is the best until another one is.
    starts_from_best: bool
    # Whether it may end a stage before its last step.
    may_end_early: bool

    def judge(self, notes: Notes, measures: Mapping[str, float]) -> Verdict:
        """The verdict on "accuracy" and "loss" of a validation, after `notes`."""


class Length:
    """The stage has its full length; the best is the first of highest accuracy."""

    first_notes: Notes = {}
    starts_from_best = False
    may_end_early = False

    def judge(self, notes: Notes, measures: Mapping[str, float]) -> Verdict:
        """See `Rule`."""
        return Verdict(best=measures["accuracy"] > notes["best_accuracy"])


LENGTH = Length()


class HighestScore:
    """The stage has its full length; the best is the first of highest "score"."""

    first_notes: Notes = {"best_score": None}
    starts_from_best = False
    may_end_early = False

    def judge(self, notes: Notes, measures: Mapping[str, float]) -> Verdict:
        """See `Rule`."""
        before, score = notes["best_score"], measures["score"]
        best = before is None or score > before
        return Verdict(best, notes={"best_score": score if best else before})


HIGHEST_SCORE = HighestScore()


def criterion(accuracies: Sequence[float], losses: Sequence[float]) -> float:
    """Of the last of these validations, c = Norm(accuracy) - Norm(loss).

    Norm(a_m) = (a_m - min A)/(max A - min A), A = {a_1 … a_m}. Where all of A are
    equal, as for the first validation, Norm is 0.

    Reference: Ng et al. 2022, arXiv 2201.05863, Algorithm 1.
    """
    return _normalized(accuracies) - _normalized(losses)


def _normalized(values: Sequence[float]) -> float:
    low, high = min(values), max(values)
    return (values[-1] - low) / (high - low) if high > low else 0.0


class Criterion:
    """Algorithm 1 of ConvMixer's curriculum.

    The state is kept where c equals the best so far, itself included, which begins at
    0. The stage ends when c has not exceeded the best before it `patience` times in a
    row. The first validation, whose c is 0 whatever it measures, is not counted.

    c is 1, and no more, whenever accuracy and loss are both the best so far, so to the
    letter a stage that gets better at each validation ends too. With `ties`, a c that
    equals a best above 0 counts as if it exceeded it.

    Args:
      patience: validations, at least 1.
      ties: whether equalling the best is progress.
      before: notes of the stage before, whose history and best go on; None begins anew.
    """

    may_end_early = True

    def __init__(
        self, patience: int, before: Notes | None = None, *, ties: bool = False
    ) -> None:
        self._patience, self._ties = patience, ties
        self.starts_from_best = before is not None
        self.first_notes: Notes = {
            "accuracies": [],
            "losses": [],
            "best_criterion": 0.0,
        }
        if before is not None:
            kept = (*self.first_notes, "best_accuracy")
            self.first_notes = {name: before[name] for name in kept} | {"best_step": 0}
        self.first_notes |= {"since_best": 0, "stopped": False}

    def judge(self, notes: Notes, measures: Mapping[str, float]) -> Verdict:
        """See `Rule`."""
        accuracies = [*notes["accuracies"], measures["accuracy"]]
        losses = [*notes["losses"], measures["loss"]]
        value, best = criterion(accuracies, losses), notes["best_criterion"]
        equals = self._ties and value == best > 0
        risen = value > best or equals or not notes["accuracies"]
        since_best = 0 if risen else notes["since_best"] + 1
        ends = since_best >= self._patience
        return Verdict(
            best=value >= best,
            ends=ends,
            notes={
                "accuracies": accuracies,
                "losses": losses,
                "best_criterion": max(best, value),
                "since_best": since_best,
                "stopped": ends,
            },
            measures={"criterion": value, "since_best": since_best},
        )


def create_rule(settings: Mapping[str, Any], before: Notes) -> Rule:
    """The rule of a stage's `stop`.

    `before` are the notes of the stage before, {} where there are none to go on from.
    """
    if settings["rule"] == "length":
        return LENGTH
    goes_on = not settings["resets"] and "accuracies" in before
    history = before if goes_on else None
    return Criterion(settings["patience"], history, ties=settings["ties"])
