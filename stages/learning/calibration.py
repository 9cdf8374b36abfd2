"""Calibrate how confident a model is, by a temperature that is fitted on validation images.

It is apart from `prediction`, which travels with every logged model and needs nothing of the data contract.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stages.dataset.base import View
from stages.learning.models import Classifier
from stages.learning.names import Device
from stages.learning.prediction import predict_logits

# Tried are temperatures from 0.2 to 5 in steps of five percent, and shares of wrong labels.
_LOG_TEMPERATURES = np.arange(-32, 33) * 0.05

_SHARES = np.arange(61) * 0.01
_PRIOR = 1 / 3  # standard deviation of log T about 0: it decides where there are few images
_MOST = 5_000  # images: more tell nothing more


@dataclass(frozen=True)
class Calibration:
    """The calibration of a model by validation images.

    Attributes
    ----------
    temperature : what logits are divided by for probabilities; 1 leaves them as they are
    wrong_labels : share of the validation labels that are wrong, as estimated with it, 0 to 1
    images : validation images that it was fitted to
    """

    temperature: float = 1.0
    wrong_labels: float = 0.0
    images: int = 0


def calibrate(model: Classifier, val: View, device: Device = "auto") -> Calibration:
    """Fit the temperature of a trained `model` on `val`, and set it in `model.spec`.

    Fitted without test-time augmentation. Without validation images the temperature is 1.
    """
    calibration = Calibration()
    if len(val):
        calibration = fit_temperature(predict_logits(model, val.images, device), val.labels)
    model.spec = replace(model.spec, temperature=calibration.temperature)
    return calibration


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> Calibration:
    """Fit the temperature under which `labels`, some of them wrong, are likeliest.

    With wrong labels a temperature by itself would make the model unsure of what it is right in. So the
    share ε of labels that say nothing is fitted too: P(given label) = (1 - ε) softmax(z / T) + ε / K. That
    log T is near 0 is assumed beforehand (a normal distribution), as little as some ten images outweigh.

    Parameters
    ----------
    logits : N×K, one row or more
    labels : int64, N; as given

    Raises
    ------
    ValueError
        Where there are no images.

    References
    ----------
    Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599, section 4.2.
    """
    if len(labels) == 0:
        raise ValueError("there are no images to fit a temperature to")
    every = -(-len(labels) // _MOST)
    values, given = logits[::every].astype(np.float64), labels[::every]
    classes = values.shape[1]
    values = values - values.max(1, keepdims=True)
    best, chosen = -np.inf, (0, 0)
    for place, log_temperature in enumerate(_LOG_TEMPERATURES):
        odds = np.exp(values / np.exp(log_temperature))
        of_label = odds[np.arange(len(given)), given] / odds.sum(1)
        mixed = (1 - _SHARES) * of_label[:, None] + _SHARES / classes
        likelihood = np.log(np.maximum(mixed, 1e-12)).sum(0) - 0.5 * (log_temperature / _PRIOR) ** 2
        share = int(likelihood.argmax())
        if likelihood[share] > best:
            best, chosen = float(likelihood[share]), (place, share)
    temperature = round(float(np.exp(_LOG_TEMPERATURES[chosen[0]])), 4)
    wrong = round(float(_SHARES[chosen[1]]) * (classes - 1) / classes, 4)
    return Calibration(temperature, wrong, len(given))
