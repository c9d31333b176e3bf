"""TENet6 and 12 (Li et al. 2020) in PyTorch, with or without MTConv."""

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.twins.tc_resnet import SameConv1d, classifier

EXPANSION, BLOCKS = 3, 3


class ShiftNorm(nn.BatchNorm1d):
    """Batch norm that learns a shift and no scale."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=1e-3, momentum=1 - 0.99)
        self.weight.requires_grad_(False)


class Bottleneck(nn.Module):
    """Expand, filter each channel over time, project, add the shortcut.

    `kernels` are those of the parallel filters, whose normalised outputs are summed.
    """

    def __init__(self, channels: int, stride: int, kernels: tuple[int, ...]):
        super().__init__()
        inner = EXPANSION * channels
        self.expand = nn.Sequential(
            SameConv1d(channels, inner, 1), ShiftNorm(inner), nn.ReLU(inplace=True)
        )
        self.filters = nn.ModuleDict(
            {
                str(kernel): nn.Sequential(
                    SameConv1d(inner, inner, kernel, stride, groups=inner),
                    ShiftNorm(inner),
                )
                for kernel in kernels
            }
        )
        self.project = nn.Sequential(
            SameConv1d(inner, channels, 1), ShiftNorm(channels)
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1:
            self.shortcut = nn.Sequential(
                SameConv1d(channels, channels, 1, stride), ShiftNorm(channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, c, t] to [b, c, ⌈t / stride⌉]."""
        y = self.expand(x)
        y = F.relu(sum(branch(y) for branch in self.filters.values()))
        return self.project(y) + self.shortcut(x)


class TENet(nn.Module):
    """TENet of 6 or 12 bottlenecks: features [b, f, t] to logits [b, k]."""

    def __init__(
        self,
        depth: int,
        num_labels: int = 12,
        *,
        channels: int = 32,
        mtconv: bool = False,
        dropout: float = 0.5,
        features: int = 40,
    ):
        super().__init__()
        self.stem = nn.Sequential(
            SameConv1d(features, channels, 3),
            ShiftNorm(channels),
            nn.ReLU(inplace=True),
        )
        strides = ([2] + [1] * (depth // BLOCKS - 1)) * BLOCKS
        kernels = (3, 5, 7, 9) if mtconv else (9,)
        self.layers = nn.Sequential(
            *(Bottleneck(channels, stride, kernels) for stride in strides)
        )
        self.classifier = classifier(channels, num_labels, dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [b, k] of features [b, f, t]."""
        return self.classifier(self.layers(self.stem(x)))
