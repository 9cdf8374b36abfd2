"""Fully connected layers over all pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from stages.learning.networks.layers import Residual, StochasticDepth, chances, dropout, initialise, linear

if TYPE_CHECKING:
    from stages.learning.models import Layers

_WIDTH, _BLOCKS = 256, 3


class MLP(nn.Module):
    """Three fully connected layers of 256: no neighbourhood, no invariance, images of one size only.

    With `layers.residual` there is a connection around the second and the third. Dropout after each.
    """

    width = _WIDTH

    def __init__(self, pixels: int, layers: Layers) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        features, depth = pixels, chances(layers, _BLOCKS - 1)
        for index in range(_BLOCKS):
            block = linear(features, _WIDTH, layers)
            block.append(dropout(layers.dropout))
            if index and layers.residual:
                block = Residual(*block, StochasticDepth(depth[index - 1]))
            blocks.append(block)
            features = _WIDTH
        self.blocks = nn.Sequential(*blocks)
        initialise(self, layers)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features, N×256."""
        features: Tensor = self.blocks(pixels.flatten(1))
        return features

    def stages(self) -> list[nn.Module]:
        """The layers."""
        return list(self.blocks)
