"""How far the classes lie apart in the space of the embeddings."""

import numpy as np
from numpy.typing import ArrayLike


def normalised(embeddings: ArrayLike) -> np.ndarray:
    """Embeddings [n, d] scaled to length one, in float64; 0 stays 0."""
    embeddings = np.asarray(embeddings, np.float64)
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings / np.where(lengths > 0, lengths, 1.0)


def class_distance_ratio(embeddings: ArrayLike, labels: ArrayLike) -> float:
    """Distance between classes over distance within, for embeddings of length one.

    R = mean_{c<c'} ‖μ_c − μ_c'‖ / mean_c mean_{i∈c} ‖e_i − μ_c‖, with e_i scaled to
    length one and μ_c the mean of those of class c. Every class counts alike.

    Args:
      embeddings: [n, d].
      labels: int [n], of at least two classes.

    Returns:
      R > 0; infinite where all clips of each class coincide, 0 where all means do.

    Raises:
      ValueError: fewer than two classes.
    """
    e, labels = normalised(embeddings), np.asarray(labels)
    classes = np.unique(labels)
    if len(classes) < 2:
        raise ValueError(f"need at least two classes, got {classes}")
    members = [e[labels == label] for label in classes]
    means = np.array([each.mean(0) for each in members])
    first, second = np.triu_indices(len(classes), k=1)
    between = np.linalg.norm(means[first] - means[second], axis=1).mean()
    within = np.mean(
        [
            np.linalg.norm(each - mean, axis=1).mean()
            for each, mean in zip(members, means, strict=True)
        ]
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.nan_to_num(between / within, nan=0.0, posinf=np.inf))
