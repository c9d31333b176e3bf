"""The embeddings of the test clips: written out, and how far the classes lie apart."""

from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
from ml_collections import ConfigDict

from kws_jax import together
from kws_jax.condition_names import CLEAN, UNSEEN
from kws_jax.errors import UserError
from kws_jax.evaluation import separation, testing
from kws_jax.evaluation.metrics import result
from kws_jax.parts import Parts
from kws_jax.stages import networks
from kws_jax.training.checkpoints import write_arrays

FILE = "embeddings.npz"


def asked_for(config: ConfigDict) -> bool:
    """Whether the config has embeddings kept: by its field, or a stage 'embed'."""
    return config.evaluation.get("embeddings", False) or any(
        stage.kind == "embed" for stage in config.stages
    )


def check(config: ConfigDict, model: nn.Module) -> None:
    """Raises UserError where embeddings are asked for of a network without."""
    if asked_for(config) and not networks.embeds(model):
        raise UserError(
            f"The network {config.network.name!r} makes no embeddings: set config."
            "evaluation.embeddings to False, or choose another network."
        )


def measure(
    parts: Parts, network: networks.Network, folder: Path | None
) -> list[dict[str, Any]]:
    """Embeds the test clips, clean and in one noise; returns rows of the ratio.

    With a `folder`, leaves `embeddings.npz` there: `embedding` float32 [n, d] of the
    clean clips, `embedding CONDITION` of those in noise, `label` int32 [n], `name` str
    [n]. The noise is the unseen kind, if there is one, at the SNR nearest to 0 dB.
    """
    split = parts.task.test
    embed = network.embeddings
    if embed is None:
        raise TypeError("the network makes no embeddings; see `check`")

    arrays: dict[str, np.ndarray] = {}
    rows = []
    for name, (condition, bank) in _conditions(parts).items():
        embeddings, labels = testing.predict_split(
            lambda batch: embed(batch["audio"]),
            parts.eval_batches(split, condition, bank),
        )
        arrays["embedding" if name == CLEAN else f"embedding {name}"] = embeddings
        ratio = separation.class_distance_ratio(embeddings, labels)
        stage = parts.config.stages[-1].name
        if np.isfinite(ratio):  # not where each class is one point; JSON has no such
            rows.append(
                result(
                    stage,
                    "test",
                    name,
                    "class_distance_ratio",
                    ratio,
                    None,
                    len(labels),
                )
            )
    if folder is not None and together.is_first():
        arrays |= {"label": split.labels, "name": np.asarray(split.names, str)}
        write_arrays(folder / FILE, arrays)
    return rows


def _conditions(parts: Parts) -> dict[str, Any]:
    """Clean, and the noise nearest to 0 dB, if the final test has any."""
    kind = UNSEEN if UNSEEN in parts.noise else next(iter(parts.noise), None)
    noise = {kind: parts.noise[kind]} if kind else {}
    nearest = sorted(parts.config.evaluation.snr_db, key=abs)[:1]
    return testing.noise_conditions(noise, nearest)
