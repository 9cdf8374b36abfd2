"""What each class gets: from the GAN if it may and the gate agrees, else from a simpler sampler."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stages.dataset import View
from stages.synthesis.gate.class_quality import ClassQuality, why_none
from stages.synthesis.interpolation import CLEANING, interpolate
from stages.synthesis.synthetic import Beside, Made, Recipe, Synthetic

if TYPE_CHECKING:
    from stages.learning.names import Device

_MADE_BY = {
    "random": "copies of real images",
    "smote": "interpolated between neighbours of the class",
    "borderline_smote": "interpolated from images at the border to another class",
    "adasyn": "interpolated, most where other classes are near",
    "smote_enn": "interpolated, and cleaned by edited nearest neighbours",
    "smote_tomek": "interpolated, and cleaned of Tomek links",
}


def oversample(
    real: View,
    quota: NDArray[np.int64],
    targets: NDArray[np.int64],
    recipe: Recipe,
    *,
    beside: Beside | None = None,
    seed: int,
    device: Device = "auto",
    keep_in: Path | None = None,
) -> Synthetic:
    """Make images for the classes that need some.

    Parameters
    ----------
    real : the curated real training images
    quota : int64, K; images to make for each class
    targets : int64, K; the sizes that `quota` leads to; for the report
    recipe : how
    beside : validation and test images, embeddings, groups
    seed, device : of all that is trained and drawn
    keep_in : a folder for what the GAN's training has finished, so that a killed run goes on

    Raises
    ------
    WinnowError
        For images that the GAN cannot make, or a training of it that failed.
    """
    beside = beside or Beside()
    quality = {
        name: ClassQuality(int(real.class_counts[label]), int(targets[label]), int(quota[label]))
        for label, name in enumerate(real.classes)
    }
    result = Synthetic(real.images[:0], real.labels[:0], real.labels[:0], [], quality)
    if recipe.method == "none":
        return result
    for entry in quality.values():
        if entry.requested == 0:
            entry.decide("none", "not_needed", why_none(entry))
    made: list[Made] = []
    sampler: str = recipe.method
    if recipe.method == "gan":
        from stages.synthesis.gated import from_gan

        made = from_gan(real, result, recipe, beside, seed, device, keep_in)
        sampler = recipe.fallback
    if sampler != "none":
        done = [part.label for part in made]
        left = np.where(np.isin(np.arange(len(quota)), done), 0, quota)
        made += _simply(real, left, quality, sampler, seed, beside.embeddings)
    return _together(real, result, made)


def _simply(
    real: View,
    quota: NDArray[np.int64],
    quality: Mapping[str, ClassQuality],
    method: str,
    seed: int,
    embeddings: NDArray[np.float32] | None,
) -> list[Made]:
    """A simple sampler's images; also what the GAN falls back to."""
    found = interpolate(real, quota, method, seed=seed, embeddings=embeddings)  # type: ignore[arg-type]
    if method in CLEANING and quota.any():
        for entry, made, real_ones in zip(quality.values(), found.cleaned, found.doubtful, strict=True):
            entry.cleaned = {"made": int(made), "real": int(real_ones)}
    parts = []
    for label in np.flatnonzero(quota):
        entry, rows = quality[real.classes[label]], np.flatnonzero(found.labels == label)
        by: Any = found.methods[rows[0]] if len(rows) else method
        notes = [*found.notes.get(int(label), [])]
        if entry.decision == "fallback":
            entry.decide(by, "fallback", "; ".join([entry.reason, *notes]))
        else:
            # Not a fallback where another method stood in: nothing was refused.
            decision = "accepted" if len(rows) == entry.requested else "reduced"
            entry.decide(by, decision, "; ".join([_MADE_BY[by], *notes]))  # type: ignore[arg-type]
        parts.append(Made(int(label), found.images[rows], found.parents[rows], by))
    return parts


def _together(real: View, result: Synthetic, made: list[Made]) -> Synthetic:
    """The result with the images of all classes, in index order."""
    made = sorted(made, key=lambda part: part.label)
    for part in made:
        result.quality[real.classes[part.label]].added = len(part.images)
    result.images = np.concatenate([result.images, *(part.images for part in made)])
    labels = [np.full(len(part.images), part.label, np.int64) for part in made]
    result.labels = np.concatenate([result.labels, *labels])
    result.parents = np.concatenate([result.parents, *(part.parents for part in made)])
    result.methods = [part.method for part in made for _ in part.images]
    return result
