"""Classifiers: each takes uint8 images as the dataset holds them, and normalises by itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from stages.errors import WinnowError
from stages.learning.names import Activation, Initialisation, Normalisation
from stages.learning.networks import build_backbone


@dataclass(frozen=True)
class Layers:
    """What networks of our own are built of; torchvision's and timm's take none of it.

    Attributes
    ----------
    activation : see `stages.learning.networks.layers`
    initialisation : `auto` fits the activation: He for the kinked ones, Xavier for sigmoid and tanh
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
    architecture : see `stages.learning.networks`
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
        """The inverse of `to_json`; a WinnowError for what is not a description of a model."""
        try:
            own = {**content, "image_shape": tuple(content["image_shape"])}
            own["layers"] = Layers(**content.get("layers", {}))
            how = content.get("preprocessing")
            own["preprocessing"] = None if how is None else Preprocessing(**how)
            return cls(**own)
        except (TypeError, KeyError) as error:
            raise WinnowError(f"not the description of a Winnow model: {error}") from error

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "image_shape": list(self.image_shape)}


class Classifier(nn.Module):
    """Backbone and linear head around the normalisation.

    `forward` takes uint8 images N×H×W×C, as the dataset holds them, and returns logits N×K;
    `embed` returns the backbone's features N×D.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.backbone, width = build_backbone(spec)
        self.head = nn.Linear(width, len(spec.classes))
        # Not persistent: model.json says them, and one source is enough.
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, -1, 1, 1), persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 N×H×W×C to normalised float32 N×C×H×W, in channels-last memory."""
        pixels = images.permute(0, 3, 1, 2).float().div(255)
        return ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def embed(self, images: Tensor) -> Tensor:
        """Features of the backbone, N×D."""
        features: Tensor = self.backbone(self.normalise(images))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Logits, N×K."""
        logits: Tensor = self.head(self.embed(images))
        return logits


def build_model(spec: ModelSpec, *, seed: int) -> Classifier:
    """A freshly initialised model; the same seed gives the same weights.

    Raises
    ------
    WinnowError
        For an unknown architecture; the message lists the known ones.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier(spec).to(memory_format=torch.channels_last)
