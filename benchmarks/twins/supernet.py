"""The supernet of the AutoKWS space (Zhang et al. 2020) in PyTorch."""

from collections.abc import Sequence

import torch
from torch import nn

from benchmarks.twins.tc_resnet import TCBlock, classifier, stem

KERNELS = (3, 5, 7, 9)


class MixedLayer(nn.Module):
    """All candidates of a layer, one after the other, and their weighted sum.

    TC blocks of four kernels, each without and with squeeze-and-excitation; the
    identity too where it fits.
    """

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.candidates = nn.ModuleDict()
        for kernel in KERNELS:
            for name, reduction in ((f"C{kernel}", None), (f"C{kernel}SE", 4)):
                self.candidates[name] = TCBlock(
                    inputs, outputs, kernel, stride, se_reduction=reduction
                )
        if stride == 1 and inputs == outputs:
            self.candidates["SKIP"] = nn.Identity()

    def forward(self, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Σ_o weights[o] · o(x)."""
        outputs = zip(weights, self.candidates.values(), strict=True)
        return sum(weight * candidate(x) for weight, candidate in outputs)


class SuperNet(nn.Module):
    """TC-ResNet14's skeleton with mixed layers; width 1.5 by default."""

    def __init__(
        self,
        num_labels: int = 12,
        *,
        channels: Sequence[int] = (36, 36, 48, 48, 72, 72),
        strides: Sequence[int] = (2, 1, 2, 1, 2, 1),
        stem_channels: int = 24,
        dropout: float = 0.5,
        features: int = 40,
    ):
        super().__init__()
        self.stem = stem(features, stem_channels)
        inputs = (stem_channels, *channels[:-1])
        self.layers = nn.ModuleList(
            MixedLayer(before, after, stride)
            for before, after, stride in zip(inputs, channels, strides)
        )
        self.classifier = classifier(channels[-1], num_labels, dropout)

    def forward(
        self, x: torch.Tensor, op_weights: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Logits [b, k] of features [b, f, t]; one vector of weights a layer."""
        x = self.stem(x)
        for layer, weights in zip(self.layers, op_weights, strict=True):
            x = layer(x, weights)
        return self.classifier(x)

    def new_architecture(self, scale: float = 1e-3) -> list[nn.Parameter]:
        """Architecture parameters α, one vector a layer, from scale · N(0, 1)."""
        layers = [m for m in self.layers if isinstance(m, MixedLayer)]
        return [
            nn.Parameter(scale * torch.randn(len(layer.candidates))) for layer in layers
        ]
