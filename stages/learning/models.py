"""Classifiers: each takes uint8 images as the dataset holds them, and normalises by itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.errors import WinnowError

TORCHVISION = ("resnet18", "resnet34", "resnet50")
ARCHITECTURES = ("small_cnn", *TORCHVISION)
_STEM_STRIDE_FROM = 64  # pixels; smaller images keep their resolution through the stem


@dataclass(frozen=True)
class ModelSpec:
    """All that is needed to rebuild a model around its weights; the content of `model.json`.

    Attributes
    ----------
    architecture : one of `ARCHITECTURES`
    classes : class names in index order
    image_shape : height, width and channels of the images it takes
    mean, std : of the pixels, on the 0 to 1 scale; one value a channel of the network's input
    pretrained_stem : keep torchvision's own stem and three channels, as pretrained weights need
    """

    architecture: str
    classes: list[str]
    image_shape: tuple[int, int, int]
    mean: list[float]
    std: list[float]
    pretrained_stem: bool = False

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> ModelSpec:
        """The inverse of `to_json`; a WinnowError for what is not a description of a model."""
        try:
            return cls(**{**content, "image_shape": tuple(content["image_shape"])})
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
        self.backbone, width = _backbone(spec)
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
    if spec.architecture not in ARCHITECTURES:
        raise WinnowError(f"unknown architecture {spec.architecture!r}; known: {', '.join(ARCHITECTURES)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier(spec).to(memory_format=torch.channels_last)


class SmallCNN(nn.Module):
    """Three stages of two 3×3 convolutions, halving the resolution between them: 128 features."""

    def __init__(self, channels: int, widths: tuple[int, ...] = (32, 64, 128)) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for index, width in enumerate(widths):
            if index:
                blocks.append(nn.MaxPool2d(2))
            blocks += [_conv_block(channels, width), _conv_block(width, width)]
            channels = width
        self.blocks = nn.Sequential(*blocks)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features, N×128."""
        return functional.adaptive_avg_pool2d(self.blocks(pixels), 1).flatten(1)


def _conv_block(channels: int, width: int) -> nn.Module:
    convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True))


def _backbone(spec: ModelSpec) -> tuple[nn.Module, int]:
    """The backbone and the width of its features."""
    channels = spec.image_shape[2]
    if spec.architecture == "small_cnn":
        return SmallCNN(channels), 128
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
