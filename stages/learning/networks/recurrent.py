"""Recurrent networks over the rows of an image, from top to bottom and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from stages.learning.networks.layers import draw, dropout, initialise, linear

if TYPE_CHECKING:
    from stages.learning.models import Layers

_WIDTH, _DEPTH = 128, 2


class RecurrentRows(nn.Module):
    """LSTM (Hochreiter & Schmidhuber 1997) or GRU (Cho et al., arXiv 1406.1078): 256 features.

    Each row of pixels, all its channels, is a step in time, as in a spectrogram whose time runs down: a
    linear layer for each row by itself, two recurrent layers in both directions, and the mean over the
    steps. Images may have any number of rows of the width it was built for. `layers.activation` and
    `layers.normalisation` are those of the linear layer; gates are what they are.
    """

    width = 2 * _WIDTH

    def __init__(self, row: int, layers: Layers, *, cell: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.rows = linear(row, _WIDTH, layers)
        sizes = [_WIDTH, *[2 * _WIDTH] * (_DEPTH - 1)]
        self.recurrent = nn.ModuleList(
            cell(size, _WIDTH, batch_first=True, bidirectional=True) for size in sizes
        )
        self.dropout = dropout(layers.dropout)
        initialise(self.rows, layers)
        how = "xavier" if layers.initialisation == "auto" else layers.initialisation
        for part in self.recurrent:
            _initialise_gates(part, how)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features, N×256."""
        rows = pixels.permute(0, 2, 1, 3).flatten(2)  # N×H×(C·W)
        steps: Tensor = self.rows(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])
        for part in self.recurrent:
            steps = self.dropout(part(steps)[0])
        return steps.mean(1)

    def stages(self) -> list[nn.Module]:
        """The layer of the rows and the recurrent ones."""
        return [self.rows, *self.recurrent]


def _initialise_gates(part: nn.Module, how: str) -> None:
    """Input weights by `how`, recurrent ones orthogonal, gate by gate; an LSTM forgets nothing at first.

    The forget gate's bias of 1 is that of Jozefowicz et al. (ICML 2015).
    """
    for name, weight in part.named_parameters():
        if name.startswith("bias"):
            nn.init.zeros_(weight)
            if isinstance(part, nn.LSTM) and name.startswith("bias_ih"):
                with torch.no_grad():
                    weight[_WIDTH : 2 * _WIDTH] = 1.0
        else:
            for gate in weight.detach().split(_WIDTH):
                draw(gate, how if name.startswith("weight_ih") else "orthogonal", 1.0)
