"""Flag the labels that are probably wrong, from given labels and out-of-sample predicted probabilities.

`RULES`, at the end, is the table of all rules by name: schema and errors read it. The rule `auto` is
Winnow's own. No single threshold suits all data: the share of contradictions that are the label's mistake,
not the model's, runs from a third (a weak model, few wrong labels) to nearly all (a strong one, many). So
`auto` estimates the number of wrong labels first, and flags as many of the worst-ranked labels.

Light to import: the schema of `params.yaml` reads the names of the rules here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.errors import WinnowError

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Mask = NDArray[np.bool_]
# Takes N labels, their N×K probabilities, and the margin, which some rules ignore.
Rule = Callable[[Labels, Floats, float], Mask]

_TINY = 1e-9
_TOLERANCE = 5e-3  # of the sum of a row: what float16 leaves of a sum of ten

# How far predictions are corrected for the frequency of classes: 0 not at all, 1 wholly. Wholly would
# ask too much of common classes, not at all would sacrifice the rare ones.
_CORRECTION = 0.5
_CLEARLY = 0.7  # log odds, a ratio of 2, from which a contradiction counts as clear
_PAIR_WEIGHT, _PAIR_PRIOR = 0.5, 20.0
_RARE_WEIGHT = 2.0

# The extrapolation: a grid over level and slope of the share of wrong labels (both in logits) and over
# how steeply the model's own mistakes rise towards its least confident predictions.
_LEVELS = np.linspace(-6.0, 2.0, 41)
_SLOPES = np.linspace(-3.0, 5.0, 25)
_POWERS = np.geomspace(0.7, 25.0, 28)
_SLOPE_MEAN, _SLOPE_SD = 0.8, 1.5
_REPEATED = 0.3  # share of the model's mistakes on wrong labels that repeat the wrong label
_PIVOT = 0.3
_BINS = 40
_SMALLEST_BIN = 20


def find_label_errors(
    labels: ArrayLike, pred_probs: ArrayLike, rule: str = "auto", *, margin: float = 0.2
) -> Mask:
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
        cleanlab's names of `filter_by`
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
    return RULES[rule](given, probabilities, margin)


def better_than_chance(labels: ArrayLike, pred_probs: ArrayLike) -> bool:
    """Tell whether the model agrees with the given labels measurably more than guessing would.

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


def label_margin(labels: Labels, pred_probs: Floats) -> Floats:
    """Return the given label's probability less the likeliest other one's: -1 to 1, low is bad."""
    rows = np.arange(len(labels))
    others = pred_probs.copy()
    others[rows, labels] = -np.inf
    margin: Floats = pred_probs[rows, labels] - others.max(1)
    return margin


def suggest_labels(labels: Labels, pred_probs: NDArray[np.floating]) -> tuple[Labels, Floats]:
    """Return the likeliest class other than the given one, and its probability."""
    others = pred_probs.astype(np.float64)
    rows = np.arange(len(labels))
    others[rows, labels] = -np.inf
    suggested = others.argmax(1)
    return suggested.astype(np.int64), others[rows, suggested]


def automatic_errors(labels: Labels, pred_probs: Floats, margin: float = 0.0) -> Mask:
    """Apply the rule `auto`; see `find_label_errors` for how it decides, whatever the margin."""
    evidence = _evidence(labels, pred_probs)
    wrong = round(_error_rate(evidence, pred_probs) * len(labels))
    score = evidence.log_odds + _PAIR_WEIGHT * _pair_evidence(evidence)
    if wrong == 0:
        return np.zeros(len(labels), bool)
    # Not the first so many: of equal scores, as saturated models give, all are flagged or none.
    flagged = score >= np.partition(score, -wrong)[-wrong]
    return flagged & (evidence.log_odds > _rare_class_bar(labels, evidence.classes))


def margin_errors(labels: Labels, pred_probs: Floats, margin: float) -> Mask:
    """Flag where the likeliest other class is likelier than the given one by more than `margin`."""
    return label_margin(labels, pred_probs) < -margin


def corrected_margin_errors(labels: Labels, pred_probs: Floats, margin: float) -> Mask:
    """Do as `margin_errors`, with each class's probability divided by its share of the given labels."""
    share = np.bincount(labels, minlength=pred_probs.shape[1]) / len(labels)
    corrected = np.where(share > 0, pred_probs / np.maximum(share, 1e-12), 0.0)
    corrected /= np.maximum(corrected.sum(1, keepdims=True), 1e-12)
    return label_margin(labels, corrected) < -margin


