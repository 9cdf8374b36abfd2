"""A plain convolutional network for small images."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class SmallCNN(nn.Module):
    """Three stages of two 3×3 convolutions, halving the resolution between them: 128 features."""

    def __init__(self, channels: int, widths: tuple[int, ...] = (32, 64, 128)) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for index, width in enumerate(widths):
            if index:
                blocks.append(nn.MaxPool2d(2))
            blocks += [_conv_block(channels, width), _conv_block(width, width)]
            channels = width
        self.blocks = nn.Sequential(*blocks)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features, N×128."""
        return functional.adaptive_avg_pool2d(self.blocks(pixels), 1).flatten(1)


def _conv_block(channels: int, width: int) -> nn.Module:
    convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
