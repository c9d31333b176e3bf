"""Left-to-right hidden Markov models of whole words: paths, alignments and scores.

Of W keywords with n states each, state j of word w is number w·n + j; then come the
background, W·n, and silence, W·n + 1. Staying in a state and going on cost nothing, so
a path is worth the sum of its frames' log-likelihoods.
"""

import jax
import jax.numpy as jnp
import numpy as np

from kws_jax.errors import UserError


def num_states(keywords: int, states: int) -> int:
    """How many states there are in all."""
    return keywords * states + 2


def chains(keywords: int, states: int) -> np.ndarray:
    """The states that a clip of each label passes, int32 [k, n + 2].

    Labels are the keywords, unknown and silence. A chain is silence, the word, silence,
    the first and the last of which may be left out; the word of unknown is n times the
    background, that of silence n times silence.
    """
    background, silence = keywords * states, keywords * states + 1
    words = np.arange(keywords * states).reshape(keywords, states)
    fillers = np.repeat([[background], [silence]], states, axis=1)
    inner = np.concatenate([words, fillers])
    ends = np.full((len(inner), 1), silence)
    return np.concatenate([ends, inner, ends], axis=1).astype(np.int32)


def best_path(emissions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The best way through a chain (Viterbi), and what it is worth.

    It begins at place 0 or 1, ends at place m - 1 or m - 2, and stays where it is or
    goes on by one place at each frame.

    Args:
      emissions: [b, t, m], log-likelihoods of the frames in the places of the chain.

    Returns:
      Places int32 [b, t], and sums float [b]. The sums can be differentiated.

    Raises:
      UserError: fewer frames than the m - 2 places that must be passed.
    """
    frames, length = emissions.shape[1:]
    if frames < length - 2:
        raise UserError(
            f"{frames} frames are too few for words of {length - 2} states: give "
            "longer audio, or lower network.states."
        )
    first = jnp.where(jnp.arange(length) < 2, emissions[:, 0], -jnp.inf)

    def forward(score: jax.Array, frame: jax.Array) -> tuple[jax.Array, jax.Array]:
        before = _moved(score, -jnp.inf)
        return jnp.maximum(score, before) + frame, before > score

    later = jnp.moveaxis(emissions[:, 1:], 1, 0)
    score, moved = jax.lax.scan(forward, first, later)
    score = jnp.where(jnp.arange(length) >= length - 2, score, -jnp.inf)
    last = jnp.argmax(score, -1).astype(jnp.int32)

    def backward(place: jax.Array, moved: jax.Array) -> tuple[jax.Array, jax.Array]:
        step = jnp.take_along_axis(moved, place[:, None], axis=1)[:, 0]
        return place - step.astype(jnp.int32), place

    begin, places = jax.lax.scan(backward, last, moved, reverse=True)
    places = jnp.concatenate([begin[None], places])
    return jnp.moveaxis(places, 0, 1), score.max(-1)


def _moved(score: jax.Array, fill: float) -> jax.Array:
    """Scores [..., m] one place further on."""
    return jnp.concatenate(
        [jnp.full_like(score[..., :1], fill), score[..., :-1]], axis=-1
    )


def flat_start(energy: jax.Array, states: int, share: float = 0.5) -> jax.Array:
    """Places in a chain before anything is known of its states.

    The word is from the first to the last frame whose energy is above the quietest by
    at least `share` of the range, made longer to `states` frames where it is shorter.
    Its frames are divided evenly among the states; silence is before and after.

    Args:
      energy: [b, t], of the frames, on a logarithmic scale.
      states: n, of a word; at most t.
      share: of the range between quietest and loudest frame.

    Returns:
      Places int32 [b, t] in a chain of n + 2.
    """
    frames = energy.shape[1]
    low, high = (f(energy, axis=1, keepdims=True) for f in (jnp.min, jnp.max))
    loud = energy >= low + share * (high - low)
    first = jnp.argmax(loud, axis=1)
    last = frames - 1 - jnp.argmax(loud[:, ::-1], axis=1)
    missing = jnp.maximum(states - (last - first + 1), 0)
    first = jnp.clip(first - missing // 2, 0, frames - states)
    length = jnp.maximum(last - first + 1, states)
    offset = jnp.arange(frames)[None] - first[:, None]
    inside = 1 + offset * states // length[:, None]
    return jnp.clip(
        jnp.where(offset < 0, 0, jnp.where(inside > states, states + 1, inside)),
        0,
        states + 1,
    ).astype(jnp.int32)


def start_scores(batch: int, keywords: int, states: int) -> jax.Array:
    """What `keyword_scores` carries before the first frame, [b, w, n]."""
    return jnp.full((batch, keywords, states), -jnp.inf)


def keyword_scores(
    carried: jax.Array, log_likelihoods: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Log-likelihood ratios of keywords that end at each frame, against background.

    The background path takes the better of background and silence at every frame. A
    keyword's path does so too until the keyword begins, then passes all its states; its
    best beginning counts. Continuous audio can be given in pieces of any length.

    Args:
      carried: [b, w, n], from `start_scores` or the piece before.
      log_likelihoods: [b, t, w·n + 2], of the states.

    Returns:
      What to carry to the next piece, and scores [b, t, w].
    """
    words, states = carried.shape[1:]
    filler = jnp.max(log_likelihoods[..., words * states :], axis=-1)
    gains = log_likelihoods[..., : words * states] - filler[..., None]
    gains = gains.reshape(*gains.shape[:2], words, states)

    def forward(score: jax.Array, gain: jax.Array) -> tuple[jax.Array, jax.Array]:
        # Before the first state lies the background, whose ratio to itself is 0.
        score = jnp.maximum(score, _moved(score, 0.0)) + gain
        return score, score[..., -1]

    carried, scores = jax.lax.scan(forward, carried, jnp.moveaxis(gains, 1, 0))
    return carried, jnp.moveaxis(scores, 0, 1)


def log_odds(scores: jax.Array) -> jax.Array:
    """Each keyword's odds against background and all other keywords, by the logarithm.

    s_w - ln(1 + Σ_{v≠w} exp s_v), which is ln(p / (1 - p)) where p is the softmax over
    background, 0, and the keywords that may end at the same frame: what is said excites
    the paths of words that sound alike, and one of them is right. A task's only keyword
    keeps its ratio to the background.

    Args:
      scores: [..., w], ratios to background of `keyword_scores`, scaled or not.
    """
    words = scores.shape[-1]
    rivals = jnp.where(jnp.eye(words, dtype=bool), -jnp.inf, scores[..., None, :])
    background = jnp.zeros_like(rivals[..., :1])
    others = jnp.concatenate([background, rivals], axis=-1)
    return scores - jax.nn.logsumexp(others, axis=-1)


def label_scores(log_likelihoods: jax.Array, keywords: int, states: int) -> jax.Array:
    """The labels' scores [b, k] of whole clips, ratios to the background path.

    For a keyword the best of `keyword_scores` over the frames; for unknown and silence
    the best way through their chains, at most 0.

    Args:
      log_likelihoods: [b, t, s], of the states.
      keywords: W.
      states: n.
    """
    start = start_scores(log_likelihoods.shape[0], keywords, states)
    _, scores = keyword_scores(start, log_likelihoods)
    relative = log_likelihoods - jnp.max(
        log_likelihoods[..., keywords * states :], axis=-1, keepdims=True
    )
    background = chains(keywords, states)[keywords]
    _, unknown = best_path(relative[..., background])
    silence = relative[..., -1].sum(axis=1)
    others = jnp.stack([unknown, silence], axis=-1)
    return jnp.concatenate([scores.max(axis=1), others], axis=-1)
