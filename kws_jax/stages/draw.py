"""Stage "random_search": an architecture drawn at random, the baseline of a search."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from kws_jax import together
from kws_jax.parts import Parts
from kws_jax.search.random_search import random_genotype
from kws_jax.stages import networks, proxyless_space, search


def draws_layers(parts: Parts, stage: ConfigDict) -> bool:
    """Whether the stage draws from the space of the MBConv network."""
    return stage.kind == "random_search" and parts.config.network.name == "mbconv"


def run(parts: Parts, index: int, folder: Path) -> list[dict[str, Any]]:
    """Writes a network drawn uniformly from the space by config.seed.

    For the MBConv network: from the part of its space that is within the limits.
    """
    if not together.is_first():
        return []
    if draws_layers(parts, parts.config.stages[index]):
        networks.keep_layers(parts, proxyless_space.random_layers(parts), folder)
        return []
    genotype = random_genotype(search.create_space(parts), seed=parts.config.seed)
    networks.keep_genotype(genotype, folder)
    return []
