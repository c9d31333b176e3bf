"""The search space of AutoKWS: which operations each layer chooses from.

Reference: Zhang et al., "AutoKWS", ICASSP 2021 (arXiv 2009.03658), Fig. 2.
"""

import dataclasses
from collections.abc import Sequence

from kws_jax.errors import UserError, nearest
from kws_jax.models import genotype as genotypes
from kws_jax.models.genotype import OPERATIONS, SKIP, Genotype


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """A skeleton whose layers choose among operations; fields as those of Genotype.

    TC-ResNet14 at width 1.5 by default: 8 candidates in reduction layers, 9 (with SKIP)
    in normal ones, 8³·9³ = 373,248 networks of one operation a layer.

    Raises:
      UserError: the parts do not fit together, or no layer could be made of them.
    """

    strides: tuple[int, ...] = genotypes.STRIDES
    channels: tuple[int, ...] = genotypes.CHANNELS
    stem_channels: int = genotypes.STEM_CHANNELS
    shortcut: str = "1x1"
    se_reduction: int = 4
    operations: tuple[str, ...] = OPERATIONS

    def __post_init__(self):
        # a genotype checks the fields; a TC block fits into every layer
        block = _first_block(self.operations)
        self.genotype([(block,)] * len(self.strides))

    @property
    def candidates(self) -> tuple[tuple[str, ...], ...]:
        """For each layer, the names of its candidates in the order of its weights."""
        inputs = (self.stem_channels, *self.channels[:-1])
        return tuple(
            tuple(
                name
                for name in self.operations
                if name != SKIP or (stride == 1 and before == after)
            )
            for stride, before, after in zip(
                self.strides, inputs, self.channels, strict=True
            )
        )

    def genotype(self, layers: Sequence[Sequence[str]]) -> Genotype:
        """The network of this skeleton with the operations `layers`."""
        return Genotype(
            tuple(tuple(names) for names in layers),
            strides=self.strides,
            channels=self.channels,
            stem_channels=self.stem_channels,
            shortcut=self.shortcut,
            se_reduction=self.se_reduction,
        )


def _first_block(operations: Sequence[str]) -> str:
    for name in operations:
        if name not in OPERATIONS:
            raise UserError(
                f"config.search.operations has {name!r}, which is unknown; "
                f"{nearest(name, OPERATIONS)}"
            )
        if operations.count(name) > 1:
            raise UserError(
                f"config.search.operations names {name!r} more than once; give it once."
            )
    blocks = [name for name in operations if name != SKIP]
    if not blocks:
        raise UserError(
            f"config.search.operations = {tuple(operations)} has no block for layers "
            f"that change frames or channels, which SKIP cannot: add {OPERATIONS[0]}, "
            "for example."
        )
    return blocks[0]
