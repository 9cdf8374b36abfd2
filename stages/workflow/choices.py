"""From the sections of `params.yaml` to what the rooms take: they know nothing of the file."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stages.learning.models import pixel_statistics
from stages.learning.networks.layers import Layers, ModelSpec, Preprocessing
from stages.learning.recipe import LossOptions, Recipe
from stages.workflow.params import Params
from stages.workflow.schema import Train


def training_recipe(choices: Train, *, epochs: int, steps_per_epoch: int) -> Recipe:
    """The section `train` as a recipe; its keys that a recipe has go by the same names."""
    constants = {name: value for name, value in choices.loss_options if value is not None}
    return Recipe(
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        batch_size=choices.batch_size,
        learning_rate=choices.learning_rate,
        optimiser=choices.optimiser,
        momentum=choices.momentum,
        schedule=choices.schedule,
        warm_up=choices.warm_up,
        weight_decay=choices.weight_decay,
        l1=choices.l1,
        l2=choices.l2,
        clip_norm=choices.clip_norm,
        clip_value=choices.clip_value,
        norm_bias_factor=choices.norm_bias_factor,
        lookahead=choices.lookahead,
        average=choices.average_weights,
        loss=choices.loss,
        label_smoothing=choices.label_smoothing,
        loss_options=LossOptions(**constants),
        class_weighting=choices.class_weighting,
        deferred=choices.deferred,
        sampling=choices.sampling,
        shift=choices.shift,
        flip=choices.flip,
        alternate_flips=choices.alternate_flips,
        cutout=choices.cutout,
        mixup=choices.mixup,
        cutmix=choices.cutmix,
        precision=choices.precision,
        compile=choices.compile,
        early_stopping=choices.early_stopping,
    )


def model_spec(params: Params, images: NDArray[np.uint8], classes: list[str]) -> ModelSpec:
    """A network of the section `train` for `images` (uint8, N×H×W×C), normalised by their statistics."""
    height, width, channels = images.shape[1:]
    return ModelSpec(
        params.train.model,
        classes,
        (height, width, channels),
        *pixel_statistics(images),
        layers=Layers(**params.train.layers.model_dump()),
        members=params.train.ensemble.members,
        preprocessing=Preprocessing(params.ingest.resize, params.ingest.color),
    )
