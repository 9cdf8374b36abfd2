"""Optimisers and schedules by their names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from stages.learning.models import Classifier
from stages.learning.recipe import Recipe

_WARM_UP = 0.2  # share of the budget


class Optimisation:
    """Optimiser, schedule and clipping over one or several models, which share nothing."""

    def __init__(self, models: Sequence[Classifier], recipe: Recipe) -> None:
        self._recipe = recipe
        groups = [group for model in models for group in _groups(model, recipe)]
        self._parameters = [parameter for group in groups for parameter in group["params"]]
        self._optimiser = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
        total = recipe.epochs * recipe.steps_per_epoch
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimiser, lambda step: _one_cycle(step, total)
        )

    @property
    def rate(self) -> float:
        """The head's learning rate in the next step."""
        return float(self._schedule.get_last_lr()[-1])

    def apply(self) -> None:
        """Take a step along the gradients that are there, and forget them."""
        if self._recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters, self._recipe.clip_norm)
        self._optimiser.step()
        self._schedule.step()
        self._optimiser.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """All that a continued training needs."""
        return {"optimiser": self._optimiser.state_dict(), "schedule": self._schedule.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self._optimiser.load_state_dict(state["optimiser"])
        self._schedule.load_state_dict(state["schedule"])


def _groups(model: Classifier, recipe: Recipe) -> list[dict[str, Any]]:
    """Parameters with their rates: backbone and head; what is frozen is left out."""
    parts: list[tuple[nn.Module, float]] = [(model.backbone, recipe.backbone_lr_factor), (model.head, 1.0)]
    groups: list[dict[str, Any]] = []
    for part, factor in parts:
        for parameter in part.parameters():
            parameter.requires_grad_(factor > 0)
        if factor > 0:
            groups.append({"params": list(part.parameters()), "lr": recipe.learning_rate * factor})
    return groups


def _one_cycle(step: int, total: int) -> float:
    """Share of the peak rate: from a tenth up over the first fifth, then down along a cosine.

    torch's own OneCycleLR divides by zero for some budgets of a few steps.
    """
    peak = max(1.0, _WARM_UP * total)
    if step < peak:
        return 0.1 + 0.9 * step / peak
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - peak) / max(1.0, total - peak))))
