"""The supernet of ProxylessNAS over the MBConv space: one path is computed at a time.

Reference: Cai, Zhu and Han, "ProxylessNAS", ICLR 2019 (arXiv 1812.00332).
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kws_jax.models.blocks import Head
from kws_jax.models.layers import PYTORCH_MOMENTUM, pytorch_init
from kws_jax.models.mbconv import SKIP, ConvNorm, widths_of
from kws_jax.search.bottleneck import Candidates
from kws_jax.search.mbconv_space import MBConvSpace
from kws_jax.search.one_path import one_path


class PathLayer(nn.Module):
    """Candidates of which one is computed; `one_path` says how.

    Its variables are laid out as Layout says. An expansion of 1 has no use for its
    group's "expand". Vectors are strung together, so that only kernels have several
    axes.
    """

    candidates: Candidates

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "c f t b"],
        choice: Int[Array, ""],
        gates: Float[Array, " o"] | None,
        *,
        train: bool,
    ) -> Float[Array, "d g s b"]:
        """Output of the candidate `choice`; its statistics alone move in training."""
        candidates = self.candidates._replace(train=train)
        inputs = len(x)
        layout = candidates.layout
        params, stats = {}, {}
        for name in layout.names:
            init = functools.partial(_init_params, candidates, inputs, name)
            params[name] = self.param(name, init)
            fresh = functools.partial(_init_stats, candidates, inputs, name)
            stats[name] = self.variable("batch_stats", name, fresh)
        if self.is_initializing():
            # computing it would take longer to compile than all else of init
            size = (-(-n // candidates.stride) for n in x.shape[1:3])
            return jnp.zeros((candidates.channels, *size, x.shape[-1]), x.dtype)
        values = {name: variable.value for name, variable in stats.items()}
        y, moved = one_path(candidates, params, values, x, choice, gates)
        if self.is_mutable_collection("batch_stats"):
            for name, variable in stats.items():
                variable.value = moved[name]
        return y


def _init_params(
    candidates: Candidates, inputs: int, name: str, key: jax.Array
) -> dict[str, Any]:
    """What a layer's parameters hold under a name."""
    owns = [_init_own(candidates, k, inputs, key) for k in candidates.kernels]
    return candidates.layout.laid_out(owns)[name]


def _init_own(
    candidates: Candidates, kernel: int, inputs: int, key: jax.Array
) -> dict[str, Any]:
    """Kernels with He's deviation by fan-out of the whole bottleneck, as in MBConv.

    Where candidates are nested, that is the bottleneck of the largest.
    """
    channels = candidates.channels
    of = np.array(candidates.layout.owners, np.float32)
    groups = len(of)

    def draw(number: int, deviation: Any, *shape: int) -> jax.Array:
        values = jax.random.normal(jax.random.fold_in(key, number), (groups, *shape))
        return values * jnp.asarray(deviation, jnp.float32).reshape(-1, 1, 1, 1, 1)

    hidden = of * inputs
    return {
        "groups": {
            "expand": draw(0, np.sqrt(2 / hidden), 1, 1, inputs, inputs),
            "expand_norm": _norm(groups * inputs),
            "depthwise": draw(
                1, np.sqrt(2 / (kernel**2 * hidden)), kernel, kernel, 1, inputs
            ),
            "depthwise_norm": _norm(groups * inputs),
            "project": draw(2, np.sqrt(2 / channels), 1, 1, inputs, channels),
        },
        "norms": _norm(len(candidates.expansions) * channels),
    }


def _init_stats(candidates: Candidates, inputs: int, name: str) -> dict[str, Any]:
    """What a layer's statistics hold under a name."""

    def fresh(size: int) -> dict[str, jax.Array]:
        return {"mean": jnp.zeros(size), "var": jnp.ones(size)}

    groups = len(candidates.layout.owners) * inputs
    own = {
        "groups": {"expand_norm": fresh(groups), "depthwise_norm": fresh(groups)},
        "norms": fresh(len(candidates.expansions) * candidates.channels),
    }
    return candidates.layout.laid_out([own] * len(candidates.kernels))[name]


def _norm(size: int) -> dict[str, jax.Array]:
    return {"scale": jnp.ones(size), "bias": jnp.zeros(size)}


class PathNet(nn.Module):
    """MBConvNet whose layers have all candidates of a space; see there.

    Attributes:
      num_labels: number of classes k.
      space: the candidates.
      activation, batch_norm_momentum: those of MBConvNet.
    """

    num_labels: int
    space: MBConvSpace = MBConvSpace()
    activation: str = "relu6"
    batch_norm_momentum: float = PYTORCH_MOMENTUM

    def setup(self) -> None:
        """Names the layers."""
        shared: dict[str, Any] = {
            "activation": self.activation,
            "batch_norm_momentum": self.batch_norm_momentum,
        }
        stem, *_, last = widths_of(self.space.round_widths)
        self.stem = ConvNorm(stem, 3, 2, **shared)
        self.layers = [
            PathLayer(
                Candidates(
                    self.space.expansions,
                    self.space.kernels,
                    SKIP in names,
                    channels,
                    stride,
                    self.activation,
                    self.batch_norm_momentum,
                    self.space.nested,
                )
            )
            for names, channels, stride in zip(
                self.space.candidates, self.space.channels, self.space.strides
            )
        ]
        self.last = ConvNorm(last, **shared)
        self.head = Head(
            self.num_labels, dropout=0.0, use_bias=True, kernel_init=pytorch_init
        )

    def __call__(
        self,
        features: Float[Array, "b t f"],
        path: Int[Array, " l"],
        gates: Sequence[Float[Array, " o"]] | None = None,
        *,
        train: bool,
    ) -> Float[Array, "b k"]:
        """Logits of a path: the place of the chosen candidate in each layer.

        With `gates`, one-hot vectors at these places, their derivative in reverse mode
        is that of the gates, and not that of the candidates' parameters.
        """
        x = self.stem(jnp.swapaxes(features, 1, 2)[..., None], train=train)
        x = jnp.swapaxes(x, 0, -1)
        for index, layer in enumerate(self.layers):
            gate = None if gates is None else gates[index]
            x = layer(x, path[index], gate, train=train)
        x = jnp.swapaxes(x, 0, -1)
        x = self.last(x, train=train).mean(axis=(1, 2))
        return self.head(x, train=train)
