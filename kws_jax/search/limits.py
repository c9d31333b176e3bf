"""Networks that obey hard limits: the most probable one, and one drawn at random.

Both look at all networks of a space without listing them: each half of the layers has
some thousand combinations, and for each of one half the fitting ones of the other are
found at once.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from kws_jax.search.mbconv_space import Cost


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a whole network may cost, and what its fixed parts take of it.

    0 is no limit.
    """

    max_macs: int = 0
    max_parameters: int = 0
    fixed_macs: int = 0
    fixed_parameters: int = 0
    min_parameters: int = 0

    def allow(self, cost: np.ndarray) -> np.ndarray:
        """Whether layers of a cost [..., 2], MACs and parameters, are within them."""
        limits = (self.max_macs, self.max_parameters)
        fixed = (self.fixed_macs, self.fixed_parameters)
        room = [
            limit - taken if limit else np.inf for limit, taken in zip(limits, fixed)
        ]
        enough = cost[..., 1] >= self.min_parameters - self.fixed_parameters
        return np.all(cost <= np.array(room), axis=-1) & enough


@dataclasses.dataclass(frozen=True)
class _Half:
    """All combinations n of some layers: places [n, l], cost [n, 2], score [n]."""

    places: np.ndarray
    cost: np.ndarray
    score: np.ndarray


def most_probable(
    log_probabilities: Sequence[np.ndarray], costs: Sequence[Cost], limits: Limits
) -> tuple[int, ...] | None:
    """The place of one candidate a layer, of largest Π p_i within the limits.

    Args:
      log_probabilities: ln p of each layer's candidates; layers choose independently.
      costs: of the same candidates.
      limits: what the sums over the layers must obey.

    Returns:
      The places, or None where no network is within the limits.
    """
    first, second = _halves(log_probabilities, costs)
    best, found = -np.inf, None
    for places, cost, score in zip(first.places, first.cost, first.score):
        # both halves are in order of their score
        if score + second.score[0] <= best:
            break
        fits = limits.allow(cost + second.cost)
        at = int(np.argmax(fits))
        if fits[at] and score + second.score[at] > best:
            best, found = score + second.score[at], (*places, *second.places[at])
    return None if found is None else tuple(map(int, found))


def draw(
    costs: Sequence[Cost], limits: Limits, rng: np.random.Generator
) -> tuple[int, ...] | None:
    """One of the networks within the limits, all equally probable; None without any."""
    first, second = _halves([np.zeros(len(cost.macs)) for cost in costs], costs)
    counts = np.array(
        [np.count_nonzero(limits.allow(cost + second.cost)) for cost in first.cost]
    )
    if not counts.any():
        return None
    at = rng.choice(len(counts), p=counts / counts.sum())
    fits = limits.allow(first.cost[at] + second.cost)
    other = rng.choice(np.flatnonzero(fits))
    return tuple(map(int, (*first.places[at], *second.places[other])))


def extremes(costs: Sequence[Cost], limits: Limits) -> tuple[int, int, int]:
    """The fewest MACs, and the fewest and most parameters, that the space offers."""
    return (
        limits.fixed_macs + sum(int(cost.macs.min()) for cost in costs),
        limits.fixed_parameters + sum(int(cost.parameters.min()) for cost in costs),
        limits.fixed_parameters + sum(int(cost.parameters.max()) for cost in costs),
    )


def _halves(scores: Sequence[np.ndarray], costs: Sequence[Cost]) -> tuple[_Half, _Half]:
    middle = len(costs) // 2
    return (
        _half(scores[:middle], costs[:middle]),
        _half(scores[middle:], costs[middle:]),
    )


def _half(scores: Sequence[np.ndarray], costs: Sequence[Cost]) -> _Half:
    """All combinations, of largest score first."""
    sizes = [range(len(cost.macs)) for cost in costs]
    places = np.array(list(itertools.product(*sizes)), int).reshape(-1, len(costs))
    cost = np.zeros((len(places), 2), np.int64)
    score = np.zeros(len(places))
    for layer, (values, own) in enumerate(zip(scores, costs, strict=True)):
        at = places[:, layer]
        cost += np.stack([own.macs, own.parameters], axis=1)[at]
        score += np.asarray(values, np.float64)[at]
    order = np.argsort(-score, kind="stable")
    return _Half(places[order], cost[order], score[order])
