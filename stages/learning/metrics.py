"""Score classifiers on a test split, with bootstrap intervals, and noise detectors.

Everything about one model follows from a few sums over the test images: of each class the images,
the predictions and the hits, and of each confidence bin the gap between accuracy and confidence.
A resample is a weight a test image, so the sums of all resamples are one sparse matrix product, and
each model is scored on the same resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

METRICS = (
    "macro_f1",
    "balanced_accuracy",
    "worst_class_recall",
    "expected_calibration_error",
    "accuracy",
)
FOLD_METRICS = ("accuracy", "balanced_accuracy", "macro_f1")
_CHUNK = 4_000_000  # entries of a matrix of resample counts that are in memory at once: 32 MB

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Probabilities = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A figure on the test split with its percentile interval."""

    value: float
    low: float
    high: float

    def rounded(self, digits: int = 6) -> dict[str, float]:
        """As JSON values."""
        return {"value": _round(self.value, digits), "low": _round(self.low, digits)} | {
            "high": _round(self.high, digits)
        }


@dataclass(frozen=True)
class Comparison:
    """Models by name → metric → interval, and the same of their paired difference to the baseline."""

    models: dict[str, dict[str, Interval]]
    gain: dict[str, dict[str, Interval]]


def compare_models(
    labels: Integers,
    probabilities: Mapping[str, Probabilities],
    *,
    baseline: str,
    bins: int,
    resamples: int,
    confidence: float,
    seed: int,
) -> Comparison:
    """Score models on the same test images, and the difference of each to the baseline.

    Intervals are percentiles of the bootstrap distribution; images are drawn with replacement, the
    same ones for every model, so that the difference is paired. They speak of this test set: how
    much a model varies with its training seed is not in them. A class that a resample happens to
    miss is left out of that resample's means and minimum. The bootstrap distributions of a minimum
    (`worst_class_recall`) and of a sum of absolute values (`expected_calibration_error`) lean down
    and up, the more so with few images a class: their intervals may lie to one side of the value.

    A class without test images does not enter the means; the paired differences are model minus
    baseline, so for the calibration error less than zero is better.

    Parameters
    ----------
    labels : int64, N; the true class indices
    probabilities : by name of the model; N×K, rows sum to 1
    baseline : the name that the others are compared with
    bins : of equal width, for the calibration error
    resamples : of the bootstrap
    confidence : of the intervals, 0 to 1
    seed : of the resamples

    Raises
    ------
    ValueError
        Where there are no images, or a model has not one row for each.

    References
    ----------
    Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 13 (percentile interval).
    """
    if len(labels) == 0:
        raise ValueError("there are no test images")
    for name, values in probabilities.items():
        if len(values) != len(labels):
            raise ValueError(f"{name}: {len(values)} predictions for {len(labels)} labels")
    sums = {name: _ImageSums(labels, values, bins) for name, values in probabilities.items()}
    points = {name: sums[name].scores(np.ones((len(labels), 1))) for name in sums}
    draws = _bootstrap(sums, len(labels), resamples, seed)
    models, gain = {}, {}
    for name in sums:
        models[name] = {m: _interval(points[name][m], draws[name][m], confidence) for m in METRICS}
        if name != baseline:
            gain[name] = {
                m: _interval(
                    points[name][m] - points[baseline][m], draws[name][m] - draws[baseline][m], confidence
                )
                for m in METRICS
            }
    return Comparison(models, gain)


def _bootstrap(
    sums: Mapping[str, _ImageSums], images: int, resamples: int, seed: int
) -> dict[str, dict[str, Floats]]:
    """Return model → metric → its value on each resample (R values), the same resamples for all."""
    chunks: dict[str, list[dict[str, Floats]]] = {name: [] for name in sums}
    for counts in resample_counts(images, resamples, seed):
        for name, image_sums in sums.items():
            chunks[name].append(image_sums.scores(counts))
    return {
        name: {metric: np.concatenate([part[metric] for part in parts]) for metric in METRICS}
        for name, parts in chunks.items()
    }


