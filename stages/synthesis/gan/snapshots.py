"""Which state of the generator makes which class: the one whose images come nearest to validation.

Training a GAN has no loss that says how good its images are, and on little data the last state is
often not the best one, for some classes. Test images have no part in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Embed = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
PER_CLASS = 128  # generated images that a score compares
_FEWEST = 8  # validation images of a class under which its score says too little
_COARSE = 8  # pixels


def snapshot_steps(steps: int, count: int) -> list[int]:
    """So many steps, evenly spread over the second half of training; the last one is among them."""
    half = steps / 2
    return sorted({max(1, round(half + half * number / count)) for number in range(1, count + 1)})


def kernel_distance(made: NDArray[np.float32], real: NDArray[np.float32]) -> float:
    """Squared maximum mean discrepancy by the cubic polynomial kernel, unbiased: 0 for one distribution.

    The Kernel Inception Distance (Bińkowski et al., arXiv 1801.01401, section 4) in whichever space the
    embeddings, N×D and M×D with at least two rows each, are of. Of all images at once: the subsets of the
    gate's (torchmetrics') would add noise to what little validation says.
    """
    x, y = made.astype(np.float64), real.astype(np.float64)

    def kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: NDArray[np.float64]) -> float:
        similar = kernel(a, a)
        return float((similar.sum() - np.trace(similar)) / (len(a) * (len(a) - 1)))

    return within(x) + within(y) - 2 * float(kernel(x, y).mean())


def coarse_pixels(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pixels averaged down to 8×8: N×(8·8·C), 0 to 1. What there is without a model to embed with."""
    count, height, width, _ = images.shape
    tall, wide = min(_COARSE, height), min(_COARSE, width)
    rows, columns = np.arange(tall) * height // tall, np.arange(wide) * width // wide
    sums = np.add.reduceat(np.add.reduceat(images.astype(np.float32), rows, axis=1), columns, axis=2)
    sizes = np.diff(np.append(rows, height))[:, None] * np.diff(np.append(columns, width))
    return (sums / sizes[..., None] / 255).reshape(count, -1).astype(np.float32)


def score_snapshots(
    made_by: Callable[[int, NDArray[np.int64]], NDArray[np.uint8]],
    snapshots: int,
    classes: int,
    validation: tuple[NDArray[np.uint8], NDArray[np.int64]],
    embed: Embed | None = None,
) -> NDArray[np.float64]:
    """Distance between generated and validation images for each snapshot and class.

    Parameters
    ----------
    made_by : images of one snapshot (by its number) for N labels
    snapshots, classes : how many there are
    validation : uint8 images M×H×W×C and their labels, int64 M
    embed : uint8 images to float32 N×D; default: `coarse_pixels`

    Returns
    -------
    float64, snapshots×classes : less is better; NaN for classes with under 8 validation images
    """
    images, labels = validation
    embed = embed or coarse_pixels
    scores = np.full((snapshots, classes), np.nan)
    counts = np.bincount(labels, minlength=classes)[:classes]
    scored = np.flatnonzero(counts >= _FEWEST)
    if not len(scored):
        return scores
    members = np.flatnonzero(np.isin(labels, scored))
    real, real_labels = embed(images[members]), labels[members]
    # On one scale, whatever the space: the kernel adds 1 to an inner product.
    centre = real.mean(0)
    scale = float(np.sqrt(np.square(real - centre).mean())) or 1.0
    wanted = np.repeat(scored, PER_CLASS)
    for snapshot in range(snapshots):
        made = (embed(made_by(snapshot, wanted)) - centre) / scale
        for label in scored:
            own = (real[real_labels == label] - centre) / scale
            scores[snapshot, label] = kernel_distance(made[wanted == label], own)
    return scores


def choose_snapshots(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """The best snapshot of each class, int64 K, from what `score_snapshots` gave.

    A class without scores takes the one that is best on average over those that have some; where none
    has, all take the last.
    """
    snapshots, classes = scores.shape
    scored = np.isfinite(scores).all(0)
    if not scored.any():
        return np.full(classes, snapshots - 1, np.int64)
    chosen = np.full(classes, int(scores[:, scored].mean(1).argmin()), np.int64)
    chosen[scored] = scores[:, scored].argmin(0)
    return chosen


def score_rows(scores: NDArray[np.float64], steps: Sequence[int]) -> list[dict[str, float]]:
    """A row a snapshot and class that has a score: `step`, `class` (index), `score`."""
    return [
        {"step": float(step), "class": float(label), "score": float(scores[number, label])}
        for number, step in enumerate(steps)
        for label in np.flatnonzero(np.isfinite(scores[number]))
    ]
