"""Losses for classes that are unequally common."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from stages.dataset import View
from stages.learning.losses.objective import Objective, Pointwise

_LEAST_DOUBT = 1e-7  # what 1 - p is at least: powers below 1 have no gradient at 0


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


def margins(data: View, largest: float) -> Tensor:
    """LDAM's margin of each class, K: n^(-1/4) of its size, scaled so that the rarest has the `largest`.

    The size is the effective one of a weighted sample, (Σw)² / Σw² (Kish 1965): class weights leave it as
    it is, and an image of weight zero does not count. A class without any has the largest margin.
    """
    weights = data.weights.astype(np.float64)
    mass, squares = (
        np.bincount(data.labels, weights=values, minlength=len(data.classes))
        for values in (weights, weights**2)
    )
    sizes = mass**2 / np.where(squares > 0, squares, 1.0)
    sizes = np.where(sizes > 0, sizes, sizes[sizes > 0].min(initial=sizes.max()))
    sizes = np.where(sizes > 0, sizes, 1.0)  # no class weighs anything
    return torch.from_numpy(largest * (sizes / sizes.min()) ** -0.25).float()


class Focal(Pointwise):
    """(1 - p)^γ times cross-entropy: less for what is right already (Lin et al., arXiv 1708.02002)."""

    def __init__(self, gamma: float, smoothing: float = 0.0) -> None:
        super().__init__(smoothing)
        self.gamma = gamma

    def of(self, log_probs: Tensor) -> Tensor:
        """See `Pointwise`."""
        doubt = (-torch.expm1(log_probs)).clamp_min(_LEAST_DOUBT)
        return -(doubt**self.gamma) * log_probs


class BalancedSoftmax(Objective):
    """Cross-entropy of logits moved by the log of each class's share (Ren et al., arXiv 2007.10740).

    In prediction, without it, the model speaks for classes that are equally common.
    """

    shares: Tensor

    def __init__(self, shares: Tensor, smoothing: float = 0.0) -> None:
        super().__init__(smoothing)
        self.register_buffer("shares", shares)

    def losses(self, logits: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        """See `Objective`."""
        log_probs = functional.log_softmax(logits + self.shares, 1)
        own = functional.nll_loss(log_probs, labels, reduction="none")
        # Spread evenly, it would ask of the moved logits that rare classes be as likely as common ones.
        spread = -(self.shares.exp() * log_probs).sum(1)
        return (1 - self.smoothing) * own + self.smoothing * spread


class LDAM(Objective):
    """Cross-entropy that asks a margin of the label's logit, larger for rarer classes.

    Label-distribution-aware margins (Cao et al., arXiv 1906.07413), with `class_weighting` and `deferred`
    the paper's LDAM-DRW. There the logits are cosines times `scale`; here the head is a plain linear one,
    so that a model is the same whatever it was trained by, and its logits are taken as scaled already.

    Parameters
    ----------
    margins : K; of cosines, see `margins`
    scale : what they are multiplied by, for logits
    """

    margins: Tensor

    def __init__(self, margins: Tensor, scale: float, smoothing: float = 0.0) -> None:
        super().__init__(smoothing)
        self.register_buffer("margins", margins * scale)

    def losses(self, logits: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        """See `Objective`."""
        asked = functional.one_hot(labels, logits.shape[1]) * self.margins
        own = functional.cross_entropy(logits - asked, labels, reduction="none")
        if self.smoothing == 0:
            return own
        # Of the logits as they are: asked of the moved ones, even targets would undo the margin.
        spread = -functional.log_softmax(logits, 1).mean(1)
        return (1 - self.smoothing) * own + self.smoothing * spread
