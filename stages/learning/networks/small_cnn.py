"""A plain convolutional network for small images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional

from stages.learning.networks.layers import (
    Residual,
    StochasticDepth,
    chances,
    convolution,
    dropout,
    initialise,
)

if TYPE_CHECKING:
    from stages.learning.models import Layers


class SmallCNN(nn.Module):
    """Three stages of two 3×3 convolutions, halving the resolution between them: 128 features.

    With `layers.residual` there is a connection around the second convolution of each stage.
    """

    def __init__(self, channels: int, layers: Layers, widths: tuple[int, ...] = (32, 64, 128)) -> None:
        super().__init__()
        self.width = widths[-1]
        blocks: list[nn.Module] = []
        for index, (width, chance) in enumerate(zip(widths, chances(layers, len(widths)), strict=True)):
            if index:
                blocks.append(nn.MaxPool2d(2))
            first, second = convolution(channels, width, layers), convolution(width, width, layers)
            if layers.residual:
                second = Residual(*second, StochasticDepth(chance))
            blocks += [first, second]
            channels = width
        self.blocks = nn.Sequential(*blocks)
        self.dropout = dropout(layers.dropout)
        initialise(self, layers)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features, N×128."""
        pooled = functional.adaptive_avg_pool2d(self.blocks(pixels), 1).flatten(1)
        features: Tensor = self.dropout(pooled)
        return features

    def stages(self) -> list[nn.Module]:
        """The parts between which the resolution halves."""
        starts = [0, *(at for at, block in enumerate(self.blocks) if isinstance(block, nn.MaxPool2d))]
        ends = [*starts[1:], len(self.blocks)]
        return [self.blocks[start:end] for start, end in zip(starts, ends, strict=True)]
