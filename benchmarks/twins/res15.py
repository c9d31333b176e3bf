"""res15 (Tang and Lin 2018) in PyTorch."""

import torch
import torch.nn.functional as F
from torch import nn

LAYERS = 13


class Res15(nn.Module):
    """Dilated 3×3 convolutions with residuals: features [b, f, t] to logits [b, k]."""

    def __init__(self, num_labels: int = 12, *, maps: int = 45):
        super().__init__()
        self.first = nn.Conv2d(1, maps, 3, padding=1, bias=False)
        dilations = [2 ** (layer // 3) for layer in range(LAYERS)]
        self.convs = nn.ModuleList(
            nn.Conv2d(maps, maps, 3, padding=d, dilation=d, bias=False)
            for d in dilations
        )
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(maps, affine=False) for _ in dilations
        )
        self.output = nn.Linear(maps, num_labels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [b, k] of features [b, f, t]."""
        x = saved = F.relu(self.first(x.unsqueeze(1)))
        for layer, (conv, norm) in enumerate(zip(self.convs, self.norms), start=1):
            x = F.relu(conv(x))
            if layer % 2 == 0:
                x = saved = x + saved
            x = norm(x)
        return self.output(x.mean(dim=(2, 3)))
