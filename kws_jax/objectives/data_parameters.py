"""Data parameters: trainable temperatures of the labels and of the single clips.

The logits z of an example are divided by its σ*. The gradient of the cross-entropy L of
target y is then

    ∂L/∂z_j = (p_j - 1[j = y]) / σ*
    ∂L/∂σ*  = (1 - p_y) / σ*² · (z_y - Σ_{j≠y} q_j z_j),   q_j = p_j / (1 - p_y)

so the σ* of an example that is taken for something else grows, and what it teaches
shrinks, while that of an easy one falls: a curriculum that follows the network. At test
time there is no σ*.

Reference: Saxena et al., "Data Parameters", NeurIPS 2019; Higuchi et al., "Dynamic
Curriculum Learning via Data Parameters for Noise Robust Keyword Spotting", arXiv
2102.09666.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from kws_jax.errors import UserError, nearest

CLASS, INSTANCE, JOINT = "class", "instance", "joint"
MODES = (CLASS, INSTANCE, JOINT)

# "class": ln σ [k] of the labels; "instance": ln σ [n, v] of n clips in v variants.
Table = Mapping[str, jax.Array]


def create_table(
    mode: str,
    *,
    labels: int,
    clips: int,
    variants: int = 1,
    class_initial: float = 1.0,
    instance_initial: float = 1.0,
) -> dict[str, jax.Array]:
    """A table at its initial values; it is kept as s = ln σ, so that σ > 0.

    Args:
      mode: "class", "instance" or "joint" (both, added).
      labels: k, the number of labels.
      clips: n, the number of training clips.
      variants: v, in how many variants a clip is heard (clean, noisy, …); each is an
        example with a parameter of its own.
      class_initial: σ of every label.
      instance_initial: σ of every clip; the authors' code has 1 for "instance" and
        0.001 for "joint".

    Raises:
      UserError: for an unknown mode, or initial values that are no temperatures.
    """
    if mode not in MODES:
        raise UserError(f"data_parameters.mode = {mode!r}: {nearest(mode, MODES)}")
    table = {}
    for kind, shape, initial in (
        (CLASS, (labels,), class_initial),
        (INSTANCE, (clips, variants), instance_initial),
    ):
        if mode not in (kind, JOINT):
            continue
        if not 0 < initial < float("inf"):
            raise UserError(
                f"data_parameters.{kind}_initial = {initial}: a temperature is above 0."
            )
        table[kind] = jnp.full(shape, np.log(initial), jnp.float32)
    return table


def variants_of(
    noise_level: Float[Array, " b"] | Float[np.ndarray, " b"],
    edges_db: Sequence[float] = (),
) -> Int[Array, " b"]:
    """The variant of each example: 0 without noise, else 1, 2, … by rising SNR.

    Args:
      noise_level: float [b], 10^(-snr/20); 0 is no noise.
      edges_db: SNRs (dB) that part the noisy variants, in rising order; the SNR at an
        edge belongs above it. Without any, all noise is one variant.

    Returns:
      int32 [b] in 0 … len(edges_db) + 1.
    """
    level = jnp.asarray(noise_level)
    edges = 10.0 ** (-jnp.asarray(edges_db, jnp.float32) / 20)
    # Levels go through float32: half a thousandth of a dB of room at the edges.
    above = (level[:, None] <= edges[None] * 1.00005).sum(1)
    return jnp.where(level > 0, 1 + above, 0).astype(jnp.int32)


def temperatures(
    table: Table,
    labels: Int[Array, " b"],
    index: Int[Array, " b"],
    variant: Int[Array, " b"],
) -> Float[Array, " b"]:
    """σ* of each example: σ_class[label], σ_inst[index, variant], or their sum.

    An index or variant outside the table gives NaN, so that the loss shows it; see
    `check_index` for an error beforehand.
    """
    terms = []
    if CLASS in table:
        terms.append(jnp.exp(_look_up(table[CLASS], labels)))
    if INSTANCE in table:
        terms.append(jnp.exp(_look_up(table[INSTANCE], index, variant)))
    return sum(terms[1:], terms[0])


def scale(
    logits: Float[Array, "b k"], sigma: Float[Array, " b"]
) -> Float[Array, "b k"]:
    """All logits of an example divided by its σ*, for any loss of one label a clip."""
    return logits / sigma[:, None]


def penalty(
    table: Table,
    labels: Int[Array, " b"],
    index: Int[Array, " b"],
    variant: Int[Array, " b"],
    mask: Bool[Array, " b"],
    *,
    class_decay: float = 0.0,
    instance_decay: float = 0.0,
    joint_decay: float = 0.0,
) -> Float[Array, ""]:
    """The regulariser, which draws the σ of the batch's examples towards 1.

    ½ Σ_b (class_decay · s_class[y_b]² + instance_decay · s_inst[b]² +
    joint_decay · (ln σ*_b)²), a sum over the examples that are not masked: a label that
    occurs twice counts twice, what does not occur has no gradient. The first two terms
    are those of the code of Saxena et al., the last, ‖ln(σ_class + σ_inst)‖², is the
    one that Higuchi et al. write.
    """
    total = jnp.zeros(labels.shape, jnp.float32)
    if CLASS in table:
        total += class_decay * _look_up(table[CLASS], labels) ** 2
    if INSTANCE in table:
        total += instance_decay * _look_up(table[INSTANCE], index, variant) ** 2
    if joint_decay:
        sigma = temperatures(table, labels, index, variant)
        total += joint_decay * jnp.log(sigma) ** 2
    return 0.5 * jnp.where(mask, total, 0).sum()


def require_one_label(labels: jax.Array) -> None:
    """Raises UserError for labels that are distributions, float [b, k]."""
    if labels.ndim != 1:
        raise UserError(
            "Data parameters need one label for each clip, since the label chooses the "
            "class parameter; the labels here are mixtures. Turn mixup off, or set "
            "data_parameters.mode to 'none'."
        )


def check_index(index: np.ndarray, clips: int) -> None:
    """Raises UserError unless all of `index` are rows of a table of `clips` clips."""
    index = np.asarray(index)
    if index.size and not 0 <= index.min() <= index.max() < clips:
        raise UserError(
            f"Clips {index.min()} … {index.max()} were asked for in a table of data "
            f"parameters with {clips} clips (0 … {clips - 1}); make it for the split "
            "that the batches are drawn from."
        )


def _look_up(values: jax.Array, *places: jax.Array) -> jax.Array:
    found = values.at[places].get(mode="fill", fill_value=jnp.nan)
    # A negative place would count from the end.
    inside = jnp.all(jnp.stack(places) >= 0, axis=0)
    return jnp.where(inside, found, jnp.nan)
