"""How a backbone is adapted: the phases of each mode, and their training one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.dataset import View
from stages.errors import WinnowError
from stages.learning.loop import Fit, fit
from stages.learning.models import Classifier
from stages.learning.names import Device, Transfer
from stages.learning.recipe import Recipe
from stages.learning.transfer.features import FeatureHead, as_features


@dataclass(frozen=True)
class Phase:
    """One training among those of a mode.

    Attributes
    ----------
    name : in words
    recipe : how to train
    on_features : of the head alone, on features that the frozen backbone computes once
    """

    name: str
    recipe: Recipe
    on_features: bool = False


def phases(
    mode: Transfer,
    recipe: Recipe,
    *,
    head_epochs: int,
    backbone_lr_factor: float,
    layer_decay: float,
    stages: int,
) -> list[Phase]:
    """The trainings that `mode` is made of.

    - `feature_extraction`: the head alone, on features computed once
    - `probe_then_full`: the head alone, then both; linear probing first keeps a fresh head's gradients
      from spoiling the features (Kumar et al., arXiv 2202.10054)
    - `gradual`: the head alone, then stage after stage of the backbone from the top, an epoch each, and
      the rest of the epochs with all of it (Howard & Ruder, arXiv 1801.06146). With fewer epochs than
      stages, several are unfrozen at once.
    - `layer_wise`: all at once, each stage of the backbone at `layer_decay` times the rate of the one above
    - `full`: all at once

    Parameters
    ----------
    recipe : of all phases; its `epochs` are those of all that is unfrozen. Features are no images: they
        know flips (their number doubles), but neither shifts, cut-outs nor mixing. The head's phases are
        therefore on features where that is the mode's sense, or where it changes nothing.
    head_epochs : of the head by itself
    backbone_lr_factor : rate of the backbone against the head's
    layer_decay : of `layer_wise`
    stages : of the backbone

    Raises
    ------
    WinnowError
        Where the mode trains a backbone that the factor freezes, what the recipe asks for does not go with
        it, or nothing is trained at all.
    """
    if mode in ("gradual", "layer_wise", "full") and backbone_lr_factor == 0:
        raise WinnowError(
            f"mode {mode} trains the backbone, and backbone_lr_factor = 0 freezes it: choose "
            "feature_extraction, or a factor above 0"
        )
    if recipe.loss == "co_teaching":
        raise WinnowError("co_teaching trains a second network afresh: take another loss for transfer")
    extraction = mode == "feature_extraction"
    if extraction and recipe.coral:
        raise WinnowError("mode feature_extraction leaves the features as they are: coral must be 0")
    head = replace(recipe, epochs=head_epochs, backbone_lr_factor=0.0, coral=0.0)
    free = replace(recipe, backbone_lr_factor=backbone_lr_factor)
    plan: list[Phase] = []
    if mode in ("feature_extraction", "probe_then_full", "gradual") and head_epochs:
        plain = replace(head, shift=0, cutout=0, mixup=0.0, cutmix=0.0)
        plan.append(Phase("head", plain if extraction else head, extraction or plain == head))
    if mode == "probe_then_full" and recipe.epochs:
        plan.append(Phase("head and backbone" if backbone_lr_factor else "head", free))
    elif mode == "gradual":
        plan += _unfreezing(free, stages)
    elif mode == "layer_wise" and recipe.epochs:
        plan.append(Phase("all, layer-wise rates", replace(free, layer_decay=layer_decay)))
    elif mode == "full" and recipe.epochs:
        plan.append(Phase("all", free))
    if not plan:
        raise WinnowError(f"mode {mode} trains nothing with so few epochs")
    return plan


def _unfreezing(recipe: Recipe, stages: int) -> list[Phase]:
    """A phase for each step of the unfreezing; the last one has the epochs that are left."""
    steps = min(stages, recipe.epochs)
    found = []
    for step in range(1, steps + 1):
        frozen = stages - -(-stages * step // steps)
        epochs = 1 if step < steps else recipe.epochs - steps + 1
        name = f"head and top {stages - frozen} of {stages} stages" if frozen else "head and backbone"
        found.append(Phase(name, replace(recipe, epochs=epochs, frozen_stages=frozen)))
    return found


def transfer(
    model: Classifier,
    data: View,
    plan: Sequence[Phase],
    *,
    seed: int,
    val: View | None = None,
    device: Device = "auto",
    description: str | None = "",
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    keep_in: Path | None = None,
    unlabeled: NDArray[np.uint8] | None = None,
) -> list[Fit]:
    """Train `model` in place through the phases of `plan`; a result of each, all around `model`.

    Parameters
    ----------
    plan : see `phases`
    seed : of the first phase less one; the phases count on
    description : stands before the name of each phase at its progress bar; None for no bar
    keep_in : a folder for checkpoints, with one inside for each phase
    data, val, device, on_epoch, unlabeled : as of `loop.fit`

    Raises
    ------
    WinnowError
        As `loop.fit`; and where CORAL has no unlabelled images to go by.
    """
    if any(phase.recipe.coral for phase in plan) and (unlabeled is None or len(unlabeled) < 2):
        raise WinnowError(
            "coral adapts to unlabelled images, and there are fewer than two: bring samples of the "
            "split `unlabeled`, or set it to 0"
        )
    results = []
    for number, phase in enumerate(plan):
        recipe, trained, shown, scored = phase.recipe, model, data, val
        if phase.on_features:
            compute = partial(as_features, model, device=device, precision=recipe.precision)
            trained, shown = FeatureHead(model), compute(data, flip=recipe.flip)
            scored = None if val is None else compute(val, flip=False)
        result = fit(
            trained,
            shown,
            recipe,
            seed=(seed + number + 1) % 2**32,
            val=scored,
            device=device,
            description="" if description is None else f"{description}{phase.name}",
            on_epoch=on_epoch,
            keep_in=None if keep_in is None else keep_in / f"phase_{number}",
            unlabeled=unlabeled if recipe.coral else None,
        )
        results.append(replace(result, model=model.eval()))
    return results
