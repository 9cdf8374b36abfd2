"""Cross-fit classifiers on real images, so that they can judge made ones.

No image is judged by a model that saw it, nor a copy by one that saw what it is a copy of: a model repeats
the labels that it learned, and would recognise its own training images whatever was done to them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.dataset.base import View
from stages.errors import WinnowError
from stages.learning.loop import fit
from stages.learning.models import Classifier, build_model, model_spec
from stages.learning.names import Device
from stages.learning.prediction import predict
from stages.learning.recipe import Recipe

_EPOCHS, _BATCH_SIZE, _LEARNING_RATE, _LABEL_SMOOTHING = 20, 32, 0.005, 0.05
# Steps of a model at least and at most: 20 passes over some dozen images teach nothing, and those over some
# ten thousand take minutes.
_STEPS = (100, 5000)


@dataclass(frozen=True)
class Judge:
    """Models cross-fitted on real images.

    Attributes
    ----------
    real : the images that they learned from, N
    models : one a fold; model k did not see the images with `fold == k`
    fold : int64, N
    device : where they compute
    """

    real: View
    models: list[Classifier]
    fold: NDArray[np.int64]
    device: Device = "auto"

    def held_out(self) -> NDArray[np.float32]:
        """Predict the real images, N×K; each by the model that did not see it."""
        return self.of_copies(self.real.images, np.arange(len(self.real)))

    def of_copies(self, images: NDArray[np.uint8], parents: NDArray[np.int64]) -> NDArray[np.float32]:
        """Predict changed real images, M×K; each by the model that did not see its parent.

        Parameters
        ----------
        images : uint8, M×H×W×C
        parents : int64, M; which of the real images each was made from
        """
        probabilities = np.zeros((len(images), len(self.real.classes)), np.float32)
        fold = self.fold[parents]
        for k, model in enumerate(self.models):
            rows = fold == k
            probabilities[rows] = predict(model, images[rows], self.device)[0]
        return probabilities

    def of_new(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Predict images that no model has seen, M×K; the mean over all models."""
        return self.of_new_embedded(images)[0]

    def of_new_embedded(
        self, images: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
        """Predict and embed new images by all models; each looks at the images once."""
        each = [predict(model, images, self.device) for model in self.models]
        mean: NDArray[np.float32] = np.mean([probs for probs, _ in each], axis=0, dtype=np.float32)
        return mean, [embedded for _, embedded in each]

    def embed(self, images: NDArray[np.uint8], k: int) -> NDArray[np.float32]:
        """Embed images by model `k`, M×D."""
        return predict(self.models[k], images, self.device)[1]


def train_judge(
    real: View,
    *,
    folds: int = 2,
    groups: NDArray[np.object_] | None = None,
    seed: int,
    device: Device = "auto",
    description: str = "judge",
) -> Judge:
    """Train small CNNs on the real images, classes drawn equally often, each without one of the folds.

    A class that is all one image, or one group, is unknown to the model that does without it: that model
    will not recognise it.

    Parameters
    ----------
    real : the curated real training images of all classes
    folds : how many models; of two, each learns from half of the images
    groups : N names; images of one name (near-duplicates, a patient) share a fold
    seed : of folds, initial weights and batches
    device : where they are trained, and compute afterwards
    description : stands before the progress bars; empty for none

    Raises
    ------
    WinnowError
        Where there are fewer images, or groups, than folds.
    """
    fold = _deal(real.labels, groups, folds, seed)
    spec = model_spec("small_cnn", real.images, real.classes)
    models = []
    for k in range(folds):
        inside = fold != k
        seen = View(
            real.images[inside],
            real.labels[inside],
            real.weights[inside],
            real.sample_ids[inside],
            real.classes,
        )
        model_seed = (seed + 1000 * k) % 2**32
        label = f"{description} {k + 1}/{folds}" if description else ""
        model = build_model(spec, seed=model_seed)
        fitted = fit(model, seen, _recipe(len(seen)), seed=model_seed, device=device, description=label)
        models.append(fitted.model)
    return Judge(real, models, fold, device)


def _recipe(samples: int) -> Recipe:
    steps = int(np.clip(_EPOCHS * math.ceil(samples / _BATCH_SIZE), *_STEPS))
    return Recipe(
        epochs=_EPOCHS,
        steps_per_epoch=math.ceil(steps / _EPOCHS),
        batch_size=_BATCH_SIZE,
        learning_rate=_LEARNING_RATE,
        label_smoothing=_LABEL_SMOOTHING,
        sampling="balanced",
        shift=1,
    )


def _deal(
    labels: NDArray[np.int64], groups: NDArray[np.object_] | None, folds: int, seed: int
) -> NDArray[np.int64]:
    """Deal images to folds class by class, the largest groups first, each to where least of its class is.

    So every class with as many groups as there are folds is known to every model, however few it has; a
    shuffled or scikit-learn's stratified grouped split leaves rare classes out of folds.
    """
    numbers = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(numbers)
    if len(sizes) < folds:
        kind = "images" if groups is None else "groups of images"
        raise WinnowError(
            f"{len(sizes)} real training {kind}: made images cannot be judged with fewer than {folds}; "
            "bring more, or switch off what makes images (synthesize.method: none, augment.policy: [])"
        )
    shuffled = np.random.default_rng(seed).permutation(len(sizes))
    order = shuffled[np.argsort(-sizes[shuffled], kind="stable")]
    members = np.split(np.argsort(numbers, kind="stable"), np.cumsum(sizes)[:-1])
    held = np.zeros((labels.max() + 1, folds))
    fold = np.empty(len(labels), np.int64)
    for group in order:
        own = labels[members[group]]
        # By the group's commonest class; on equal terms where least is at all.
        ranked = np.lexsort((held.sum(0), held[np.bincount(own).argmax()]))
        fold[members[group]] = ranked[0]
        np.add.at(held[:, ranked[0]], own, 1)
    return fold
