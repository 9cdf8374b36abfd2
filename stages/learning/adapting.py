"""Adapt a backbone to other data: the phases of each transfer mode, AdaBN, CORAL, and second heads.

Where the head trains alone, the frozen backbone's features are computed once and take the place of images.
AdaBN and CORAL adapt to a domain of which there are images without labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stages.dataset.base import View
from stages.errors import WinnowError
from stages.learning.devices import choose_device
from stages.learning.loop import Fit, fit
from stages.learning.models import Classifier, members_of
from stages.learning.names import Device, Precision, Transfer
from stages.learning.prediction import predict
from stages.learning.recipe import Recipe

_BATCH = 256
_NORMALISATION = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@torch.no_grad()
def adapt_batch_norm(
    model: Classifier, images: NDArray[np.uint8], *, seed: int, device: Device = "auto"
) -> Classifier:
    """Estimate the statistics of batch normalisation anew, on `images` alone (AdaBN).

    The mean over batches of equal size (Li et al., arXiv 1603.04779); no weight changes.

    Parameters
    ----------
    model : changed in place; moved to the device, and left there in evaluation mode
    images : uint8, N×H×W×C; of the target domain, labelled or not; two at least
    seed : of the order of the images: batches of one class each would have too small a variance

    Raises
    ------
    WinnowError
        Where the network has no batch normalisation, or there are fewer than two images.
    """
    layers = [
        layer
        for layer in model.backbone.modules()
        if isinstance(layer, _NORMALISATION) and layer.track_running_stats
    ]
    if not layers:
        raise WinnowError(
            f"{model.spec.architecture} has no batch normalisation whose statistics could be adapted: set "
            "adapt_batch_norm to false"
        )
    if len(images) < 2:
        raise WinnowError("statistics of batch normalisation need two images at least")
    target = choose_device(device)
    model.to(target).eval()
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the mean of all batches, not a moving one
        layer.train()
    order = np.random.default_rng(seed).permutation(len(images))
    for rows in np.array_split(order, -(-len(images) // _BATCH)):
        model.embed(torch.from_numpy(np.array(images[rows])).to(target))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    return model.eval()


class FeatureHead(Classifier):
    """Train the heads of a model on features; the parameters are the model's.

    It takes features as `as_features` returns them, float32 N×1×V×D, where a model takes images N×H×W×C:
    views of an image lie side by side, so that a flip takes the mirrored one. The first one is classified.
    """

    def __init__(self, model: Classifier) -> None:
        nn.Module.__init__(self)  # without networks of its own
        self.spec = replace(model.spec, image_shape=(1, 1, model.head.in_features))
        self.backbone = nn.Identity()
        self.head = model.head
        self.second_head = model.second_head

    def normalise(self, images: Tensor) -> Tensor:
        """Features of the first view, N×D, as they are."""
        return images[:, 0, 0].float()


def as_features(
    model: Classifier,
    view: View,
    *,
    flip: bool,
    device: Device = "auto",
    precision: Precision = "auto",
) -> View:
    """Replace the images of a view by features, float32 N×1×V×D; V is 2 with `flip`, else 1.

    Parameters
    ----------
    flip : with the features of the mirrored images as well
    device, precision : of the backbone's forward passes
    """
    views = [view.images, view.images[:, :, ::-1]] if flip else [view.images]
    features = [predict(model, images, device, precision)[1] for images in views]
    return replace(view, images=cast("NDArray[np.uint8]", np.stack(features, axis=1)[:, None]))


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
    """Plan the trainings that `mode` consists of.

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
    """Plan a phase for each step of the unfreezing; the last one has the epochs that are left."""
    steps = min(stages, recipe.epochs)
    plan = []
    for step in range(1, steps + 1):
        frozen = stages - -(-stages * step // steps)
        epochs = 1 if step < steps else recipe.epochs - steps + 1
        name = f"head and top {stages - frozen} of {stages} stages" if frozen else "head and backbone"
        plan.append(Phase(name, replace(recipe, epochs=epochs, frozen_stages=frozen)))
    return plan


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


@torch.inference_mode()
def second_probabilities(
    model: Classifier, images: NDArray[np.uint8], device: Device = "auto"
) -> NDArray[np.float32]:
    """Predict the second head's probabilities, float32 N×(second classes); the mean over members."""
    probabilities = []
    for member in members_of(model):
        embeddings = torch.from_numpy(predict(member, images, device)[1])
        head = member.second_head
        assert head is not None  # noqa: S101 - callers look at spec.second_classes
        probabilities.append(head(embeddings.to(head.weight.device)).softmax(1).cpu().numpy())
    mean: NDArray[np.float32] = np.mean(probabilities, axis=0, dtype=np.float32)
    return mean


def second_scores(model: Classifier, view: View, device: Device = "auto") -> dict[str, float]:
    """Score the second head: `images` with a known second label, `accuracy` and `balanced_accuracy` on them.

    Scores are 0 to 1, and left out where there are no such images.
    """
    labels = view.second_labels
    rows = np.flatnonzero(labels >= 0) if labels is not None else np.zeros(0, np.int64)
    if labels is None or not len(rows):
        return {"images": 0}
    known = labels[rows]
    hits = second_probabilities(model, view.images[rows], device).argmax(1) == known
    counts = np.bincount(known)
    recalls = np.bincount(known, weights=hits)[counts > 0] / counts[counts > 0]
    return {
        "images": len(rows),
        "accuracy": round(float(hits.mean()), 6),
        "balanced_accuracy": round(float(recalls.mean()), 6),
    }
