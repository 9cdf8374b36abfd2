"""Build networks of our own for small images: fully connected, convolutional, residual and recurrent ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.learning.networks.layers import (
    Residual,
    StochasticDepth,
    activation,
    chances,
    convolution,
    draw,
    dropout,
    initialise,
    linear,
    normalisation,
)

if TYPE_CHECKING:
    from stages.learning.networks.layers import Layers


_MLP_WIDTH, _BLOCKS = 256, 3
_RECURRENT_WIDTH, _DEPTH = 128, 2


class MLP(nn.Module):
    """Three fully connected layers of 256: no neighbourhood, no invariance, images of one size only.

    With `layers.residual` there is a connection around the second and the third. Dropout after each.
    """

    width = _MLP_WIDTH

    def __init__(self, pixels: int, layers: Layers) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        features, depth = pixels, chances(layers, _BLOCKS - 1)
        for index in range(_BLOCKS):
            block = linear(features, _MLP_WIDTH, layers)
            block.append(dropout(layers.dropout))
            if index and layers.residual:
                block = Residual(*block, StochasticDepth(depth[index - 1]))
            blocks.append(block)
            features = _MLP_WIDTH
        self.blocks = nn.Sequential(*blocks)
        initialise(self, layers)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return features, N×256."""
        features: Tensor = self.blocks(pixels.flatten(1))
        return features

    def stages(self) -> list[nn.Module]:
        """Return the layers."""
        return list(self.blocks)


class RecurrentRows(nn.Module):
    """LSTM (Hochreiter & Schmidhuber 1997) or GRU (Cho et al., arXiv 1406.1078): 256 features.

    Each row of pixels, all its channels, is a step in time, as in a spectrogram whose time runs down: a
    linear layer for each row by itself, two recurrent layers in both directions, and the mean over the
    steps. Images may have any number of rows of the width it was built for. `layers.activation` and
    `layers.normalisation` are those of the linear layer; gates are what they are.
    """

    width = 2 * _RECURRENT_WIDTH

    def __init__(self, row: int, layers: Layers, *, cell: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.rows = linear(row, _RECURRENT_WIDTH, layers)
        sizes = [_RECURRENT_WIDTH, *[2 * _RECURRENT_WIDTH] * (_DEPTH - 1)]
        self.recurrent = nn.ModuleList(
            cell(size, _RECURRENT_WIDTH, batch_first=True, bidirectional=True) for size in sizes
        )
        self.dropout = dropout(layers.dropout)
        initialise(self.rows, layers)
        how = "xavier" if layers.initialisation == "auto" else layers.initialisation
        for part in self.recurrent:
            _initialise_gates(part, how)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return features, N×256."""
        rows = pixels.permute(0, 2, 1, 3).flatten(2)  # N×H×(C·W)
        steps: Tensor = self.rows(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])
        for part in self.recurrent:
            steps = self.dropout(part(steps)[0])
        return steps.mean(1)

    def stages(self) -> list[nn.Module]:
        """Return the layer of the rows and the recurrent ones."""
        return [self.rows, *self.recurrent]


def _initialise_gates(part: nn.Module, how: str) -> None:
    """Draw input weights by `how` and recurrent ones orthogonal, gate by gate; an LSTM first forgets nothing.

    The forget gate's bias of 1 is that of Jozefowicz et al. (ICML 2015).
    """
    for name, weight in part.named_parameters():
        if name.startswith("bias"):
            nn.init.zeros_(weight)
            if isinstance(part, nn.LSTM) and name.startswith("bias_ih"):
                with torch.no_grad():
                    weight[_RECURRENT_WIDTH : 2 * _RECURRENT_WIDTH] = 1.0
        else:
            for gate in weight.detach().split(_RECURRENT_WIDTH):
                draw(gate, how if name.startswith("weight_ih") else "orthogonal", 1.0)


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
        """Return features, N×512."""
        maps = self.stage3(self.stage2(self.stage1(self.prepare(pixels))))
        features: Tensor = self.dropout(functional.adaptive_max_pool2d(maps, 1).flatten(1))
        return features

    def stages(self) -> list[nn.Module]:
        """Return the stem and the parts of one resolution each."""
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
        """Return features, N×64."""
        maps = self.stage3(self.stage2(self.stage1(self.stem(pixels))))
        features: Tensor = self.dropout(functional.adaptive_avg_pool2d(maps, 1).flatten(1))
        return features

    def stages(self) -> list[nn.Module]:
        """Return the stem and the parts of one resolution each."""
        return [self.stem, self.stage1, self.stage2, self.stage3]

    def _start_as_identity(self) -> None:
        """Zero the blocks' last weights, which would double the variance (Zhang et al., arXiv 1901.09321)."""
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
    """Build two convolutions with a connection around them."""
    return Residual(
        convolution(width, width, layers), convolution(width, width, layers), StochasticDepth(chance)
    )


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
        """Return features, N×128."""
        pooled = functional.adaptive_avg_pool2d(self.blocks(pixels), 1).flatten(1)
        features: Tensor = self.dropout(pooled)
        return features

    def stages(self) -> list[nn.Module]:
        """Return the parts between which the resolution halves."""
        starts = [0, *(at for at, block in enumerate(self.blocks) if isinstance(block, nn.MaxPool2d))]
        ends = [*starts[1:], len(self.blocks)]
        return [self.blocks[start:end] for start, end in zip(starts, ends, strict=True)]
