"""Measures of a classifier, each with its uncertainty, in NumPy and SciPy alone."""

import math
import statistics
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

# Of intervals by resampling, how sure they are and how many draws they are made of.
_CONFIDENCE, _SAMPLES = 0.95, 10_000


def wilson_interval(
    successes: float, count: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Wilson's score interval of a proportion p = successes/count.

    (p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n) with n = count and z the normal
    quantile of (1 + confidence)/2.

    Args:
      successes: 0 … count; no whole number where it is the mean of several systems.
      count: number of trials, at least 1.
      confidence: between 0 and 1.

    Returns:
      The lower and the upper bound, within [0, 1].

    Raises:
      ValueError: if an argument is out of its range.

    Reference: Wilson 1927, J. Am. Stat. Assoc. 22:209–212.
    """
    if count < 1 or not 0 <= successes <= count or not 0 < confidence < 1:
        raise ValueError(
            f"need 0 <= successes <= count, count >= 1 and 0 < confidence < 1; got "
            f"{successes} of {count} at {confidence}"
        )
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    p, spread = successes / count, z * z / count
    centre = (p + spread / 2) / (1 + spread)
    half = z * math.sqrt(p * (1 - p) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def clustered_interval(successes: ArrayLike, counts: ArrayLike) -> tuple[float, float]:
    """The 95 % interval of a share of trials in clusters, as clips are of words.

    Trials of one cluster are alike, so they tell less than as many independent ones.
    Whole clusters are drawn with replacement, as many as there are, and each time the
    share Σ successes / Σ counts is taken; the interval spans the percentiles 2.5 and
    97.5 of these shares. It tells what other clusters would give.

    The bootstrap knows only the spread between the clusters at hand: of one cluster, or
    of clusters that are all alike, it would be a point. So the interval reaches at
    least as far as Wilson's of the trials, and of a single cluster it is that interval.
    Of two or three clusters it is still too narrow, as every bootstrap of so few.

    Args:
      successes: [c], 0 … counts; no whole numbers where they are means over systems.
      counts: int [c], the trials of each cluster, at least 1.

    Returns:
      The lower and the upper bound, within [0, 1].

    Raises:
      ValueError: if the lengths differ, there is no cluster, or a number is out of its
        range.

    Reference: Davison and Hinkley 1997, Bootstrap Methods and their Application,
    section 3.8.
    """
    successes, counts = _pair(successes, counts)
    if (counts < 1).any() or (successes < 0).any() or (successes > counts).any():
        raise ValueError(
            "need 0 <= successes <= counts and counts >= 1 in every cluster; got "
            f"{successes.tolist()} of {counts.tolist()}"
        )
    total = int(counts.sum())
    low, high = wilson_interval(float(successes.sum()), total, _CONFIDENCE)
    number = len(counts)
    draws = np.random.default_rng(0).multinomial(
        number, np.full(number, 1 / number), size=_SAMPLES
    )
    tail = (1 - _CONFIDENCE) / 2
    shares = (draws @ successes) / (draws @ counts)
    drawn_low, drawn_high = np.quantile(shares, [tail, 1 - tail])
    return min(low, float(drawn_low)), max(high, float(drawn_high))


def poisson_interval(count: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of the mean of a Poisson variable that was `count` once.

    χ²_{2n}(tail)/2 … χ²_{2n+2}(1 - tail)/2 with n = count, tail = (1 - confidence)/2,
    and 0 below for n = 0: no mean outside makes so many, or so few, with a probability
    above `tail`. Divided by the hours of counting they are bounds of events an hour,
    if these come independently of each other.

    Args:
      count: 0 or more.
      confidence: between 0 and 1.

    Raises:
      ValueError: if an argument is out of its range.

    Reference: Garwood 1936, Biometrika 28:437–442.
    """
    if count < 0 or not 0 < confidence < 1:
        raise ValueError(
            f"need count >= 0 and 0 < confidence < 1; got {count} at {confidence}"
        )
    # Imported here: it takes a second, which nobody waits for who asks for --help.
    from scipy.stats import chi2

    tail = (1 - confidence) / 2
    low = chi2.ppf(tail, 2 * count) / 2 if count else 0.0
    return float(low), float(chi2.ppf(1 - tail, 2 * count + 2) / 2)


def confusion_matrix(
    labels: ArrayLike, predictions: ArrayLike, num_labels: int
) -> np.ndarray:
    """How often each label (row) was taken for each label (column).

    Args:
      labels: int [n], each in 0 … num_labels - 1.
      predictions: int [n], each in 0 … num_labels - 1.
      num_labels: k.

    Returns:
      int64 [k, k]; the rows add up to the examples of a label, the diagonal is right.

    Raises:
      ValueError: if the lengths differ, there is no example, or a label is out of its
        range.
    """
    labels, predictions = _pair(labels, predictions)
    both = np.concatenate([labels, predictions])
    if both.min() < 0 or both.max() >= num_labels:
        raise ValueError(
            f"labels and predictions must be in 0 … {num_labels - 1}, found "
            f"{both.min()} … {both.max()}"
        )
    cells = np.bincount(labels * num_labels + predictions, minlength=num_labels**2)
    return cells.reshape(num_labels, num_labels)


def paired_bootstrap(
    correct_a: ArrayLike,
    correct_b: ArrayLike,
    *,
    samples: int = _SAMPLES,
    seed: int = 0,
) -> tuple[float, tuple[float, float]]:
    """The difference in accuracy of two systems on the same clips, with its interval.

    The clips are drawn with replacement, both systems together; the interval spans the
    percentiles 2.5 and 97.5 of the resampled differences. Since few differences of a
    clip occur (-1, 0, +1, and the steps between for means over several seeds), a
    resample is one draw of their counts from a multinomial distribution.

    Args:
      correct_a: [n], whether system a was right on each clip, or how often (0 … 1).
      correct_b: [n], the same of system b.
      samples: number of resamples.
      seed: seed of the draws.

    Returns:
      accuracy(a) - accuracy(b), and (lower, upper).

    Raises:
      ValueError: if the lengths differ or there is no clip.

    Reference: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    a, b = _pair(correct_a, correct_b)
    each = a.astype(float) - b.astype(float)
    values, counts = np.unique(each, return_counts=True)
    count = len(each)
    draws = np.random.default_rng(seed).multinomial(count, counts / count, size=samples)
    differences = draws @ values / count
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(differences, [tail, 1 - tail])
    return float(each.mean()), (float(low), float(high))


def result(
    stage: str,
    split: str,
    condition: str,
    metric: str,
    value: float | np.floating,
    ci95: tuple[float, float] | None,
    count: int | np.integer,
) -> dict[str, Any]:
    """One row of results.json.

    Args:
      stage: name of the stage whose weights were measured.
      split: "train", "validation" or "test".
      condition: name of the acoustic condition, such as "clean".
      metric: what was measured, such as "accuracy".
      value: the measure.
      ci95: lower and upper bound of its 95 % confidence interval, if it has one.
      count: number of clips behind the value.

    Returns:
      A dict of plain Python values that JSON can hold.

    Raises:
      ValueError: if the value or a bound is not finite, which JSON cannot hold.
    """
    bounds = None if ci95 is None else [float(bound) for bound in ci95]
    if not np.isfinite([float(value), *(bounds or [])]).all():
        raise ValueError(f"{metric} on {split}, {condition}: {value} {ci95} not finite")
    return {
        "stage": stage,
        "split": split,
        "condition": condition,
        "metric": metric,
        "value": float(value),
        "ci95": bounds,
        "count": int(count),
    }


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(
            f"need two arrays of one length and at least one example; got shapes "
            f"{a.shape} and {b.shape}"
        )
    return a, b
