"""What every loss has in common."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


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
        """Losses, float32 N, not weighted; computed in float32 under autocast too.

        Parameters
        ----------
        logits : N×K, of any floating type
        labels : int64, N
        index : int64, N; which samples of the training data they are, for what is remembered of each
        """
        with torch.autocast(logits.device.type, enabled=False):
            return self.losses(logits.float(), labels, index)

    def losses(self, logits: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        """The same of float32 logits: what a subclass says."""
        return functional.cross_entropy(logits, labels, label_smoothing=self.smoothing, reduction="none")


class Pointwise(Objective):
    """A loss that follows from the probability of the label alone; smoothed, its mean over targets."""

    def of(self, log_probs: Tensor) -> Tensor:
        """The loss of a label with this log probability, elementwise."""
        return -log_probs

    def losses(self, logits: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        """See `Objective`."""
        log_probs = functional.log_softmax(logits, 1)
        own = self.of(log_probs.gather(1, labels[:, None])[:, 0])
        if self.smoothing == 0:
            return own
        return (1 - self.smoothing) * own + self.smoothing * self.of(log_probs).mean(1)
