"""TC-ResNet8 and 14 (Choi et al. 2019) in PyTorch."""

import torch
import torch.nn.functional as F
from torch import nn

EPSILON, MOMENTUM = 1e-3, 1 - 0.997
CHANNELS = {8: (24, 32, 48), 14: (24, 24, 32, 32, 48, 48)}
STRIDES = {8: (2, 2, 2), 14: (2, 1, 2, 1, 2, 1)}


class SameConv1d(nn.Conv1d):
    """Convolution without bias, padded as TensorFlow's SAME: the odd zero at the end.

    Padding depends on the length of the input, so that the output has
    ⌈frames / stride⌉ frames.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        *,
        groups: int = 1,
    ):
        super().__init__(
            inputs, outputs, kernel, stride=stride, groups=groups, bias=False
        )
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, c, t] to [b, d, ⌈t / stride⌉]."""
        (kernel,), (stride,) = self.kernel_size, self.stride
        frames = -(-x.shape[-1] // stride)
        missing = max((frames - 1) * stride + kernel - x.shape[-1], 0)
        left, odd = divmod(missing, 2)
        if odd:
            x = F.pad(x, (0, 1))
        return F.conv1d(x, self.weight, stride=stride, padding=left, groups=self.groups)


def norm(channels: int) -> nn.BatchNorm1d:
    """Batch norm with TC-ResNet's constants."""
    return nn.BatchNorm1d(channels, eps=EPSILON, momentum=MOMENTUM)


class SqueezeExcite(nn.Module):
    """Gates the channels by their means over time."""

    def __init__(self, channels: int, reduction: int = 4):
        super().__init__()
        hidden = max(1, channels // reduction)
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, c, t] to the same."""
        gate = torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean(dim=2)))))
        return x * gate.unsqueeze(2)


class TCBlock(nn.Module):
    """Two convolutions over time beside a shortcut, with optional gates."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        *,
        se_reduction: int | None = None,
        shortcut_kernel: int = 1,
    ):
        super().__init__()
        layers = [
            SameConv1d(inputs, outputs, kernel, stride),
            norm(outputs),
            nn.ReLU(inplace=True),
            SameConv1d(outputs, outputs, kernel),
            norm(outputs),
        ]
        if se_reduction is not None:
            layers.append(SqueezeExcite(outputs, se_reduction))
        self.body = nn.Sequential(*layers)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                SameConv1d(inputs, outputs, shortcut_kernel, stride),
                norm(outputs),
                nn.ReLU(inplace=True),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, c, t] to [b, d, ⌈t / stride⌉]."""
        return F.relu(self.body(x) + self.shortcut(x))


def stem(features: int, channels: int) -> nn.Sequential:
    """The first convolution, over three frames."""
    return nn.Sequential(
        SameConv1d(features, channels, 3), norm(channels), nn.ReLU(inplace=True)
    )


def classifier(channels: int, num_labels: int, dropout: float) -> nn.Sequential:
    """Mean over time, dropout, linear layer without bias."""
    linear = nn.Linear(channels, num_labels, bias=False)
    nn.init.xavier_uniform_(linear.weight)
    return nn.Sequential(
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Dropout(dropout), linear
    )


class TCResNet(nn.Module):
    """TC-ResNet of depth 8 or 14 and any width: features [b, f, t] to logits [b, k]."""

    def __init__(
        self,
        depth: int,
        num_labels: int = 12,
        *,
        width: float = 1.0,
        dropout: float = 0.5,
        features: int = 40,
    ):
        super().__init__()
        channels = [int(c * width) for c in (16, *CHANNELS[depth])]
        self.stem = stem(features, channels[0])
        self.blocks = nn.Sequential(
            *(
                TCBlock(before, after, 9, stride)
                for before, after, stride in zip(channels, channels[1:], STRIDES[depth])
            )
        )
        self.classifier = classifier(channels[-1], num_labels, dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [b, k] of features [b, f, t]."""
        return self.classifier(self.blocks(self.stem(x)))
