import json

import numpy as np
import pytest
import scipy.stats

from kws_jax.evaluation import metrics

LABELS = np.array([0, 0, 1, 1, 1, 3, 3, 0])
PREDICTIONS = np.array([0, 1, 1, 1, 2, 3, 0, 0])


@pytest.mark.parametrize("confidence", [0.9, 0.95])
@pytest.mark.parametrize("trials", [(0, 7), (1, 1), (3, 10), (2960, 3081), (50, 50)])
def test_wilson_interval_equals_scipy(trials, confidence):
    expected = scipy.stats.binomtest(*trials).proportion_ci(confidence, "wilson")
    interval = metrics.wilson_interval(trials[0], trials[1], confidence)
    np.testing.assert_allclose(interval, [expected.low, expected.high], atol=1e-12)
    assert 0 <= interval[0] < interval[1] <= 1


@pytest.mark.parametrize("count", [0, 1, 7, 300])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_poisson_interval_leaves_the_tails_outside(count, confidence):
    low, high = metrics.poisson_interval(count, confidence)
    tail = (1 - confidence) / 2
    assert scipy.stats.poisson(high).cdf(count) == pytest.approx(tail)
    if count:
        assert scipy.stats.poisson(low).sf(count - 1) == pytest.approx(tail)
    else:
        assert low == 0


def test_poisson_interval_is_that_of_garwoods_table():
    table = {0: (0, 3.689), 1: (0.0253, 5.572), 10: (4.795, 18.39)}
    for count, bounds in table.items():
        assert metrics.poisson_interval(count) == pytest.approx(bounds, abs=5e-3)


@pytest.mark.parametrize(("count", "confidence"), [(-1, 0.95), (3, 1.0)])
def test_poisson_interval_refuses_impossible_values(count, confidence):
    with pytest.raises(ValueError, match="count"):
        metrics.poisson_interval(count, confidence)


@pytest.mark.parametrize("trials", [(0, 0), (4, 3), (-1, 3)])
def test_wilson_interval_refuses_impossible_counts(trials):
    with pytest.raises(ValueError, match="successes"):
        metrics.wilson_interval(*trials)


def test_confusion_matrix_equals_a_literal_loop():
    confusion = [[0] * 4 for _ in range(4)]
    for label, prediction in zip(LABELS, PREDICTIONS, strict=True):
        confusion[label][prediction] += 1
    counted = metrics.confusion_matrix(LABELS, PREDICTIONS, 4)
    np.testing.assert_array_equal(counted, confusion)


@pytest.mark.parametrize("labels", [[0, 4], [-1, 0]])
def test_confusion_matrix_refuses_labels_out_of_range(labels):
    with pytest.raises(ValueError, match=r"0 … 3"):
        metrics.confusion_matrix(labels, [0, 0], 4)


def test_paired_bootstrap_equals_drawing_the_clips_one_by_one():
    rng = np.random.default_rng(0)
    a, b = rng.random(400) < 0.95, rng.random(400) < 0.90
    rows = rng.integers(0, 400, (20_000, 400))
    literal = (a[rows].astype(float) - b[rows]).mean(axis=1)
    difference, interval = metrics.paired_bootstrap(a, b, samples=20_000, seed=1)
    assert difference == pytest.approx(a.mean() - b.mean())
    # Resampled differences are multiples of 1/400, and so are their percentiles.
    np.testing.assert_allclose(
        interval, np.quantile(literal, [0.025, 0.975]), atol=0.003
    )
    assert interval == metrics.paired_bootstrap(a, b, samples=20_000, seed=1)[1]


def test_paired_bootstrap_of_a_system_with_itself_is_zero():
    correct = np.array([True, False, True])
    assert metrics.paired_bootstrap(correct, correct) == (0.0, (0.0, 0.0))


def literal_cluster_bootstrap(successes, counts, samples):
    """Draws clusters one by one, and adds up the trials of those that came."""
    rng = np.random.default_rng(1)
    shares = []
    for _ in range(samples):
        drawn = [rng.integers(len(counts)) for _ in counts]
        shares.append(sum(successes[c] for c in drawn) / sum(counts[c] for c in drawn))
    return np.quantile(shares, [0.025, 0.975])


def test_clustered_interval_equals_drawing_the_clusters_one_by_one():
    rng = np.random.default_rng(0)
    counts = rng.integers(2, 40, 20)
    successes = rng.binomial(counts, rng.random(20))
    expected = literal_cluster_bootstrap(successes.tolist(), counts.tolist(), 20_000)
    interval = metrics.clustered_interval(successes, counts)
    np.testing.assert_allclose(interval, expected, atol=0.01)
    assert interval == metrics.clustered_interval(successes, counts)
    # Means over several systems are no whole numbers.
    halves = metrics.clustered_interval(successes / 2, counts)
    np.testing.assert_allclose(halves, expected / 2, atol=0.01)


def test_clusters_that_are_each_alike_inside_tell_less_than_their_trials():
    """Ten words of 20 clips, five always right and five never.

    The shares are then those of a coin that is thrown ten times: 2 and 8 of 10 are the
    outer percentiles of Binomial(10, 1/2).
    """
    right = np.repeat([20, 0], 5)
    interval = metrics.clustered_interval(right, np.full(10, 20))
    assert interval == pytest.approx(
        [n / 10 for n in scipy.stats.binom(10, 0.5).ppf([0.025, 0.975])]
    )
    low, high = metrics.wilson_interval(100, 200)
    assert high - low < 0.14
    assert interval[1] - interval[0] == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("successes", "counts"), [([7], [10]), ([0] * 9, [4] * 9), ([3, 3, 3], [4, 4, 4])]
)
def test_clusters_that_do_not_differ_leave_the_interval_of_their_trials(
    successes, counts
):
    expected = metrics.wilson_interval(sum(successes), sum(counts))
    assert metrics.clustered_interval(successes, counts) == expected


@pytest.mark.parametrize(
    ("successes", "counts"), [([3], [2]), ([-1, 2], [2, 2]), ([0], [0]), ([], [])]
)
def test_clustered_interval_refuses_impossible_counts(successes, counts):
    with pytest.raises(ValueError, match=r"cluster|example"):
        metrics.clustered_interval(successes, counts)


def test_result_survives_json():
    row = metrics.result(
        "train",
        "test",
        "clean",
        "accuracy",
        np.float32(0.5),
        metrics.wilson_interval(2, 4),
        np.int64(4),
    )
    assert list(row) == [
        "stage",
        "split",
        "condition",
        "metric",
        "value",
        "ci95",
        "count",
    ]
    assert json.loads(json.dumps(row)) == row
    assert metrics.result("s", "test", "c", "loss", 1.0, None, 4)["ci95"] is None


def test_result_refuses_what_json_cannot_hold():
    with pytest.raises(ValueError, match="not finite"):
        metrics.result("s", "test", "c", "accuracy", float("nan"), None, 4)
