"""Whether an artefact answers as the network that it was made from."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kws_jax.deploy.formats import Request
from kws_jax.deploy.inference import Inference
from kws_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """How far an artefact may be from its network.

    Attributes:
      difference: the largest of two probabilities.
      mean: of these differences, over all clips and labels.
      equal: the least share of clips with the same most probable label.
    """

    difference: float
    mean: float
    equal: float


_LONGEST_S = 2.0  # of measuring the time of one input
# Float arithmetic in another order.
FLOAT = Tolerance(difference=1e-3, mean=1e-4, equal=0.999)
# A network with rounded activations: what lies on the border of two steps may fall to
# either side, and all that follows with it.
ROUNDED = Tolerance(difference=1.0, mean=0.01, equal=0.99)
# The same integers, rounded in the same order: only what lies on the border differs.
PACKED = Tolerance(difference=1.0, mean=0.005, equal=0.999)
# Rounded by the export itself, after training.
INT8 = Tolerance(difference=1.0, mean=0.05, equal=0.95)


def tolerance_of(inference: Inference, request: Request) -> Tolerance:
    """The tolerance for an artefact of this network."""
    if request.quantize:
        return INT8
    if request.format == "packed":
        return PACKED
    return ROUNDED if inference.quantized else FLOAT


def compare(
    artefact: np.ndarray, network: np.ndarray, truth: np.ndarray
) -> dict[str, Any]:
    """Measures of probabilities [n, k] of both, and true labels [n].

    Returns:
      "clips", "max_difference" and "mean_difference" of probabilities,
      "equal_decisions" (share of clips), "accuracy" of the artefact and
      "network_accuracy".
    """
    differences = np.abs(artefact - network)
    decided, expected = artefact.argmax(-1), network.argmax(-1)
    return {
        "clips": len(truth),
        "max_difference": float(differences.max()),
        "mean_difference": float(differences.mean()),
        "equal_decisions": float((decided == expected).mean()),
        "accuracy": float((decided == truth).mean()),
        "network_accuracy": float((expected == truth).mean()),
    }


def milliseconds(
    run: Callable[[np.ndarray], np.ndarray],
    one: np.ndarray,
    *,
    times: int = 50,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """The median time of `run` for one input [1, …], after three that do not count.

    Fewer `times` where they would take more than two seconds, but one at least.
    """
    for _ in range(3):
        run(one)
    took: list[float] = []
    while len(took) < times and (not took or sum(took) < _LONGEST_S):
        began = clock()
        run(one)
        took.append(clock() - began)
    return 1000 * statistics.median(took)


def refuse_mismatch(measures: dict[str, Any], allowed: Tolerance, path: Any) -> None:
    """Raises UserError where an artefact is further from its network than allowed."""
    complaints: Sequence[str] = [
        told
        for wrong, told in (
            (
                # NaN is no number within any tolerance.
                not measures["max_difference"] <= allowed.difference,
                f"probabilities differ by up to {measures['max_difference']:.3g} "
                f"(allowed {allowed.difference:g})",
            ),
            (
                not measures["mean_difference"] <= allowed.mean,
                f"probabilities differ by {measures['mean_difference']:.3g} in the "
                f"mean (allowed {allowed.mean:g})",
            ),
            (
                measures["equal_decisions"] < allowed.equal,
                f"{measures['equal_decisions']:.2%} of the decisions are equal "
                f"(at least {allowed.equal:.1%} expected)",
            ),
        )
        if wrong
    ]
    if complaints:
        raise UserError(
            f"{path} does not answer as the network that it was made from: "
            f"{'; '.join(complaints)}. Do not ship it; export it in another format, "
            "or without --quantize."
        )
