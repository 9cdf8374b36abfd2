"""Losses for labels that are partly wrong."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from stages.errors import WinnowError
from stages.learning.losses.objective import Objective, Pointwise

# Of symmetric cross-entropy: what stands for the log of zero, and of early-learning regularisation:
# how near to 0 and 1 a probability may come. Both are the published code's.
_LOG_ZERO = float(np.log(1e-4))
_CLAMP = 1e-4
_LEAST_DIAGONAL = 1e-6


class GeneralisedCrossEntropy(Pointwise):
    """(1 - p^q) / q of the label's probability p (Zhang & Sabuncu, arXiv 1805.07836).

    Bounded: a label that the model is sure is wrong pulls little. q → 0 is cross-entropy, 1 is the mean
    absolute error, which nothing wrong can mislead and which learns slowly.
    """

    def __init__(self, q: float, smoothing: float = 0.0) -> None:
        super().__init__(smoothing)
        self.q = q

    def of(self, log_probs: Tensor) -> Tensor:
        """See `Pointwise`."""
        if self.q == 0:
            return -log_probs
        return -torch.expm1(self.q * log_probs) / self.q


class SymmetricCrossEntropy(Pointwise):
    """α times cross-entropy plus β times reverse cross-entropy (Wang et al., arXiv 1908.06112).

    The reverse, of the label given the prediction, is 1 - p times a constant, since the log of a one-hot
    label is 0 or minus infinity, which log 10⁻⁴ stands for as in the published code.
    """

    def __init__(self, alpha: float, beta: float, smoothing: float = 0.0) -> None:
        super().__init__(smoothing)
        self.alpha, self.beta = alpha, beta

    def of(self, log_probs: Tensor) -> Tensor:
        """See `Pointwise`."""
        return self.beta * _LOG_ZERO * torch.expm1(log_probs) - self.alpha * log_probs


class ForwardCorrection(Objective):
    """Cross-entropy of what the given label would be, were the model right about the true one.

    The model's probabilities pass through the transition matrix on the way to the loss, and are those of
    true classes without it (Patrini et al., arXiv 1609.03683). Label smoothing spreads the given label.
    """

    transition: Tensor

    def __init__(self, transition: NDArray[np.float64], smoothing: float = 0.0) -> None:
        super().__init__(smoothing)
        self.register_buffer("transition", torch.from_numpy(transition).float())

    def losses(self, logits: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        """See `Objective`."""
        log_probs = functional.log_softmax(logits, 1)
        # By logarithms: a probability that float32 rounds to zero still has a gradient.
        own = -torch.logsumexp(log_probs + self.transition[:, labels].T.log(), 1)
        if self.smoothing == 0:
            return own
        given = log_probs.exp() @ self.transition
        spread = -given.clamp_min(torch.finfo(given.dtype).tiny).log().mean(1)
        return (1 - self.smoothing) * own + self.smoothing * spread


class EarlyLearning(Objective):
    """Cross-entropy, held to what the model said of each image before (Liu et al., arXiv 2007.00151).

    Networks learn right labels before wrong ones. A moving average of each image's predictions
    remembers that, and log(1 - ⟨p, average⟩) pulls the model towards it. The loss may be negative.
    Label smoothing is cross-entropy's alone.

    Attributes
    ----------
    memory : float32, samples × K; the moving averages, zero for an image that was not seen yet
    """

    memory: Tensor

    def __init__(
        self, samples: int, classes: int, strength: float, decay: float, smoothing: float = 0.0
    ) -> None:
        super().__init__(smoothing)
        self.strength, self.decay = strength, decay
        self.register_buffer("memory", torch.zeros(samples, classes))

    def losses(self, logits: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        """See `Objective`."""
        probs = logits.softmax(1).clamp(_CLAMP, 1 - _CLAMP)
        remembered = self._remember(probs.detach(), index)
        agreement = (remembered * probs).sum(1)
        return super().losses(logits, labels, index) + self.strength * torch.log1p(-agreement)

    @torch.no_grad()
    def _remember(self, probs: Tensor, index: Tensor) -> Tensor:
        said = probs / probs.sum(1, keepdim=True)
        # An image that is in the batch twice remembers the mean: else it were chance which is kept.
        same = (index[:, None] == index).float()
        said = (same / same.sum(1, keepdim=True)) @ said
        remembered = self.decay * self.memory[index] + (1 - self.decay) * said
        self.memory[index] = remembered
        return remembered


def checked_transition(transition: NDArray[np.float64] | None, classes: int) -> NDArray[np.float64]:
    """A transition matrix that forward correction can use: float64, K×K, rows (true classes) sum to 1.

    A class without support (a row of zeros, or of no numbers) counts as never mislabelled, and no class
    as always mislabelled: an image that has its label would be impossible.

    Raises
    ------
    WinnowError
        Where there is no matrix, or it is of another shape, or has negative entries.
    """
    if transition is None:
        raise WinnowError(
            "loss = 'forward_correction' needs the transition matrix that detect_noise estimates, and there "
            "is none: run `dvc repro detect_noise`, or choose another loss"
        )
    matrix = np.array(transition, dtype=np.float64)
    if matrix.shape != (classes, classes):
        raise WinnowError(
            f"the transition matrix has the shape {matrix.shape}, and there are {classes} classes: run "
            "`dvc repro detect_noise` again"
        )
    if (matrix < 0).any():
        raise WinnowError("the transition matrix has negative entries: its rows are shares of labels")
    supported = np.isfinite(matrix).all(1) & (np.nan_to_num(matrix).sum(1) > 0)
    matrix = np.where(supported[:, None], matrix, np.eye(classes))
    matrix /= matrix.sum(1, keepdims=True)
    np.fill_diagonal(matrix, np.maximum(matrix.diagonal(), _LEAST_DIAGONAL))
    return matrix / matrix.sum(1, keepdims=True)
