"""The network of inverted bottlenecks (MBConv) that an end-to-end search fills in.

Reference: Peter, Roth and Pernkopf, "End-to-end Keyword Spotting using Neural
Architecture Search and Quantization", ICASSP 2022 (arXiv 2104.06666), Table 1.
"""

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kws_jax.errors import UserError
from kws_jax.models.blocks import Head, batch_norm
from kws_jax.models.layers import (
    PYTORCH_MOMENTUM,
    DepthwiseConv,
    pytorch_init,
    symmetric_padding,
)
from kws_jax.ops.pointwise import pointwise_conv
from kws_jax.workdirs import folder_of

SKIP = "SKIP"
EXPANSIONS, KERNELS = (1, 2, 3, 4, 5, 6), (3, 5, 7)
# "E6K7": inverted bottleneck of expansion 6 and kernel 7 × 7; "SKIP": identity.
OPERATIONS = (*(f"E{e}K{k}" for e in EXPANSIONS for k in KERNELS), SKIP)
# channels of the first convolution, the two stages and the last convolution
WIDTHS = (10, 20, 40, 80)
STAGE_LAYERS = 3
# of the authors' code, not PyTorch's default
BATCH_NORM_EPSILON = 1e-3
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "relu6": nn.relu6,
}
he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

_batch_norm = functools.partial(batch_norm, epsilon=BATCH_NORM_EPSILON)


def parse_operation(operation: str) -> tuple[int, int]:
    """Expansion and kernel of an operation: "E6K7" -> (6, 7)."""
    expansion, _, kernel = operation.removeprefix("E").partition("K")
    return int(expansion), int(kernel)


def widths_of(round_widths: bool) -> tuple[int, ...]:
    """WIDTHS, as multiples of 8 if asked for."""
    return tuple(round_to_multiple(w) if round_widths else w for w in WIDTHS)


def strides_of(layers: Sequence[Any]) -> tuple[int, ...]:
    """Strides of the searched layers: 2 for the first of each stage."""
    return tuple(1 if i % STAGE_LAYERS else 2 for i in range(len(layers)))


def are_layers(layers: Any) -> bool:
    """Whether these are operations for all layers, SKIP only where shapes agree."""
    if not isinstance(layers, (tuple, list)) or len(layers) != 2 * STAGE_LAYERS:
        return False
    return all(
        operation in OPERATIONS and (operation != SKIP or stride == 1)
        for operation, stride in zip(layers, strides_of(layers), strict=True)
    )


def layers_to_json(layers: Sequence[str], round_widths: bool) -> str:
    """A found network as JSON text: its layers, and the skeleton they stand in."""
    fields = {
        "layers": [[operation] for operation in layers],
        "strides": strides_of(layers),
        **_skeleton(round_widths),
        "shortcut": "",
    }
    return json.dumps(fields, indent=1) + "\n"


def _skeleton(round_widths: bool) -> dict[str, Any]:
    """The widths of a network, as they are saved with its layers."""
    stem, *stages, _ = widths_of(round_widths)
    channels = [width for width in stages for _ in range(STAGE_LAYERS)]
    return {"channels": channels, "stem_channels": stem}


