"""The MBConv network of Peter, Roth and Pernkopf (2022) in PyTorch."""

from collections.abc import Sequence

import torch
from torch import nn

WIDTHS, STAGE = (10, 20, 40, 80), 3
EPSILON = 1e-3


def conv(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    stride: int = 1,
    *,
    groups: int = 1,
    activation: bool = True,
) -> nn.Sequential:
    """Convolution without bias, batch norm and, unless told otherwise, ReLU6."""
    layers: list[nn.Module] = [
        nn.Conv2d(
            inputs,
            outputs,
            kernel,
            stride,
            padding=kernel // 2,
            groups=groups,
            bias=False,
        ),
        nn.BatchNorm2d(outputs, eps=EPSILON),
    ]
    if activation:
        layers.append(nn.ReLU6(inplace=True))
    return nn.Sequential(*layers)


class MBConv(nn.Module):
    """Inverted bottleneck: expand (unless by 1), depthwise, project."""

    def __init__(
        self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int
    ):
        super().__init__()
        inner = expansion * inputs
        self.expand = conv(inputs, inner) if expansion > 1 else nn.Identity()
        self.depthwise = conv(inner, inner, kernel, stride, groups=inner)
        self.project = conv(inner, outputs, activation=False)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, c, f, t] to [b, d, ⌈f / stride⌉, ⌈t / stride⌉]."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class MBConvNet(nn.Module):
    """Six searched layers: features [b, f, t] to logits [b, k].

    A layer is named by its expansion and kernel, "E6K7", or "SKIP".
    """

    def __init__(
        self, num_labels: int = 12, *, layers: Sequence[str] = ("E6K7",) * (2 * STAGE)
    ):
        super().__init__()
        self.stem = conv(1, WIDTHS[0], 3, 2)
        blocks: list[nn.Module] = []
        before = WIDTHS[0]
        for index, name in enumerate(layers):
            stage, place = divmod(index, STAGE)
            if name == "SKIP":
                blocks.append(nn.Identity())
                continue
            expansion, kernel = map(int, name[1:].split("K"))
            width = WIDTHS[1 + stage]
            stride = 2 if place == 0 else 1
            blocks.append(MBConv(before, width, expansion, kernel, stride))
            before = width
        self.blocks = nn.Sequential(*blocks)
        self.last = conv(before, WIDTHS[-1])
        self.output = nn.Linear(WIDTHS[-1], num_labels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [b, k] of features [b, f, t]."""
        x = self.last(self.blocks(self.stem(x.unsqueeze(1))))
        return self.output(x.mean(dim=(2, 3)))
