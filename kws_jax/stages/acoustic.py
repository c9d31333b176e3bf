"""Training of the acoustic model: frames learn the states that an alignment gives."""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from kws_jax.data.corpus import SILENCE, UNKNOWN
from kws_jax.errors import UserError
from kws_jax.models.acoustic_dnn import NETWORK, AcousticDNN
from kws_jax.models.front_filter import NONE
from kws_jax.objectives.classification import softmax_cross_entropy
from kws_jax.ops import hmm
from kws_jax.parts import Parts, Setup
from kws_jax.stages import networks
from kws_jax.stages.data_parameters import StageTable
from kws_jax.training.state import WEIGHTS
from kws_jax.training.step import LossFn, accuracy

PyTree = Any
_FRONTEND = "mfcc"
_OBJECTIVE = "cross_entropy"


def check(setup: Setup) -> None:
    """Raises UserError where the acoustic model does not fit the task or its stages."""
    if setup.config.network.name != NETWORK:
        return
    if len(setup.labels) < 3 or setup.labels[-2:] != (UNKNOWN, SILENCE):
        raise UserError(
            f"The network {NETWORK!r} needs keywords, {UNKNOWN} and {SILENCE}; the "
            f"labels are {', '.join(setup.labels)}. Set config.data.unknown_percent "
            "and silence_percent above 0, or choose another protocol or network."
        )
    for group, name in (("frontend", _FRONTEND), ("front_filter", NONE)):
        if setup.config[group].name != name:
            raise UserError(
                f"The network {NETWORK!r} takes MFCCs as they are: set "
                f"config.{group}.name to {name!r}, or choose another network."
            )
    for index, stage in enumerate(setup.config.stages):
        where = f"config.stages[{index}].alignment"
        if stage.kind != "train":
            raise UserError(
                f"config.stages[{index}] is of kind {stage.kind!r}, but the network "
                f"{NETWORK!r} learns the states of an alignment, in stages of kind "
                "'train' alone: leave the stage out, or choose another network."
            )
        if "alignment" not in stage:
            raise UserError(
                f"The network {NETWORK!r} needs {where}; start from a config that has "
                f"it, such as configs/data_parameters.py:{NETWORK}."
            )
        if stage.objective != _OBJECTIVE:
            raise UserError(
                f"config.stages[{index}].objective = {stage.objective!r}, but the "
                f"network {NETWORK!r} learns states by {_OBJECTIVE!r} alone: say that, "
                "or choose another network."
            )
        if stage.mixup.probability > 0:
            raise UserError(
                f"config.stages[{index}].mixup.probability = "
                f"{stage.mixup.probability:g}, but a mixture of clips has no "
                f"alignment, which the network {NETWORK!r} learns: set it to 0, or "
                "choose another network."
            )
        for field in ("flat_fraction", "energy_share"):
            if not 0 <= stage.alignment[field] <= 1:
                raise UserError(
                    f"{where}.{field} = {stage.alignment[field]}: give 0 … 1."
                )


def frame_loss(
    parts: Parts,
    stage: ConfigDict,
    model: AcousticDNN,
    features_of: Callable[[jax.Array, jax.Array], jax.Array],
    flat_steps: int,
    *,
    compute_dtype: str = "float32",
    norm_mesh: Mesh | None = None,
    table: StageTable | None = None,
) -> LossFn:
    """Mean cross-entropy of the states over all frames of a batch, as a LossFn.

    Each clip is aligned within its label's chain: for the first `flat_steps` by its
    energy (`hmm.flat_start`), then by the best path under the present weights. With a
    `table`, class parameters belong to states and instance parameters to clips; the
    regulariser counts a clip once, the mean over its frames. `compute_dtype` and
    `norm_mesh` are those of `networks.infer_in_training`.
    """
    chains = jnp.asarray(hmm.chains(model.keywords, model.states))

    def loss_fn(
        trees: dict[str, PyTree], batch_stats: PyTree, batch: Any, key: jax.Array
    ) -> Any:
        features = features_of(key, batch["audio"])
        variables = {"params": trees[WEIGHTS], "batch_stats": batch_stats}
        logits, updated = networks.infer_in_training(
            model,
            variables,
            features,
            rngs={},
            compute_dtype=compute_dtype,
            method="frame_logits",
            norm_mesh=norm_mesh,
        )
        likelihoods: jax.Array = jax.lax.stop_gradient(
            cast(jax.Array, model.apply(variables, logits, method="log_likelihoods"))
        )
        chain = chains[batch["label"]]
        flat = hmm.flat_start(
            # Unmasked: a mask would be the loudest of frames.
            parts.features(batch["audio"])[..., 0],
            model.states,
            stage.alignment.energy_share,
        )
        emissions = jnp.take_along_axis(likelihoods, chain[:, None], axis=-1)
        forced, _ = hmm.best_path(emissions)
        places = jnp.where(batch_stats["updates"] < flat_steps, flat, forced)
        states = jnp.take_along_axis(chain, places, axis=1)
        frames = _by_frame(batch, states)
        scaled = logits = logits.reshape(-1, logits.shape[-1])
        if table:
            scaled = table.scale(trees, logits, frames)
        loss = softmax_cross_entropy(
            scaled,
            frames["label"],
            frames["mask"],
            label_smoothing=stage.label_smoothing,
        )
        scores = hmm.label_scores(likelihoods, model.keywords, model.states)
        measures = {
            "loss": loss,
            "accuracy": accuracy(scores, batch["label"], batch["mask"]),
            "frame_accuracy": accuracy(logits, frames["label"], frames["mask"]),
        }
        if table:
            measures["penalty"] = table.penalty(trees, frames) / states.shape[1]
            loss += measures["penalty"]
        statistics = _with_occupancy(updated, frames, model)
        return loss, (measures, statistics)

    return loss_fn


def _by_frame(batch: Any, states: jax.Array) -> dict[str, jax.Array]:
    """The batch's fields [b·t] for each frame, its state as the label."""
    repeated = {
        name: jnp.repeat(batch[name], states.shape[1])
        for name in ("index", "mask", "noise_level")
        if name in batch
    }
    return {"label": states.reshape(-1), **repeated}


def _with_occupancy(
    statistics: PyTree, frames: dict[str, jax.Array], model: AcousticDNN
) -> PyTree:
    """Running statistics with the states' shares of these frames taken in."""
    of_state = frames["label"][:, None] == jnp.arange(model.num_states)
    counted = (of_state & frames["mask"][:, None]).sum(0)
    share = counted / jnp.maximum(counted.sum(), 1)
    keep = model.batch_norm_momentum
    return {
        **statistics,
        "prior": keep * statistics["prior"] + (1 - keep) * share,
        "updates": statistics["updates"] + 1,
    }
