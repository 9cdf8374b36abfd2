"""A moving average of the weights, which is scored and kept in their place."""

from __future__ import annotations

from itertools import chain

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


class MovingAverage(AveragedModel):
    """Exponential moving average of a model's weights (Polyak & Juditsky 1992; Tarvainen & Valpola,
    arXiv 1703.01780); `module` is the average, a model of its own.

    Statistics of batch normalisation are averaged likewise: those of the last step belong to other weights.
    Young averages forget faster, by (1 + n) / (10 + n) after n steps, so that a short training is not
    spent on forgetting how it began.

    Parameters
    ----------
    model : is copied, on its device
    decay : 0 to 1; what is kept of the average in each step
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self._decay = decay
        self.module.requires_grad_(False)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take in the weights after a step.

        torch's own hands the count to the device, and waits for it there. Here it stays on the host.
        """
        steps = int(self.n_averaged)
        keep = min(self._decay, (1 + steps) / (10 + steps)) if steps else 0.0
        own, others = (list(chain(each.parameters(), each.buffers())) for each in (self.module, model))
        pairs = list(zip(own, others, strict=True))
        averages = [average for average, _ in pairs if average.is_floating_point()]
        torch._foreach_lerp_(averages, [value for _, value in pairs if value.is_floating_point()], 1 - keep)
        for average, value in pairs:
            if not average.is_floating_point():  # counts
                average.copy_(value)
        self.n_averaged += 1


def averaged(model: nn.Module, decay: float) -> MovingAverage:
    """A moving average that begins with `model`."""
    return MovingAverage(model, decay)
