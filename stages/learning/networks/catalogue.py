"""Build backbones by their names: our own from one table, torchvision's and timm's from theirs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

from torch import nn

from stages.errors import WinnowError
from stages.learning.networks import zoo
from stages.learning.networks.airbench import Airbench94
from stages.learning.networks.layers import Layers, ModelSpec
from stages.learning.networks.own import MLP, RecurrentRows, ResNet9, SmallCNN, SmallResNet

_ALL_LAYERS = tuple(each.name for each in fields(Layers))
_WITHOUT_BLOCKS = ("activation", "initialisation", "normalisation", "dropout")


@dataclass(frozen=True)
class OwnNetwork:
    """A network of our own.

    Attributes
    ----------
    build : from the image's height, width and channels, and the layers, to a backbone, whose attribute
        `width` is the number of its features
    layers : fields of `Layers` that it takes; the others must stay at their defaults
    plain : has no residual blocks, hence nothing for `stochastic_depth` to skip, unless `residual` adds them
    """

    build: Callable[[tuple[int, int, int], Layers], nn.Module]
    layers: tuple[str, ...] = _ALL_LAYERS
    plain: bool = False


OWN_NETWORKS: dict[str, OwnNetwork] = {
    "mlp": OwnNetwork(lambda shape, layers: MLP(math.prod(shape), layers), plain=True),
    "small_cnn": OwnNetwork(lambda shape, layers: SmallCNN(shape[2], layers), plain=True),
    "resnet9": OwnNetwork(lambda shape, layers: ResNet9(shape[2], layers)),
    "resnet20": OwnNetwork(lambda shape, layers: SmallResNet(shape[2], layers, 3)),
    "resnet32": OwnNetwork(lambda shape, layers: SmallResNet(shape[2], layers, 5)),
    "airbench94": OwnNetwork(lambda shape, layers: Airbench94(shape[2], layers), layers=("dropout",)),
    "lstm": OwnNetwork(
        lambda shape, layers: RecurrentRows(shape[1] * shape[2], layers, cell=nn.LSTM), _WITHOUT_BLOCKS
    ),
    "gru": OwnNetwork(
        lambda shape, layers: RecurrentRows(shape[1] * shape[2], layers, cell=nn.GRU), _WITHOUT_BLOCKS
    ),
}


def build_backbone(spec: ModelSpec) -> tuple[nn.Module, int]:
    """Build the backbone that `spec.architecture` names, and return it with the width D of its features.

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
    if spec.architecture in OWN_NETWORKS:
        network = OWN_NETWORKS[spec.architecture].build(spec.image_shape, spec.layers)
        return network, int(network.width)  # type: ignore[arg-type]  # a module's attribute, to mypy
    if spec.architecture.startswith(zoo.TIMM):
        return zoo.timm_backbone(spec)
    return zoo.torchvision_backbone(spec)


def reason_against(architecture: str, layers: Layers) -> str | None:
    """Say why there is no such network, or why it cannot be built of these layers; None where it can.

    torchvision is imported for names that are not our own alone.

    Raises
    ------
    WinnowError
        For a name of timm's where timm is not installed.
    """
    known = ", ".join(OWN_NETWORKS)
    changed = [name for name in _ALL_LAYERS if getattr(layers, name) != getattr(Layers(), name)]
    if architecture in OWN_NETWORKS:
        network = OWN_NETWORKS[architecture]
        refused = [f"{name} to {_shown(name)}" for name in changed if name not in network.layers]
        if refused:
            return f"of the layers it takes {', '.join(network.layers)} alone: set {', '.join(refused)}"
        if network.plain and layers.stochastic_depth and not layers.residual:
            return "stochastic_depth skips residual blocks, and there are none: set residual to true"
        return None
    theirs = zoo.timm_names() if architecture.startswith(zoo.TIMM) else list(zoo.torchvision_names())
    if architecture not in theirs:
        close = ", ".join(zoo.close_names(architecture, [*OWN_NETWORKS, *theirs]))
        return (
            f"there is no network of this name{close and f'; close to it: {close}'}; known are "
            f"{known}, any classifier of torchvision by its name there (resnet18, …), and timm/NAME"
        )
    if changed:
        return (
            "layers are for networks of our own, and this one takes none of it: leave them at their "
            f"defaults, or choose one of {known}"
        )
    return None


def _shown(name: str) -> str:
    """A default of `Layers` as params.yaml has it."""
    value = getattr(Layers(), name)
    return str(value).lower() if isinstance(value, bool) else str(value)
