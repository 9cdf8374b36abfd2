"""Optimisers and schedules by their names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from stages.errors import WinnowError
from stages.learning.models import Classifier
from stages.learning.names import Optimiser
from stages.learning.optimisers.groups import parameter_groups
from stages.learning.optimisers.muon import Muon, matrices_of
from stages.learning.optimisers.schedules import share_of_peak
from stages.learning.recipe import Recipe

_FUSED = ("cpu", "cuda", "mps")
_DECAYED_HERE = ("sgd", "rmsprop")  # torch's own weight decay of these is not decoupled


class Optimisation:
    """Optimiser, schedule, penalties and clipping over one or several models, which share nothing.

    Nothing in a step waits for the device.

    Parameters
    ----------
    models : on the device where they are trained; their `requires_grad` follows from the recipe
    recipe : see `Recipe`

    Raises
    ------
    WinnowError
        For an optimiser or a schedule that is not in the catalogue; the message lists those that are.
    """

    def __init__(self, models: Sequence[Classifier], recipe: Recipe) -> None:
        self._recipe = recipe
        groups = [parameter_groups(model, recipe) for model in models]
        self._parameters = [[parameter for group in own for parameter in group["params"]] for own in groups]
        self._l2 = [[(group["params"], group.pop("l2")) for group in own] for own in groups]
        matrices = {id(matrix) for model in models for matrix in matrices_of(model.backbone)}
        self._optimisers = _make_optimisers([group for own in groups for group in own], recipe, matrices)
        self._peaks = [[group["lr"] for group in one.param_groups] for one in self._optimisers]
        self._step = 0
        self._set_rates()

    @property
    def rate(self) -> float:
        """The head's learning rate in the next step."""
        return self._recipe.learning_rate * self._share()

    def apply(self) -> None:
        """Take a step along the gradients that are there, and forget them."""
        for parameters, l2 in zip(self._parameters, self._l2, strict=True):
            self._penalise(parameters, l2)
            self._clip(parameters)
        if self._recipe.weight_decay and self._recipe.optimiser in _DECAYED_HERE:
            self._decay()
        for optimiser in self._optimisers:
            optimiser.step()
        self._step += 1
        self._set_rates()
        for parameters in self._parameters:
            for parameter in parameters:
                parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """All that a continued training needs: tensors, numbers and names alone."""
        return {"optimisers": [one.state_dict() for one in self._optimisers], "step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        for optimiser, own in zip(self._optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(own)
        self._step = int(state["step"])
        self._set_rates()

    @torch.no_grad()
    def _penalise(self, parameters: list[nn.Parameter], l2: list[tuple[list[nn.Parameter], float]]) -> None:
        """Of one model: the gradients of `l1` and `l2` belong to the loss, and are clipped with its own."""
        moved = _moved(parameters)
        if self._recipe.l1 and moved:
            torch._foreach_add_(_gradients(moved), torch._foreach_sign(moved), alpha=self._recipe.l1)
        for some, share in l2:
            moved = _moved(some)
            if share and moved:
                torch._foreach_add_(_gradients(moved), moved, alpha=share)

    def _clip(self, parameters: list[nn.Parameter]) -> None:
        recipe = self._recipe
        if recipe.clip_value is not None:
            nn.utils.clip_grad_value_(parameters, recipe.clip_value)
        if recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)

    @torch.no_grad()
    def _decay(self) -> None:
        for group in self._groups():
            moved = _moved(group["params"])
            if moved:
                decay = group["lr"] * group["decoupled_decay"]
                torch._foreach_mul_(moved, 1 - decay)

    def _share(self) -> float:
        recipe = self._recipe
        total = recipe.epochs * recipe.steps_per_epoch
        return share_of_peak(recipe.schedule, self._step, total, recipe.warm_up)

    def _set_rates(self) -> None:
        share = self._share()
        peaks = (peak for own in self._peaks for peak in own)
        for group, peak in zip(self._groups(), peaks, strict=True):
            group["lr"] = peak * share

    def _groups(self) -> Iterator[dict[str, Any]]:
        return (group for optimiser in self._optimisers for group in optimiser.param_groups)


def _moved(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [parameter for parameter in parameters if parameter.grad is not None]


def _gradients(moved: list[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in moved if parameter.grad is not None]


def _make_optimisers(
    groups: list[dict[str, Any]], recipe: Recipe, matrices: set[int]
) -> list[torch.optim.Optimizer]:
    """The optimiser that the recipe names; for `muon` a second one for what is not a matrix."""
    fused = all(parameter.device.type in _FUSED for group in groups for parameter in group["params"])
    decay, momentum = recipe.weight_decay, recipe.momentum
    match recipe.optimiser:
        # With decoupled decay the two are one; the decay of Adam as it was published is `l2`.
        case "adamw" | "adam":
            return [torch.optim.AdamW(groups, weight_decay=decay, fused=fused)]
        case "sgd":
            groups = _decayed_here(groups, decay)
            return [torch.optim.SGD(groups, momentum=momentum, nesterov=momentum > 0, fused=fused)]
        case "rmsprop":
            groups = _decayed_here(groups, decay)
            return [torch.optim.RMSprop(groups, momentum=momentum)]
        case "muon":
            inside, outside = (_only(groups, matrices, inside=flag) for flag in (True, False))
            made: list[torch.optim.Optimizer] = []
            if inside:
                made.append(Muon(inside, momentum=momentum, weight_decay=decay))
            if outside:
                made.append(torch.optim.AdamW(outside, weight_decay=decay, fused=fused))
            return made
    raise WinnowError(f"unknown optimiser {recipe.optimiser!r}; known: {', '.join(get_args(Optimiser))}")


def _decayed_here(groups: list[dict[str, Any]], decay: float) -> list[dict[str, Any]]:
    """The groups with their decay by a name that torch does not know."""
    own = [group.get("weight_decay", decay) for group in groups]
    return [
        {**group, "weight_decay": 0.0, "decoupled_decay": its} for group, its in zip(groups, own, strict=True)
    ]


def _only(groups: list[dict[str, Any]], chosen: set[int], *, inside: bool) -> list[dict[str, Any]]:
    """The groups with those parameters alone that are among the chosen, or are not."""
    parts = [
        {**group, "params": [p for p in group["params"] if (id(p) in chosen) == inside]} for group in groups
    ]
    return [part for part in parts if part["params"]]
