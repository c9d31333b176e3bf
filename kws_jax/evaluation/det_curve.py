"""The DET curve: false rejects against false alarms, as the threshold falls.

What an event, a reference and an error are is told in `detection`.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from kws_jax.data.time_labels import Spoken
from kws_jax.evaluation.detection import Heard, Rule, fire, match, widened

# Thresholds of a curve: one above each of so many of the highest scores outside the
# references, or more where its reach needs them, and so many more of the scores.
_PEAKS, _BETWEEN = 400, 200


@dataclasses.dataclass(frozen=True)
class Curve:
    """Errors at falling `thresholds` [c]: `misses` and `false_alarms` int [c].

    The first threshold lies above every score. `references` and `hours` are what they
    are counted over.
    """

    thresholds: np.ndarray
    misses: np.ndarray
    false_alarms: np.ndarray
    references: int
    hours: float

    def at(self, false_alarms_per_hour: float) -> int:
        """The place in `thresholds` where fewest are missed, with so many false alarms.

        The false alarms are kept there and at every threshold above. Of thresholds that
        miss equally few those with the fewest false alarms count. These are a range,
        from just above the loudest sound that is no keyword up to the faintest keyword
        that must be heard: of all in it the middle one is chosen, in the unit of the
        scores, since on other audio either side may move. Of several ranges it is the
        widest, as counts need not move steadily while the threshold falls: an event
        that comes too early locks the right one out.

        Args:
          false_alarms_per_hour: 0 or more.
        """
        allowed = self.false_alarms <= false_alarms_per_hour * self.hours + 1e-9
        count = len(allowed) if allowed.all() else int(np.argmin(allowed))
        misses, alarms = self.misses[:count], self.false_alarms[:count]
        fewest = misses == misses.min()
        best = np.flatnonzero(fewest & (alarms == alarms[fewest].min()))
        ranges = np.split(best, np.flatnonzero(np.diff(best) > 1) + 1)
        limits = [self.thresholds[places[[0, -1]]] for places in ranges]
        widest = int(np.argmax([high - low for high, low in limits]))
        # Halved first, so that the sum of the largest numbers is finite.
        middle = (limits[widest] / 2).sum()
        places = ranges[widest]
        return int(places[np.argmin(np.abs(self.thresholds[places] - middle))])

    def points(self) -> list[tuple[int, int]]:
        """(False alarms allowed, fewest misses), where more alarms help."""
        found: list[tuple[int, int]] = []
        most = np.maximum.accumulate(self.false_alarms)
        for alarms, misses in zip(most.tolist(), self.misses.tolist()):
            if not found or misses < found[-1][1]:
                if found and found[-1][0] == alarms:
                    found.pop()
                found.append((alarms, misses))
        return found


def curves(
    heard: Heard, spoken: Spoken, rule: Rule, reach: float = 10.0
) -> dict[str, Curve]:
    """The DET curve of each keyword, and under "" that of all at one threshold.

    `reach` is the number of false alarms an hour up to which no threshold that matters
    is left out.
    """
    references = {word: widened(spoken, word, rule) for word in heard.keywords}
    peaks = {
        word: _peaks(heard.scores[:, i], heard.times, *references[word], rule)
        for i, word in enumerate(heard.keywords)
    }
    found = {
        word: _curve(heard, references, (word,), peaks[word], rule, reach)
        for word in heard.keywords
    }
    pooled = np.concatenate(list(peaks.values()))
    whole = _curve(heard, references, heard.keywords, pooled, rule, reach)
    return {"": whole} | found


def _errors(
    scores: np.ndarray,
    times: np.ndarray,
    begins: np.ndarray,
    ends: np.ndarray,
    threshold: float,
    refractory: int,
) -> tuple[int, int]:
    """(False rejects, false alarms) of one keyword at one threshold."""
    events = fire(scores, threshold, refractory)
    hits = int((match(times[events], begins, ends) >= 0).sum())
    return len(begins) - hits, len(events) - hits


def _peaks(
    scores: np.ndarray,
    times: np.ndarray,
    begins: np.ndarray,
    ends: np.ndarray,
    rule: Rule,
) -> np.ndarray:
    """The highest scores outside the references, one in each refractory time."""
    # A window lies in a reference if more of them have begun than have ended by then.
    ended = np.searchsorted(np.sort(ends), times, side="left")
    outside = np.searchsorted(begins, times, side="right") == ended
    alarms = np.where(outside, scores, -np.inf)
    missing = -len(alarms) % rule.refractory
    padded = np.pad(alarms, (0, missing), constant_values=-np.inf)
    highest = padded.reshape(-1, rule.refractory).max(1)
    return highest[np.isfinite(highest)]


def _clearest(
    scores: np.ndarray, times: np.ndarray, begins: np.ndarray, ends: np.ndarray
) -> np.ndarray:
    """The highest score of each reference that holds one that is finite."""
    first = np.searchsorted(times, begins, side="left").tolist()
    last = np.searchsorted(times, ends, side="right").tolist()
    highest = np.array([scores[a:b].max() for a, b in zip(first, last) if a < b])
    return highest[np.isfinite(highest)]


def _thresholds(
    scores: np.ndarray, peaks: np.ndarray, said: np.ndarray, alarms: float
) -> np.ndarray:
    """Falling thresholds: just above each of the highest peaks, and scores between.

    Between two peaks outside the references the false alarms stay nearly the same;
    only the phase of the refractory times may change with other scores. For so many
    `alarms` twice as many peaks are enough, since an alarm's refractory time meets
    those of two peaks at most. Above each of these the faintest reference (`said` has
    the highest score of each) is among the thresholds: up to it nothing changes.
    """
    enough = math.ceil(2 * alarms)
    count = max(_PEAKS, enough)
    highest = np.sort(peaks)[::-1][:count]
    lower = np.append(highest[: enough + 1], -np.inf)
    places = np.unique(np.searchsorted(np.sort(said), lower))
    faintest = np.sort(said)[places[places < len(said)]]
    between = np.unique(scores[np.isfinite(scores)])
    if len(peaks) > count:
        between = between[between >= highest[-1]]
    rows = np.linspace(0, len(between) - 1, min(len(between), _BETWEEN))
    above = np.nextafter(np.append(highest, scores.max()), np.inf)
    chosen = [above, between[rows.astype(int)], faintest]
    return np.unique(np.concatenate(chosen))[::-1]


def _curve(
    heard: Heard,
    references: Mapping[str, tuple[np.ndarray, np.ndarray]],
    words: Sequence[str],
    peaks: np.ndarray,
    rule: Rule,
    reach: float,
) -> Curve:
    """Errors of `words` together at the thresholds where they may change."""
    columns = [heard.keywords.index(word) for word in words]

    def count(thresholds: np.ndarray) -> np.ndarray:
        """(False rejects, false alarms) at each threshold, int64 [c, 2]."""
        counts = np.zeros((len(thresholds), 2), np.int64)
        for column, word in zip(columns, words):
            scores, (begins, ends) = heard.scores[:, column], references[word]
            for row, threshold in enumerate(thresholds.tolist()):
                counts[row] += _errors(
                    scores, heard.times, begins, ends, threshold, rule.refractory
                )
        return counts

    each = [
        _clearest(heard.scores[:, column], heard.times, *references[word])
        for column, word in zip(columns, words)
    ]
    said, alarms = np.concatenate(each), reach * heard.hours
    thresholds = _thresholds(heard.scores[:, columns], peaks, said, alarms)
    counts = count(thresholds)
    # Counted as well, so that a threshold that is chosen there is known to keep a rate.
    middles = np.setdiff1d(_middles(thresholds, counts, alarms), thresholds)
    counts = np.concatenate([counts, count(middles)])
    thresholds = np.concatenate([thresholds, middles])
    falling = np.argsort(-thresholds)
    counts = counts[falling]
    total = sum(len(references[word][0]) for word in words)
    return Curve(thresholds[falling], counts[:, 0], counts[:, 1], total, heard.hours)


def _middles(thresholds: np.ndarray, counts: np.ndarray, alarms: float) -> np.ndarray:
    """The middle of each range of falling thresholds [c] with equal counts [c, 2].

    Of those with more than so many `alarms` none is wanted.
    """
    changes = np.flatnonzero((np.diff(counts, axis=0) != 0).any(1)) + 1
    first = np.concatenate([[0], changes])
    last = np.concatenate([changes, [len(thresholds)]]) - 1
    middles = thresholds[first] / 2 + thresholds[last] / 2
    return middles[counts[first, 1] <= alarms + 1e-9]
