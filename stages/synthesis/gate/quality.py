"""How made images compare with real ones: density and coverage, KID, diversity.

All are functions of features (N×D, pixels or embeddings). Embeddings have to come from a model that saw
neither the real images given here nor the made ones, or the real ones lie closer together than new ones can.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
NEIGHBOURS = 5  # of density and coverage: as in their paper
FEWEST = 10  # images of either side from which on density, coverage, KID and diversity say something
_KID_SUBSET, _KID_SUBSETS = 100, 20


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
