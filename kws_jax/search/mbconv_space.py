"""The search space of the MBConv network, and what its networks cost.

Reference: Peter, Roth and Pernkopf, "End-to-end Keyword Spotting using Neural
Architecture Search and Quantization", ICASSP 2022 (arXiv 2104.06666), Table 1.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kws_jax.errors import UserError
from kws_jax.models.mbconv import (
    EXPANSIONS,
    KERNELS,
    SKIP,
    STAGE_LAYERS,
    parse_operation,
    strides_of,
    widths_of,
)
from kws_jax.search.architecture import Architecture
from kws_jax.search.layout import Layout

LAYERS = 2 * STAGE_LAYERS


@dataclasses.dataclass(frozen=True)
class MBConvSpace:
    """Six layers that choose expansion and kernel, or SKIP where shapes agree.

    Attributes:
      expansions, kernels: what there is to choose from.
      round_widths: channels as multiples of 8, as in MBConvNet.
      nested: whether the supernet's candidates share their weights, as Layout says.

    Raises:
      UserError: an expansion or kernel that the network does not have, or none.
    """

    expansions: tuple[int, ...] = EXPANSIONS
    kernels: tuple[int, ...] = KERNELS
    round_widths: bool = False
    nested: bool = False

    def __post_init__(self):
        for field, known in (("expansions", EXPANSIONS), ("kernels", KERNELS)):
            given = getattr(self, field)
            if not given or set(given) - set(known) or len(set(given)) < len(given):
                raise UserError(
                    f"config.search.{field} = {given}: give different numbers out of "
                    f"{known}."
                )

    @property
    def candidates(self) -> tuple[tuple[str, ...], ...]:
        """For each layer, the names of its operations in the order of its weights."""
        blocks = tuple(f"E{e}K{k}" for e in self.expansions for k in self.kernels)
        return tuple(
            blocks if stride > 1 else (*blocks, SKIP) for stride in self.strides
        )

    @property
    def layout(self) -> Layout:
        """Where the candidates' weights stand in a layer of the supernet."""
        return Layout(self.expansions, self.kernels, self.nested)

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride of each layer."""
        return strides_of((SKIP,) * LAYERS)

    @property
    def channels(self) -> tuple[int, ...]:
        """Output channels of each layer."""
        _, *stages, _ = widths_of(self.round_widths)
        return tuple(stages[i // STAGE_LAYERS] for i in range(LAYERS))

    def layers(self, choice: Sequence[int]) -> tuple[str, ...]:
        """The operations that stand at these places among the candidates."""
        return tuple(
            names[index] for names, index in zip(self.candidates, choice, strict=True)
        )

    def costs(self, image: tuple[int, int]) -> tuple["Cost", ...]:
        """What each layer's candidates cost for features seen as an image (f, t)."""
        inputs, *_ = widths_of(self.round_widths)
        size = (-(-image[0] // 2), -(-image[1] // 2))
        found = []
        for names, channels, stride in zip(
            self.candidates, self.channels, self.strides, strict=True
        ):
            rows = [cost_of(name, inputs, channels, stride, size) for name in names]
            macs, parameters = np.array(rows, np.int64).T
            found.append(Cost(macs, parameters))
            size, inputs = (-(-size[0] // stride), -(-size[1] // stride)), channels
        return tuple(found)


@dataclasses.dataclass(frozen=True)
class Cost:
    """Multiply-accumulates of a clip, and parameters, of a layer's candidates [o]."""

    macs: np.ndarray
    parameters: np.ndarray


def cost_of(
    operation: str, inputs: int, channels: int, stride: int, size: tuple[int, int]
) -> tuple[int, int]:
    """MACs and parameters (with scales and shifts of batch norms) of an operation.

    Args:
      operation: "E6K7" or "SKIP".
      inputs: channels of its input.
      channels: of its output.
      stride: of its depthwise convolution.
      size: of its input image.
    """
    if operation == SKIP:
        return 0, 0
    expansion, kernel = parse_operation(operation)
    hidden = expansion * inputs
    places = size[0] * size[1]
    strided = -(-size[0] // stride) * -(-size[1] // stride)
    expand = inputs * hidden if expansion > 1 else 0
    depthwise, project = kernel**2 * hidden, hidden * channels
    norms = 2 * ((hidden if expansion > 1 else 0) + hidden + channels)
    return (
        places * expand + strided * (depthwise + project),
        expand + depthwise + project + norms,
    )


def expected_macs(
    architecture: Architecture, costs: Sequence[Cost], fixed: float
) -> Float[Array, ""]:
    """E[ops] = Σ_layers Σ_i p_i · ops_i + fixed, with p = softmax(α)."""
    expected = jnp.asarray(fixed, jnp.float32)
    for alphas, cost in zip(architecture, costs, strict=True):
        macs = jnp.asarray(cost.macs, jnp.float32)
        expected = expected + jnp.dot(jax.nn.softmax(alphas), macs)
    return expected
