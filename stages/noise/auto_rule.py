"""The rule `auto`: how many labels are wrong, which ones, and where rare classes need more evidence.

No single threshold suits all data: the share of contradictions that are the label's mistake, not the
model's, runs from a third (a weak model, few wrong labels) to nearly all (a strong one, many). So the
number of wrong labels is estimated first, and as many of the worst-ranked labels are flagged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

# How far predictions are corrected for the frequency of classes: 0 not at all, 1 wholly. Wholly would
# ask too much of common classes, not at all would sacrifice the rare ones.
_CORRECTION = 0.5
_CLEARLY = 0.7  # log odds, a ratio of 2, from which a contradiction counts as clear
_PAIR_WEIGHT, _PAIR_PRIOR = 0.5, 20.0
_RARE_WEIGHT = 2.0
_TINY = 1e-9

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


@dataclass(frozen=True)
class _Evidence:
    """What every step looks at.

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


def automatic_errors(labels: Labels, pred_probs: Floats) -> NDArray[np.bool_]:
    """Flag the labels that are probably wrong; see `find_label_errors` for how it decides.

    Parameters
    ----------
    labels : N; 0 to K-1
    pred_probs : N×K, out of sample; rows sum to 1
    """
    evidence = _evidence(labels, pred_probs)
    wrong = round(_error_rate(evidence, pred_probs) * len(labels))
    score = evidence.log_odds + _PAIR_WEIGHT * _pair_evidence(evidence)
    if wrong == 0:
        return np.zeros(len(labels), bool)
    # Not the first so many: of equal scores, as saturated models give, all are flagged or none.
    flagged = score >= np.partition(score, -wrong)[-wrong]
    return flagged & (evidence.log_odds > _rare_class_bar(labels, evidence.classes))


def estimate_error_rate(labels: Labels, pred_probs: Floats) -> float:
    """The share of wrong labels, 0 to 1: the mean of three estimates that err in different ways.

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
    most = (0.45 + 0.45 / _POWERS) * (1.0 - 1.0 / evidence.classes) / 0.9
    mistakes = np.minimum(most[:, None] * rank ** _POWERS[:, None], 0.97)  # powers × bins
    noise_, mistakes_ = noise[:, :, None, :], mistakes[None, None]
    expected = noise_ * (1.0 - _REPEATED * mistakes_) + (1.0 - noise_) * mistakes_
    expected = np.clip(expected, 1e-6, 1.0 - 1e-6)
    log_posterior = np.log(expected) @ hits + np.log1p(-expected) @ (size - hits)
    log_posterior -= 0.5 * ((_SLOPES - _SLOPE_MEAN) / _SLOPE_SD)[None, :, None] ** 2
    posterior = np.exp(log_posterior - log_posterior.max())
    return float((posterior.sum(2) * (noise @ size / count)).sum() / posterior.sum())


def _confident_joint_rate(labels: Labels, pred_probs: Floats) -> float:
    """The share of wrong labels by confident learning (Northcutt, Jiang and Chuang, arXiv 1911.00068).

    A sample counts as of the likeliest class among those whose probability reaches the mean of the
    samples that bear its label; rows of the count are scaled to the given labels' frequencies.
    """
    classes = pred_probs.shape[1]
    frequency = np.bincount(labels, minlength=classes)
    rows = np.arange(len(labels))
    own = np.bincount(labels, weights=pred_probs[rows, labels], minlength=classes)
    # Nothing reaches the threshold of a class that nobody bears.
    threshold = np.where(frequency > 0, own / np.maximum(frequency, 1), np.inf)
    reached = np.where(pred_probs >= threshold - 1e-12, pred_probs, -1.0)
    confident = reached.argmax(1)
    counted = reached[rows, confident] >= 0
    agreed = np.bincount(labels[counted & (confident == labels)], minlength=classes)
    total = np.bincount(labels[counted], minlength=classes)
    right = np.where(total > 0, agreed / np.maximum(total, 1), 1.0)
    return 1.0 - float((right * frequency).sum() / len(labels))


def _pair_evidence(evidence: _Evidence) -> Floats:
    """How much oftener than chance confident predictions of the suggested class bear the given label.

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
    cells = predicted[counted] * classes + labels[counted]
    pairs = np.bincount(cells, minlength=classes * classes).reshape(classes, classes)
    total = pairs.sum(1, keepdims=True)
    share = (pairs * (classes - 1.0) + _PAIR_PRIOR) / (total + _PAIR_PRIOR)
    evidence_: Floats = np.log(share[evidence.suggested, labels])
    return evidence_


def _runs(*keys: NDArray[np.generic]) -> Labels:
    """The number of the run, from 0, that each position of sorted keys is in."""
    new = np.zeros(len(keys[0]), bool)
    for key in keys:
        new[1:] |= key[1:] != key[:-1]
    return np.cumsum(new)


def _rare_class_bar(labels: Labels, classes: int) -> Floats:
    """The log odds that each label has to be contradicted with, 0 or more.

    A model that saw few samples of a class seldom predicts it, so that good samples of rare classes
    are the first to be contradicted. A class of half the median's size needs odds of 4 to 1.
    """
    size = np.bincount(labels, minlength=classes)
    median = np.median(size[size > 0])
    bar: Floats = _RARE_WEIGHT * np.maximum(0.0, np.log(median / np.maximum(size, 1)))
    return bar[labels]
