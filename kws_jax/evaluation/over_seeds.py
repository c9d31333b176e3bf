"""What several seeds of one experiment have measured, as means with intervals."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from kws_jax.evaluation.metrics import result

# What tells rows of results.json apart.
_KEY = ("stage", "split", "condition", "metric")


def mean_interval(
    values: Sequence[float], confidence: float = 0.95
) -> tuple[float, float] | None:
    """Student's interval of the mean of what the values are drawn from.

    mean ± t_{n-1}((1 + confidence)/2) · s/√n with s the sample's standard deviation.
    None for a single value, which tells nothing of the spread.

    Args:
      values: n numbers, as of n seeds, taken to be normally distributed.
      confidence: between 0 and 1.

    Raises:
      ValueError: if there is no value, or the confidence is out of its range.

    Reference: Student 1908, Biometrika 6:1–25.
    """
    if not values or not 0 < confidence < 1:
        raise ValueError(f"need values and 0 < confidence < 1; got {confidence}")
    if len(values) == 1:
        return None
    # Imported here: it takes a second, which nobody waits for who asks for --help.
    from scipy.stats import t as student_t

    mean, spread = statistics.fmean(values), statistics.stdev(values)
    quantile = float(student_t.ppf((1 + confidence) / 2, len(values) - 1))
    half = quantile * spread / math.sqrt(len(values))
    return mean - half, mean + half


def over_seeds(
    results: Sequence[Sequence[Mapping[str, Any]]],
) -> list[dict[str, Any]]:
    """Rows of results.json for the means of several runs.

    Args:
      results: the rows of each run, in the order of the seeds.

    Returns:
      A row for each that all runs have: `value` is the mean, `ci95` its interval over
      the runs, `count` the number of runs, and `each` their values.
    """
    tables = [{_key(row): float(row["value"]) for row in rows} for rows in results]
    shared = [
        _key(row) for row in results[0] if all(_key(row) in table for table in tables)
    ]
    rows = []
    for key in shared:
        each = [table[key] for table in tables]
        interval = mean_interval(each)
        row = result(*key, statistics.fmean(each), interval, len(each))
        rows.append(row | {"each": each})
    return rows


def _key(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    stage, split, condition, metric = (str(row[name]) for name in _KEY)
    return stage, split, condition, metric
