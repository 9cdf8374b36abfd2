"""Out-of-sample predicted probabilities by repeated stratified k-fold cross-validation.

Samples of one group (near-duplicates, a patient, a video) are always in the same fold: a model that
saw the twin of an image would repeat the twin's label, and find no error in it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from stages.dataset import View
from stages.errors import WinnowError
from stages.learning.loop import Device, Recipe, fit, pixel_statistics, predict, steps_per_epoch
from stages.learning.models import ModelSpec, build_model

_Fold = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class CrossValidation:
    """What the folds saw.

    Attributes
    ----------
    train_probs : float32, N×K; each row from models that were not trained on that sample
    other_probs : float32, M×K; mean over all folds' models, for images outside the training split
    train_embeddings, other_embeddings : float32, N×D and M×D; all by one and the same network, so
        that distances compare
    train_judged : bool, N; whether every model that was asked about a sample had seen another one
        of its label. Where not, as for a class that is all one group, the model could not have said
        that label, and its contradiction means nothing.
    """

    train_probs: NDArray[np.float32]
    other_probs: NDArray[np.float32]
    train_embeddings: NDArray[np.float32]
    other_embeddings: NDArray[np.float32]
    train_judged: NDArray[np.bool_]


def cross_validate(
    train: View,
    others: NDArray[np.uint8],
    *,
    architecture: str,
    folds: int,
    repeats: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    groups: NDArray[np.object_] | None = None,
    device: Device = "auto",
    on_fold: Callable[[dict[str, float]], None] | None = None,
) -> CrossValidation:
    """Train `folds × repeats` models, each on all folds but one, and ask it about the rest.

    Averaging over repeats with other folds and other initial weights steadies the probabilities,
    which decides more about the label errors found than the rule does.

    Parameters
    ----------
    train : the training split with its given labels; its weights count in the folds' losses
    others : uint8, M×H×W×C; images of the other splits, and the unlabelled ones
    architecture, epochs, batch_size, learning_rate : of each model
    folds, repeats : k of the cross-validation, and how often it is done
    seed : of folds, initial weights and batches
    groups : N names; samples of one name stay in one fold. Where all differ it is as without.
    on_fold : called after each fold with its figures

    Raises
    ------
    WinnowError
        Where no class has as many images as there are folds, or there are fewer groups.
    """
    parts = [part for repeat in range(repeats) for part in _split(train.labels, groups, folds, seed + repeat)]
    mean, std = pixel_statistics(train.images)
    spec = ModelSpec(architecture, train.classes, train.images.shape[1:], mean, std)
    recipe_for = _recipes(epochs, batch_size, learning_rate)
    train_probs = np.zeros((len(train), len(train.classes)), np.float64)
    other_probs = np.zeros((len(others), len(train.classes)), np.float64)
    train_judged = np.ones(len(train), bool)
    embeddings: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
    for number, (inside, outside) in enumerate(parts, start=1):
        model_seed = (seed + 1000 * number) % 2**32
        model = build_model(spec, seed=model_seed)
        part = _subset(train, inside)
        label = f"fold {number}/{len(parts)}"
        result = fit(model, part, recipe_for(len(part)), seed=model_seed, device=device, description=label)
        probabilities, _ = predict(model, train.images[outside], device)
        train_probs[outside] += probabilities / repeats
        train_judged[outside] &= part.class_counts[train.labels[outside]] > 0
        elsewhere, other_embeddings = predict(model, others, device)
        other_probs += elsewhere / len(parts)
        if embeddings is None:
            embeddings = predict(model, train.images, device)[1], other_embeddings
        if on_fold is not None:
            agreement = float((probabilities.argmax(1) == train.labels[outside]).mean())
            loss = result.history[-1]["train_loss"]
            on_fold({"epoch": number, "agreement": agreement, "train_loss": loss})
    if embeddings is None:
        raise ValueError("repeats must be at least 1")
    return CrossValidation(_as_rows(train_probs), _as_rows(other_probs), *embeddings, train_judged)


def _recipes(epochs: int, batch_size: int, learning_rate: float) -> Callable[[int], Recipe]:
    def recipe(samples: int) -> Recipe:
        steps = steps_per_epoch(samples, batch_size)
        return Recipe(epochs, steps, batch_size, learning_rate, shift=1)

    return recipe


def _split(
    labels: NDArray[np.int64], groups: NDArray[np.object_] | None, folds: int, seed: int
) -> list[_Fold]:
    """Of each fold the samples inside its training, and those left out; groups are not separated."""
    largest = int(np.bincount(labels).max(initial=0))
    if largest < folds:
        raise WinnowError(
            f"detect_noise.folds = {folds}, but the commonest class has {largest} training images: "
            "lower it, or bring more images"
        )
    state = seed % 2**32
    with warnings.catch_warnings():
        # A class with fewer images than folds is missing from some folds: that is what it is.
        warnings.filterwarnings("ignore", message="The least populated class")
        numbers = np.unique(groups, return_inverse=True)[1] if groups is not None else np.arange(len(labels))
        count = int(numbers.max()) + 1
        if count == len(labels):
            splitter = StratifiedKFold(folds, shuffle=True, random_state=state)
            return list(splitter.split(np.zeros(count), labels))
        if count < folds:
            raise WinnowError(
                f"detect_noise.folds = {folds}, but the training images form {count} "
                f"group{'' if count == 1 else 's'}, which are not separated: lower it (2 at least), or "
                "bring images of more groups"
            )
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=state)
        parts: list[_Fold] = list(splitter.split(np.zeros(len(labels)), labels, numbers))
    # Where groups are few and unlike in size, a fold may be left without any.
    return [part for part in parts if len(part[1])]


def _subset(view: View, index: NDArray[np.int64]) -> View:
    return View(
        view.images[index], view.labels[index], view.weights[index], view.sample_ids[index], view.classes
    )


def _as_rows(probabilities: NDArray[np.float64]) -> NDArray[np.float32]:
    """Float32 rows that sum to 1 as well as float32 can."""
    total = np.maximum(probabilities.sum(1, keepdims=True), 1e-12)
    return (probabilities / total).astype(np.float32)
