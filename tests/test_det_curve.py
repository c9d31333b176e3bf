"""Where the threshold is set: in the middle of those that do equally well."""

import numpy as np
import pytest
from test_detection import RULE, WORDS, literal_errors, random_case

from kws_jax.data.time_labels import Spoken
from kws_jax.evaluation import det_curve, detection
from kws_jax.evaluation.det_curve import Curve
from kws_jax.evaluation.detection import Heard, Rule


def curve_of(*rows, hours=1.0):
    """A curve of rows (threshold, misses, false alarms)."""
    thresholds, misses, alarms = map(np.array, zip(*rows))
    return Curve(thresholds, misses, alarms, int(misses.max()), hours)


def test_the_threshold_lies_midway_between_noise_and_the_faintest_keyword():
    scores = np.full((100, 1), 0.1)
    scores[[10, 60]] = [[0.7], [0.9]]  # where the word is said
    scores[[35, 85]] = [[0.2], [0.3]]  # where it is not
    heard = Heard(("yes",), scores, np.arange(100) * 0.1, hours=1.0)
    spoken = Spoken(np.array([0.8, 5.8]), np.array([1.3, 6.3]), ("yes", "yes"))
    curves = det_curve.curves(heard, spoken, RULE)
    for curve in curves.values():
        chosen = curve.at(1.0)
        assert (curve.misses[chosen], curve.false_alarms[chosen]) == (0, 0)
        assert curve.thresholds[chosen] == pytest.approx((0.3 + 0.7) / 2)
    # Louder noise and fainter keywords leave it right, as far as either may go.
    for change in (0.19, -0.19):
        other = Heard(("yes",), scores + change, heard.times, hours=1.0)
        events = detection.events(other, spoken, {"yes": 0.5}, RULE)
        assert [event.right for event in events] == [True, True]


def test_of_thresholds_that_miss_as_few_those_without_alarms_count():
    rows = [
        (0.9, 2, 0),
        (0.8, 1, 0),
        (0.6, 1, 0),
        (0.4, 1, 0),
        (0.3, 1, 1),
        (0.1, 0, 2),
    ]
    curve = curve_of(*rows)
    assert curve.thresholds[curve.at(0.0)] == 0.6
    assert curve.thresholds[curve.at(1.0)] == 0.6
    assert curve.thresholds[curve.at(2.0)] == 0.1


def test_of_several_ranges_the_widest_counts_and_none_below_a_broken_rate():
    rows = [(0.95, 1, 0), (0.9, 0, 0), (0.8, 0, 0), (0.7, 1, 0)]
    rows += [(0.6, 0, 0), (0.5, 0, 0), (0.3, 0, 0), (0.25, 0, 1), (0.2, 0, 0)]
    curve = curve_of(*rows, (0.0, 0, 0))
    # 0.45 lies in the middle of 0.6 and 0.3; what lies below 0.25 is wider.
    assert curve.thresholds[curve.at(0.0)] == 0.5
    assert curve.thresholds[curve_of(*rows[:4]).at(0.0)] == 0.9


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("rate", [0.0, 2.0, 6.0, 10.0])
def test_the_threshold_is_the_middle_of_all_that_brute_force_finds_as_good(seed, rate):
    heard, spoken = random_case(seed)
    curve = det_curve.curves(heard, spoken, RULE)["yes"]
    begins, ends = (side.tolist() for side in spoken.of("yes"))
    scores = heard.scores[:, WORDS.index("yes")].tolist()
    ranges, kept = [], None
    for threshold in curve.thresholds.tolist():
        errors = literal_errors(scores, heard.times, begins, ends, threshold, RULE)
        if errors[1] > rate * heard.hours:
            break
        if errors != kept:
            ranges.append((errors, []))
        kept = errors
        ranges[-1][1].append(threshold)
    best = min(errors for errors, _ in ranges)
    widths = [t[0] - t[-1] if errors == best else -1 for errors, t in ranges]
    widest = ranges[widths.index(max(widths))][1]
    chosen = curve.thresholds[curve.at(rate)]
    assert chosen == pytest.approx((widest[0] + widest[-1]) / 2, abs=1e-12)


def test_the_middle_between_few_thresholds_is_counted_too():
    """Only some of the scores are thresholds; that of the middle is none of them."""
    rng = np.random.default_rng(0)
    windows, rule = 6000, Rule(100, 0, 1000, 250)
    scores = rng.random(windows) * 0.02
    said = np.arange(50, windows - 50, 50)
    scores[said] = rng.uniform(0.9, 1, len(said))
    times = np.arange(windows) * 0.1
    begins = times[said] - 0.2
    heard = Heard(("yes",), scores[:, None], times, windows / 36_000)
    spoken = Spoken(begins, begins + 1, ("yes",) * len(said))
    curve = det_curve.curves(heard, spoken, rule)["yes"]
    chosen = curve.at(0.0)
    threshold = curve.thresholds[chosen]
    loudest = np.delete(scores, said).max()
    assert threshold == pytest.approx((scores[said].min() + loudest) / 2, abs=1e-3)
    errors = det_curve._errors(
        scores, times, begins - 0.25, begins + 1.25, threshold, rule.refractory
    )
    assert errors == (curve.misses[chosen], curve.false_alarms[chosen]) == (0, 0)


@pytest.mark.parametrize("score", [-np.inf, 0.0, 1.0])
def test_scores_that_are_all_alike_have_a_threshold_that_is_finite(score):
    heard = Heard(("yes",), np.full((40, 1), score), np.arange(40) * 0.1, 1.0)
    spoken = Spoken(np.array([0.8]), np.array([1.3]), ("yes",))
    curve = det_curve.curves(heard, spoken, RULE)["yes"]
    threshold = curve.thresholds[curve.at(0.0)]
    assert np.isfinite(threshold)
    assert threshold > score
