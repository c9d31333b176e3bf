"""What a network of one second says of a recording of any length. NumPy alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kws_jax.data.corpus import SILENCE, UNKNOWN

_HOP = 4000  # samples between windows


def windows(audio: np.ndarray, samples: int) -> np.ndarray:
    """Windows [n, samples] of int16 audio [t]; the last one ends with the recording."""
    if len(audio) <= samples:
        return np.pad(audio, (0, samples - len(audio)))[None]
    starts = [*range(0, len(audio) - samples, _HOP), len(audio) - samples]
    return np.stack([audio[start : start + samples] for start in starts])


def answer(path: Any, labels: Sequence[str], heard: np.ndarray) -> dict[str, Any]:
    """The answer for a recording, for JSON, of its windows' probabilities [n, k].

    The window in which a keyword is most probable counts.
    """
    words = [label not in (UNKNOWN, SILENCE) for label in labels]
    best = heard[heard[:, words].max(1).argmax()] if any(words) else heard[0]
    winner = int(best.argmax())
    return {
        "path": str(path),
        "keyword": labels[winner],
        "score": round(float(best[winner]), 6),
        "scores": {k: round(float(p), 6) for k, p in zip(labels, best)},
    }
