"""Classifiers of torchvision as backbones, with stems that fit small images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from stages.learning.models import ModelSpec

TORCHVISION = ("resnet18", "resnet34", "resnet50")
_STEM_STRIDE_FROM = 64  # pixels; smaller images keep their resolution through the stem


def torchvision_backbone(spec: ModelSpec) -> tuple[nn.Module, int]:
    """The network without its head, and the width of its features."""
    channels = spec.image_shape[2]
    import torchvision  # slow to import: only where it is asked for

    network = getattr(torchvision.models, spec.architecture)(weights=None)
    width: int = network.fc.in_features
    network.fc = nn.Identity()
    if not spec.pretrained_stem:
        small = min(spec.image_shape[:2]) < _STEM_STRIDE_FROM
        stem = (3, 1, 1) if small else (7, 2, 3)
        network.conv1 = nn.Conv2d(channels, 64, stem[0], stride=stem[1], padding=stem[2], bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        if small:
            network.maxpool = nn.Identity()
    elif channels == 1:
        network = nn.Sequential(_GreyToColour(), network)
    return network, width


class _GreyToColour(nn.Module):
    """Repeats the one channel of grey images for a backbone that was pretrained on colour."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.expand(-1, 3, -1, -1)
