"""CIFAR-10-LT as it was published, and the ways to train on it that `benchmarks.gpu.long_tail` compares."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.cifar_images import Cifar
from benchmarks.measuring import ROOT
from benchmarks.remedies_data import view_of
from stages.dataset.base import View
from stages.errors import WinnowError
from stages.learning.recipe import Recipe
from stages.workflow.params import PARAMS_FILE, load_params

if TYPE_CHECKING:
    from stages.learning.adapting import Phase
    from stages.learning.models import Classifier

BASELINE = "cross_entropy"
_DEVELOPMENT = 100  # images a class of the training set, that settings are chosen by
# What of the section `train` is a remedy for skewed classes, or keeps a network from overfitting.
_REMEDIES = (
    *("loss", "loss_options", "label_smoothing", "class_weighting", "deferred", "sampling"),
    *("cutout", "mixup", "cutmix", "average_weights"),
)


@dataclass(frozen=True)
class Stage:
    """A second training on the same images, classes drawn equally often and images not mixed.

    Attributes
    ----------
    head_epochs : of the head on the frozen backbone
    epochs : of all that follows, the backbone at params.yaml's share of the rate
    learning_rate : of the head
    """

    head_epochs: int
    epochs: int
    learning_rate: float


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes
    ----------
    changes : of the recipe's fields; values are plain JSON
    longer : how many times the epochs of the others
    then : what follows
    """

    changes: dict[str, Any] = field(default_factory=dict)
    longer: float = 1.0
    then: Stage | None = None

    @property
    def cost(self) -> float:
        """What it should take against cross-entropy by itself; frozen backbones go backward nowhere."""
        return self.longer + (0.0 if self.then is None else 0.1)


_DEFERRED = {"class_weighting": "effective", "deferred": 0.8}  # from epoch 160 of 200, as in LDAM-DRW
ARMS = {
    BASELINE: Arm(),
    # `train` of params.yaml, and with `finetune` after it
    "default": Arm(),
    "default_finetuned": Arm(then=Stage(1, 20, 0.02)),
    "ldam_deferred": Arm({"loss": "ldam", **_DEFERRED}),
    "mixup_balanced_softmax": Arm({"loss": "balanced_softmax", "mixup": 1.0}),
    # Mixup-DRW, the plain form of Remix-DRW and MAMix-DRW, which come within half a point of one another
    "mixup_deferred": Arm({"mixup": 1.0, **_DEFERRED}),
    # features by mixing, then the head by itself with even classes, as cRT (Kang et al., arXiv 1910.09217)
    "mixup_then_head": Arm({"mixup": 1.0}, then=Stage(10, 0, 0.1)),
    # Mixed images bear many more epochs than plain ones, and averaged weights need no last small steps.
    "mixing_deferred_long": Arm(
        {"mixup": 1.0, "cutmix": 1.0, "average_weights": 0.999, **_DEFERRED}, longer=2.0
    ),
    "mixing_balanced_softmax_long": Arm(
        {"loss": "balanced_softmax", "mixup": 1.0, "cutmix": 1.0, "average_weights": 0.999}, longer=2.0
    ),
}


def changed(recipe: Recipe, name: str) -> Recipe:
    """The recipe of an arm, whose own epochs are those of the others times `longer`."""
    arm, changes = ARMS[name], dict(ARMS[name].changes)
    if name.startswith("default"):
        train = load_params(ROOT / PARAMS_FILE).train
        default = Recipe.from_values(train.model_dump(), epochs=1, steps_per_epoch=1)
        changes = {key: getattr(default, key) for key in _REMEDIES}
    return replace(recipe, epochs=max(1, round(arm.longer * recipe.epochs)), **changes)


def second_plan(model: Classifier, recipe: Recipe, stage: Stage) -> list[Phase]:
    """The phases of what follows the training by `recipe`."""
    from stages.learning.adapting import phases
    from stages.learning.networks.zoo import stages_of

    choices = load_params(ROOT / PARAMS_FILE).finetune
    return phases(
        "probe_then_full",
        replace(
            recipe,
            epochs=stage.epochs,
            learning_rate=stage.learning_rate,
            loss="cross_entropy",
            class_weighting="none",
            deferred=0.0,
            sampling="balanced",
            mixup=0.0,
            cutmix=0.0,
        ),
        head_epochs=stage.head_epochs,
        backbone_lr_factor=choices.backbone_lr_factor,
        layer_decay=1.0,
        stages=len(stages_of(model.backbone)),
    )


def published_tail(
    data: Cifar, *, largest: int, ratio: float, seed: int, development: bool = False
) -> tuple[View, View]:
    """Training and test images of CIFAR-10-LT (Cao et al., arXiv 1906.07413): no validation images.

    n_i = largest · ratio^(-i/9), rounded down, over the classes in their usual order, which is that of their
    names: 5,000 to 50, and 12,406 in all, at 100:1.

    Parameters
    ----------
    seed : of the images drawn
    development : scored on 100 other images a class of the training set; the largest class has at most
        what these leave of it

    Raises
    ------
    WinnowError
        Where a class has too few images.
    """
    rng = np.random.default_rng([seed, largest])
    last = len(data.classes) - 1
    train, other = [], []
    for label, name in enumerate(data.classes):
        rows = rng.permutation(np.flatnonzero(data.labels == label))
        spare = rows[_DEVELOPMENT:] if development else rows
        size = int(largest * ratio ** (-label / last) + 1e-9)
        if development:
            size = min(size, len(spare))
        if not 0 < size <= len(spare):
            raise WinnowError(f"{size} training images of {name} are asked for, and there are {len(spare)}")
        train.append(spare[:size])
        other.append(rows[:_DEVELOPMENT])
    rows = np.sort(np.concatenate(train))
    images, labels = data.test_images, data.test_labels
    if development:
        held_out = np.sort(np.concatenate(other))
        images, labels = data.images[held_out], data.labels[held_out]
    return view_of(data.images[rows], data.labels[rows], data.classes), view_of(images, labels, data.classes)
