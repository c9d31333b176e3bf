"""The baseline of AutoKWS' tables: architectures drawn at random."""

import numpy as np

from kws_jax.models.genotype import Genotype
from kws_jax.search.space import SearchSpace


def random_genotype(space: SearchSpace, seed: int) -> Genotype:
    """One operation a layer, drawn uniformly from its candidates; same seed, same."""
    rng = np.random.default_rng(seed)
    return space.genotype([(str(rng.choice(names)),) for names in space.candidates])
