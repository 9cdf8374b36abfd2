"""Random over-sampling and SMOTE from imbalanced-learn, on pixels, one class at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stages.synthesis.gate import nearest_neighbours

NEIGHBOURS = 5  # SMOTE's own choice (Chawla et al., arXiv 1106.1813, section 4)


def random_copies(count: int, quota: int, seed: int) -> NDArray[np.int64]:
    """Indices of `quota` of `count` samples, drawn with replacement (`RandomOverSampler`)."""
    if quota == 0:
        return np.zeros(0, np.int64)
    from imblearn.over_sampling import RandomOverSampler

    features, labels = _beside_another_class(np.zeros((count, 1), np.float32))
    sampler = RandomOverSampler(sampling_strategy={1: count + quota}, random_state=seed)
    sampler.fit_resample(features, labels)
    chosen: NDArray[np.int64] = np.asarray(sampler.sample_indices_[len(labels) :], dtype=np.int64)
    return chosen


def smote(images: NDArray[np.uint8], quota: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Interpolate between images of one class and their nearest neighbours (Chawla et al., 2002).

    Parameters
    ----------
    images : uint8, N×H×W×C, of one class; two at least. With fewer than six each is everybody's
        neighbour.
    quota : images to make
    seed : of the pairs and of the places between them

    Returns
    -------
    made : uint8, quota×H×W×C
    parents : int64, quota; the nearest of `images`, in pixels: the closer end of the interpolation,
        which imbalanced-learn does not tell

    Raises
    ------
    ValueError
        For fewer than two images: there is nothing to interpolate between.
    """
    if len(images) < 2:
        raise ValueError("SMOTE needs two images of a class at least")
    if quota == 0:
        return np.zeros((0, *images.shape[1:]), np.uint8), np.zeros(0, np.int64)
    from imblearn.over_sampling import SMOTE

    features, labels = _beside_another_class(images.reshape(len(images), -1).astype(np.float32))
    sampler = SMOTE(
        sampling_strategy={1: len(images) + quota},
        k_neighbors=min(NEIGHBOURS, len(images) - 1),
        random_state=seed,
    )
    made = sampler.fit_resample(features, labels)[0][len(labels) :]
    made = made.round().clip(0, 255).astype(np.uint8).reshape(-1, *images.shape[1:])
    return made, nearest_neighbours(made, images)[1]


def _beside_another_class(
    features: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """`features` as class 1, and one row of a class 0, without which no sampler starts.

    A class by itself has its own seed and number of neighbours, and depends on no other class.
    """
    labels = np.ones(len(features) + 1, np.int64)
    labels[-1] = 0
    return np.concatenate([features, np.zeros_like(features[:1])]), labels
