"""How made images compare with real ones: density and coverage, KID, diversity.

All are functions of features (N×D, pixels or embeddings). Embeddings have to come from a model that saw
neither the real images given here nor the made ones, or the real ones lie closer together than new ones can.

A class's images in the judge's embeddings: how their distribution compares with that of held-out ones.

Each model of a cross-fitted judge has a space of its own, in which the real images of its fold are as new as
the candidates. Figures are taken in each of these spaces and averaged.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stages.dataset.base import View

if TYPE_CHECKING:
    from stages.learning.judge import Judge


Floats = NDArray[np.floating[Any]]
NEIGHBOURS = 5  # of density and coverage: as in their paper
FEWEST = 10  # images of either side from which on density, coverage, KID and diversity say something
_KID_SUBSET, _KID_SUBSETS = 100, 20
SOUND = 3.0  # standard errors that must lie between a class and what it is told from
_SPLITS = 8  # of the real images into halves
Embeddings = NDArray[np.float32]


def density_coverage(real: Floats, made: Floats, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """How deep made images lie among the real ones, and how many of the real ones they reach.

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
    """The coverage that unseen real images are expected to have (Naeem et al., lemma 2): exact, 0 to 1.

    It follows from the images being exchangeable alone, so that nothing has to be held out to measure it.
    """
    missed = [(real - i) / (real + made - i) for i in range(1, neighbours + 1)]
    return 1.0 - math.prod(missed)


def kernel_distance(real: Floats, made: Floats, seed: int = 0) -> float:
    """KID: the squared distance of two distributions by a cubic kernel, unbiased: about 0 where they agree.

    Bińkowski et al., "Demystifying MMD GANs", arXiv 1801.01401, section 4; torchmetrics' implementation on
    features of one's own. Mean over random subsets of as many images as the smaller side has, at most
    100. The kernel depends on the scale of the features: they should be about 1 in size.

    Parameters
    ----------
    real, made : N×D and M×D; both with two rows at least
    seed : of the subsets; torch's own state stays as it is
    """
    import torch
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(len(real), len(made), _KID_SUBSET)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save")
        torch.manual_seed(seed)
        metric = KernelInceptionDistance(torch.nn.Identity(), subsets=_KID_SUBSETS, subset_size=size)
        metric.update(torch.from_numpy(np.asarray(real, np.float32)), real=True)
        metric.update(torch.from_numpy(np.asarray(made, np.float32)), real=False)
        return float(metric.compute()[0])


def effective_number(features: Floats, scale: float) -> float:
    """The Vendi score: how many entirely different images these are worth, 1 to N.

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
    """Euclidean, N×M."""
    from sklearn.metrics import pairwise_distances

    apart: NDArray[np.float64] = pairwise_distances(points.astype(np.float64), others.astype(np.float64))
    return apart


class Spaces:
    """The spaces of a judge's models, with the real images in them.

    Parameters
    ----------
    real : of all classes; the judge's
    judge : where it computes, they are embedded
    max_kid : as the gate has it; where the spread of real images' own KID exceeds it, KID tells nothing
    seed : of the subsets on which KID is computed
    """

    def __init__(self, real: View, judge: Judge, *, max_kid: float, seed: int) -> None:
        self._real, self._fold, self._max_kid, self._seed = real, judge.fold, max_kid, seed
        self._embedded = [judge.embed(real.images, k) for k in range(len(judge.models))]
        # KID's kernel is cubic: features have to be about 1 in size.
        self._scales = [float(np.sqrt((one**2).mean())) or 1.0 for one in self._embedded]
        self._kid_of_real: dict[tuple[int, int], tuple[float, float] | None] = {}

    def held_out(self, own: NDArray[np.int64]) -> list[Embeddings]:
        """Of the real images in rows `own` those that each model did not see, where it sees them."""
        return [one[own[self._fold[own] == k]] for k, one in enumerate(self._embedded)]

    def tell_apart(self, own: NDArray[np.int64], label: int) -> bool:
        """Whether KID tells the class, whose rows are `own`, from the nearest other one in any space."""
        return any(
            len(real) >= FEWEST and self._known_kid(real, k, label) is not None
            for k, real in enumerate(self.held_out(own))
        )

    def compare(
        self, made: list[Embeddings], own: NDArray[np.int64], label: int
    ) -> dict[str, tuple[float, float]]:
        """Density, coverage and KID, each of made images and of held-out real ones; what is sound of these.

        Parameters
        ----------
        made : N×D, a model
        own : rows of the class's real images
        label : the class
        """
        found: dict[str, list[tuple[float, float]]] = {"density": [], "coverage": [], "kid": []}
        for k, (real, new) in enumerate(zip(self.held_out(own), made, strict=True)):
            size = min(len(real), len(new))
            if size < FEWEST:
                continue
            parts = [
                density_coverage(real, new[at : at + size]) for at in range(0, len(new) - size + 1, size)
            ]
            density, coverage = (float(x) for x in np.mean(parts, axis=0))
            found["density"].append((density, 1.0))
            found["coverage"].append((coverage, expected_coverage(len(real), size)))
            found["kid"] += self._kid(real, new, k, label)
        means = {name: np.mean(pairs, axis=0) for name, pairs in found.items() if pairs}
        return {name: (float(value), float(usual)) for name, (value, usual) in means.items()}

    def _kid(self, real: Embeddings, new: Embeddings, k: int, label: int) -> list[tuple[float, float]]:
        """KID of candidates and of held-out real images, in units of that to the nearest other class."""
        known = self._known_kid(real, k, label)
        if known is None:
            return []
        unit, usual = known
        return [(kernel_distance(real / self._scales[k], new / self._scales[k], self._seed) / unit, usual)]

    def _known_kid(self, real: Embeddings, k: int, label: int) -> tuple[float, float] | None:
        """`_kid_unit`, computed once."""
        if (k, label) not in self._kid_of_real:
            self._kid_of_real[k, label] = self._kid_unit(real, k, label)
        return self._kid_of_real[k, label]

    def _kid_unit(self, real: Embeddings, k: int, label: int) -> tuple[float, float] | None:
        """KID to the nearest other class, and in it that of real images; None where too few to tell."""
        others = self._other_classes(k, label)
        if not others:
            return None
        scale, centre = self._scales[k], real.mean(0)
        other = min(others, key=lambda one: float(np.linalg.norm(one.mean(0) - centre)))
        unit = kernel_distance(real / scale, other / scale, self._seed)
        rng = np.random.default_rng(self._seed)
        halves = [np.array_split(real[rng.permutation(len(real))], 2) for _ in range(_SPLITS)]
        usual = [kernel_distance(one / scale, two / scale, self._seed) for one, two in halves]
        # Halves are half as large, and the spread of an unbiased KID falls with the size.
        if unit <= 0 or SOUND * np.std(usual) / 2 > self._max_kid * unit:
            return None
        return unit, float(np.mean(usual)) / unit

    def _other_classes(self, k: int, label: int) -> list[Embeddings]:
        labels = np.where(self._fold == k, self._real.labels, -1)
        parts = [self._embedded[k][labels == one] for one in range(len(self._real.classes)) if one != label]
        return [part for part in parts if len(part) >= FEWEST]