def resample_counts(images: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Draw how often each image is in each resample of a bootstrap.

    Yields chunks, N×R float64 (whole numbers, each column sums to N), whose R add up to `resamples`.
    """
    generator = np.random.default_rng(seed)
    size = max(1, _CHUNK // images)
    for start in range(0, resamples, size):
        columns = min(size, resamples - start)
        drawn = generator.integers(0, images, (columns, images))
        places = (drawn * columns + np.arange(columns)[:, None]).ravel()
        counts = np.bincount(places, minlength=images * columns)
        yield counts.reshape(images, columns).astype(np.float64)


class _ImageSums:
    """The sums over images that every metric of one model follows from."""

    def __init__(self, labels: Integers, probabilities: Probabilities, bins: int) -> None:
        from scipy import sparse

        classes = probabilities.shape[1]
        images = np.arange(len(labels))
        predicted = probabilities.argmax(1)
        hit = predicted == labels
        place, gap = _bin_gaps(probabilities, hit, bins)
        one = np.ones(len(labels))
        rows = [labels, classes + predicted[hit], 2 * classes + predicted, 3 * classes + place]
        columns = [images, images[hit], images, images]
        values = [one, one[hit], one, gap]
        self._classes = classes
        self._matrix = sparse.csr_array(
            (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))),
            shape=(3 * classes + bins, len(labels)),
        )

    def scores(self, counts: Floats) -> dict[str, Floats]:
        """Compute every metric under each column of `counts` (N×R): R values each."""
        sums: Floats = np.asarray(self._matrix @ counts)
        k = self._classes
        true, hits, predicted, gaps = sums[:k], sums[k : 2 * k], sums[2 * k : 3 * k], sums[3 * k :]
        present = true > 0
        recall = hits / np.maximum(true, 1)
        f1 = 2 * hits / np.maximum(true + predicted, 1)
        images = counts.sum(0)
        return {
            "macro_f1": (f1 * present).sum(0) / present.sum(0),
            "balanced_accuracy": (recall * present).sum(0) / present.sum(0),
            "worst_class_recall": np.where(present, recall, 1.0).min(0),
            "expected_calibration_error": np.abs(gaps).sum(0) / images,
            "accuracy": hits.sum(0) / images,
        }


def reliability(
    labels: Integers, probabilities: Probabilities, bins: int
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Return mean confidence, accuracy (both 0 to 1; NaN in an empty bin) and images of each bin.

    References
    ----------
    Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599, section 2.
    """
    hit = probabilities.argmax(1) == labels
    place, _ = _bin_gaps(probabilities, hit, bins)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(place, weights=probabilities.max(1), minlength=bins) / counts
        accuracy = np.bincount(place, weights=hit, minlength=bins) / counts
    return confidence, accuracy, counts.astype(np.int64)


def calibration_error(labels: Integers, probabilities: Probabilities, bins: int) -> float:
    """Return the expected calibration error, 0 to 1, over `bins` of confidence."""
    scores = _ImageSums(labels, probabilities, bins).scores(np.ones((len(labels), 1)))
    return float(scores["expected_calibration_error"][0])


def _bin_gaps(probabilities: Probabilities, hit: NDArray[np.bool_], bins: int) -> tuple[Integers, Floats]:
    """Return the confidence bin of each image, (low, high], and its hit (0 or 1) less its confidence."""
    confidence = probabilities.max(1).astype(np.float64)
    place = np.clip(np.ceil(confidence * bins) - 1, 0, bins - 1).astype(np.int64)
    return place, hit - confidence


def scores_of(labels: Integers, probabilities: Probabilities) -> dict[str, float]:
    """Compute `FOLD_METRICS` of one model; a class without images does not enter the means.

    Parameters
    ----------
    labels : int64, N, at least one
    probabilities : N×K
    """
    found = _ImageSums(labels, probabilities, 1).scores(np.ones((len(labels), 1)))
    return {metric: float(found[metric][0]) for metric in FOLD_METRICS}


def fold_means(folds: pd.DataFrame, confidence: float = 0.95) -> dict[str, dict[str, float]]:
    """Average each of `FOLD_METRICS` over the folds (`value`), with a t interval (`low`, `high`).

    The folds' training sets overlap, so that the interval is somewhat too narrow (Bengio & Grandvalet, No
    Unbiased Estimator of the Variance of K-Fold Cross-Validation, JMLR 5, 2004).

    Parameters
    ----------
    folds : a row a fold; of a single one the interval is the value
    confidence : of the interval, 0 to 1
    """
    from scipy.stats import t as student

    means = {}
    for metric in FOLD_METRICS:
        values = folds[metric].to_numpy(np.float64)
        half = 0.0
        if len(values) > 1:
            quantile = float(student.ppf((1 + confidence) / 2, len(values) - 1))
            half = quantile * float(values.std(ddof=1)) / len(values) ** 0.5
        mean = float(values.mean())
        # All of them are shares: an interval by t knows nothing of 0 and 1.
        means[metric] = Interval(mean, max(0.0, mean - half), min(1.0, mean + half)).rounded()
    return means


def confusion(labels: Integers, predicted: Integers, classes: int) -> Integers:
    """Count images by true class (rows) and predicted class (columns), K×K."""
    from sklearn.metrics import confusion_matrix

    matrix: Integers = confusion_matrix(labels, predicted, labels=np.arange(classes)).astype(np.int64)
    return matrix


def per_class(labels: Integers, predicted: Integers, classes: list[str]) -> pd.DataFrame:
    """Tabulate `class`, `support`, `precision`, `recall` and `f1` (0 to 1), a row a class.

    NaN where a figure has no meaning: precision of a class that was never predicted, recall of one
    that is not in the test split, F1 of one that is neither.
    """
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=np.arange(len(classes)), zero_division=np.nan
    )
    return pd.DataFrame(
        {
            "class": classes,
            "support": support.astype(np.int64),
            "precision": precision,
            "recall": recall,
            "f1": f1,
        }
    )


def detector_scores(flagged: NDArray[np.bool_], wrong: NDArray[np.bool_]) -> dict[str, float | int]:
    """Score how well a noise detector found the labels that are known to be wrong.

    Parameters
    ----------
    flagged, wrong : bool, N; what the detector says and what is true of each sample

    Returns
    -------
    `precision`, `recall` and `f1` (0 to 1; 0 where nothing was flagged), `planted` and `flagged`
    (counts); empty where nothing is wrong, since there is nothing to find.
    """
    if not wrong.any():
        return {}
    hits = int((flagged & wrong).sum())
    planted, found = int(wrong.sum()), int(flagged.sum())
    return {
        "precision": _round(hits / found if found else 0.0),
        "recall": _round(hits / planted),
        "f1": _round(2 * hits / (planted + found)),
        "planted": planted,
        "flagged": found,
    }


def _interval(value: Floats, draws: Floats, confidence: float) -> Interval:
    """Make an interval of a value (one number in an array) and its bootstrap distribution."""
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(value[0]), float(low), float(high))


def _round(value: float, digits: int = 6) -> float:
    """Round, and drop the sign of a negative zero."""
    return round(value, digits) + 0.0
