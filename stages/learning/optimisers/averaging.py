"""Averages of the weights: one that is scored and kept in their place, one that they are drawn back to."""

from __future__ import annotations

from itertools import chain
from typing import Any

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


class Lookahead:
    """Slow weights that follow a model's, and that it is set back to (Zhang et al., arXiv 1907.08610).

    After every `every` steps the slow weights go a part of the way to the model's, and the model takes their
    place. They keep the share .95^every · (s / n)³ of themselves in step s of n (Jordan, arXiv 2404.00498,
    appendix): the model goes its own way at first. After the last step it takes the slow weights as they are.
    Batch statistics are treated likewise.

    Parameters
    ----------
    model : its weights now are the first slow ones
    every : steps
    total : steps of the whole training
    """

    def __init__(self, model: nn.Module, every: int, total: int) -> None:
        self._model, self._every, self._total = model, every, total
        self._slow = [value.detach().clone() for value in self._fast()]

    def _fast(self) -> list[torch.Tensor]:
        return [value for value in self._model.state_dict().values() if value.is_floating_point()]

    @torch.no_grad()
    def after(self, step: int) -> None:
        """To be called after each step, with how many were taken."""
        last = step >= self._total
        if step % self._every and not last:
            return
        fast = self._fast()
        if step % self._every == 0:
            keep = 0.95**self._every * (step / self._total) ** 3
            torch._foreach_lerp_(self._slow, fast, 1 - keep)
        torch._foreach_copy_(fast, self._slow)

    def state_dict(self) -> dict[str, Any]:
        """The slow weights."""
        return {"slow": self._slow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        torch._foreach_copy_(self._slow, state["slow"])
