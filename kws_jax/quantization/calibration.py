"""Ranges of activations, measured in the float network before it is quantised."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kws_jax.quantization.network import folded_kernels, run_folded
from kws_jax.quantization.sites import Site, Sites
from kws_jax.quantization.straight_through import top_level

PyTree = Any
# activation -> (smallest, largest, mean |x|)
Ranges = dict[str, tuple[float, float, float]]


def measure_ranges(
    model: nn.Module,
    sites: Sites,
    params: PyTree,
    batch_stats: PyTree,
    batches: Iterable[jax.Array],
) -> Ranges:
    """Smallest and largest value and mean size of each activation over all batches.

    Args:
      model: the network.
      sites: its layers.
      params: its parameters.
      batch_stats: its running statistics.
      batches: features [b, t, f], at least one batch.
    """

    @jax.jit
    def measure(params: PyTree, batch_stats: PyTree, features: jax.Array) -> Any:
        found: dict[str, Any] = {}

        def record(site: Site, x: jax.Array) -> jax.Array:
            found[site.activation] = (x.min(), x.max(), jnp.abs(x).mean())
            return x

        kernels = folded_kernels(sites, params, batch_stats)
        run_folded(
            model,
            sites,
            params,
            batch_stats,
            features,
            kernels=kernels,
            on_input=record,
        )
        return found

    measured = [
        jax.device_get(measure(params, batch_stats, batch)) for batch in batches
    ]
    return {
        name: (
            float(np.min([batch[name][0] for batch in measured])),
            float(np.max([batch[name][1] for batch in measured])),
            float(np.mean([batch[name][2] for batch in measured])),
        )
        for name in measured[0]
    }


def signs(ranges: Ranges) -> dict[str, bool]:
    """Activation -> whether some value was negative; after ReLU none is."""
    return {name: smallest < 0 for name, (smallest, _, _) in ranges.items()}


def initial_bounds(
    ranges: Ranges, signed: Mapping[str, bool], bits: int
) -> dict[str, float]:
    """The ends of ranges to begin with: 2 · mean |x| · √top, at most the largest |x|.

    With few bits the largest value is a bad end, since all others then fall on the
    lowest levels. Reference: Esser et al., "Learned Step Size Quantization", ICLR 2020,
    section 2.1, whose step is 2 · mean |x| / √top.
    """
    bounds = {}
    for name, (smallest, largest, mean) in ranges.items():
        most = max(abs(smallest), abs(largest))
        top = top_level(bits, signed=signed[name])
        bounds[name] = min(most, 2 * mean * math.sqrt(top)) or 1.0
    return bounds
