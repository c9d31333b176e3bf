"""What is exported: a trained network as one pure function, and what must be known."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int16

import kws_jax
from kws_jax.data.corpus import CLIP_SAMPLES, SAMPLE_RATE
from kws_jax.deploy.formats import FEATURES, WAVEFORM
from kws_jax.frontends.registry import Frontend
from kws_jax.models import fusion
from kws_jax.objectives.registry import OBJECTIVES
from kws_jax.parts import Setup
from kws_jax.quantization.network import (
    QuantizedNetwork,
    folded_kernels,
    run_folded,
)
from kws_jax.quantization.sites import find_sites
from kws_jax.stages import (
    detection,
    listeners,
    networks,
    quantize,
    runner,
    train,
    validation,
)
from kws_jax.training.state import WEIGHTS, variables_of

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Inference:
    """A trained network with all that an artefact has of it. Its methods are pure.

    Attributes:
      name: of the network in the registry.
      labels: names of the k outputs.
      frontend: makes features [b, t, f] of waveforms.
      model: the network in float.
      trees: label -> tree, as in a TrainState: "weights", and what a quantised network
        learned beside them.
      batch_stats: running statistics, {} for a network without.
      quantized: how the network is quantised; None for one in float.
      objective: what it was trained by, a name in `OBJECTIVES`; probabilities add up to
        1 for "cross_entropy" alone.
      detection: "threshold" and "thresholds" (by keyword), the false alarms an hour
        that they were chosen for, and the "rule", of `detection.json`; None where it
        was not measured, or on the scores of frames.
    """

    name: str
    labels: tuple[str, ...]
    frontend: Frontend
    model: nn.Module
    trees: Mapping[str, PyTree]
    batch_stats: PyTree
    quantized: QuantizedNetwork | None = None
    objective: str = "cross_entropy"
    detection: Mapping[str, Any] | None = None

    def from_features(self, features: Float[Array, "b t f"]) -> Float[Array, "b k"]:
        """Probabilities for features as the front end makes them."""
        if self.quantized:
            logits = self.quantized.infer(self.trees, self.batch_stats, features)
        else:
            variables = {"params": self.trees[WEIGHTS], "batch_stats": self.batch_stats}
            logits = networks.infer(self.model, variables, features)
        return self.probabilities(logits)

    def probabilities(self, logits: Float[Array, "b k"]) -> Float[Array, "b k"]:
        """What logits mean."""
        return OBJECTIVES[self.objective].probabilities(logits)

    def from_waveform(
        self, audio: Int16[Array, "b s"] | Float[Array, "b s"]
    ) -> Float[Array, "b k"]:
        """Probabilities for clips of a second: int16, or float in [-1, 1]."""
        return self.from_features(self.frontend(audio))

    def folded(self) -> "Inference":
        """The same with batch norms in the kernels before them, wherever they can be.

        A quantised network has them there already.
        """
        return self if self.quantized else _Folded(**vars(self))

    def without_activation_bits(self) -> "Inference":
        """The same, of whose quantisation the weights alone are left, norms folded."""
        return _Folded(**vars(self))

    def function(self, kind: str) -> Callable[[jax.Array], jax.Array]:
        """From WAVEFORM or FEATURES to probabilities."""
        return {WAVEFORM: self.from_waveform, FEATURES: self.from_features}[kind]

    def input_shape(self, kind: str) -> tuple[int, ...]:
        """The shape of one example: samples, or frames and features."""
        return {WAVEFORM: (CLIP_SAMPLES,), FEATURES: self.frontend.shape}[kind]

    def describe(self, kind: str) -> dict[str, Any]:
        """What an artefact says of itself, for JSON.

        Fields: "made_by"; "network"; "input" with its "kind", "dtype", "shape" of one
        example and "sample_rate" (Hz); "frontend" with its "name" and all "settings";
        "labels"; "objective"; "detection", see `Inference`.
        """
        return {
            "made_by": f"kws_jax {kws_jax.__version__}",
            "network": self.name,
            "input": {
                "kind": kind,
                "dtype": "float32",
                "shape": list(self.input_shape(kind)),
                "sample_rate": SAMPLE_RATE,
            },
            "frontend": {
                "name": self.frontend.name,
                "settings": dict(self.frontend.settings),
            },
            "labels": list(self.labels),
            "objective": self.objective,
            "detection": self.detection,
        }


class _Folded(Inference):
    def from_features(self, features: Float[Array, "b t f"]) -> Float[Array, "b k"]:
        """Probabilities for features as the front end makes them."""
        weights, clip = self.trees[WEIGHTS], jnp.zeros((1, *self.frontend.shape))
        if self.quantized:
            sites = self.quantized.sites
            kernels = self.quantized.weights_of(self.trees, self.batch_stats)
        else:
            variables = {"params": weights, "batch_stats": self.batch_stats}
            sites = find_sites(self.model, variables, clip, keep_unknown=True)
            kernels = folded_kernels(sites, weights, self.batch_stats)
        logits = run_folded(
            self.model, sites, weights, self.batch_stats, features, kernels=kernels
        )
        return self.probabilities(logits)


def load_inference(setup: Setup, folder: Path) -> Inference:
    """What the last stage of the workdir has trained, as it infers.

    Branches that were trained apart are fused, as in `train.restore`. A quantised
    network keeps them: each has a scale and integers of its own.

    Raises:
      UserError: where it has not been run to its end.
    """
    last = runner.last_finished(setup, folder)
    stage = setup.config.stages[last]
    quantized = None
    if stage.kind == "quantize":
        quantized, state = quantize.restore_quantized(setup, last, folder)
        model, trees, batch_stats = quantized.model, state.trees, state.batch_stats
    else:
        trained = networks.create_network(setup, folder)
        state = train.best_state(setup, last, folder, trained)
        model, variables = fusion.at_inference(trained, variables_of(state))
        params, batch_stats = networks.split_variables(variables)
        trees = {WEIGHTS: params}
    objective = validation.objective_of(stage)
    return Inference(
        name=setup.config.network.name,
        labels=setup.labels,
        frontend=setup.frontend,
        model=model,
        trees=trees,
        batch_stats=batch_stats,
        quantized=quantized,
        objective=next(n for n, known in OBJECTIVES.items() if known is objective),
        detection=_detection(folder),
    )


def _detection(folder: Path) -> dict[str, Any] | None:
    if not (folder / detection.FILE).exists():
        return None
    kept = detection.load(folder)
    # Thresholds of log-odds of frames mean nothing for the probabilities of a second.
    if kept.get("scores", listeners.WINDOWS) != listeners.WINDOWS:
        return None
    told = ("threshold", "thresholds", "target_false_alarms_per_hour", "rule")
    # Earlier versions kept no target.
    return {name: kept[name] for name in told if name in kept}
