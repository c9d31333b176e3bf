"""Detection on arrays: against literal loops and against every possible pairing."""

import itertools

import numpy as np
import pytest

from kws_jax.data.corpus import CLIP_SAMPLES
from kws_jax.data.time_labels import Spoken
from kws_jax.errors import UserError
from kws_jax.evaluation import det_curve, detection
from kws_jax.evaluation.detection import Heard, Rule
from kws_jax.evaluation.windows import posteriors, sliding_windows

RULE = Rule(hop_ms=100, smoothing_ms=300, refractory_ms=500, tolerance_ms=150)
WORDS = ("yes", "no")


def literal_events(scores, threshold, refractory):
    """One window after the other, as a device would do it."""
    fired, last = [], None
    for window, score in enumerate(scores):
        if score >= threshold and (last is None or window - last >= refractory):
            fired.append(window)
            last = window
    return fired


def most_pairs(times, begins, ends):
    """The largest number of pairs, by trying all of them."""
    if not len(times):
        return 0
    rest = most_pairs(times[1:], begins, ends)
    for i, (begin, end) in enumerate(zip(begins, ends)):
        if begin <= times[0] <= end:
            fewer = begins[:i] + begins[i + 1 :], ends[:i] + ends[i + 1 :]
            rest = max(rest, 1 + most_pairs(times[1:], *fewer))
    return rest


def literal_errors(scores, times, begins, ends, threshold, rule):
    fired = literal_events(scores, threshold, rule.refractory)
    tolerance = rule.tolerance_ms / 1000
    hits = most_pairs(
        [times[i] for i in fired],
        [begin - tolerance for begin in begins],
        [end + tolerance for end in ends],
    )
    return len(begins) - hits, len(fired) - hits


