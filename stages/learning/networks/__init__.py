"""Backbones by their names: networks from pixels to features."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from torch import nn

from stages.errors import WinnowError
from stages.learning.names import OwnNetwork
from stages.learning.networks.small_cnn import SmallCNN

if TYPE_CHECKING:
    from stages.learning.models import ModelSpec


def build_backbone(spec: ModelSpec) -> tuple[nn.Module, int]:
    """The backbone that `spec.architecture` names, and the width D of its features.

    It takes normalised pixels, float N×C×H×W, and returns features N×D.

    Raises
    ------
    WinnowError
        For a name that is not in the catalogue; the message lists those that are.
    """
    channels = spec.image_shape[2]
    if spec.architecture == "small_cnn":
        return SmallCNN(channels), 128
    from stages.learning.networks import zoo

    if spec.architecture in zoo.TORCHVISION:
        return zoo.torchvision_backbone(spec)
    known = ", ".join([*get_args(OwnNetwork), *zoo.TORCHVISION])
    raise WinnowError(f"unknown architecture {spec.architecture!r}; known: {known}")
