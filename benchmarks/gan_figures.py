"""Generated images in figures: FID, KID, density, coverage, and how many a classifier recognises."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stages.dataset.base import View
from stages.learning.judge import Judge
from stages.synthesis.quality import density_coverage, kernel_distance

MEASURES = ("kid", "density", "coverage", "recognised")
POOLED = ("fid", "kid", "density", "coverage")

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
Features = NDArray[np.float32]
Figures = dict[str, list[float]]  # by name of `MEASURES`, each by class


class Space:
    """The feature spaces of a judge's models, and held-out real images in them.

    Parameters
    ----------
    judge : trained on images of neither the reference nor what is compared with it
    reference : held-out real images, as many of each class
    """

    def __init__(self, judge: Judge, reference: View) -> None:
        self.judge, self.labels, self.classes = judge, reference.labels, len(reference.classes)
        real = [judge.embed(reference.images, k) for k in range(len(judge.models))]
        # One centre and one scale for all classes: KID's kernel adds 1 to an inner product.
        self._scales = [(features.mean(0), float(features.std()) or 1.0) for features in real]
        self._real = [
            (features - centre) / scale for features, (centre, scale) in zip(real, self._scales, strict=True)
        ]

    def figures(self, images: Images, labels: Labels) -> Figures:
        """`MEASURES` of images uint8 N×H×W×C with labels int64 N; means over the judge's models."""
        return self._compare(self._embed(images), self._predicted(images), labels)

    def pooled(self, images: Images) -> dict[str, float]:
        """`POOLED` of images of all classes together; means over the judge's models."""
        found = [pooled_figures(*pair) for pair in zip(self._real, self._embed(images), strict=True)]
        return {name: float(np.mean([figures[name] for figures in found])) for name in POOLED}

    def nearest_other_class(self, images: Images, labels: Labels) -> Figures:
        """The same of real images of another class in the place of each class: the nearest by KID."""
        embedded, predicted = self._embed(images), self._predicted(images)
        turned = [
            self._compare(embedded, predicted, (labels - by) % self.classes) for by in range(1, self.classes)
        ]
        nearest = np.argmin([figures["kid"] for figures in turned], axis=0)
        return {
            name: [turned[which][name][label] for label, which in enumerate(nearest)] for name in MEASURES
        }

    def _embed(self, images: Images) -> list[Features]:
        """By each model, on the scale of the reference."""
        return [
            (self.judge.embed(images, k) - centre) / scale for k, (centre, scale) in enumerate(self._scales)
        ]

    def _predicted(self, images: Images) -> NDArray[np.int64]:
        return self.judge.of_new(images).argmax(1)

    def _compare(self, embedded: list[Features], predicted: Labels, labels: Labels) -> Figures:
        found: Figures = {name: [] for name in MEASURES}
        for label in range(self.classes):
            pairs = [
                (real[self.labels == label], made[labels == label])
                for real, made in zip(self._real, embedded, strict=True)
            ]
            kid = [kernel_distance(made, real) for real, made in pairs]
            density, coverage = np.mean([density_coverage(real, made) for real, made in pairs], axis=0)
            recognised = (predicted[labels == label] == label).mean()
            values = (np.mean(kid), density, coverage, recognised)
            for name, value in zip(MEASURES, values, strict=True):
                found[name].append(float(value))
        return found


def mean_images(train: View) -> Images:
    """The mean image of each class, uint8 K×H×W×C."""
    means = [train.images[train.labels == label].mean(0) for label in range(len(train.classes))]
    return np.stack(means).round().astype(np.uint8)


def pooled_figures(real: Features, made: Features) -> dict[str, float]:
    """`POOLED` of made images by features of N real and M made ones, N×D and M×D.

    KID's kernel adds 1 to an inner product, so features should be about 1 in size, as Inception's are.
    """
    density, coverage = density_coverage(real, made)
    return {
        "fid": frechet_distance(real, made),
        "kid": kernel_distance(made, real),
        "density": density,
        "coverage": coverage,
    }


def frechet_distance(real: Features, made: Features) -> float:
    """The Fréchet distance of two Gaussians with the means and covariances of the features: 0 where equal.

    FID (Heusel et al., arXiv 1706.08500, equation 6) where the features are those of Inception. It goes
    with the square of the features' scale and falls with the number of images: compare only equal numbers.

    Parameters
    ----------
    real, made : N×D and M×D, with two rows at least
    """
    first, second = (np.cov(features.astype(np.float64), rowvar=False) for features in (real, made))
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    # The eigenvalues of the product of both, from a symmetric matrix: real, whatever is rounded.
    shared = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(0)).sum()
    apart = np.square(real.mean(0, dtype=np.float64) - made.mean(0, dtype=np.float64)).sum()
    return float(apart + np.trace(first) + np.trace(second) - 2 * shared)
