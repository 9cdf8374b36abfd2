"""Losses by their names."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from stages.dataset import View
from stages.errors import WinnowError
from stages.learning.losses.imbalance import LDAM, BalancedSoftmax, Focal, log_shares, margins
from stages.learning.losses.noise import (
    EarlyLearning,
    ForwardCorrection,
    GeneralisedCrossEntropy,
    SymmetricCrossEntropy,
    checked_transition,
)
from stages.learning.losses.objective import Objective
from stages.learning.names import Loss
from stages.learning.recipe import Recipe

__all__ = ["BalancedSoftmax", "Objective", "log_shares", "make_objective"]


def make_objective(recipe: Recipe, data: View, transition: NDArray[np.float64] | None = None) -> Objective:
    """The loss that the recipe names, for the classes of `data` as common as they are there.

    Parameters
    ----------
    recipe : its `loss`, `label_smoothing` and `loss_options`
    data : with the weights that training begins with
    transition : float64, K×K, rows the true class, which sum to 1: how labels go wrong; for
        `forward_correction`

    Raises
    ------
    WinnowError
        For a name that is not in the catalogue (the message lists those that are), and for
        `forward_correction` without a transition matrix that fits.
    """
    options, smoothing, classes = recipe.loss_options, recipe.label_smoothing, len(data.classes)
    makers: dict[str, Callable[[], Objective]] = {
        "cross_entropy": lambda: Objective(smoothing),
        "generalised_cross_entropy": lambda: GeneralisedCrossEntropy(options.gce_q, smoothing),
        "symmetric_cross_entropy": lambda: SymmetricCrossEntropy(
            options.sce_alpha, options.sce_beta, smoothing
        ),
        "forward_correction": lambda: ForwardCorrection(checked_transition(transition, classes), smoothing),
        "early_learning": lambda: EarlyLearning(
            len(data), classes, options.elr_strength, options.elr_memory, smoothing
        ),
        "co_teaching": lambda: Objective(smoothing),  # the training loop chooses the images
        "focal": lambda: Focal(options.focal_gamma, smoothing),
        "balanced_softmax": lambda: BalancedSoftmax(log_shares(data, recipe.sampling), smoothing),
        "ldam": lambda: LDAM(margins(data, options.ldam_margin), options.ldam_scale, smoothing),
    }
    if recipe.loss not in makers:
        raise WinnowError(f"unknown loss {recipe.loss!r}; known: {', '.join(get_args(Loss))}")
    return makers[recipe.loss]()