def cleanlab_errors(labels: Labels, pred_probs: Floats, margin: float, *, filter_by: str) -> Mask:
    """Apply one of cleanlab's rules, whatever the margin."""
    from cleanlab.filter import find_label_issues

    # cleanlab wants every class in the labels: a class without a sample can neither err nor help.
    present = np.unique(labels)
    probabilities = pred_probs[:, present]
    total = np.maximum(probabilities.sum(1, keepdims=True), 1e-12)
    mask = find_label_issues(
        np.searchsorted(present, labels), probabilities / total, filter_by=filter_by, n_jobs=1, verbose=False
    )
    return np.asarray(mask, bool)


# --- the rule auto ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Evidence:
    """The predictions as every step of `auto` looks at them.

    Attributes
    ----------
    labels : N; given
    predicted : N; likeliest class of the corrected probabilities
    confidence : N; its probability
    suggested : N; likeliest class other than the given one
    log_odds : N; of the suggested class against the given one; above 0 the label is contradicted
    classes : K
    """

    labels: Labels
    predicted: Labels
    confidence: Floats
    suggested: Labels
    log_odds: Floats
    classes: int


def estimate_error_rate(labels: Labels, pred_probs: Floats) -> float:
    """Estimate the share of wrong labels, 0 to 1: the mean of three estimates that err in different ways.

    The extrapolation from confident predictions is the best of the three where there are many samples;
    it says too little where wrong labels sit on the hardest images. The confident joint says too much
    of weak models, and so do contradictions at odds of 2 to 1; both say too little of strong ones.
    """
    return _error_rate(_evidence(labels, pred_probs), pred_probs)


def _error_rate(evidence: _Evidence, pred_probs: Floats) -> float:
    estimates = (
        _extrapolated_rate(evidence),
        _confident_joint_rate(evidence.labels, pred_probs),
        float((evidence.log_odds > _CLEARLY).mean()),
    )
    return float(np.mean(estimates))


def _evidence(labels: Labels, pred_probs: Floats) -> _Evidence:
    """Correct the probabilities for the frequency of classes, and look up what `auto` needs of them."""
    # A class that no label names is not lifted: its mean is small for want of samples, not of training.
    named = np.bincount(labels, minlength=pred_probs.shape[1]) > 0
    corrected = pred_probs / np.where(named, np.maximum(pred_probs.mean(0), 1e-6) ** _CORRECTION, 1.0)
    corrected /= np.maximum(corrected.sum(1, keepdims=True), _TINY)
    rows = np.arange(len(labels))
    predicted = corrected.argmax(1)
    confidence = corrected[rows, predicted]
    given = corrected[rows, labels]
    corrected[rows, labels] = -1.0
    suggested = corrected.argmax(1)
    other = np.maximum(corrected[rows, suggested], 0.0)
    log_odds = np.log(other + _TINY) - np.log(given + _TINY)
    return _Evidence(labels, predicted, confidence, suggested, log_odds, pred_probs.shape[1])


