"""A network that hears one second, over audio of any length. NumPy alone."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from kws_jax.data.corpus import CLIP_SAMPLES, SILENCE, UNKNOWN

# Windows asked about at once: bounds the memory, and the programs to compile to one.
GROUP = 256
# The same of files that are mostly a window or a few, and the samples between two.
_FEW, _FEW_HOP = 64, 4_000


def sliding_windows(
    blocks: Iterable[np.ndarray], hop: int, group: int = GROUP
) -> Iterator[np.ndarray]:
    """Windows of one second that begin at samples 0, hop, 2·hop, …, in groups.

    What is left behind the last whole window is not heard; audio shorter than a second
    is padded with zeros to one window.

    Args:
      blocks: int16 [n] pieces of the audio, in order.
      hop: samples between two windows, at least 1.
      group: windows in a group.

    Yields:
      int16 [g, CLIP_SAMPLES] with 1 <= g <= group; only the last group is smaller.
    """
    wanted = CLIP_SAMPLES + (group - 1) * hop
    pieces: list[np.ndarray] = []
    held, given = 0, False
    for block in blocks:
        pieces.append(block)
        held += len(block)
        if held >= max(wanted, group * hop):
            buffer = np.concatenate(pieces)
            while len(buffer) >= max(wanted, group * hop):
                yield _view(buffer[:wanted], hop)
                buffer, given = buffer[group * hop :], True
            pieces, held = [buffer], len(buffer)
    rest = np.concatenate([np.zeros(0, np.int16), *pieces])
    if len(rest) < CLIP_SAMPLES and not given:
        rest = np.pad(rest, (0, CLIP_SAMPLES - len(rest)))
    while len(rest) >= CLIP_SAMPLES:
        yield _view(rest[:wanted], hop)
        rest = rest[group * hop :]


def posteriors(
    probabilities: Callable[[Any], Any],
    blocks: Iterable[np.ndarray],
    hop: int,
    group: int = GROUP,
) -> np.ndarray:
    """The network's probabilities for every window of `sliding_windows`.

    Args:
      probabilities: int16 [group, CLIP_SAMPLES] -> [group, k].
      blocks: int16 [n] pieces of the audio, in order.
      hop: samples between two windows.
      group: windows asked about at once.

    Returns:
      float32 [windows, k].
    """
    heard = []
    for windows in sliding_windows(blocks, hop, group):
        padded = np.pad(windows, ((0, group - len(windows)), (0, 0)))
        heard.append(np.asarray(probabilities(padded), np.float32)[: len(windows)])
    return np.concatenate(heard)


def heard_in(
    probabilities: Callable[[Any], Any], audio: np.ndarray, group: int = _FEW
) -> np.ndarray:
    """The network's probabilities for windows of a clip, or of a recording of any kind.

    Windows begin every quarter of a second, and one more ends with the recording; what
    is shorter than a second is padded with zeros.

    Args:
      probabilities: int16 [n, CLIP_SAMPLES] -> [n, k]; asked about one window alone,
        else about `group` at once.
      audio: int16 [t].
      group: windows asked about at once.

    Returns:
      [windows, k].
    """
    if len(audio) <= CLIP_SAMPLES:
        alone = np.pad(audio, (0, CLIP_SAMPLES - len(audio)))[None]
        return np.asarray(probabilities(alone))
    last = len(audio) - CLIP_SAMPLES
    starts = [*range(0, last, _FEW_HOP), last]
    heard = []
    for first in range(0, len(starts), group):
        windows = np.zeros((group, CLIP_SAMPLES), np.int16)
        for row, start in zip(windows, starts[first : first + group]):
            row[:] = audio[start : start + CLIP_SAMPLES]
        heard.append(np.asarray(probabilities(windows)))
    return np.concatenate(heard)[: len(starts)]


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


def _view(audio: np.ndarray, hop: int) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(audio, CLIP_SAMPLES)[::hop]