def random_case(seed, windows=50, references=4):
    """Scores that repeat, so that ties occur, and references that may overlap."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(1, 12, (windows, len(WORDS))) / 12
    begins = np.sort(rng.uniform(0, 4.5, references))
    spoken = Spoken(
        begins,
        begins + rng.uniform(0.2, 0.8, references),
        tuple(rng.choice(WORDS, references).tolist()),
    )
    times = (np.arange(windows) * RULE.hop + CLIP_SAMPLES / 2) / 16_000
    return Heard(WORDS, scores, times, hours=0.5), spoken


def test_smoothing_is_the_mean_of_equation_1():
    p = np.random.default_rng(0).random((9, 2)).astype(np.float32)
    smoothed = detection.smooth(p, 4)
    for j in range(1, 10):  # as printed, counted from 1
        h = max(1, j - 4 + 1)
        mean = sum(p[k - 1].astype(float) for k in range(h, j + 1)) / (j - h + 1)
        np.testing.assert_allclose(smoothed[j - 1], mean, rtol=1e-12)


def test_scores_have_the_time_of_the_middle_of_their_audio():
    heard = detection.heard(
        np.zeros((5, 3), np.float32), ("no", "x", "yes"), WORDS, RULE
    )
    # Windows begin at 0, 0.1, … and are a second long; three of them are averaged.
    middles = [(max(0, i - 2) * 0.1 + i * 0.1 + 1) / 2 for i in range(5)]
    np.testing.assert_allclose(heard.times, middles)
    assert heard.hours == pytest.approx(1.4 / 3600)


def test_columns_are_those_of_the_keywords():
    p = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 0]]
    heard = detection.heard(p, ("no", "x", "yes"), WORDS, RULE)
    np.testing.assert_allclose(heard.scores[2], [1 / 3, 1 / 3])
    np.testing.assert_allclose(heard.scores[4], [1 / 3, 2 / 3])


@pytest.mark.parametrize("seed", range(8))
def test_events_are_those_of_a_literal_loop(seed):
    scores = np.random.default_rng(seed).integers(0, 5, 60) / 4
    for threshold, refractory in itertools.product(
        (0.0, 0.25, 0.5, 1.0, 2.0), (1, 3, 7)
    ):
        fired = detection.fire(scores, threshold, refractory)
        assert fired.tolist() == literal_events(scores, threshold, refractory)


@pytest.mark.parametrize("seed", range(30))
def test_matching_finds_most_pairs_and_only_possible_ones(seed):
    rng = np.random.default_rng(seed)
    times = np.sort(rng.uniform(0, 5, 6))
    begins = np.sort(rng.uniform(0, 5, 4))
    ends = begins + rng.uniform(0, 2, 4)
    found = detection.match(times, begins, ends)
    pairs = [(i, r) for i, r in enumerate(found.tolist()) if r >= 0]
    assert all(begins[r] <= times[i] <= ends[r] for i, r in pairs)
    assert len({r for _, r in pairs}) == len(pairs)
    assert len(pairs) == most_pairs(times.tolist(), begins.tolist(), ends.tolist())


@pytest.mark.parametrize("seed", range(12))
def test_curves_count_what_brute_force_counts(seed):
    heard, spoken = random_case(seed)
    curves = det_curve.curves(heard, spoken, RULE)
    for i, word in enumerate(WORDS):
        begins, ends = (side.tolist() for side in spoken.of(word))
        curve = curves[word]
        assert curve.references == len(begins)
        for threshold, misses, alarms in zip(
            curve.thresholds, curve.misses, curve.false_alarms
        ):
            assert (misses, alarms) == literal_errors(
                heard.scores[:, i].tolist(), heard.times, begins, ends, threshold, RULE
            )


@pytest.mark.parametrize("seed", range(12))
def test_the_curve_of_all_is_the_sum_at_one_threshold(seed):
    heard, spoken = random_case(seed)
    curve = det_curve.curves(heard, spoken, RULE)[""]
    for row, threshold in enumerate(curve.thresholds):
        pairs = [
            literal_errors(
                heard.scores[:, i].tolist(),
                heard.times,
                *(side.tolist() for side in spoken.of(word)),
                threshold,
                RULE,
            )
            for i, word in enumerate(WORDS)
        ]
        assert (curve.misses[row], curve.false_alarms[row]) == tuple(
            np.sum(pairs, axis=0)
        )


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("rate", [0.0, 2.0, 6.0, 10.0])
def test_the_operating_point_is_as_good_as_any_threshold(seed, rate):
    """Of all thresholds from which on up the rate is kept, none misses fewer."""
    heard, spoken = random_case(seed)
    curve = det_curve.curves(heard, spoken, RULE)["yes"]
    begins, ends = (side.tolist() for side in spoken.of("yes"))
    best = len(begins)
    for threshold in sorted({*heard.scores[:, 0].tolist(), 2.0}, reverse=True):
        misses, alarms = literal_errors(
            heard.scores[:, 0].tolist(), heard.times, begins, ends, threshold, RULE
        )
        if alarms > rate * heard.hours:
            break
        best = min(best, misses)
    chosen = curve.at(rate)
    assert (curve.false_alarms[: chosen + 1] <= rate * heard.hours).all()
    assert curve.misses[chosen] <= best


@pytest.mark.parametrize("seed", range(3))
def test_thresholds_that_are_left_out_of_a_long_curve_cost_nothing(seed):
    """More scores than thresholds: bumps of all heights, some where a word is said."""
    rng = np.random.default_rng(seed)
    windows, rule = 6000, Rule(100, 0, 1000, 250)
    scores = rng.random(windows) * 0.02
    places = np.arange(20, windows - 20, 20)
    for place in places:
        scores[place : place + 4] = rng.random() * rng.uniform(0.8, 1, 4)
    said = rng.choice(places, 60, replace=False)
    scores[said] = np.maximum(scores[said], rng.random(60))
    times = np.arange(windows) * 0.1
    begins = np.sort(times[said] - 0.2)
    heard = Heard(("yes",), scores[:, None], times, windows / 36_000)
    spoken = Spoken(begins, begins + 1, ("yes",) * 60)
    curve = det_curve.curves(heard, spoken, rule)["yes"]
    for rate in (1 / heard.hours, 20 / heard.hours, 100 / heard.hours):
        best = 60
        for threshold in sorted({*scores.tolist(), 2.0}, reverse=True):
            misses, alarms = det_curve._errors(
                scores, times, begins - 0.25, begins + 1.25, threshold, rule.refractory
            )
            if alarms > rate * heard.hours:
                break
            best = min(best, misses)
        assert curve.misses[curve.at(rate)] == best


def test_points_are_the_operating_points_of_each_number_of_alarms():
    heard, spoken = random_case(3)
    curve = det_curve.curves(heard, spoken, RULE)[""]
    found = dict(curve.points())
    assert list(found.values()) == sorted(set(found.values()), reverse=True)
    for alarms in range(curve.false_alarms.max() + 1):
        misses = curve.misses[curve.at(alarms / curve.hours)]
        assert misses == min(m for a, m in found.items() if a <= alarms)


def test_a_keyword_heard_in_another_is_a_false_alarm_and_a_miss():
    scores = np.zeros((40, 2))
    scores[10, 1] = 0.9  # "no" where "yes" is said
    times = np.arange(40) * 0.1
    spoken = Spoken(np.array([0.8]), np.array([1.3]), ("yes",))
    events = detection.events(
        Heard(WORDS, scores, times, 1.0), spoken, {"yes": 0.5, "no": 0.5}, RULE
    )
    assert [(e.word, e.right, e.score) for e in events] == [("no", False, 0.9)]


def test_a_second_event_on_one_reference_is_a_false_alarm():
    scores = np.full((20, 1), 0.8)
    heard = Heard(("yes",), scores, np.arange(20) * 0.1, 1.0)
    spoken = Spoken(np.array([0.0]), np.array([1.9]), ("yes",))
    events = detection.events(heard, spoken, {"yes": 0.5}, RULE)
    assert [e.right for e in events] == [True, False, False, False]


@pytest.mark.parametrize("length", [1, 15_999, 16_000, 16_001, 40_000, 123_457])
@pytest.mark.parametrize("hop", [1_600, 17_000])
def test_windows_do_not_depend_on_the_pieces(length, hop):
    audio = np.random.default_rng(0).integers(-9, 9, length).astype(np.int16)
    padded = np.pad(audio, (0, max(0, CLIP_SAMPLES - length)))
    starts = range(0, len(padded) - CLIP_SAMPLES + 1, hop)
    expected = np.stack([padded[s : s + CLIP_SAMPLES] for s in starts])
    for piece in (999, 200_000):
        blocks = [audio[i : i + piece] for i in range(0, length, piece)]
        groups = list(sliding_windows(blocks, hop, group=4))
        assert [len(g) for g in groups[:-1]] == [4] * (len(groups) - 1)
        np.testing.assert_array_equal(np.concatenate(groups), expected)


def test_every_group_asks_the_network_for_the_same_shape():
    shapes = []

    def network(audio):
        shapes.append(audio.shape)
        return audio[:, :2] / 100

    audio = np.arange(60_000) % 100
    heard = posteriors(network, [audio.astype(np.int16)], 4_000, group=5)
    assert shapes == [(5, CLIP_SAMPLES)] * 3
    np.testing.assert_allclose(heard[:, 0], np.arange(0, 44_001, 4_000) % 100 / 100)


@pytest.mark.parametrize(
    ("field", "value"), [("hop_ms", 0), ("smoothing_ms", -1), ("refractory_ms", 1e9)]
)
def test_a_rule_that_makes_no_sense_is_named(field, value):
    fields = {"hop_ms": 100, "smoothing_ms": 0, "refractory_ms": 0, "tolerance_ms": 0}
    with pytest.raises(UserError, match=f"config.detection.{field} = "):
        Rule(**fields | {field: value})


def test_a_curve_of_many_hours_reaches_the_rates_that_are_reported():
    """At ten false alarms an hour fifty hours have more than a curve's usual peaks."""
    rng = np.random.default_rng(0)
    windows, rule, hours = 12_000, Rule(100, 0, 1000, 250), 50.0
    scores = rng.random(windows) * 0.02
    places = np.arange(20, windows - 20, 14)
    scores[places] = rng.uniform(0.1, 1, len(places))
    said = np.sort(rng.choice(places, 60, replace=False))
    times = np.arange(windows) * 0.1
    heard = Heard(("yes",), scores[:, None], times, hours)
    spoken = Spoken(times[said] - 0.2, times[said] + 0.3, ("yes",) * 60)
    curve = det_curve.curves(heard, spoken, rule)["yes"]
    # By hand: every threshold that has at most so many scores above it elsewhere.
    elsewhere = np.sort(scores[np.setdiff1d(places, said)])[::-1]
    missed = (scores[said] <= elsewhere[round(10 * hours)]).sum()
    assert elsewhere[round(10 * hours)] > 0.1
    assert curve.misses[curve.at(10.0)] == missed
