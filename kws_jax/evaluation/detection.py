"""Detection of keywords in continuous audio: events, and what they are right about.

Posteriors are smoothed and compared with a threshold as in Chen, Parada and Heigold
2014, "Small-footprint keyword spotting using deep neural networks" (ICASSP), section
2.3: equation 1 is `smooth`; for keywords of one word the confidence of equation 2 is
the largest smoothed posterior of late, so that crossing a threshold is the same event.

The rules of the count:

- An event of a keyword is a window whose smoothed score reaches the threshold; then
  that keyword makes none for the refractory time. Its time is the middle of the audio
  that its score was computed from. Where a network scores keywords itself at each frame
  at which they may end (`frame_scores`), a frame stands for a window; such scores are
  log-odds of any size, -∞ where no keyword can have ended yet.
- A reference is a keyword and the stretch of time in which it is said. An event of that
  keyword within the stretch, widened by the tolerance at both ends, detects it. One
  event detects one reference, and a reference is detected once; of several possible
  pairings the one with most pairs counts.
- A reference without an event is a false reject, an event without a reference a false
  alarm. So an event of one keyword while another is said is a false alarm of the one,
  and does not detect the other.
"""

import dataclasses
import heapq
import math
from collections.abc import Mapping, Sequence

import numpy as np

from kws_jax.data.corpus import CLIP_SAMPLES, SAMPLE_RATE
from kws_jax.data.time_labels import Spoken
from kws_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Rule:
    """How scores become events, and events detections; all in milliseconds.

    Attributes:
      hop_ms: time between two windows.
      smoothing_ms: posteriors are averaged over so much time, at least one window.
      refractory_ms: a keyword makes one event in so much time.
      tolerance_ms: an event may lie so far outside its reference.

    Raises:
      UserError: for a value that makes no sense.
    """

    hop_ms: float
    smoothing_ms: float
    refractory_ms: float
    tolerance_ms: float

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            low = 1.0 if name == "hop_ms" else 0.0
            if not low <= value <= 60_000:
                raise UserError(
                    f"config.detection.{name} = {value}: give {low:g} to 60000 "
                    "(milliseconds)."
                )

    @property
    def hop(self) -> int:
        """Samples between two windows."""
        return round(self.hop_ms * SAMPLE_RATE / 1000)

    @property
    def smoothed(self) -> int:
        """Windows that a score is the mean of."""
        return max(1, round(self.smoothing_ms / self.hop_ms))

    @property
    def refractory(self) -> int:
        """Windows from an event to the next possible one."""
        return max(1, math.ceil(self.refractory_ms / self.hop_ms - 1e-9))


@dataclasses.dataclass(frozen=True)
class Heard:
    """Scores float64 [n, k] of the keywords, their times [n] s, and hours.

    Smoothed posteriors of windows, or log-odds of frames; the higher, the surer.
    """

    keywords: tuple[str, ...]
    scores: np.ndarray
    times: np.ndarray
    hours: float


@dataclasses.dataclass(frozen=True)
class Event:
    """A keyword heard: when (seconds), which, its score, whether it was said then."""

    time: float
    word: str
    score: float
    right: bool


def smooth(posteriors: np.ndarray, windows: int) -> np.ndarray:
    """Mean of each window's posteriors [n, k] and those of the `windows` - 1 before it.

    p'_j = 1 / (j - h + 1) · Σ_{i=h..j} p_i with h = max(1, j - w + 1): equation 1 of
    Chen et al. 2014. Returns float64 [n, k].
    """
    n = len(posteriors)
    total = np.zeros(posteriors.shape, np.float64)
    for back in range(min(windows, n)):
        total[back:] += posteriors[: n - back]
    return total / np.minimum(np.arange(n) + 1, windows)[:, None]


def heard(
    posteriors: np.ndarray, labels: Sequence[str], keywords: Sequence[str], rule: Rule
) -> Heard:
    """Scores of the keywords from posteriors [n, k] of windows `rule.hop` apart."""
    columns = [list(labels).index(word) for word in keywords]
    n = len(posteriors)
    averaged = np.minimum(np.arange(n) + 1, rule.smoothed)
    middle = (np.arange(n) - (averaged - 1) / 2) * rule.hop + CLIP_SAMPLES / 2
    samples = (n - 1) * rule.hop + CLIP_SAMPLES
    return Heard(
        keywords=tuple(keywords),
        scores=smooth(posteriors[:, columns], rule.smoothed),
        times=middle / SAMPLE_RATE,
        hours=samples / SAMPLE_RATE / 3600,
    )


def fire(scores: np.ndarray, threshold: float, refractory: int) -> np.ndarray:
    """Windows int [m] at which scores [n] make an event.

    The first score that reaches the threshold, then the first that does so at least
    `refractory` windows later, and so on.
    """
    above = np.flatnonzero(scores >= threshold)
    following = np.searchsorted(above, above + refractory).tolist()
    chosen, here = [], 0
    while here < len(above):
        chosen.append(here)
        here = following[here]
    return above[chosen]


def match(times: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Pairs events with references, as many as can be.

    Each event in time takes, of the references that it lies in, the one that ends
    first: for points and intervals that gives most pairs.

    Args:
      times: float [m], rising.
      begins: float [r], rising.
      ends: float [r].

    Returns:
      int [m], the reference of each event, -1 for none.
    """
    found = np.full(len(times), -1)
    waiting: list[tuple[float, int]] = []
    following = 0
    for event, time in enumerate(times.tolist()):
        while following < len(begins) and begins[following] <= time:
            heapq.heappush(waiting, (float(ends[following]), following))
            following += 1
        while waiting and waiting[0][0] < time:
            heapq.heappop(waiting)
        if waiting:
            found[event] = heapq.heappop(waiting)[1]
    return found


def widened(spoken: Spoken, word: str, rule: Rule) -> tuple[np.ndarray, np.ndarray]:
    """Begins and ends of a word's references with the tolerance, in seconds."""
    begins, ends = spoken.of(word)
    tolerance = rule.tolerance_ms / 1000
    return begins - tolerance, ends + tolerance


def events(
    heard: Heard, spoken: Spoken | None, thresholds: Mapping[str, float], rule: Rule
) -> list[Event]:
    """All events, each keyword at its own threshold, in order of time.

    Without references none of them is right.
    """
    found = []
    for column, word in enumerate(heard.keywords):
        scores = heard.scores[:, column]
        fired = fire(scores, thresholds[word], rule.refractory)
        times = heard.times[fired]
        right = np.zeros(len(fired), bool)
        if spoken is not None:
            right = match(times, *widened(spoken, word, rule)) >= 0
        rows = zip(times.tolist(), scores[fired].tolist(), right.tolist())
        found += [Event(time, word, score, hit) for time, score, hit in rows]
    return sorted(found, key=lambda event: event.time)
