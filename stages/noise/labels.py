"""Which labels are wrong, from given labels and out-of-sample predicted probabilities."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.errors import WinnowError

CLEANLAB_RULES = (
    "prune_by_class",
    "prune_by_noise_rate",
    "both",
    "confident_learning",
    "predicted_neq_given",
    "low_normalized_margin",
    "low_self_confidence",
)
RULES = ("auto", "margin", *CLEANLAB_RULES)

_MARGIN = 0.2
# Shares of labels that the model contradicts between which `auto` lets the margin fall to zero.
_SOME_NOISE, _MUCH_NOISE = 0.25, 0.40
_TOLERANCE = 5e-3  # what float16 leaves of a sum of ten


def find_label_errors(labels: ArrayLike, pred_probs: ArrayLike, rule: str = "auto") -> NDArray[np.bool_]:
    """Flag the labels that are probably wrong.

    Parameters
    ----------
    labels : integers, N; the given labels, 0 to K-1
    pred_probs : floats, N×K; predicted probabilities by models that did not see the sample; rows
        sum to 1
    rule : one of `RULES`

        `margin`
            the best other class is likelier than the given one by more than 0.2.
        `auto`
            `margin`, with a threshold that follows the share of labels which the model contradicts:
            0.2 up to a share of 25 %, falling to 0 at 40 %. Where labels are mostly right, a weak
            disagreement is more often the model's mistake; where they are mostly wrong, it is the
            label's. On arrays published with CIFAR-10N no single threshold is best for both.
        cleanlab's `filter_by` names
            see `cleanlab.filter.find_label_issues`; confident learning is Northcutt, Jiang and
            Chuang, arXiv 1911.00068.

    Returns
    -------
    bool array, N; True where the label is probably wrong. The inputs are left as they are.

    Raises
    ------
    WinnowError
        For an unknown rule, lengths that differ, labels out of range, and probabilities that are
        not.
    """
    given, probabilities = _validated(labels, pred_probs)
    if rule not in RULES:
        raise WinnowError(f"unknown rule {rule!r}; the rules are {', '.join(RULES)}")
    if len(given) == 0:
        return np.zeros(0, bool)
    if rule == "margin":
        return label_margin(given, probabilities) < -_MARGIN
    if rule == "auto":
        margin = label_margin(given, probabilities)
        return margin < -_auto_threshold(float((margin < 0).mean()))
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


def _auto_threshold(contradicted: float) -> float:
    share = (_MUCH_NOISE - contradicted) / (_MUCH_NOISE - _SOME_NOISE)
    return _MARGIN * float(np.clip(share, 0.0, 1.0))


def _by_cleanlab(labels: NDArray[np.int64], pred_probs: NDArray[np.float64], rule: str) -> NDArray[np.bool_]:
    from cleanlab.filter import find_label_issues

    # cleanlab wants every class in the labels: a class without a sample can neither err nor help.
    present = np.unique(labels)
    if len(present) < 2:
        return np.zeros(len(labels), bool)
    probabilities = pred_probs[:, present]
    total = np.maximum(probabilities.sum(1, keepdims=True), 1e-12)
    mask = find_label_issues(
        np.searchsorted(present, labels), probabilities / total, filter_by=rule, n_jobs=1, verbose=False
    )
    return np.asarray(mask, bool)


def _validated(labels: ArrayLike, pred_probs: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    given = np.asarray(labels)
    probabilities = np.asarray(pred_probs, dtype=np.float64)
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
