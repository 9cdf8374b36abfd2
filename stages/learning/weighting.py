"""Weights of training samples: a cap on what made ones weigh, and the weights of classes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from stages.dataset import View
from stages.learning.names import ClassWeighting

_ROUNDING = 1e-6  # weights are float32: a sum that only rounding lifts over the cap is not over it


def cap_made(data: View, made: NDArray[np.bool_], limit: float) -> tuple[View, dict[str, float]]:
    """`data` with made samples scaled down where those of a class outweigh its real ones too far.

    Parameters
    ----------
    data : real and made samples, before class weighting
    made : N; which samples are made ones: augmented and synthetic alike
    limit : the made samples of a class may weigh so many times together what its real ones do

    Returns
    -------
    view : `data` itself where no class is over the limit
    factors : by name of each class that was, what its made samples' weights were multiplied by. A class
        without real samples has no limit.
    """
    parts = [
        np.bincount(data.labels[rows], weights=data.weights[rows], minlength=len(data.classes))
        for rows in (made, ~made)
    ]
    made_mass, allowed = parts[0], limit * parts[1]
    over = (allowed > 0) & (made_mass > allowed * (1 + _ROUNDING))
    if not over.any():
        return data, {}
    factor = np.where(over, allowed / np.maximum(made_mass, 1e-12), 1.0)
    weights = np.where(made, data.weights * factor[data.labels], data.weights).astype(np.float32)
    factors = {data.classes[label]: float(factor[label]) for label in np.flatnonzero(over)}
    return replace(data, weights=weights), factors


def class_weighted(data: View, mode: ClassWeighting, beta: float = 0.9999) -> View:
    """`data` with the weight of each class multiplied by what `mode` says.

    `balanced` is 1/n, `sqrt` 1/√n, `effective` (1 - β) / (1 - βⁿ), the inverse of the effective number of
    samples (Cui et al., arXiv 1901.05555). n is the summed weight of the class, so that down-weighted
    samples count as what they weigh.
    """
    if mode == "none":
        return data
    mass = np.bincount(data.labels, weights=data.weights, minlength=len(data.classes))
    mass = np.maximum(mass, 1e-8)
    if mode == "effective":
        factor = (1 - beta) / -np.expm1(mass * np.log(beta))
    else:
        factor = 1.0 / mass ** (1.0 if mode == "balanced" else 0.5)
    weights = data.weights * factor[data.labels]
    return replace(data, weights=(weights / weights.mean()).astype(np.float32))
