"""Build classifiers, which take uint8 images as the dataset holds them and normalise them by themselves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stages.learning.networks.catalogue import build_backbone
from stages.learning.networks.layers import ModelSpec

_STATISTICS_BATCH = 4096


def pixel_statistics(images: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """Compute the mean and standard deviation of each channel, on the 0 to 1 scale."""
    channels = images.shape[-1]
    counts = np.zeros((channels, 256), np.int64)
    # In float64, all at once, they take 8 times the room.
    for start in range(0, len(images), _STATISTICS_BATCH):
        pixels = images[start : start + _STATISTICS_BATCH].reshape(-1, channels)
        for channel in range(channels):
            counts[channel] += np.bincount(pixels[:, channel], minlength=256)
    values, total = np.arange(256) / 255.0, counts[0].sum()
    mean = counts @ values / total
    variance = (counts * (values - mean[:, None]) ** 2).sum(1) / total
    std = np.maximum(np.sqrt(variance), 1.0 / 255.0)
    return [round(float(x), 6) for x in mean], [round(float(x), 6) for x in std]


def model_spec(architecture: str, images: NDArray[np.uint8], classes: list[str], **options: Any) -> ModelSpec:
    """Describe a network for `images` (uint8, N×H×W×C), normalised by their statistics.

    Parameters
    ----------
    options : further fields of `ModelSpec`
    """
    height, width, channels = images.shape[1:]
    return ModelSpec(architecture, classes, (height, width, channels), *pixel_statistics(images), **options)


class Classifier(nn.Module):
    """Backbone and linear heads around the normalisation.

    `forward` takes uint8 images N×H×W×C, as the dataset holds them, and returns logits N×K;
    `embed` returns the backbone's features N×D, of which `classify` makes the logits.

    Attributes
    ----------
    spec : what it was built from
    backbone : from normalised pixels to features
    head : from features to logits
    second_head : to those of `spec.second_classes`; None where there are none
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.backbone, width = build_backbone(spec)
        bias = getattr(self.backbone, "head_bias", True)
        self.head = nn.Linear(width, len(spec.classes), bias=bias)
        second = len(spec.second_classes)
        self.second_head = nn.Linear(width, second, bias=bias) if second else None
        # Not persistent: model.json says them, and one source is enough.
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, -1, 1, 1), persistent=False)

    @property
    def width(self) -> int:
        """Return the number D of features."""
        return self.head.in_features

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise uint8 N×H×W×C to float32 N×C×H×W, in channels-last memory."""
        count, height, width, channels = images.shape
        if channels != self.mean.shape[1]:  # grey images, for weights that were trained on colour
            pixels = images.permute(0, 3, 1, 2).float().div(255)
            return ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        # Constants repeated along a row of pixels: the same values as above in a quarter of the time.
        rows = images.reshape(count, height, width * channels).float().div_(255)
        rows.sub_(self.mean.view(-1).repeat(width)).div_(self.std.view(-1).repeat(width))
        return rows.view(count, height, width, channels).permute(0, 3, 1, 2)

    def embed(self, images: Tensor) -> Tensor:
        """Return features of the backbone, N×D."""
        features: Tensor = self.backbone(self.normalise(images))
        return features

    def classify(self, features: Tensor) -> Tensor:
        """Return logits N×K of features N×D."""
        logits: Tensor = self.head(features)
        return logits

    def classify_second(self, features: Tensor) -> Tensor:
        """Return the second head's logits of features N×D; a ValueError where there is none."""
        if self.second_head is None:
            raise ValueError("the model has no second head")
        logits: Tensor = self.second_head(features)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, N×K."""
        return self.classify(self.embed(images))


class Ensemble(Classifier):
    """Several classifiers as one, whose probabilities are the mean of theirs.

    Logits are the logarithm of that mean, so that softmax gives it back; features are those of all members
    side by side, N×(M·D). It has no backbone and no heads: to train, take its `members`.

    Attributes
    ----------
    spec : that of the members, with their number
    members : the classifiers
    """

    def __init__(self, members: Sequence[Classifier]) -> None:
        nn.Module.__init__(self)
        # A temperature is for the mean, whatever the members had by themselves.
        specs = [replace(member.spec, temperature=1.0) for member in members]
        if not specs or any(spec != specs[0] for spec in specs) or specs[0].members != 1:
            raise ValueError("an ensemble is of one classifier or more, all built from the same description")
        self.spec = replace(specs[0], members=len(members))
        self.members = nn.ModuleList(members)

    @property
    def width(self) -> int:
        """Return the number of features of all members together."""
        return sum(member.width for member in members_of(self))

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise as each member does."""
        return members_of(self)[0].normalise(images)

    def embed(self, images: Tensor) -> Tensor:
        """Return features of all members side by side, N×(M·D)."""
        pixels = self.normalise(images)
        return torch.cat([member.backbone(pixels) for member in members_of(self)], 1)

    def classify(self, features: Tensor) -> Tensor:
        """Return logarithms of the members' mean probabilities, N×K."""
        return _log_mean([member.classify(part) for member, part in self._split(features)])

    def classify_second(self, features: Tensor) -> Tensor:
        """Return the same for the second head."""
        return _log_mean([member.classify_second(part) for member, part in self._split(features)])

    def _split(self, features: Tensor) -> Iterator[tuple[Classifier, Tensor]]:
        """Pair each member with its own features."""
        members = members_of(self)
        return zip(members, features.split([member.width for member in members], 1), strict=True)


def members_of(model: Classifier) -> list[Classifier]:
    """Return the classifiers that a model consists of: an ensemble's members, or the model itself."""
    if not isinstance(model, Ensemble):
        return [model]
    return [member for member in model.members if isinstance(member, Classifier)]


def member_seed(seed: int, index: int) -> int:
    """Derive the seed of an ensemble's member: `seed` for the first, unrelated ones for the others."""
    if index == 0:
        return seed
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])


def build_model(spec: ModelSpec, *, seed: int) -> Classifier:
    """Build a freshly initialised model; the same seed gives the same weights.

    With `spec.members` above one it is an `Ensemble`, each member from a seed of its own (`member_seed`).

    Raises
    ------
    WinnowError
        For an unknown architecture (the message lists the known ones), for layers that it cannot be
        built of, and for images that it does not take.
    """
    if spec.members > 1:
        single = replace(spec, members=1)
        ensemble = Ensemble([build_model(single, seed=member_seed(seed, at)) for at in range(spec.members)])
        ensemble.spec = spec
        return ensemble
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier(spec).to(memory_format=torch.channels_last)


def _log_mean(logits: list[Tensor]) -> Tensor:
    """Return the logarithm of the mean probabilities of logits N×K each."""
    stacked = torch.stack([one.log_softmax(1) for one in logits])
    return stacked.logsumexp(0) - math.log(len(logits))
