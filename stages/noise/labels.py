"""Which labels are wrong, from given labels and out-of-sample predicted probabilities."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.errors import WinnowError
from stages.noise.auto_rule import automatic_errors

CLEANLAB_RULES = (
    "prune_by_class",
    "prune_by_noise_rate",
    "both",
    "confident_learning",
    "predicted_neq_given",
    "low_normalized_margin",
    "low_self_confidence",
)
RULES = ("auto", "margin", "corrected_margin", *CLEANLAB_RULES)

_TOLERANCE = 5e-3  # what float16 leaves of a sum of ten


def find_label_errors(
    labels: ArrayLike, pred_probs: ArrayLike, rule: str = "auto", *, margin: float = 0.2
) -> NDArray[np.bool_]:
    """Flag the labels that are probably wrong.

    Parameters
    ----------
    labels : integers, N; the given labels, 0 to K-1
    pred_probs : floats, N×K; predicted probabilities by models that did not see the sample; rows
        sum to 1
    rule : one of `RULES`

        `auto`
            decides from `labels` and `pred_probs` alone, in four steps. (1) Probabilities are divided by
            the root of each class's mean, so that common classes do not outvote rare ones. (2) The
            number of wrong labels is the mean of three estimates: the share of contradictions among
            the model's most confident predictions, extrapolated to the others beside a curve for the
            model's own mistakes; the confident joint (Northcutt, Jiang and Chuang, arXiv 1911.00068);
            and the contradictions at odds of 2 to 1 or more. (3) That many labels are flagged, by the
            odds of the likeliest other class against the given one, times a power of how much oftener
            than chance confident contradictions are of this pair of classes. (4) No label is flagged
            that the model does not contradict, and for classes smaller than the median one the odds
            have to be the larger, the rarer the class is.
        `margin`
            the likeliest other class is likelier than the given one by more than `margin`
        `corrected_margin`
            the same after dividing each class's probability by its share of the given labels
        cleanlab's `filter_by` names
            see `cleanlab.filter.find_label_issues`
    margin : -1 to 1; of the two rules with that name

    Returns
    -------
    bool array, N; True where the label is probably wrong. The inputs are left as they are.

    Raises
    ------
    WinnowError
        For an unknown rule, a margin out of range, lengths that differ, labels out of range, and
        probabilities that are not.
    """
    given, probabilities = _validated(labels, pred_probs)
    if rule not in RULES:
        raise WinnowError(f"unknown rule {rule!r}; the rules are {', '.join(RULES)}")
    if not -1.0 <= margin <= 1.0:
        raise WinnowError(f"margin must lie in -1 to 1, not {margin}")
    # Of labels that all are of one class none can be told from the others.
    if len(np.unique(given)) < 2:
        return np.zeros(len(given), bool)
    if rule == "auto":
        return automatic_errors(given, probabilities)
    if rule == "margin":
        return label_margin(given, probabilities) < -margin
    if rule == "corrected_margin":
        share = np.bincount(given, minlength=probabilities.shape[1]) / len(given)
        corrected = np.where(share > 0, probabilities / np.maximum(share, 1e-12), 0.0)
        corrected /= np.maximum(corrected.sum(1, keepdims=True), 1e-12)
        return label_margin(given, corrected) < -margin
    return _by_cleanlab(given, probabilities, rule)


def better_than_chance(labels: ArrayLike, pred_probs: ArrayLike) -> bool:
    """Whether the model agrees with the given labels measurably more than guessing would.

    The mean recall over the classes is held against 1/K by two standard errors. Where it does not
    pass, the model has learned too little to contradict anybody, and its disagreements say nothing.

    Parameters and errors are those of `find_label_errors`.
    """
    given, probabilities = _validated(labels, pred_probs)
    if len(given) == 0:
        return False
    present, counts = np.unique(given, return_counts=True)
    hit = probabilities.argmax(1) == given
    recall = np.mean([hit[given == label].mean() for label in present])
    chance = 1.0 / len(present)
    error = float(np.sqrt((chance * (1.0 - chance) / counts).sum())) / len(present)
    return bool(recall > chance + 2.0 * error)


def label_margin(labels: NDArray[np.int64], pred_probs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability of the given label less that of the likeliest other one: -1 to 1, low is bad."""
    rows = np.arange(len(labels))
    others = pred_probs.copy()
    others[rows, labels] = -np.inf
    margin: NDArray[np.float64] = pred_probs[rows, labels] - others.max(1)
    return margin


def suggest_labels(
    labels: NDArray[np.int64], pred_probs: NDArray[np.floating]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The likeliest class other than the given one, and its probability."""
    others = pred_probs.astype(np.float64)
    rows = np.arange(len(labels))
    others[rows, labels] = -np.inf
    suggested = others.argmax(1)
    return suggested.astype(np.int64), others[rows, suggested]


def _by_cleanlab(labels: NDArray[np.int64], pred_probs: NDArray[np.float64], rule: str) -> NDArray[np.bool_]:
    from cleanlab.filter import find_label_issues

    # cleanlab wants every class in the labels: a class without a sample can neither err nor help.
    present = np.unique(labels)
    probabilities = pred_probs[:, present]
    total = np.maximum(probabilities.sum(1, keepdims=True), 1e-12)
    mask = find_label_issues(
        np.searchsorted(present, labels), probabilities / total, filter_by=rule, n_jobs=1, verbose=False
    )
    return np.asarray(mask, bool)


def _validated(labels: ArrayLike, pred_probs: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    try:
        given = np.asarray(labels)
        probabilities = np.asarray(pred_probs, dtype=np.float64)
    except (TypeError, ValueError) as error:  # text, or rows of different lengths
        raise WinnowError(f"labels and pred_probs must be arrays of numbers: {error}") from error
    if probabilities.ndim != 2 or probabilities.shape[1] < 2:
        raise WinnowError(f"pred_probs must be N×K with K of at least 2, not {probabilities.shape}")
    if given.shape != probabilities.shape[:1]:
        raise WinnowError(f"labels must be {probabilities.shape[0]} long, not {given.shape}")
    if len(given) == 0:
        return given.astype(np.int64), probabilities
    if not np.issubdtype(given.dtype, np.integer):
        raise WinnowError(f"labels must be integers from 0 to K-1, not {given.dtype}")
    if given.min() < 0 or given.max() >= probabilities.shape[1]:
        raise WinnowError(
            f"labels must lie in 0 to {probabilities.shape[1] - 1}, not {given.min()} to {given.max()}"
        )
    if not np.isfinite(probabilities).all() or (probabilities < 0).any():
        raise WinnowError("pred_probs holds NaN, infinity or a negative number")
    if np.abs(probabilities.sum(1) - 1).max() > _TOLERANCE:
        raise WinnowError("the rows of pred_probs must sum to 1")
    return given.astype(np.int64), probabilities
