"""Build airbench94, a network made to reach a good accuracy on small photos quickly on one GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.learning.networks.layers import dropout

if TYPE_CHECKING:
    from stages.learning.networks.layers import Layers

_WIDTHS = (64, 256, 256)
_PATCH = 2  # pixels a side of what is whitened
_PATCHES_OF = 5000 * 32 * 32  # pixels of training images that the whitening is taken from, at most
_LEAST_VARIANCE = 5e-4  # added to each eigenvalue: faint directions are not blown up
_SCALE = 1 / 9  # of the features, and so of the logits
_BIAS_LEARNS = 0.3  # share of the budget


class Airbench94(nn.Module):
    """Whitened 2×2 patches and three blocks of two 3×3 convolutions: 2 million weights, 256 features.

    The network of Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (arXiv 2404.00498), after
    Page's. The first convolution is no weight: it whitens patches of the training images, which training
    shows it once (`initialise_from`). Its bias stops learning after three tenths of the budget, from when on
    no gradient goes down to the pixels. Kernels start as identities, batch normalisation has a bias and no
    scale, and features are the largest value of each map, divided by 9. Made for large batches and a high
    rate; docs/training.md has the recipe.

    Of `layers` it takes the dropout, which its author does without.
    """

    width = _WIDTHS[-1]
    head_bias = False

    def __init__(self, channels: int, layers: Layers) -> None:
        super().__init__()
        self.whitening = Whitening(channels)
        inside = (self.whitening.width, *_WIDTHS)
        self.blocks = nn.Sequential(*(_Block(*pair) for pair in zip(inside, _WIDTHS, strict=False)))
        self.dropout = dropout(layers.dropout)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return features, N×256."""
        maps = self.blocks(functional.gelu(self.whitening(pixels)))
        features: Tensor = self.dropout(functional.adaptive_max_pool2d(maps, 1).flatten(1))
        return features * _SCALE

    def stages(self) -> list[nn.Module]:
        """Return the whitening and the blocks."""
        return [self.whitening, *self.blocks]

    def initialise_from(self, pixels: Tensor) -> None:
        """Take the whitening from normalised training images N×C×H×W; only the first call does anything."""
        self.whitening.fit(pixels)

    def finished(self, share: float) -> list[nn.Parameter]:
        """Return the parameters that stop learning once this share of the training is done."""
        return [] if share < _BIAS_LEARNS else [self.whitening.bias]


class Whitening(nn.Module):
    """Convolve by the principal directions of patches and their opposites, each of variance 1.

    Attributes
    ----------
    weight : (2·C·4)×C×2×2; random until `fit` was called
    """

    weight: Tensor
    fitted: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        size = channels * _PATCH**2
        self.width = 2 * size
        self.register_buffer("weight", torch.randn(self.width, channels, _PATCH, _PATCH) / size**0.5)
        self.register_buffer("fitted", torch.tensor(False))
        self.bias = nn.Parameter(torch.zeros(self.width))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return maps of one row and one column less."""
        return functional.conv2d(pixels, self.weight, self.bias)

    @torch.no_grad()
    def fit(self, pixels: Tensor) -> None:
        """Take the weights from patches of `pixels`, N×C×H×W, of a sample where they are many."""
        if self.fitted:
            return
        count, channels, height, width = pixels.shape
        wanted = max(1, min(count, _PATCHES_OF // (height * width)))
        sample = pixels[:: count // wanted][:wanted]
        patches = functional.unfold(sample, _PATCH).transpose(1, 2).flatten(0, 1)  # each channel by channel
        variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        scaled = (directions / (variances + _LEAST_VARIANCE).sqrt()).T.flip(0)
        scaled = scaled.reshape(-1, channels, _PATCH, _PATCH)
        self.weight.copy_(torch.cat([scaled, -scaled]))
        self.fitted.fill_(True)


class _Block(nn.Sequential):
    """Apply convolution, pooling and convolution; both convolutions are normalised."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(
            _identity(channels, width),
            _Halved(),
            BiasedBatchNorm(width),
            nn.GELU(),
            _identity(width, width),
            BiasedBatchNorm(width),
            nn.GELU(),
        )


class _Halved(nn.Module):
    """Take the largest of each 2×2 points; smaller maps stay as they are."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps if min(maps.shape[2:]) < 2 else functional.max_pool2d(maps, 2)


class BiasedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation without a scale that learns; its statistics are those of the last few batches.

    `weight` stays, as a buffer of ones: cuDNN's kernels want one.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-12, momentum=0.4)
        del self._parameters["weight"]
        self.register_buffer("weight", torch.ones(width))


def _identity(channels: int, width: int) -> nn.Conv2d:
    """Build a 3×3 convolution that begins as the identity (Zagoruyko & Komodakis, arXiv 1706.00388)."""
    layer = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(layer.weight[:channels])
    return layer
