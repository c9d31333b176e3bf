"""Learned front ends: what they cannot be combined with, and what they have learned."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from kws_jax import together
from kws_jax.errors import UserError
from kws_jax.models.learned_frontend import SincConv, create_filters
from kws_jax.parts import Parts, Setup
from kws_jax.stages.networks import Network
from kws_jax.training.checkpoints import write_json

FILTERS_FILE = "filters.json"
# Points of the Fourier transform, from which every eighth is kept for drawing.
_POINTS, _KEPT = 2048, 8


def check(parts: Parts) -> None:
    """Raises UserError for what a learned front end cannot be trained with."""
    name = parts.frontend.name
    if create_filters(name, parts.frontend.settings, 1) is None:
        return
    if parts.config.compute_dtype != "float32":
        raise UserError(
            f"config.frontend.name = {name!r} filters waveforms, for which "
            f"config.compute_dtype = {parts.config.compute_dtype!r} is too coarse: "
            "set it to 'float32'."
        )
    for index, stage in enumerate(parts.config.stages):
        masks = stage.get("spec_augment", {"time_masks": 0, "frequency_masks": 0})
        if masks["time_masks"] or masks["frequency_masks"]:
            raise UserError(
                f"config.stages[{index}].spec_augment masks features, but "
                f"config.frontend.name = {name!r} makes them inside the network: set "
                "its time_masks and frequency_masks to 0."
            )


def keep_filters(setup: Setup, network: Network, folder: Path) -> None:
    """Writes `filters.json`, if the front end was learned: see `describe`."""
    frontend = setup.frontend
    layer = create_filters(frontend.name, frontend.settings, frontend.shape[1])
    if layer is None or not together.is_first():
        return
    # Copies of its own, as process 0 computes with them alone.
    trained = jax.device_get({"params": network.variables["params"]["frontend"]})
    rate = frontend.settings["sample_rate"]
    found = {
        "name": frontend.name,
        "sample_rate": rate,
        "frequencies": (np.arange(_POINTS // 2 + 1) * rate / _POINTS)[::_KEPT].tolist(),
        "after": describe(layer, trained),
    }
    if isinstance(layer, SincConv):
        # They depend on the settings alone.
        fresh = layer.init(jax.random.key(0), np.zeros((1, *frontend.shape), "f"))
        found["before"] = describe(layer, fresh)
    write_json(folder / FILTERS_FILE, found)


def describe(layer: Any, variables: Any) -> dict[str, list]:
    """The filters as data: "low" and "high" (Hz), if told by edges, and "response".

    The response of each filter is the magnitude at `frequencies`, over its largest.
    """
    taps = np.asarray(layer.apply(variables, method="filters"), np.float64)
    response = np.abs(np.fft.rfft(taps, _POINTS, axis=0))
    response = (response / response.max(0))[::_KEPT].T
    found = {"response": np.round(response, 3).tolist()}
    if isinstance(layer, SincConv):
        edges: Any = layer.apply(variables, method="edges")
        found["low"], found["high"] = (np.round(e, 2).tolist() for e in edges)
    return found
