"""What a generated image has to pass before it may be trained on.

A classifier that saw real images only must recognise the label; the image must not be a near-copy of
a real one, nor lie farther off than real images do from one another. The distances are compared with
those between real images of the same class, so that they need no units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stages.dataset import View

if TYPE_CHECKING:
    from stages.learning.loop import Device
    from stages.learning.models import Classifier

_EPOCHS, _BATCH_SIZE, _LEARNING_RATE, _LABEL_SMOOTHING = 20, 32, 0.005, 0.05
_STRAY_QUANTILE, _STRAY_FACTOR = 0.9, 1.5
_CHUNK = 512


@dataclass(frozen=True)
class GateConfig:
    """How strict the gate is.

    Attributes
    ----------
    min_agreement : probability of its own label that a candidate needs, 0 to 1
    min_accepted : share of the candidates that must pass, or the class is refused, 0 to 1
    copy_quantile : a candidate nearer to a real image than this share of real images are to their
        nearest fellow is a copy, 0 to 1
    """

    min_agreement: float
    min_accepted: float
    copy_quantile: float


@dataclass(frozen=True)
class Verdict:
    """What the gate found for the candidates of one class; each array has N entries.

    Attributes
    ----------
    agreement : float, probability of the candidate's own label, by the classifier
    agrees : bool, whether that is enough
    copy : bool, a near-copy of a real image of the class, in pixels or in the embedding
    stray : bool, farther from every real image of the class than they are from one another
    nearest : int, index of the nearest real image of the class, in pixels
    """

    agreement: NDArray[np.float64]
    agrees: NDArray[np.bool_]
    copy: NDArray[np.bool_]
    stray: NDArray[np.bool_]
    nearest: NDArray[np.int64]

    @property
    def accepted(self) -> NDArray[np.bool_]:
        """Which candidates passed everything, bool N."""
        return self.agrees & ~self.copy & ~self.stray


class Gate:
    """The gate for generated images, around a classifier that saw real images only.

    Parameters
    ----------
    real : the curated real training images of all classes
    config : how strict it is
    seed : of the classifier; not the generator's
    device : where the classifier is trained
    """

    def __init__(self, real: View, config: GateConfig, *, seed: int, device: Device = "auto") -> None:
        self.real, self.config, self.device = real, config, device
        self.classifier = _classifier(real, seed, device)

    def judge(self, candidates: NDArray[np.uint8], label: int) -> Verdict:
        """Judge candidates (uint8, N×H×W×C) for the class `label`, which has two real images at least."""
        from stages.learning.loop import predict

        own = self.real.images[self.real.labels == label]
        probabilities, embedded = predict(self.classifier, candidates, self.device)
        _, embedded_own = predict(self.classifier, own, self.device)
        agreement = probabilities[:, label].astype(np.float64)
        copy, stray = np.zeros(len(candidates), bool), np.zeros(len(candidates), bool)
        in_pixels, nearest = nearest_neighbours(candidates, own)
        in_embedding, _ = nearest_neighbours(embedded, embedded_own)
        for distance, real in ((in_pixels, own), (in_embedding, embedded_own)):
            among_real, _ = nearest_neighbours(real)
            copy |= distance <= np.quantile(among_real, self.config.copy_quantile)
            stray |= distance > np.quantile(among_real, _STRAY_QUANTILE) * _STRAY_FACTOR
        return Verdict(agreement, agreement >= self.config.min_agreement, copy, stray, nearest)


def nearest_neighbours(
    points: NDArray[Any], others: NDArray[Any] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Distance to, and index of, the nearest of `others`; without them the nearest other point.

    Points are flattened; distances are Euclidean, float64 N. Ties go to the lowest index.
    """
    flat = points.reshape(len(points), math.prod(points.shape[1:])).astype(np.float64)
    pool = flat if others is None else others.reshape(len(others), flat.shape[1]).astype(np.float64)
    distances, indices = np.zeros(len(flat)), np.zeros(len(flat), np.int64)
    norms = np.einsum("ij,ij->i", pool, pool)
    for start in range(0, len(flat), _CHUNK):
        part = flat[start : start + _CHUNK]
        squares = np.einsum("ij,ij->i", part, part)[:, None] + norms - 2 * part @ pool.T
        if others is None:
            rows = np.arange(len(part))
            squares[rows, start + rows] = np.inf
        best = squares.argmin(1)
        indices[start : start + _CHUNK] = best
        # Again by subtraction: the expansion above leaves a rest where the distance is zero.
        distances[start : start + _CHUNK] = np.linalg.norm(part - pool[best], axis=1)
    return distances, indices


def _classifier(real: View, seed: int, device: Device) -> Classifier:
    """A small CNN trained on the real images, classes drawn equally often."""
    from stages.learning.loop import Recipe, fit, pixel_statistics, steps_per_epoch
    from stages.learning.models import ModelSpec, build_model

    height, width, channels = (int(side) for side in real.images.shape[1:])
    mean, std = pixel_statistics(real.images)
    spec = ModelSpec("small_cnn", real.classes, (height, width, channels), mean, std)
    recipe = Recipe(
        epochs=_EPOCHS,
        steps_per_epoch=steps_per_epoch(len(real), _BATCH_SIZE),
        batch_size=_BATCH_SIZE,
        learning_rate=_LEARNING_RATE,
        label_smoothing=_LABEL_SMOOTHING,
        sampling="balanced",
        shift=1,
    )
    model = build_model(spec, seed=seed)
    return fit(model, real, recipe, seed=seed, device=device, description="gate").model
