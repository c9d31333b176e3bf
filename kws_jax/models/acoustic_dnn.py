"""The acoustic model of Higuchi et al.: a small DNN over states of whole-word HMMs.

Higuchi et al., "Dynamic Curriculum Learning via Data Parameters for Noise Robust
Keyword Spotting", arXiv 2102.09666: 13 MFCCs of 19 frames, five fully connected layers
of 64. Theirs has the states of one keyword, about twenty with silence and background;
here each keyword of the task has states of its own.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kws_jax.ops import hmm

NETWORK = "acoustic_dnn"  # its name in the registry
FILLERS = 2  # labels that are no keywords: unknown and silence, the last two


class AcousticDNN(nn.Module):
    """Log-probabilities of HMM states for each frame, and scores of labels for a clip.

    Features are normalised by running mean and deviation; nothing of that is trained.

    Attributes:
      num_labels: k: the keywords, then unknown, then silence.
      states: n, of each keyword.
      hidden: width of the fully connected layers.
      depth: how many of them.
      context: frames taken on either side of a frame; edges are repeated.
      acoustic_scale: factor of log-likelihoods in scores, since neighbouring frames
        are far from independent.
      batch_norm_momentum: what running statistics keep at each step.
    """

    num_labels: int
    states: int = 6
    hidden: int = 64
    depth: int = 5
    context: int = 9
    acoustic_scale: float = 0.1
    batch_norm_momentum: float = 0.99

    @property
    def keywords(self) -> int:
        """How many labels are words with states of their own."""
        return self.num_labels - FILLERS

    @property
    def num_states(self) -> int:
        """s, the number of outputs for a frame."""
        return hmm.num_states(self.keywords, self.states)

    def setup(self) -> None:
        """Makes the layers, and the running shares of the states in training."""
        self.norm = nn.BatchNorm(
            momentum=self.batch_norm_momentum, use_bias=False, use_scale=False
        )
        init = nn.initializers.he_normal()
        self.body = [nn.Dense(self.hidden, kernel_init=init) for _ in range(self.depth)]
        self.head = nn.Dense(self.num_states)
        self.prior = self.variable(
            "batch_stats",
            "prior",
            lambda: jnp.full(self.num_states, 1 / self.num_states),
        )
        self.updates = self.variable("batch_stats", "updates", lambda: jnp.zeros(()))

    def frame_logits(
        self, features: Float[Array, "b t f"], *, train: bool
    ) -> Float[Array, "b t s"]:
        """Logits of the states for each frame."""
        x = splice(self.norm(features, use_running_average=not train), self.context)
        for layer in self.body:
            x = nn.relu(layer(x))
        return self.head(x)

    def log_likelihoods(
        self, frame_logits: Float[Array, "b t s"]
    ) -> Float[Array, "b t s"]:
        """The states' ln p(state | frame) - ln p(state), by Bayes p(frame | state).

        A part that all states of a frame share is left out.
        """
        posteriors = jax.nn.log_softmax(frame_logits.astype(jnp.float32))
        return posteriors - jnp.log(jnp.maximum(self.prior.value, 1e-4))

    def __call__(
        self, features: Float[Array, "b t f"], *, train: bool
    ) -> Float[Array, "b k"]:
        """Scores of the labels: scaled log-likelihood ratios to the background path."""
        frames = self.log_likelihoods(self.frame_logits(features, train=train))
        scores = hmm.label_scores(frames, self.keywords, self.states)
        return self.acoustic_scale * scores

    def start_stream(self, batch: int) -> Float[Array, "b w n"]:
        """What `stream` carries before the first frame."""
        return hmm.start_scores(batch, self.keywords, self.states)

    def stream(
        self, carried: jax.Array, features: Float[Array, "b u f"]
    ) -> tuple[jax.Array, Float[Array, "b t w"]]:
        """Scores of keywords that end at each frame of continuous audio.

        Args:
          carried: from `start_stream`, or from the piece before.
          features: [b, u, f], u = t + 2 · context: the piece's t frames, and on either
            side those that they are seen with.

        Returns:
          What to carry on, and [b, t, w], log-odds (`hmm.log_odds`) by scaled
          log-likelihoods.
        """
        logits = self.frame_logits(features, train=False)
        inner = logits[:, self.context : features.shape[1] - self.context]
        carried, scores = hmm.keyword_scores(carried, self.log_likelihoods(inner))
        return carried, hmm.log_odds(self.acoustic_scale * scores)


def splice(x: Float[Array, "b t f"], context: int) -> Float[Array, "b t g"]:
    """Each frame with `context` frames before and after it, g = (2 · context + 1) · f.

    The first and the last frame stand for those beyond them.
    """
    frames = x.shape[1]
    padded = jnp.pad(x, ((0, 0), (context, context), (0, 0)), mode="edge")
    parts = [padded[:, i : i + frames] for i in range(2 * context + 1)]
    return jnp.concatenate(parts, axis=-1)


def state_names(labels: tuple[str, ...], states: int) -> tuple[str, ...]:
    """Names of the HMM states: 'yes/1', 'yes/2', …, then the last two labels'."""
    words = [f"{word}/{i + 1}" for word in labels[:-FILLERS] for i in range(states)]
    return (*words, *labels[-FILLERS:])
