"""The DARTS family: how architecture weights mix operations, and what is kept.

References: Liu et al., "DARTS", ICLR 2019 (arXiv 1806.09055); Chu et al., "Fair DARTS",
ECCV 2020 (arXiv 1911.12126); Chu et al., "Noisy Differentiable Architecture Search",
BMVC 2021 (arXiv 2005.03566).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kws_jax.errors import UserError, nearest
from kws_jax.models.genotype import Genotype
from kws_jax.search.architecture import Architecture
from kws_jax.search.space import SearchSpace


@dataclasses.dataclass(frozen=True)
class Darts:
    """Operations weighed by softmax(α); the largest α of each layer is kept.

    Attributes:
      skip_noise: for SuperNet: noise on SKIP, relative to its input's deviation.
    """

    skip_noise: float = dataclasses.field(default=0.0, init=False)

    def op_weights(self, architecture: Architecture) -> Architecture:
        """Weight of each candidate: a vector a layer, in [0, 1], of sum 1."""
        return tuple(jax.nn.softmax(alphas) for alphas in architecture)

    def regulariser(self, architecture: Architecture) -> Float[Array, ""]:
        """What is added to the validation loss: nothing."""
        del architecture
        return jnp.zeros(())

    def derive(self, architecture: Architecture, space: SearchSpace) -> Genotype:
        """The network that keeps the operation of largest α in each layer."""
        return space.genotype(
            [
                (names[int(np.argmax(alphas))],)
                for names, alphas in zip(space.candidates, architecture, strict=True)
            ]
        )


@dataclasses.dataclass(frozen=True)
class NoisyDarts(Darts):
    """DARTS with Gaussian noise on the output of SKIP in training.

    Attributes:
      skip_noise: standard deviation of the noise, relative to that of the input.
    """

    skip_noise: float = 0.2


@dataclasses.dataclass(frozen=True)
class FairDarts(Darts):
    """Operations weighed by σ(α), each for itself; several can be kept in a layer.

    Attributes:
      threshold: operations with σ(α) above it are kept; where none is, the one of
        largest α.
      zero_one_weight: w of the zero-one loss −w · mean((σ(α) − 0.5)²), over all α,
        which drives the weights to 0 or 1.
    """

    threshold: float = 0.8
    zero_one_weight: float = 10.0

    def op_weights(self, architecture: Architecture) -> Architecture:
        """Weight of each candidate: a vector a layer, each entry in [0, 1]."""
        return tuple(jax.nn.sigmoid(alphas) for alphas in architecture)

    def regulariser(self, architecture: Architecture) -> Float[Array, ""]:
        """The zero-one loss, to be added to the validation loss."""
        weights = jnp.concatenate(self.op_weights(architecture))
        return -self.zero_one_weight * jnp.mean((weights - 0.5) ** 2)

    def derive(self, architecture: Architecture, space: SearchSpace) -> Genotype:
        """The network of all operations above the threshold (at least one a layer)."""
        layers = []
        for names, weights in zip(
            space.candidates, self.op_weights(architecture), strict=True
        ):
            kept = [
                n for n, w in zip(names, weights, strict=True) if w > self.threshold
            ]
            layers.append(kept or [names[int(np.argmax(weights))]])
        return space.genotype(layers)


METHODS: dict[str, type[Darts]] = {
    "darts": Darts,
    "fairdarts": FairDarts,
    "noisydarts": NoisyDarts,
}


def create_method(name: str, **settings: Any) -> Darts:
    """The search method `name` ("darts", "fairdarts" or "noisydarts").

    Raises:
      UserError: unknown name or setting.
    """
    if name not in METHODS:
        raise UserError(f"no search method is named {name!r}: {nearest(name, METHODS)}")
    known = [field.name for field in dataclasses.fields(METHODS[name]) if field.init]
    for setting in settings:
        if setting not in known:
            hint = nearest(setting, known) if known else "it has none"
            raise UserError(
                f"search method {name!r} has no setting {setting!r}: {hint}"
            )
    return METHODS[name](**settings)
