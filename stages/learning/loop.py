"""The one training loop: used by train, baseline, finetune and the folds of detect_noise.

The dataset lies on the device as uint8; batches are gathered, moved about and normalised there.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from stages.dataset import View
from stages.errors import WinnowError
from stages.learning.devices import choose_autocast, choose_device
from stages.learning.loading.batches import batches
from stages.learning.loading.transforms import augment
from stages.learning.losses import make_objective
from stages.learning.models import Classifier
from stages.learning.names import Device
from stages.learning.optimisers import Optimisation
from stages.learning.prediction import predict
from stages.learning.recipe import Recipe
from stages.learning.weighting import class_weighted

_BALANCING_LOSSES = ("balanced_softmax", "ldam")


@dataclass
class Fit:
    """What training gave: the model, a row of figures an epoch, and the epoch that was kept.

    `notes` is a sentence each for what did not go as ordered: a smaller batch, a continued run.
    """

    model: Classifier
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    device: str = "cpu"
    precision: str = "fp32"
    notes: list[str] = field(default_factory=list)


def fit(
    model: Classifier,
    data: View,
    recipe: Recipe,
    *,
    seed: int,
    val: View | None = None,
    device: Device = "auto",
    description: str = "train",
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    keep_in: Path | None = None,
    transition: NDArray[np.float64] | None = None,
    unlabeled: NDArray[np.uint8] | None = None,
) -> Fit:
    """Train `model` in place on `data` and return it with its history.

    Parameters
    ----------
    model : moved to the device, and left there
    data : images, labels and the weight of each in the loss
    recipe : see `Recipe`
    seed : of the order of batches and of the random transforms
    val : scored after each epoch; with `early_stopping` it picks the weights that are kept
    description : stands before the progress bar; empty for no bar
    on_epoch : called with each row of the history
    keep_in : a folder for checkpoints: a run that was killed goes on where it was and gives the same
        weights; what was kept from other inputs is removed. The caller removes the folder when all is done.
    transition : float64, K×K; for the loss `forward_correction`
    unlabeled : uint8, M×H×W×C; images of the target domain, for `coral`

    Raises
    ------
    WinnowError
        Where there is nothing to train on, or the loss is no longer a number.
    """
    if len(data) == 0:
        raise WinnowError("there are no training images: every one was dropped or none was there")
    target = choose_device(device)
    autocast = choose_autocast(target, recipe.precision)
    model.to(target).train()
    data = class_weighted(data, recipe.class_weighting, recipe.loss_options.effective_beta)
    images = torch.from_numpy(np.ascontiguousarray(data.images)).to(target)
    labels = torch.from_numpy(data.labels).to(target)
    weights = torch.from_numpy(data.weights / data.weights.mean()).to(target)
    objective = make_objective(recipe, data, transition).to(target)
    generator = torch.Generator().manual_seed(seed)
    indices = batches(data.labels, min(recipe.batch_size, len(data)), recipe.sampling, generator)
    optimisation = Optimisation([model], recipe)
    result = Fit(model, device=target.type, precision="bf16" if autocast.bf16 else "fp32")
    best_score, best_state = -math.inf, None
    balanced = recipe.loss in _BALANCING_LOSSES
    merit = "val_balanced_accuracy" if balanced else "val_accuracy"
    progress = tqdm(range(1, recipe.epochs + 1), desc=description, unit="epoch", disable=not description)
    for epoch in progress:
        model.train()
        if recipe.backbone_lr_factor == 0:
            model.backbone.eval()  # a frozen backbone keeps its batch statistics too
        total = torch.zeros((), device=target)
        for _ in range(recipe.steps_per_epoch):
            index = next(indices).to(target)
            batch = augment(images[index], recipe, generator)
            with autocast.context():
                logits = model(batch)
                loss = (objective(logits, labels[index], index) * weights[index]).mean()
            loss.backward()
            optimisation.apply()
            total += loss.detach()
        row = {"epoch": float(epoch), "train_loss": total.item() / recipe.steps_per_epoch}
        if not math.isfinite(row["train_loss"]):
            raise WinnowError(
                f"the loss is not a number after epoch {epoch} (learning rate {optimisation.rate:.2g}): "
                "lower it"
            )
        if val is not None and len(val):
            row |= _score(model, val, target, balanced=balanced)
            # On equal terms the later epoch: validation sets here are small, and ties are common.
            if recipe.early_stopping and row[merit] >= best_score:
                best_score, best_state = row[merit], copy.deepcopy(model.state_dict())
                result.best_epoch = epoch
        result.history.append(row)
        progress.set_postfix({name: f"{value:.3f}" for name, value in row.items() if name != "epoch"})
        if on_epoch is not None:
            on_epoch(row)
    if best_state is not None:
        model.load_state_dict(best_state)
    else:
        result.best_epoch = recipe.epochs
    model.eval()
    return result


@torch.inference_mode()
def _score(model: Classifier, val: View, device: torch.device, *, balanced: bool) -> dict[str, float]:
    """Validation figures of an epoch.

    Early stopping goes by accuracy, not by loss: with wrong labels in the validation split the loss
    punishes confidence in right answers, and would stop training far too early. Where the loss is for
    balanced classes it goes by balanced accuracy: the validation split is as skewed as the training one.
    """
    probabilities, _ = predict(model, val.images, device.type)  # type: ignore[arg-type]
    given = probabilities[np.arange(len(val)), val.labels]
    hits = probabilities.argmax(1) == val.labels
    loss = float(-np.log(np.maximum(given, 1e-12)).mean())
    row = {"val_loss": loss, "val_accuracy": float(hits.mean())}
    if balanced:
        counts = np.bincount(val.labels)
        recalls = np.bincount(val.labels, weights=hits)[counts > 0] / counts[counts > 0]
        row["val_balanced_accuracy"] = float(recalls.mean())
    return row


def history_rows(results: Sequence[Fit]) -> list[dict[str, float]]:
    """The epochs of several fits one after another, numbered through."""
    rows = [row for result in results for row in result.history]
    return [{**row, "epoch": float(number)} for number, row in enumerate(rows, start=1)]
