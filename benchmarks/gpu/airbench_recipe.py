"""Jordan's recipe for `airbench94` (arXiv 2404.00498) in the terms of Winnow's own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.cifar_images import Cifar
from stages.dataset.base import View
from stages.learning.networks.layers import ModelSpec
from stages.learning.recipe import Recipe

# 476 steps: 9.9 passes over 48 full batches, rounded up. Fourteen "epochs" of 34 steps divide them.
STEPS, BATCH = 476, 1024
_EPOCHS = 14
_MOMENTUM = 0.85
# He states rate and decay for steps of the length that Nesterov's momentum sums them up to.
_SUMMED = 1 + 1 / (1 - _MOMENTUM)
_RATE, _DECAY = 11.5 / _SUMMED, 0.0153 / _SUMMED
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]


def recipe(steps: int = STEPS, batch: int = BATCH) -> Recipe:
    """For training by a mean loss: the same steps, written otherwise.

    Parameters
    ----------
    steps : fewer than 476 are for trying it out
    """
    epochs = _EPOCHS if steps % _EPOCHS == 0 else 1
    return Recipe(
        epochs=epochs,
        steps_per_epoch=steps // epochs,
        batch_size=batch,
        learning_rate=_RATE,
        optimiser="sgd",
        momentum=_MOMENTUM,
        schedule="triangle",
        warm_up=0.23,
        weight_decay=0.0,
        l2=_DECAY / _RATE,
        clip_norm=None,
        norm_bias_factor=64.0,
        lookahead=5,
        label_smoothing=0.2,
        shift=2,
        flip=True,
        alternate_flips=True,
    )


def spec(data: Cifar) -> ModelSpec:
    """The network for CIFAR-10, normalised by the figures that he takes."""
    return ModelSpec("airbench94", data.classes, (32, 32, 3), MEAN, STD)


def view(images: NDArray[np.uint8], labels: NDArray[np.int64], classes: list[str]) -> View:
    """All images, each with a weight of one."""
    names = np.array([f"{row:05d}" for row in range(len(labels))], dtype=object)
    return View(images, labels, np.ones(len(labels), np.float32), names, classes)
