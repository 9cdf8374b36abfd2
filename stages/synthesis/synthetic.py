"""What over-sampling is told, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from stages.dataset import View
from stages.synthesis.gate.class_quality import ClassQuality, Method
from stages.synthesis.interpolation import SimpleMethod

if TYPE_CHECKING:
    from stages.synthesis.gan.training import GANConfig
    from stages.synthesis.gate.gate import GateConfig


@dataclass(frozen=True)
class Recipe:
    """How images are made.

    Attributes
    ----------
    method : `gan`, one of the simple samplers (see `interpolate`), or `none`
    fallback : for classes for which the GAN is not tried or is refused: a simple sampler, or `none`
    min_real_per_class : real images under which the GAN is not tried for a class
    gan, gate : see `GANConfig`, `GateConfig`
    """

    method: Method
    fallback: SimpleMethod | Literal["none"]
    min_real_per_class: int
    gan: GANConfig
    gate: GateConfig


@dataclass(frozen=True)
class Beside:
    """What there is beside the real training images; nothing is made of it.

    Attributes
    ----------
    embeddings : float32, N×D, a row for each real image, where neighbours are looked for; None looks
        for them in the pixels
    groups : N names; images of one name are never on both sides of the judge's folds, and no measure of how
        near unseen images come to one another
    validation : among snapshots of the GAN, what chooses; None leaves the last
    held_out : uint8 images by the name of their split, only ever looked at for copies of them
    """

    embeddings: NDArray[np.float32] | None = None
    groups: NDArray[np.object_] | None = None
    validation: View | None = None
    held_out: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)


@dataclass(frozen=True)
class Refused:
    """A few candidates that one check refused, or that went with their class: uint8, n×H×W×C.

    `parents` (int64, n) are the nearest real images of the class; indices into the real images.
    """

    label: int
    check: str
    images: NDArray[np.uint8]
    parents: NDArray[np.int64]


@dataclass
class GANRecord:
    """How the GAN came about.

    Attributes
    ----------
    trained_on : names of its classes
    steps, batch_size : as it ended; fewer steps than `steps_asked` where it went back to a good state
    notes : what happened on the way, each one sentence
    history : rows of losses
    scores : a row a snapshot and class: `step`, `class` (its name), `score`, `chosen`
    progress : by step uint8 K×n×H×W×C, what the generator made of the same latents each time
    """

    trained_on: list[str]
    steps: int
    steps_asked: int
    batch_size: int
    notes: list[str] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)
    scores: list[dict[str, Any]] = field(default_factory=list)
    progress: dict[int, NDArray[np.uint8]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The value of `gan` in `quality.json`."""
        names = ("trained_on", "steps", "steps_asked", "batch_size", "notes")
        return {name: getattr(self, name) for name in names}


@dataclass
class Synthetic:
    """Made images of all classes, and how they came about.

    Attributes
    ----------
    images : uint8, M×H×W×C
    labels : int64, M
    parents : int64, M; indices into the real images. Random over-sampling: the image that was copied;
        else the nearest image of the class, in pixels.
    methods : M names
    quality : by class name, in index order
    gan : None where none was trained
    refused : some of the candidates that the gate refused
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    parents: NDArray[np.int64]
    methods: list[str]
    quality: dict[str, ClassQuality]
    gan: GANRecord | None = None
    refused: list[Refused] = field(default_factory=list)


@dataclass(frozen=True)
class Made:
    """Images of one class, and their parents among the real images."""

    label: int
    images: NDArray[np.uint8]
    parents: NDArray[np.int64]
    method: str
