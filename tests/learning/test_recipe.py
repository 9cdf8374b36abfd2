"""Recipes from the section `train` of params.yaml: each of its fields by its own name, none forgotten."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from stages.learning.recipe import LossOptions, Recipe
from stages.workflow.params import parse_params
from stages.workflow.schema import LossConstants, Train

# What the recipe is given besides the section, and what of the section is not about the loop.
OF_THE_CALLER = {
    *("steps_per_epoch", "backbone_lr_factor", "layer_decay", "frozen_stages", "coral", "second_weight"),
}
OF_THE_STAGE = {"model", "layers", "devices", "ensemble", "use_augmented", "use_synthetic", "max_made"}


def test_recipe_and_section_have_the_same_fields():
    recipe, section = {each.name for each in fields(Recipe)}, set(Train.model_fields)
    assert recipe - section == OF_THE_CALLER
    assert section - recipe == OF_THE_STAGE
    assert {each.name for each in fields(LossOptions)} == set(LossConstants.model_fields)


def test_all_values_of_the_section_arrive(params_dict: dict[str, Any]):
    section = parse_params(params_dict).train
    recipe = Recipe.from_values(section.model_dump(), epochs=7, steps_per_epoch=3, coral=0.5)
    shared = {each.name for each in fields(Recipe)} & set(Train.model_fields) - {"epochs", "loss_options"}
    assert {name: getattr(recipe, name) for name in shared} == section.model_dump(include=shared)
    assert (recipe.epochs, recipe.steps_per_epoch, recipe.coral) == (7, 3, 0.5)
    assert recipe.loss_options == LossOptions()


def test_constants_of_the_loss_replace_its_defaults(params_dict: dict[str, Any]):
    params_dict["train"] |= {"loss": "focal", "loss_options": {"focal_gamma": 1.5}}
    section = parse_params(params_dict).train
    recipe = Recipe.from_values(section.model_dump(), epochs=1, steps_per_epoch=1)
    assert recipe.loss_options == LossOptions(focal_gamma=1.5)