def load_layers(name_or_path: str, *, round_widths: bool) -> tuple[str, ...]:
    """Six operations, "E6K7,SKIP,…", or those of a network saved as JSON by path.

    Args:
      name_or_path: either of both.
      round_widths: whether the network has the widths that are multiples of 8.

    Raises:
      UserError: neither of both, or a network that was saved with other widths.
    """
    saved: dict[str, Any] = {}
    if "," in name_or_path:
        layers = tuple(word.strip() for word in name_or_path.split(","))
    else:
        try:
            saved = json.loads(folder_of(name_or_path).read_text())
            layers = tuple(operation for (operation,) in saved["layers"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"network.layers {name_or_path!r} names no file of a found network "
                f"({error!r}): give one that a search has saved, or six operations "
                "E1K3 … E6K7 or SKIP with commas between them."
            ) from error
    if not are_layers(layers):
        raise UserError(
            f"network.layers {name_or_path!r} stands for {layers}: expected six "
            "operations E1K3 … E6K7 or SKIP, the first and fourth not SKIP."
        )
    wanted = _skeleton(round_widths)
    if any(saved.get(key, value) != value for key, value in wanted.items()):
        raise UserError(
            f"network.layers {name_or_path!r} was found with other widths than the "
            f"{wanted['stem_channels']} and {wanted['channels']} of network."
            f"round_widths = {round_widths}. Set that to {not round_widths}."
        )
    return layers


def round_to_multiple(channels: int) -> int:
    """The nearest multiple of 8 that is not below 90 % of `channels`."""
    rounded = max(8, (channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


class ConvNorm(nn.Module):
    """conv without bias → BN [→ activation]; `channels=None` makes it depthwise."""

    channels: int | None
    kernel: int = 1
    stride: int = 1
    activation: str | None = None
    batch_norm_momentum: float = PYTORCH_MOMENTUM

    @nn.compact
    def __call__(
        self, image: Float[Array, "b f t c"], *, train: bool
    ) -> Float[Array, "b g s d"]:
        """Both axes ⌈size / stride⌉ long, as the kernel is odd."""
        kernel_size = (self.kernel, self.kernel)
        strides, padding = (self.stride, self.stride), symmetric_padding(kernel_size)
        conv: nn.Module
        if self.channels is None:
            conv = DepthwiseConv(
                kernel_size, strides, None, padding, he_fan_out, name="conv"
            )
        else:
            conv = nn.Conv(
                self.channels,
                kernel_size,
                strides,
                padding,
                use_bias=False,
                kernel_init=he_fan_out,
                conv_general_dilated=pointwise_conv if self.kernel == 1 else None,
                name="conv",
            )
        norm = _batch_norm(train=train, momentum=self.batch_norm_momentum, name="bn")
        y = norm(conv(image))
        return ACTIVATIONS[self.activation](y) if self.activation else y


class MBConv(nn.Module):
    """1×1 to e·c (where e > 1) → depthwise k×k (stride) → 1×1 [→ + input].

    Each has a batch norm, the first two an activation. The input is added at stride 1
    where the channels are as many.
    """

    channels: int
    expansion: int
    kernel: int
    stride: int = 1
    activation: str = "relu6"
    batch_norm_momentum: float = PYTORCH_MOMENTUM

    @nn.compact
    def __call__(
        self, image: Float[Array, "b f t c"], *, train: bool
    ) -> Float[Array, "b g s d"]:
        """`channels` channels, both axes ⌈size / stride⌉ long."""
        layer = functools.partial(
            ConvNorm, batch_norm_momentum=self.batch_norm_momentum
        )
        x, channels = image, image.shape[-1]
        if self.expansion > 1:
            expand = layer(
                self.expansion * channels, activation=self.activation, name="expand"
            )
            x = expand(x, train=train)
        depthwise = layer(
            None, self.kernel, self.stride, self.activation, name="depthwise"
        )
        x = depthwise(x, train=train)
        x = layer(self.channels, name="project")(x, train=train)
        same_shape = self.stride == 1 and self.channels == channels
        return x + image if same_shape else x


class MBConvNet(nn.Module):
    """conv 3×3 (stride 2), two stages of three layers, conv 1×1, mean, linear layer.

    Features are seen as an image of frequency × time with one channel.

    Attributes:
      num_labels: number of classes k.
      layers: an operation such as "E6K7" or "SKIP" for each of the six layers, of
        which the first and the fourth have stride 2 and cannot be skipped.
      round_widths: channels (16, 24, 40, 80), multiples of 8 as in the authors' code,
        in place of the paper's (10, 20, 40, 80).
      activation: "relu6" as in the authors' code, or "relu".
      batch_norm_momentum: what the running statistics keep at each step.
    """

    num_labels: int
    layers: tuple[str, ...] = ("E6K7",) * (2 * STAGE_LAYERS)
    round_widths: bool = False
    activation: str = "relu6"
    batch_norm_momentum: float = PYTORCH_MOMENTUM

    def setup(self) -> None:
        """Names the layers; a skipped layer has none."""
        widths = widths_of(self.round_widths)
        shared: dict[str, Any] = {
            "activation": self.activation,
            "batch_norm_momentum": self.batch_norm_momentum,
        }
        self.stem = ConvNorm(widths[0], 3, 2, **shared)
        self.blocks = [
            MBConv(
                widths[1 + i // STAGE_LAYERS],
                *parse_operation(operation),
                stride,
                **shared,
            )
            if operation != SKIP
            else None
            for i, (operation, stride) in enumerate(
                zip(self.layers, strides_of(self.layers), strict=True)
            )
        ]
        self.last = ConvNorm(widths[-1], **shared)
        self.head = Head(
            self.num_labels, dropout=0.0, use_bias=True, kernel_init=pytorch_init
        )

    def embed(
        self, features: Float[Array, "b t f"], *, train: bool
    ) -> Float[Array, "b d"]:
        """Embedding of each clip: the last layer's mean over frequency and time."""
        x = self.stem(jnp.swapaxes(features, 1, 2)[..., None], train=train)
        for block in self.blocks:
            x = block(x, train=train) if block else x
        return self.last(x, train=train).mean(axis=(1, 2))

    def __call__(
        self, features: Float[Array, "b t f"], *, train: bool
    ) -> Float[Array, "b k"]:
        """Logits; needs mutable batch_stats when training."""
        return self.head(self.embed(features, train=train), train=train)
