"""Residual networks for small images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional

from stages.learning.networks.layers import (
    Residual,
    StochasticDepth,
    activation,
    chances,
    convolution,
    dropout,
    initialise,
    normalisation,
)

if TYPE_CHECKING:
    from stages.learning.models import Layers


class ResNet9(nn.Module):
    """Nine layers, wide and shallow: fast to a good accuracy on a GPU; 512 features.

    As David Page's entry for DAWNBench (https://myrtle.ai/learn/how-to-train-your-resnet), 6.5 million
    weights, with the largest value of each feature map as a feature.
    """

    width = 512

    def __init__(self, channels: int, layers: Layers) -> None:
        super().__init__()
        first, second = chances(layers, 2)
        self.prepare = convolution(channels, 64, layers)
        self.stage1 = nn.Sequential(_pooled(64, 128, layers), _pair(128, layers, first))
        self.stage2 = _pooled(128, 256, layers)
        self.stage3 = nn.Sequential(_pooled(256, 512, layers), _pair(512, layers, second))
        self.dropout = dropout(layers.dropout)
        initialise(self, layers)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features, N×512."""
        maps = self.stage3(self.stage2(self.stage1(self.prepare(pixels))))
        features: Tensor = self.dropout(functional.adaptive_max_pool2d(maps, 1).flatten(1))
        return features

    def stages(self) -> list[nn.Module]:
        """The stem and the parts of one resolution each."""
        return [self.prepare, self.stage1, self.stage2, self.stage3]


class SmallResNet(nn.Module):
    """ResNet for small images (He et al., arXiv 1512.03385, section 4.2): 64 features.

    Three stages of `blocks` blocks of two 3×3 convolutions, 16, 32 and 64 wide, after a 3×3 stem; with the
    head 6 × `blocks` + 2 layers. Where the width changes, the shortcut takes every second pixel and fills
    up with zeros (option A): it has no weights.
    """

    width = 64

    def __init__(self, channels: int, layers: Layers, blocks: int) -> None:
        super().__init__()
        self.stem = convolution(channels, 16, layers)
        depth = iter(chances(layers, 3 * blocks))
        stages: list[nn.Module] = []
        before = 16
        for width in (16, 32, 64):
            stage = []
            for index in range(blocks):
                stride = 2 if index == 0 and width > before else 1
                stage.append(_Block(before if index == 0 else width, width, stride, layers, next(depth)))
            stages.append(nn.Sequential(*stage))
            before = width
        self.stage1, self.stage2, self.stage3 = stages
        self.dropout = dropout(layers.dropout)
        initialise(self, layers)
        if layers.normalisation == "none":
            self._start_as_identity()

    def forward(self, pixels: Tensor) -> Tensor:
        """Features, N×64."""
        maps = self.stage3(self.stage2(self.stage1(self.stem(pixels))))
        features: Tensor = self.dropout(functional.adaptive_avg_pool2d(maps, 1).flatten(1))
        return features

    def stages(self) -> list[nn.Module]:
        """The stem and the parts of one resolution each."""
        return [self.stem, self.stage1, self.stage2, self.stage3]

    def _start_as_identity(self) -> None:
        """Without normalisation each block would double the variance (Zhang et al., arXiv 1901.09321)."""
        for block in self.modules():
            if isinstance(block, _Block):
                nn.init.zeros_(block.last.weight)


class _Block(nn.Module):
    def __init__(self, before: int, width: int, stride: int, layers: Layers, chance: float) -> None:
        super().__init__()
        self.first = convolution(before, width, layers, stride=stride)
        self.last = nn.Conv2d(width, width, 3, padding=1, bias=layers.normalisation == "none")
        self.normalisation = normalisation(layers.normalisation, width, maps=True)
        self.depth = StochasticDepth(chance)
        self.activation = activation(layers.activation)
        self.stride, self.more = stride, width - before

    def forward(self, maps: Tensor) -> Tensor:
        branch = self.depth(self.normalisation(self.last(self.first(maps))))
        shortcut = maps[:, :, :: self.stride, :: self.stride]
        if self.more:
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))
        out: Tensor = self.activation(branch + shortcut)
        return out


def _pooled(before: int, width: int, layers: Layers) -> nn.Sequential:
    block = convolution(before, width, layers)
    block.append(nn.MaxPool2d(2))
    return block


def _pair(width: int, layers: Layers, chance: float) -> nn.Module:
    """Two convolutions with a connection around them."""
    return Residual(
        convolution(width, width, layers), convolution(width, width, layers), StochasticDepth(chance)
    )
