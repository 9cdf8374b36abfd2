"""Backbones by their names: networks from pixels to features."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

from torch import nn

from stages.errors import WinnowError
from stages.learning.names import OwnNetwork
from stages.learning.networks import zoo
from stages.learning.networks.airbench import Airbench94
from stages.learning.networks.own import MLP, RecurrentRows, ResNet9, SmallCNN, SmallResNet
from stages.learning.networks.zoo import is_torchvision, stages_of

if TYPE_CHECKING:
    from stages.learning.networks.layers import Layers, ModelSpec

__all__ = ["OWN", "build_backbone", "is_torchvision", "reason_against", "stages_of"]

OWN: tuple[str, ...] = get_args(OwnNetwork)

_Build = Callable[
    [tuple[int, int, int], "Layers"], MLP | SmallCNN | ResNet9 | SmallResNet | Airbench94 | RecurrentRows
]

_BUILT: dict[str, _Build] = {
    "mlp": lambda shape, layers: MLP(math.prod(shape), layers),
    "small_cnn": lambda shape, layers: SmallCNN(shape[2], layers),
    "resnet9": lambda shape, layers: ResNet9(shape[2], layers),
    "resnet20": lambda shape, layers: SmallResNet(shape[2], layers, 3),
    "resnet32": lambda shape, layers: SmallResNet(shape[2], layers, 5),
    "airbench94": lambda shape, layers: Airbench94(shape[2], layers),
    "lstm": lambda shape, layers: RecurrentRows(shape[1] * shape[2], layers, cell=nn.LSTM),
    "gru": lambda shape, layers: RecurrentRows(shape[1] * shape[2], layers, cell=nn.GRU),
}


def build_backbone(spec: ModelSpec) -> tuple[nn.Module, int]:
    """The backbone that `spec.architecture` names, and the width D of its features.

    It takes normalised pixels, float N×C×H×W, and returns features N×D.

    Raises
    ------
    WinnowError
        For a name that is not in the catalogue (the message lists those that are), layers that the
        network cannot be built of, and images that it does not take.
    """
    why = reason_against(spec.architecture, spec.layers)
    if why is not None:
        raise WinnowError(f"network {spec.architecture!r}: {why}")
    if spec.architecture in _BUILT:
        network = _BUILT[spec.architecture](spec.image_shape, spec.layers)
        return network, network.width
    if spec.architecture.startswith(zoo.TIMM):
        return zoo.timm_backbone(spec)
    return zoo.torchvision_backbone(spec)


def reason_against(architecture: str, layers: Layers) -> str | None:
    """Why there is no such network, or it cannot be built of these layers; None where it can.

    torchvision is imported for names that are not our own alone.

    Raises
    ------
    WinnowError
        For a name of timm's where timm is not installed.
    """
    if architecture in OWN:
        return _reason_against_layers(architecture, layers)
    theirs = zoo.timm_names() if architecture.startswith(zoo.TIMM) else list(zoo.torchvision_names())
    if architecture not in theirs:
        close = ", ".join(zoo.close_names(architecture, [*OWN, *theirs]))
        return (
            f"there is no network of this name{close and f'; close to it: {close}'}; known are "
            f"{', '.join(OWN)}, any classifier of torchvision by its name there (resnet18, …), and timm/NAME"
        )
    if layers != type(layers)():
        return (
            "layers are for networks of our own, and this one takes none of it: leave them at their "
            f"defaults, or choose one of {', '.join(OWN)}"
        )
    return None


def _reason_against_layers(architecture: str, layers: Layers) -> str | None:
    if architecture == "airbench94":
        if replace(layers, dropout=0.0) != type(layers)():
            return "it is built as it was published: of the layers only dropout may differ from its default"
        return None
    if architecture in ("lstm", "gru"):
        if layers.residual or layers.stochastic_depth:
            return "it has no residual connections: set residual to false and stochastic_depth to 0"
    elif layers.stochastic_depth and not layers.residual and architecture in ("mlp", "small_cnn"):
        return "stochastic_depth skips residual blocks, and there are none: set residual to true"
    return None
