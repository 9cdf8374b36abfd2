"""Compare generated images with real ones: density and coverage, KID, and diversity.

The measures are functions of features (N×D, pixels or embeddings). Embeddings have to come from a model that
saw neither the real images given here nor the generated ones, or the real ones lie closer together than new
ones can. Each model of a cross-fitted judge therefore has a space of its own, in which the real images of its
fold are as new as the candidates: `Spaces` measures in each of them, and averages.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stages.dataset.base import View

if TYPE_CHECKING:
    from stages.learning.judge import Judge


Floats = NDArray[np.floating[Any]]
NEIGHBOURS = 5  # of density and coverage: as in their paper
FEWEST = 10  # images of either side from which on density, coverage, KID and diversity say something
_KERNEL_ROWS = 4096  # of a kernel matrix that are in memory at once
SOUND = 3.0  # standard errors that must lie between a class and what it is told from
_SPLITS = 8  # of the real images into halves
Embeddings = NDArray[np.float32]


def density_coverage(real: Floats, made: Floats, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """Measure how deep made images lie among the real ones, and how many of the real ones they reach.

    Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models", arXiv 2002.09797,
    section 3.1. Around each real image lies a ball that reaches to its k-th neighbour.

    Parameters
    ----------
    real, made : N×D and M×D; N > k
    neighbours : k

    Returns
    -------
    density : balls around a made image, divided by k. From 0 to N/k; 1 is what unseen real images are
        expected to have, whatever N and M.
    coverage : share of the balls with a made image in them; `expected_coverage` for unseen real images
    """
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=neighbours).fit(real)
    radii = index.kneighbors()[0][:, -1]  # of a real image among the others
    distances = NearestNeighbors(n_neighbors=1).fit(made).kneighbors(real)[0][:, 0]
    apart = _distances(made, real)
    return float((apart <= radii).sum(1).mean() / neighbours), float((distances <= radii).mean())


def expected_coverage(real: int, made: int, neighbours: int = NEIGHBOURS) -> float:
    """Return the exact coverage that unseen real images are expected to have (Naeem et al., lemma 2).

    It follows from the images being exchangeable alone, so that nothing has to be held out to measure it.
    """
    missed = [(real - i) / (real + made - i) for i in range(1, neighbours + 1)]
    return 1.0 - math.prod(missed)


def kernel_distance(made: Floats, real: Floats) -> float:
    """Return the KID: the squared distance of two distributions by a cubic kernel, about 0 where they agree.

    The unbiased squared maximum mean discrepancy of Bińkowski et al., "Demystifying MMD GANs", arXiv
    1801.01401, section 4, in whichever space the features are of, and of all images at once: random subsets
    would add noise to what few images say. The kernel adds 1 to an inner product, so features should be about
    1 in size.

    Parameters
    ----------
    made, real : N×D and M×D; both with two rows at least
    """
    x, y = made.astype(np.float64), real.astype(np.float64)
    across, _ = _kernel_sums(x, y)
    return _mean_of_pairs(x) + _mean_of_pairs(y) - 2 * (across / (len(x) * len(y)))


def _mean_of_pairs(points: NDArray[np.float64]) -> float:
    """Average the kernel over pairs of different points."""
    total, same = _kernel_sums(points, points)
    return (total - same) / (len(points) * (len(points) - 1))


def _kernel_sums(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float]:
    """Sum the cubic kernel over all pairs, and over those of the same place in both."""
    total = same = 0.0
    for start in range(0, len(a), _KERNEL_ROWS):
        similar = (a[start : start + _KERNEL_ROWS] @ b.T / a.shape[1] + 1) ** 3
        total += float(similar.sum())
        same += float(np.trace(similar, start))
    return total, same


def effective_number(features: Floats, scale: float) -> float:
    """Return the Vendi score: how many entirely different images these are worth, 1 to N.

    Friedman and Dieng, arXiv 2210.02410: the exponential of the entropy of the eigenvalues of the kernel
    matrix over N. A handful of images repeated counts as that handful, where the mean distance between
    pairs would hardly change.

    Parameters
    ----------
    features : N×D
    scale : distance at which two images are alike by e**-½, in a Gaussian kernel
    """
    squares = _distances(features, features) ** 2
    kernel = np.exp(-squares / (2 * max(scale, 1e-12) ** 2)) / len(features)
    values = np.linalg.eigvalsh(kernel)
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def _distances(points: Floats, others: Floats) -> NDArray[np.float64]:
    """Return Euclidean distances, N×M."""
    from sklearn.metrics import pairwise_distances

    apart: NDArray[np.float64] = pairwise_distances(points.astype(np.float64), others.astype(np.float64))
    return apart


class Spaces:
    """Compare images of a class in the spaces of a judge's models.

    Parameters
    ----------
    real : of all classes; the judge's
    judge : where it computes, they are embedded
    max_kid : as the gate has it; where the spread of real images' own KID exceeds it, KID tells nothing
    seed : of the halves whose KID says how far it spreads
    """

    def __init__(self, real: View, judge: Judge, *, max_kid: float, seed: int) -> None:
        self._real, self._fold, self._max_kid, self._seed = real, judge.fold, max_kid, seed
        self._embedded = [judge.embed(real.images, k) for k in range(len(judge.models))]
        # KID's kernel is cubic: features have to be about 1 in size.
        self._scales = [float(np.sqrt((each**2).mean())) or 1.0 for each in self._embedded]
        self._kid_of_real: dict[tuple[int, int], tuple[float, float] | None] = {}

    def held_out(self, own: NDArray[np.int64]) -> list[Embeddings]:
        """Embed, by each model, those of the real images in rows `own` that it did not see."""
        return [each[own[self._fold[own] == k]] for k, each in enumerate(self._embedded)]

    def tell_apart(self, own: NDArray[np.int64], label: int) -> bool:
        """Return whether KID tells the class, whose rows are `own`, from the nearest other in any space."""
        return any(
            len(real) >= FEWEST and self._known_kid(real, k, label) is not None
            for k, real in enumerate(self.held_out(own))
        )

    def compare(
        self, made: list[Embeddings], own: NDArray[np.int64], label: int
    ) -> dict[str, tuple[float, float]]:
        """Measure density, coverage and KID of made and of held-out real images, as far as they are sound.

        Parameters
        ----------
        made : N×D, a model
        own : rows of the class's real images
        label : the class
        """
        values: dict[str, list[tuple[float, float]]] = {"density": [], "coverage": [], "kid": []}
        for k, (real, new) in enumerate(zip(self.held_out(own), made, strict=True)):
            size = min(len(real), len(new))
            if size < FEWEST:
                continue
            parts = [
                density_coverage(real, new[at : at + size]) for at in range(0, len(new) - size + 1, size)
            ]
            density, coverage = (float(x) for x in np.mean(parts, axis=0))
            values["density"].append((density, 1.0))
            values["coverage"].append((coverage, expected_coverage(len(real), size)))
            values["kid"] += self._kid(real, new, k, label)
        means = {name: np.mean(pairs, axis=0) for name, pairs in values.items() if pairs}
        return {name: (float(value), float(usual)) for name, (value, usual) in means.items()}

    def _kid(self, real: Embeddings, new: Embeddings, k: int, label: int) -> list[tuple[float, float]]:
        """Return the KID of candidates and of real images, in units of that to the nearest other class."""
        known = self._known_kid(real, k, label)
        if known is None:
            return []
        unit, usual = known
        return [(kernel_distance(new / self._scales[k], real / self._scales[k]) / unit, usual)]

    def _known_kid(self, real: Embeddings, k: int, label: int) -> tuple[float, float] | None:
        """Return `_kid_unit`, computed once."""
        if (k, label) not in self._kid_of_real:
            self._kid_of_real[k, label] = self._kid_unit(real, k, label)
        return self._kid_of_real[k, label]

    def _kid_unit(self, real: Embeddings, k: int, label: int) -> tuple[float, float] | None:
        """Return KID to the nearest other class, and in it that of real images; None where unsound."""
        others = self._other_classes(k, label)
        if not others:
            return None
        scale, centre = self._scales[k], real.mean(0)
        other = min(others, key=lambda each: float(np.linalg.norm(each.mean(0) - centre)))
        unit = kernel_distance(other / scale, real / scale)
        rng = np.random.default_rng(self._seed)
        halves = [np.array_split(real[rng.permutation(len(real))], 2) for _ in range(_SPLITS)]
        usual = [kernel_distance(half / scale, rest / scale) for half, rest in halves]
        # Halves are half as large, and the spread of an unbiased KID falls with the size.
        if unit <= 0 or SOUND * np.std(usual) / 2 > self._max_kid * unit:
            return None
        return unit, float(np.mean(usual)) / unit

    def _other_classes(self, k: int, label: int) -> list[Embeddings]:
        labels = np.where(self._fold == k, self._real.labels, -1)
        classes = range(len(self._real.classes))
        parts = [self._embedded[k][labels == other] for other in classes if other != label]
        return [part for part in parts if len(part) >= FEWEST]
