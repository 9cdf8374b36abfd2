"""Build the layers of our own networks: activations, initialisation, normalisation, and connections."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from stages.errors import WinnowError
from stages.learning.names import Activation, Initialisation, Normalisation

Value = TypeVar("Value")
_GROUPS = 8
_SQUASHING = ("sigmoid", "tanh")

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": lambda: nn.ReLU(inplace=True),
    "leaky_relu": lambda: nn.LeakyReLU(0.01, inplace=True),
    "prelu": nn.PReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}


# Factors that bring the second moment of a standard normal number back to one behind the activation; that
# of sigmoid brings its slope at zero, a quarter, to one, and that of tanh is torch's (`calculate_gain`).
_GAINS = {
    "sigmoid": 4.0,
    "tanh": 5 / 3,
    "relu": math.sqrt(2),
    "leaky_relu": math.sqrt(2 / (1 + 0.01**2)),
    "prelu": math.sqrt(2 / (1 + 0.25**2)),
    "elu": 1.2455,
    "silu": 1.6766,
    "gelu": 1.5335,
}


def activation(name: str) -> nn.Module:
    """Build the activation of that name; a WinnowError lists the known ones."""
    return _named("activation", name, _ACTIVATIONS)()


def gain(name: str) -> float:
    """Return the factor of weights in front of an activation under which signals keep their size."""
    return _named("activation", name, _GAINS)


def normalisation(name: str, width: int, *, maps: bool) -> nn.Module:
    """Build the normalisation of `width` channels: of feature maps N×C×H×W, or of vectors N×C.

    `group` takes 8 groups of channels (Wu & He, arXiv 1803.08494), fewer where 8 do not divide them;
    `layer` all channels of a sample together (Ba et al., arXiv 1607.06450), over all places of a map.
    """
    built: dict[str, Callable[[], nn.Module]] = {
        "batch": lambda: nn.BatchNorm2d(width) if maps else nn.BatchNorm1d(width),
        "group": lambda: nn.GroupNorm(math.gcd(_GROUPS, width), width),
        "layer": lambda: nn.GroupNorm(1, width) if maps else nn.LayerNorm(width),
        "none": nn.Identity,
    }
    return _named("normalisation", name, built)()


def dropout(chance: float) -> nn.Module:
    """Build dropout, which zeroes features by `chance` in training (Srivastava et al., JMLR 2014)."""
    return nn.Dropout(chance) if chance > 0 else nn.Identity()


def convolution(channels: int, width: int, layers: Layers, *, stride: int = 1) -> nn.Sequential:
    """Build a 3×3 convolution, normalisation and activation; with a bias where nothing normalises."""
    bias = layers.normalisation == "none"
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=bias),
        normalisation(layers.normalisation, width, maps=True),
        activation(layers.activation),
    )


def linear(features: int, width: int, layers: Layers) -> nn.Sequential:
    """Build a linear layer, normalisation and activation."""
    return nn.Sequential(
        nn.Linear(features, width, bias=layers.normalisation == "none"),
        normalisation(layers.normalisation, width, maps=False),
        activation(layers.activation),
    )


class StochasticDepth(nn.Module):
    """Skip a residual branch by `chance` for each sample in training (Huang et al., arXiv 1603.09382).

    Branches that stay are scaled by 1 / (1 − chance), so that nothing changes for prediction.
    """

    def __init__(self, chance: float) -> None:
        super().__init__()
        self.chance = chance

    def forward(self, branch: Tensor) -> Tensor:
        """Zero some samples of `branch`, of any shape N×…."""
        if not self.training or self.chance == 0:
            return branch
        shape = (branch.shape[0],) + (1,) * (branch.dim() - 1)
        kept = torch.empty(shape, dtype=branch.dtype, device=branch.device).bernoulli_(1 - self.chance)
        return branch * kept.div_(1 - self.chance)


class Residual(nn.Sequential):
    """Add the input to the output of the modules; parameters are named as in a Sequential.

    Nothing in it may change its input in place.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Return a tensor of the shape of `values`."""
        branch = values
        for module in self:
            branch = module(branch)
        return values + branch


def chances(layers: Layers, blocks: int) -> list[float]:
    """Return the chance of each residual block to be skipped, rising from block to block."""
    return [layers.stochastic_depth * (index + 1) / blocks for index in range(blocks)]


def initialise(module: nn.Module, layers: Layers) -> None:
    """Draw the weights of linear layers and convolutions anew, as `layers.initialisation` says; biases are 0.

    `auto` is Xavier for sigmoid and tanh, and He for the others. Where one of those is normalised, torch's
    own weights stay, which are He's by shape and smaller: the normalisation takes their size out again.
    """
    how: str = layers.initialisation
    if how == "auto":
        if layers.activation in _SQUASHING:
            how = "xavier"
        elif layers.normalisation == "none":
            how = "he"
        else:
            return
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            draw(part.weight, how, gain(layers.activation))
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def draw(weight: Tensor, how: str, scale: float) -> None:
    """Fill weights (outputs first) in place.

    Parameters
    ----------
    weight : of two dimensions or more
    how : `he` (normal, He et al., arXiv 1502.01852), `xavier` (uniform, Glorot & Bengio, AISTATS 2010) or
        `orthogonal` (Saxe et al., arXiv 1312.6120)
    scale : the gain

    Raises
    ------
    WinnowError
        For another name; it lists these.
    """
    drawn: dict[str, Callable[[], object]] = {
        "he": lambda: nn.init.normal_(weight, std=scale / math.sqrt(weight[0].numel())),
        "xavier": lambda: nn.init.xavier_uniform_(weight, scale),
        "orthogonal": lambda: nn.init.orthogonal_(weight, scale),
    }
    _named("initialisation", how, drawn)()


def _named(kind: str, name: str, known: Mapping[str, Value]) -> Value:
    if name not in known:
        raise WinnowError(f"unknown {kind} {name!r}; known: {', '.join(known)}")
    return known[name]


@dataclass(frozen=True)
class Layers:
    """What networks of our own are built of; torchvision's and timm's take none of it.

    Attributes
    ----------
    activation : see `stages.learning.networks.layers`
    initialisation : `auto` fits the activation: Xavier for sigmoid and tanh, He for the others, with
        the scale left to the normalisation where there is one
    normalisation : after each layer
    dropout : chance of each feature to be zeroed before the head; between layers of MLPs and recurrent nets
    stochastic_depth : chance of the last residual block to be skipped, rising to it from 0 (Huang et al.,
        arXiv 1603.09382)
    residual : connections around blocks, for mlp and small_cnn; ResNets always have them
    """

    activation: Activation = "relu"
    initialisation: Initialisation = "auto"
    normalisation: Normalisation = "batch"
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    residual: bool = False


@dataclass(frozen=True)
class Preprocessing:
    """How an encoded image becomes what the model takes; as in the section `ingest` of params.yaml.

    Attributes
    ----------
    resize : `crop`, `pad` or `stretch`
    color : `grey` or `rgb`
    """

    resize: str
    color: str


@dataclass(frozen=True)
class ModelSpec:
    """All that is needed to rebuild a model around its weights; the content of `model.json`.

    Attributes
    ----------
    architecture : see `stages.learning.networks.catalogue`
    classes : class names in index order
    image_shape : height, width and channels of the images it takes
    mean, std : of the pixels, on the 0 to 1 scale; one value a channel of the network's input
    pretrained_stem : keep torchvision's own stem and three channels, as pretrained weights need
    layers : what networks of our own are built of
    members : networks of an ensemble, all of this architecture
    second_classes : class names of a second head; empty: there is none
    temperature : logits are divided by it for probabilities (Guo et al., arXiv 1706.04599)
    preprocessing : of encoded images; None where it is not known
    """

    architecture: str
    classes: list[str]
    image_shape: tuple[int, int, int]
    mean: list[float]
    std: list[float]
    pretrained_stem: bool = False
    layers: Layers = field(default_factory=Layers)
    members: int = 1
    second_classes: list[str] = field(default_factory=list)
    temperature: float = 1.0
    preprocessing: Preprocessing | None = None

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> ModelSpec:
        """Read what `to_json` wrote; a WinnowError for what is not a description of a model."""
        try:
            values = {**content, "image_shape": tuple(content["image_shape"])}
            values["layers"] = Layers(**content.get("layers", {}))
            how = content.get("preprocessing")
            values["preprocessing"] = None if how is None else Preprocessing(**how)
            return cls(**values)
        except (TypeError, KeyError) as error:
            raise WinnowError(f"not the description of a Winnow model: {error}") from error

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "image_shape": list(self.image_shape)}
