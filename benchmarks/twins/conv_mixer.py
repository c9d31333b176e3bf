"""ConvMixer (Ng et al. 2022) in PyTorch."""

import torch
import torch.nn.functional as F
from torch import nn

# (time kernel, frequency kernel, maps of the frequency branch) of the four blocks
BLOCKS = ((9, 5, 64), (11, 5, 32), (13, 7, 16), (15, 7, 8))


def separable(
    inputs: int, outputs: int, kernel: int, dilation: int = 1
) -> nn.Sequential:
    """Depthwise and pointwise convolution over time, batch norm, swish."""
    padding = dilation * (kernel - 1) // 2
    return nn.Sequential(
        nn.Conv1d(
            inputs,
            inputs,
            kernel,
            padding=padding,
            dilation=dilation,
            groups=inputs,
            bias=False,
        ),
        nn.Conv1d(inputs, outputs, 1, bias=False),
        nn.BatchNorm1d(outputs),
        nn.SiLU(inplace=True),
    )


class MLP(nn.Module):
    """Adds a layer norm and two linear layers along the last axis to the input."""

    def __init__(self, size: int, hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.fc1 = nn.Linear(size, hidden)
        self.fc2 = nn.Linear(hidden, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[…, size] to the same."""
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


class Block(nn.Module):
    """Frequency branch, time branch on it, mixer on that; the sum of three."""

    def __init__(
        self,
        channels: int,
        frames: int,
        time_kernel: int,
        frequency_kernel: int,
        maps: int,
    ):
        super().__init__()
        self.frequency = nn.Sequential(
            nn.Conv2d(1, maps, 3, padding=1, bias=False),
            nn.SiLU(inplace=True),
            nn.Conv2d(
                maps,
                maps,
                (frequency_kernel, 1),
                padding=(frequency_kernel // 2, 0),
                groups=maps,
                bias=False,
            ),
            nn.SiLU(inplace=True),
            nn.Conv2d(maps, 1, 1, bias=False),
            nn.BatchNorm2d(1),
            nn.SiLU(inplace=True),
        )
        self.time = separable(channels, channels, time_kernel)
        self.mix_time = MLP(frames, frames // 4)
        self.mix_frequency = MLP(channels, channels // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, c, t] to the same."""
        y1 = self.frequency(x.unsqueeze(1)).squeeze(1)
        y2 = self.mix_time(self.time(y1))
        y3 = F.silu(self.mix_frequency(y2.transpose(1, 2)).transpose(1, 2))
        return x + y1 + y3


class ConvMixer(nn.Module):
    """ConvMixer for a fixed number of frames: features [b, f, t] to logits [b, k]."""

    def __init__(
        self,
        num_labels: int = 12,
        *,
        channels: int = 64,
        frames: int = 98,
        features: int = 64,
    ):
        super().__init__()
        self.stem = separable(features, channels, 5)
        self.pre = nn.Sequential(
            separable(channels, channels, 7), separable(channels, channels, 1)
        )
        self.blocks = nn.Sequential(
            *(Block(channels, frames, *sizes) for sizes in BLOCKS)
        )
        wide = 2 * channels
        self.post = nn.Sequential(
            separable(channels, wide, 17),
            separable(wide, wide, 19, dilation=2),
            separable(wide, wide, 1),
        )
        self.output = nn.Linear(wide, num_labels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [b, k] of features [b, f, t]."""
        x = self.stem(x)
        x = self.post(self.blocks(x + self.pre(x)))
        return self.output(x.amax(dim=2))
