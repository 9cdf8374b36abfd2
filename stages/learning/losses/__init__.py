"""Losses by their names."""

from __future__ import annotations

from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from stages.dataset import View
from stages.errors import WinnowError
from stages.learning.names import Loss
from stages.learning.recipe import Recipe


def log_shares(data: View, sampling: str) -> Tensor:
    """Log of the share of each class, K, in the mass that the batches are drawn from.

    A class without any counts as the rarest that has some: at zero, training would leave its logit as it
    was initialised, and free to win.
    """
    mass = np.bincount(data.labels, weights=data.weights, minlength=len(data.classes)).astype(np.float64)
    if sampling == "balanced":
        mass = mass / np.maximum(data.class_counts, 1)
    mass = np.where(mass > 0, mass, mass[mass > 0].min(initial=mass.max()))
    return torch.from_numpy(np.log(mass / mass.sum())).float()


class Objective(nn.Module):
    """A loss over a batch, one value an image: cross-entropy, or a subclass's.

    Parameters
    ----------
    smoothing : share of the target that is spread over all classes
    """

    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__()
        self.smoothing = smoothing

    def forward(self, logits: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        """Losses, float32 N, not weighted.

        Parameters
        ----------
        logits : N×K
        labels : int64, N
        index : int64, N; which samples of the training data they are, for what is remembered of each
        """
        return functional.cross_entropy(
            logits.float(), labels, label_smoothing=self.smoothing, reduction="none"
        )


class BalancedSoftmax(Objective):
    """Cross-entropy of logits moved by the log of each class's share (Ren et al., arXiv 2007.10740).

    In prediction, without it, the model speaks for classes that are equally common.
    """

    shares: Tensor

    def __init__(self, shares: Tensor, smoothing: float = 0.0) -> None:
        super().__init__(smoothing)
        self.register_buffer("shares", shares)

    def forward(self, logits: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        """See `Objective`."""
        log_probs = functional.log_softmax(logits.float() + self.shares, 1)
        own = functional.nll_loss(log_probs, labels, reduction="none")
        # Spread evenly, it would ask of the moved logits that rare classes be as likely as common ones.
        spread = -(self.shares.exp() * log_probs).sum(1)
        return (1 - self.smoothing) * own + self.smoothing * spread


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
        For a name that is not in the catalogue; the message lists those that are.
    """
    if recipe.loss == "cross_entropy":
        return Objective(recipe.label_smoothing)
    if recipe.loss == "balanced_softmax":
        return BalancedSoftmax(log_shares(data, recipe.sampling), recipe.label_smoothing)
    raise WinnowError(f"unknown loss {recipe.loss!r}; known: {', '.join(get_args(Loss))}")
