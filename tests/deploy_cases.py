"""Networks as if trained, for the tests of artefacts."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from network_values import QUICK, random_variables
from settled import clips, settled

from kws_jax.deploy.formats import FEATURES, WAVEFORM
from kws_jax.deploy.inference import Inference
from kws_jax.frontends.registry import Frontend, create_frontend
from kws_jax.models import front_filter, fusion
from kws_jax.models.genotype import published
from kws_jax.models.learned_frontend import WithFrontend, create_filters
from kws_jax.models.registry import create_model
from kws_jax.quantization import calibration
from kws_jax.quantization.network import Bits, QuantizedNetwork
from kws_jax.quantization.sites import find_sites

LABELS = ("yes", "no", "_unknown_", "_silence_")
DETECTION = {"threshold": 0.8, "thresholds": {"yes": 0.7, "no": 0.9}, "rule": {}}
_FOUND: dict[str, Any] = {
    "searched": {"genotype": next(iter(published().values()))},
    "mbconv": {"layers": ("E1K3", "E3K5", "SKIP", "E6K7", "E1K5", "E3K3")},
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, what comes before it, and the input its artefact takes."""

    network: str
    input: str = FEATURES
    frontend: str = "mfcc"
    front_filter: str = "none"
    bits: Bits | None = None
    settings: tuple[tuple[str, Any], ...] = ()

    def __str__(self):
        filtered = "" if self.front_filter == "none" else self.front_filter
        learned = "learned_bits" if self.bits and self.bits.learned else ""
        quantized = learned or ("quantized" if self.bits else "")
        branches = "mtconv" if dict(self.settings).get("mtconv") else ""
        named = (
            self.network,
            branches,
            self.frontend,
            filtered,
            quantized,
            self.input,
        )
        return "-".join(filter(None, named))


NARROW = (("width", 0.5),)
# Every registered network, front end and front filter.
CASES = (
    Case("tc_resnet8", WAVEFORM, settings=NARROW),
    Case("tc_resnet14", settings=NARROW),
    Case("searched"),
    Case("conv_mixer", WAVEFORM, "log_mel"),
    Case("res15"),
    Case("res15_narrow"),
    Case("mbconv", WAVEFORM, "sinc"),
    Case("mbconv", WAVEFORM, "conv1d"),
    Case("tenet6"),
    Case("tenet12"),
    Case("tenet6_narrow", front_filter="dynamic"),
    Case("tenet12_narrow"),
    Case("tenet6_narrow", settings=(("mtconv", True),)),
    Case("tc_resnet8", front_filter="dynamic_conv", settings=NARROW),
    Case("tc_resnet8", front_filter="light_conv", settings=NARROW),
    Case("acoustic_dnn"),
    Case("tc_resnet8", bits=Bits(4, 4), settings=NARROW),
    Case("tenet6_narrow", bits=Bits(8, 8, learned=True)),
    Case("mbconv", WAVEFORM, "sinc", bits=Bits(4, 4)),
)


@functools.cache
def _network(case: Case) -> tuple[Frontend, Any, Any]:
    """Front end, network and settled variables, whatever the artefact takes."""
    frontend = create_frontend(case.frontend)
    settings = _FOUND.get(case.network, {}) | dict(case.settings)
    model = create_model(case.network, len(LABELS), **settings)
    bands = frontend.settings.get("num_filters", frontend.shape[1])
    model = front_filter.filtered(model, case.front_filter, bands)
    learned = create_filters(frontend.name, frontend.settings, frontend.shape[1])
    model = WithFrontend(learned, model) if learned else model
    x = _features(case.frontend)
    return frontend, model, settled(model, random_variables(model, x), x)


@functools.cache
def _features(name: str) -> np.ndarray:
    """Features of the clips."""
    return np.asarray(jax.jit(create_frontend(name), compiler_options=QUICK)(clips()))


@functools.cache
def inference_of(case: Case) -> Inference:
    """The case's network, with ranges of activations as they are on the clips."""
    alike = dataclasses.replace(case, input=FEATURES, bits=None)
    frontend, model, variables = _network(alike)
    if not case.bits:
        model, variables = fusion.at_inference(model, variables)
    params, stats = variables["params"], variables["batch_stats"]
    trees: dict[str, Any] = {"weights": params}
    quantized = None
    if case.bits:
        x = _features(case.frontend)
        sites = find_sites(model, variables, x[:1])
        ranges = calibration.measure_ranges(model, sites, params, stats, [x])
        signed = calibration.signs(ranges)
        quantized = QuantizedNetwork(model, sites, case.bits, signed)
        bounds = calibration.initial_bounds(ranges, signed, case.bits.activations)
        trees |= quantized.initial_trees(bounds)
    return Inference(
        name=case.network,
        labels=LABELS,
        frontend=frontend,
        model=model,
        trees=trees,
        batch_stats=stats,
        quantized=quantized,
        objective="binary_cross_entropy"
        if case.network == "res15"
        else "cross_entropy",
        detection=DETECTION,
    )


@functools.cache
def example(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """The clips as the artefact takes them [8, …], and what the network answers."""
    inputs = clips() if case.input == WAVEFORM else _features(case.frontend)
    function = inference_of(case).function(case.input)
    return inputs, np.asarray(jax.jit(function, compiler_options=QUICK)(inputs))
