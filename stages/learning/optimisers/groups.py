"""Which parameters learn, and at what share of the rate."""

from __future__ import annotations

from typing import Any

from torch import nn

from stages.learning.models import Classifier
from stages.learning.networks.stages import NORMALISATIONS
from stages.learning.recipe import Recipe


def parameter_groups(model: Classifier, recipe: Recipe) -> list[dict[str, Any]]:
    """Parameters with peak rates and `l2`, in the order from image to logits; what is frozen is left out.

    Sets `requires_grad` of each: a model that was trained with frozen stages before is not frozen for good.
    """
    groups: list[dict[str, Any]] = []
    for parameters, factor in [*_backbone(model.backbone, recipe), (_heads(model), 1.0)]:
        for parameter in parameters:
            parameter.requires_grad_(factor > 0)
        if factor > 0 and parameters:
            groups.append({"params": parameters, "lr": recipe.learning_rate * factor, "l2": recipe.l2})
    if recipe.norm_bias_factor == 1:
        return groups
    biases = {id(bias) for bias in normalisation_biases(model)}
    return [part for group in groups for part in _apart(group, biases, recipe)]


def normalisation_biases(model: nn.Module) -> list[nn.Parameter]:
    """Biases of batch, group and layer normalisation."""
    return [
        module.bias
        for module in model.modules()
        if isinstance(module, NORMALISATIONS) and isinstance(module.bias, nn.Parameter)
    ]


def _apart(group: dict[str, Any], biases: set[int], recipe: Recipe) -> list[dict[str, Any]]:
    """A group's biases with the rate raised and the decay lowered, so that a step's decay stays; the rest."""
    inside = [parameter for parameter in group["params"] if id(parameter) in biases]
    outside = [parameter for parameter in group["params"] if id(parameter) not in biases]
    factor = recipe.norm_bias_factor
    raised = {
        "params": inside,
        "lr": group["lr"] * factor,
        "l2": group["l2"] / factor,
        "weight_decay": recipe.weight_decay / factor,
    }
    return [part for part in (raised, {**group, "params": outside}) if part["params"]]


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