def _extrapolated_rate(evidence: _Evidence) -> float:
    """Follow the share of contradictions from the most confident predictions to the least.

    Where a model is most confident it makes next to no mistakes: there every contradiction is a wrong
    label. From there two curves are fitted over the rank u of confidence, 0 to 1: the share of wrong
    labels, with a logit linear in u (flat for random noise, rising where people err on hard images),
    and the model's own mistakes, E u^γ with E tied to γ, as seen on many models with known labels.
    The answer is the posterior mean over a grid of both.
    """
    order = np.argsort(-evidence.confidence, kind="stable")
    contradicted = (evidence.predicted != evidence.labels)[order]
    # Equal confidences share what is found at any of them, so that the order of samples decides nothing.
    ties = _runs(evidence.confidence[order])
    contradicted = (np.bincount(ties, weights=contradicted) / np.bincount(ties))[ties]
    count = len(order)
    bins = np.array_split(contradicted, min(_BINS, max(1, count // _SMALLEST_BIN)))
    size = np.array([len(part) for part in bins], np.float64)
    hits = np.array([part.sum() for part in bins], np.float64)
    rank = (np.cumsum(size) - size / 2) / count
    slopes = _SLOPES[None, :, None] * (rank - _PIVOT)
    noise = 1.0 / (1.0 + np.exp(-(_LEVELS[:, None, None] + slopes)))  # levels × slopes × bins
    highest = (0.45 + 0.45 / _POWERS) * (1.0 - 1.0 / evidence.classes) / 0.9
    mistakes = np.minimum(highest[:, None] * rank ** _POWERS[:, None], 0.97)  # powers × bins
    noise_grid, mistakes_grid = noise[:, :, None, :], mistakes[None, None]
    expected = noise_grid * (1.0 - _REPEATED * mistakes_grid) + (1.0 - noise_grid) * mistakes_grid
    expected = np.clip(expected, 1e-6, 1.0 - 1e-6)
    log_posterior = np.log(expected) @ hits + np.log1p(-expected) @ (size - hits)
    log_posterior -= 0.5 * ((_SLOPES - _SLOPE_MEAN) / _SLOPE_SD)[None, :, None] ** 2
    posterior = np.exp(log_posterior - log_posterior.max())
    return float((posterior.sum(2) * (noise @ size / count)).sum() / posterior.sum())


def _confident_joint_rate(labels: Labels, pred_probs: Floats) -> float:
    """Estimate the share of wrong labels by confident learning (Northcutt et al., arXiv 1911.00068).

    A sample counts as of the likeliest class among those whose probability reaches the mean of the
    samples that bear its label; rows of the count are scaled to the given labels' frequencies.
    """
    classes = pred_probs.shape[1]
    frequency = np.bincount(labels, minlength=classes)
    rows = np.arange(len(labels))
    total_probability = np.bincount(labels, weights=pred_probs[rows, labels], minlength=classes)
    # Nothing reaches the threshold of a class that nobody bears.
    threshold = np.where(frequency > 0, total_probability / np.maximum(frequency, 1), np.inf)
    reached = np.where(pred_probs >= threshold - 1e-12, pred_probs, -1.0)
    confident = reached.argmax(1)
    counted = reached[rows, confident] >= 0
    agreed = np.bincount(labels[counted & (confident == labels)], minlength=classes)
    total = np.bincount(labels[counted], minlength=classes)
    right = np.where(total > 0, agreed / np.maximum(total, 1), 1.0)
    return 1.0 - float((right * frequency).sum() / len(labels))


def _pair_evidence(evidence: _Evidence) -> Floats:
    """Measure how much oftener than chance confident predictions of the suggested class bear the given label.

    Log ratios: 0 where wrong labels are spread evenly over the classes, high where, say, most wrong
    7s are called 1. Counted on the more confident half of each predicted class, whose contradictions
    are mostly wrong labels, and shrunk towards 0 where they are few.
    """
    labels, predicted, classes = evidence.labels, evidence.predicted, evidence.classes
    order = np.lexsort((-evidence.confidence, predicted))
    size = np.bincount(predicted, minlength=classes)
    first = np.cumsum(size) - size
    ties = _runs(predicted[order], evidence.confidence[order])
    better = np.flatnonzero(np.diff(ties, prepend=-1))[ties] - first[predicted[order]]
    upper = np.zeros(len(labels), bool)
    upper[order] = better < size[predicted[order]] / 2
    counted = upper & (predicted != labels)
    index = predicted[counted] * classes + labels[counted]
    pairs = np.bincount(index, minlength=classes * classes).reshape(classes, classes)
    total = pairs.sum(1, keepdims=True)
    share = (pairs * (classes - 1.0) + _PAIR_PRIOR) / (total + _PAIR_PRIOR)
    log_ratio: Floats = np.log(share[evidence.suggested, labels])
    return log_ratio


def _runs(*keys: NDArray[np.generic]) -> Labels:
    """Number the runs of equal keys, from 0, in keys that are sorted."""
    new = np.zeros(len(keys[0]), bool)
    for key in keys:
        new[1:] |= key[1:] != key[:-1]
    return np.cumsum(new)


def _rare_class_bar(labels: Labels, classes: int) -> Floats:
    """Return the log odds that each label has to be contradicted with, 0 or more.

    A model that saw few samples of a class seldom predicts it, so that good samples of rare classes
    are the first to be contradicted. A class of half the median's size needs odds of 4 to 1.
    """
    size = np.bincount(labels, minlength=classes)
    median = np.median(size[size > 0])
    bar: Floats = _RARE_WEIGHT * np.maximum(0.0, np.log(median / np.maximum(size, 1)))
    return bar[labels]


def _validated(labels: ArrayLike, pred_probs: ArrayLike) -> tuple[Labels, Floats]:
    """Return both as arrays of integers and float64, or raise a WinnowError that says what is wrong."""
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


# Every rule by its name in `detect_noise.rule`; from `prune_by_class` on the names are cleanlab's.
RULES: Mapping[str, Rule] = {
    "auto": automatic_errors,
    "margin": margin_errors,
    "corrected_margin": corrected_margin_errors,
    "prune_by_class": partial(cleanlab_errors, filter_by="prune_by_class"),
    "prune_by_noise_rate": partial(cleanlab_errors, filter_by="prune_by_noise_rate"),
    "both": partial(cleanlab_errors, filter_by="both"),
    "confident_learning": partial(cleanlab_errors, filter_by="confident_learning"),
    "predicted_neq_given": partial(cleanlab_errors, filter_by="predicted_neq_given"),
    "low_normalized_margin": partial(cleanlab_errors, filter_by="low_normalized_margin"),
    "low_self_confidence": partial(cleanlab_errors, filter_by="low_self_confidence"),
}
