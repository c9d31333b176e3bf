"""A network that follows continuous audio frame by frame, over audio of any length.

The audio is given in pieces of one length, whose frames overlap by the context that the
network looks at; what it has decoded so far is carried from one to the next. So the
scores are those of one pass over all of the audio, in the memory of one piece.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kws_jax.data.corpus import SAMPLE_RATE
from kws_jax.evaluation.detection import Heard
from kws_jax.frontends import spectrum
from kws_jax.frontends.registry import Frontend

PyTree = Any
# Frames of a piece: some ten seconds.
FRAMES = 1024


class StreamingModel(Protocol):
    """What a network has that scores continuous audio itself.

    Attributes:
      context: frames that it looks at on either side of a frame.
    """

    context: int

    def start_stream(self, batch: int) -> PyTree:
        """What is carried before the first frame."""

    def stream(
        self, carried: PyTree, features: Float[Array, "b u f"]
    ) -> tuple[PyTree, Float[Array, "b t w"]]:
        """Scores of keywords at each frame but for `context` on either side."""


@dataclasses.dataclass(frozen=True)
class FrameScorer:
    """How a network scores keywords at each frame.

    Attributes:
      start: what is carried before the first frame.
      advance: (carried, int16 [samples of a piece], first, last) -> (carried, scores
        [frames, w]); `first` and `last` are the outermost frames of the piece that lie
        in the audio, and stand for those beyond them.
      frames: t, that a piece has scores of.
      context: further frames on either side.
      hop: samples between two frames.
      window: samples of a frame.
    """

    start: PyTree
    advance: Callable[[PyTree, np.ndarray, int, int], tuple[PyTree, Any]]
    frames: int
    context: int
    hop: int
    window: int

    @property
    def hop_ms(self) -> float:
        """Time between two frames."""
        return 1000 * self.hop / SAMPLE_RATE

    def scores(self, blocks: Iterable[np.ndarray]) -> np.ndarray:
        """Scores float32 [n, w] of all whole frames of audio given in int16 blocks."""
        carried, found = self.start, []
        for piece, first, last in self.pieces(blocks):
            carried, scores = self.advance(carried, piece, first, last)
            found.append(np.asarray(scores, np.float32)[: last - self.context + 1])
        return np.concatenate(found)

    def pieces(
        self, blocks: Iterable[np.ndarray]
    ) -> Iterator[tuple[np.ndarray, int, int]]:
        """Pieces of audio as `advance` takes them.

        Audio shorter than a frame is padded with zeros to one.
        """
        step = self.frames * self.hop
        length = self._samples(self.frames + 2 * self.context)
        least = self._samples(1 + self.context)
        first, given = self.context, False
        buffer = np.zeros(self.context * self.hop, np.int16)
        for block in blocks:
            buffer = np.concatenate([buffer, block])
            while len(buffer) >= length:
                yield buffer[:length], first, self.frames + 2 * self.context - 1
                first, given, buffer = 0, True, buffer[step:]
        if len(buffer) < least and not given:
            buffer = np.pad(buffer, (0, least - len(buffer)))
        while len(buffer) >= least:
            whole = spectrum.num_frames(len(buffer), window=self.window, hop=self.hop)
            padded = np.pad(buffer[:length], (0, max(0, length - len(buffer))))
            yield padded, first, min(whole, self.frames + 2 * self.context) - 1
            first, buffer = 0, buffer[step:]

    def _samples(self, frames: int) -> int:
        return (frames - 1) * self.hop + self.window


def create_frame_scorer(
    model: nn.Module, variables: PyTree, frontend: Frontend, frames: int = FRAMES
) -> FrameScorer | None:
    """The scorer of a network that is a `StreamingModel`; None for any other.

    Args:
      model: the network.
      variables: its parameters and batch statistics.
      frontend: of its features, each of which depends on its own frame alone.
      frames: t of a piece, at least the network's context.
    """
    if not hasattr(model, "stream"):
        return None
    streaming = cast(StreamingModel, model)
    context = streaming.context

    @jax.jit
    def advance(
        variables: PyTree, carried: PyTree, audio: jax.Array, first: int, last: int
    ) -> tuple[PyTree, jax.Array]:
        features = frontend(audio[None])
        places = jnp.clip(jnp.arange(features.shape[1]), first, last)
        answer: Any = model.apply(
            variables, carried, features[:, places], method="stream"
        )
        carried, scores = answer
        return carried, scores[0]

    rate = frontend.settings["sample_rate"]
    return FrameScorer(
        start=streaming.start_stream(1),
        advance=functools.partial(advance, variables),
        frames=max(frames, context, 1),
        context=context,
        hop=spectrum.samples_of(frontend.settings["hop_ms"], rate),
        window=spectrum.samples_of(frontend.settings["window_ms"], rate),
    )


def heard_frames(
    scorer: FrameScorer, blocks: Iterable[np.ndarray], keywords: Sequence[str]
) -> Heard:
    """Scores of the keywords at each frame; its time is the middle of the frame.

    A score belongs to a keyword that ends there, and is no mean over time.
    """
    scores = scorer.scores(blocks).astype(np.float64)
    begins = np.arange(len(scores)) * scorer.hop
    return Heard(
        keywords=tuple(keywords),
        scores=scores,
        times=(begins + scorer.window / 2) / SAMPLE_RATE,
        hours=float(begins[-1] + scorer.window) / SAMPLE_RATE / 3600,
    )
