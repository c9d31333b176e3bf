"""Stage "random_search": an architecture drawn at random, the baseline of a search."""

from pathlib import Path
from typing import Any

from kws_jax.parts import Parts
from kws_jax.search.random_search import random_genotype
from kws_jax.stages import networks, search


def run(parts: Parts, index: int, folder: Path) -> list[dict[str, Any]]:
    """Writes a genotype drawn uniformly from the space by config.seed."""
    del index
    genotype = random_genotype(search.create_space(parts), seed=parts.config.seed)
    networks.keep_genotype(genotype, folder)
    return []
