"""Which parameters learn, and at what share of the rate."""

from __future__ import annotations

from typing import Any

from torch import nn

from stages.learning.models import Classifier
from stages.learning.recipe import Recipe


def parameter_groups(model: Classifier, recipe: Recipe) -> list[dict[str, Any]]:
    """Parameters with their peak rates, in the order from image to logits; what is frozen is left out.

    Sets `requires_grad` of each: a model that was trained with frozen stages before is not frozen for good.
    """
    groups: list[dict[str, Any]] = []
    for parameters, factor in [*_backbone(model.backbone, recipe), (_heads(model), 1.0)]:
        for parameter in parameters:
            parameter.requires_grad_(factor > 0)
        if factor > 0 and parameters:
            groups.append({"params": parameters, "lr": recipe.learning_rate * factor})
    return groups


def _backbone(backbone: nn.Module, recipe: Recipe) -> list[tuple[list[nn.Parameter], float]]:
    """Its parameters, stage by stage where their rates differ, with what the rate is multiplied by."""
    if recipe.layer_decay == 1 and recipe.frozen_stages == 0:
        return [(list(backbone.parameters()), recipe.backbone_lr_factor)]
    from stages.learning.networks import stages_of

    stages = stages_of(backbone)
    top = len(stages) - 1
    return [
        (
            list(stage.parameters()),
            0.0
            if number < recipe.frozen_stages
            else recipe.backbone_lr_factor * recipe.layer_decay ** (top - number),
        )
        for number, stage in enumerate(stages)
    ]


def _heads(model: Classifier) -> list[nn.Parameter]:
    second = getattr(model, "second_head", None)
    return [*model.head.parameters(), *(second.parameters() if second is not None else ())]
