"""Compute losses by their names, for skewed classes and for wrong labels, and weights of samples in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from stages.dataset.base import View
from stages.errors import WinnowError
from stages.learning.names import ClassWeighting
from stages.learning.recipe import Recipe

_LEAST_DOUBT = 1e-7  # what 1 - p is at least: powers below 1 have no gradient at 0
# As in the published code: what stands for the log of zero in symmetric cross-entropy, and how near to 0
# and 1 a probability may come in early-learning regularisation.
_LOG_ZERO, _CLAMP = float(np.log(1e-4)), 1e-4
_LEAST_DIAGONAL = 1e-6  # of a transition matrix: no label is impossible
_ROUNDING = 1e-6  # weights are float32: a sum that only rounding lifts over the cap is not over it


class Objective(nn.Module):
    """A loss over a batch, one value an image: cross-entropy, or a subclass's.

    What it remembers of samples is in its `state_dict`.

    Parameters
    ----------
    smoothing : share of the target that is spread over all classes (Szegedy et al., arXiv 1512.00567)
    """

    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__()
        self.smoothing = smoothing

    def forward(self, logits: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        """Return losses, float32 N, not weighted; computed in float32 under autocast too.

        Parameters
        ----------
        logits : N×K, of any floating type
        labels : int64, N
        index : int64, N; which samples of the training data they are, for what is remembered of each
        """
        with torch.autocast(logits.device.type, enabled=False):
            return self.losses(logits.float(), labels, index)

    def losses(self, logits: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        """Return the losses of float32 logits; subclasses override this."""
        return functional.cross_entropy(logits, labels, label_smoothing=self.smoothing, reduction="none")


class Pointwise(Objective):
    """A loss that follows from the probability of the label alone; smoothed, its mean over targets."""

    def of(self, log_probs: Tensor) -> Tensor:
        """Return the loss of a label with this log probability, elementwise."""
        return -log_probs

    def losses(self, logits: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        """See `Objective`."""
        log_probs = functional.log_softmax(logits, 1)
        own = self.of(log_probs.gather(1, labels[:, None])[:, 0])
        if self.smoothing == 0:
            return own
        return (1 - self.smoothing) * own + self.smoothing * self.of(log_probs).mean(1)


def log_shares(data: View, sampling: str) -> Tensor:
    """Return the log of the share of each class, K, in the mass that batches are drawn from.

    A class without any counts as the rarest that has some: at zero, training would leave its logit as it
    was initialised, and free to win.
    """
    mass = np.bincount(data.labels, weights=data.weights, minlength=len(data.classes)).astype(np.float64)
    if sampling == "balanced":
        mass = mass / np.maximum(data.class_counts, 1)
    mass = np.where(mass > 0, mass, mass[mass > 0].min(initial=mass.max()))
    return torch.from_numpy(np.log(mass / mass.sum())).float()


def margins(data: View, largest: float) -> Tensor:
    """Return LDAM's margins, K: n^(-1/4) of a class's size, scaled so that the rarest has the `largest`.

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
        predicted = probs / probs.sum(1, keepdim=True)
        # An image that is in the batch twice remembers the mean: else it were chance which is kept.
        same = (index[:, None] == index).float()
        predicted = (same / same.sum(1, keepdim=True)) @ predicted
        remembered = self.decay * self.memory[index] + (1 - self.decay) * predicted
        self.memory[index] = remembered
        return remembered


def checked_transition(transition: NDArray[np.float64] | None, classes: int) -> NDArray[np.float64]:
    """Prepare a transition matrix for forward correction: float64, K×K, rows (true classes) sum to 1.

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


_Build = Callable[[Recipe, View, NDArray[np.float64] | None], Objective]

# By the names of `names.LOSSES`: of the recipe, the data, and the transition matrix.
_BUILDERS: dict[str, _Build] = {
    "cross_entropy": lambda recipe, data, matrix: Objective(recipe.label_smoothing),
    "generalised_cross_entropy": lambda recipe, data, matrix: GeneralisedCrossEntropy(
        recipe.loss_options.gce_q, recipe.label_smoothing
    ),
    "symmetric_cross_entropy": lambda recipe, data, matrix: SymmetricCrossEntropy(
        recipe.loss_options.sce_alpha, recipe.loss_options.sce_beta, recipe.label_smoothing
    ),
    "forward_correction": lambda recipe, data, matrix: ForwardCorrection(
        checked_transition(matrix, len(data.classes)), recipe.label_smoothing
    ),
    "early_learning": lambda recipe, data, matrix: EarlyLearning(
        len(data),
        len(data.classes),
        recipe.loss_options.elr_strength,
        recipe.loss_options.elr_memory,
        recipe.label_smoothing,
    ),
    # The criterion chooses the images.
    "co_teaching": lambda recipe, data, matrix: Objective(recipe.label_smoothing),
    "focal": lambda recipe, data, matrix: Focal(recipe.loss_options.focal_gamma, recipe.label_smoothing),
    "balanced_softmax": lambda recipe, data, matrix: BalancedSoftmax(
        log_shares(data, recipe.sampling), recipe.label_smoothing
    ),
    "ldam": lambda recipe, data, matrix: LDAM(
        margins(data, recipe.loss_options.ldam_margin), recipe.loss_options.ldam_scale, recipe.label_smoothing
    ),
}


def make_objective(recipe: Recipe, data: View, transition: NDArray[np.float64] | None = None) -> Objective:
    """Build the loss that the recipe names, for the classes of `data` as common as they are there.

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
    if recipe.loss not in _BUILDERS:
        raise WinnowError(f"unknown loss {recipe.loss!r}; known: {', '.join(_BUILDERS)}")
    return _BUILDERS[recipe.loss](recipe, data, transition)


def cap_made(data: View, made: NDArray[np.bool_], limit: float) -> tuple[View, dict[str, float]]:
    """Scale down the weights of made samples where those of a class outweigh its real ones too far.

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
    """Multiply the weights of samples by a factor for their class.

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


def coral(source: Tensor, target: Tensor) -> Tensor:
    """Return the distance of two sets of features by their covariances (Sun & Saenko, arXiv 1607.01719).

    Parameters
    ----------
    source, target : float, N×D and M×D; two rows of each at least

    Returns
    -------
    ‖C_s − C_t‖²_F / 4D² of their covariance matrices, in float32
    """
    difference = _covariance(source) - _covariance(target)
    return difference.square().sum() / (4 * source.shape[1] ** 2)


def _covariance(features: Tensor) -> Tensor:
    with torch.autocast(features.device.type, enabled=False):  # sums of squares: bf16 is too coarse
        centred = features.float() - features.float().mean(0)
        return centred.T @ centred / (len(features) - 1)
