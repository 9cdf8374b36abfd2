"""The one training loop: used by train, baseline, finetune and the folds of detect_noise.

The dataset lies on the device as uint8; batches are gathered, moved about and normalised there.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from stages.dataset import View
from stages.errors import WinnowError
from stages.learning.models import Classifier

Device = Literal["auto", "cpu", "cuda", "mps"]
_PREDICT_BATCH = 512
_STATISTICS_BATCH = 4096
_WARM_UP = 0.2  # share of the budget
_MERITS = {"cross_entropy": "val_accuracy", "balanced_softmax": "val_balanced_accuracy"}  # early stopping's


@dataclass(frozen=True)
class Recipe:
    """How to train; everything but model and data.

    Attributes
    ----------
    epochs, steps_per_epoch : the budget is their product, whatever the size of the data
    batch_size : images a step (at most as many as there are)
    learning_rate : the peak; AdamW with one-cycle (Smith & Topin, arXiv 1708.07120)
    backbone_lr_factor : of the backbone's rate against the head's; 0 freezes the backbone
    weight_decay : decoupled (Loshchilov & Hutter, arXiv 1711.05101)
    label_smoothing : share of the target spread over all classes; with `balanced_softmax` as the
        classes share the training mass, so that it still pulls the model's own logits to even ones
    loss : `cross_entropy`, or `balanced_softmax` (Ren et al., arXiv 2007.10740): in training, the log of
        each class's share of the summed weights is added to its logit, so that without it, in
        prediction, the model speaks for classes that are equally common. What class weights or balanced
        sampling even out already, it leaves alone.
    sampling : `shuffle`, or `balanced` for classes drawn equally often
    shift : random translation by up to so many pixels, edges repeated
    flip : random horizontal flips
    precision : `auto` takes bf16 where the hardware computes in it
    early_stopping : keep the weights of the epoch with the best validation accuracy, with
        `balanced_softmax` balanced accuracy (the budget stays)
    """

    epochs: int
    steps_per_epoch: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.01
    label_smoothing: float = 0.0
    loss: Literal["cross_entropy", "balanced_softmax"] = "cross_entropy"
    backbone_lr_factor: float = 1.0
    sampling: Literal["shuffle", "balanced"] = "shuffle"
    shift: int = 0
    flip: bool = False
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    early_stopping: bool = False


@dataclass
class Fit:
    """What training gave: the model, a row of figures an epoch, and the epoch that was kept."""

    model: Classifier
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    device: str = "cpu"
    precision: str = "fp32"


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

    Raises
    ------
    WinnowError
        Where there is nothing to train on, or the loss is no longer a number.
    """
    if len(data) == 0:
        raise WinnowError("there are no training images: every one was dropped or none was there")
    target = choose_device(device)
    autocast = _autocast(target, recipe.precision)
    model.to(target).train()
    images = torch.from_numpy(np.ascontiguousarray(data.images)).to(target)
    labels = torch.from_numpy(data.labels).to(target)
    weights = torch.from_numpy(data.weights / data.weights.mean()).to(target)
    log_shares = _log_shares(data, recipe.sampling).to(target) if recipe.loss == "balanced_softmax" else None
    generator = torch.Generator().manual_seed(seed)
    batches = _batches(data.labels, min(recipe.batch_size, len(data)), recipe.sampling, generator)
    optimiser, schedule = _optimiser(model, recipe)
    result = Fit(model, device=target.type, precision="bf16" if autocast.fast_dtype_enabled else "fp32")
    best_score, best_state = -math.inf, None
    merit = _MERITS[recipe.loss]
    progress = tqdm(range(1, recipe.epochs + 1), desc=description, unit="epoch", disable=not description)
    for epoch in progress:
        model.train()
        if recipe.backbone_lr_factor == 0:
            model.backbone.eval()  # a frozen backbone keeps its batch statistics too
        total = torch.zeros((), device=target)
        for _ in range(recipe.steps_per_epoch):
            index = next(batches).to(target)
            batch = _augment(images[index], recipe, generator)
            with autocast.context():
                logits = model(batch)
                loss = _loss(logits, labels[index], weights[index], recipe.label_smoothing, log_shares)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimiser.step()
            schedule.step()
            total += loss.detach()
        row = {"epoch": float(epoch), "train_loss": total.item() / recipe.steps_per_epoch}
        if not math.isfinite(row["train_loss"]):
            rate = schedule.get_last_lr()[-1]
            raise WinnowError(
                f"the loss is not a number after epoch {epoch} (learning rate {rate:.2g}): lower it"
            )
        if val is not None and len(val):
            row |= _score(model, val, target, balanced=merit == "val_balanced_accuracy")
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


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Steps of one pass over the ingested training split.

    The ingested split, not the treated one: so a treatment that adds samples does not also buy
    itself more optimiser steps than the baseline has.
    """
    return max(1, math.ceil(samples / batch_size))


@torch.inference_mode()
def predict(
    model: Classifier,
    images: NDArray[np.uint8],
    device: Device = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "fp32",
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Class probabilities (N×K, rows sum to 1) and embeddings (N×D) of uint8 images N×H×W×C.

    `precision` is the backbone's; the head computes in float32, so that probabilities do not tie.
    """
    target = choose_device(device)
    autocast = _autocast(target, precision)
    model.to(target).eval()
    probabilities, embeddings = [], []
    for start in range(0, len(images), _PREDICT_BATCH):
        batch = torch.from_numpy(np.array(images[start : start + _PREDICT_BATCH])).to(target)
        with autocast.context():
            features = model.embed(batch)
        features = features.float()
        probabilities.append(model.head(features).softmax(1).float().cpu().numpy())
        embeddings.append(features.cpu().numpy())
    if not probabilities:
        return np.zeros((0, len(model.spec.classes)), np.float32), np.zeros(
            (0, model.head.in_features), np.float32
        )
    return np.concatenate(probabilities), np.concatenate(embeddings)


def pixel_statistics(images: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, on the 0 to 1 scale."""
    channels = images.shape[-1]
    counts = np.zeros((channels, 256), np.int64)
    # In float64, all at once, they take 8 times the room.
    for start in range(0, len(images), _STATISTICS_BATCH):
        pixels = images[start : start + _STATISTICS_BATCH].reshape(-1, channels)
        for channel in range(channels):
            counts[channel] += np.bincount(pixels[:, channel], minlength=256)
    values, total = np.arange(256) / 255.0, counts[0].sum()
    mean = counts @ values / total
    variance = (counts * (values - mean[:, None]) ** 2).sum(1) / total
    std = np.maximum(np.sqrt(variance), 1.0 / 255.0)
    return [round(float(x), 6) for x in mean], [round(float(x), 6) for x in std]


def choose_device(device: Device) -> torch.device:
    """`auto` is CUDA, then MPS, then CPU; a device that is asked for and missing is an error."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        return torch.device(next(name for name, there in available.items() if there))
    if not available[device]:
        raise WinnowError(f"device = {device!r}, but this machine has none: use auto or cpu")
    return torch.device(device)


def computes_in_bf16(device: torch.device) -> bool:
    """Whether the precision `auto` is bf16 there: only where the hardware computes in it, not emulates it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


@dataclass(frozen=True)
class _Autocast:
    device: str
    fast_dtype_enabled: bool

    def context(self) -> torch.autocast:
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.fast_dtype_enabled)


def _autocast(device: torch.device, precision: str) -> _Autocast:
    if precision != "auto":
        return _Autocast(device.type, precision == "bf16")
    return _Autocast(device.type, computes_in_bf16(device))


def _optimiser(
    model: Classifier, recipe: Recipe
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW with its own rate for backbone and head; one cycle over the whole budget."""
    parts: list[tuple[nn.Module, float]] = [(model.backbone, recipe.backbone_lr_factor), (model.head, 1.0)]
    groups: list[dict[str, Any]] = []
    for part, factor in parts:
        for parameter in part.parameters():
            parameter.requires_grad_(factor > 0)
        if factor > 0:
            groups.append({"params": list(part.parameters()), "lr": recipe.learning_rate * factor})
    optimiser = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
    total = recipe.epochs * recipe.steps_per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _one_cycle(step, total))
    return optimiser, schedule


def _one_cycle(step: int, total: int) -> float:
    """Share of the peak rate: from a tenth up over the first fifth, then down along a cosine.

    torch's own OneCycleLR divides by zero for some budgets of a few steps.
    """
    peak = max(1.0, _WARM_UP * total)
    if step < peak:
        return 0.1 + 0.9 * step / peak
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - peak) / max(1.0, total - peak))))


def _batches(
    labels: NDArray[np.int64], size: int, sampling: str, generator: torch.Generator
) -> Iterator[Tensor]:
    """Endless batches of indices: whole shuffles one after another, or classes drawn equally."""
    if sampling == "balanced":
        counts = np.bincount(labels)
        chances = torch.from_numpy(1.0 / counts[labels])
        while True:
            yield torch.multinomial(chances, size, replacement=True, generator=generator)
    pool = torch.empty(0, dtype=torch.int64)
    while True:
        while len(pool) < size:
            pool = torch.cat([pool, torch.randperm(len(labels), generator=generator)])
        yield pool[:size]
        pool = pool[size:]


def _augment(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Random translation and flip of a whole batch on its device, uint8 N×H×W×C."""
    count, height, width, _ = images.shape
    if recipe.shift:
        offsets = torch.randint(-recipe.shift, recipe.shift + 1, (2, count, 1), generator=generator)
        offsets = offsets.to(images.device)
        rows = (torch.arange(height, device=images.device) + offsets[0]).clamp(0, height - 1)
        columns = (torch.arange(width, device=images.device) + offsets[1]).clamp(0, width - 1)
        which = torch.arange(count, device=images.device)[:, None, None]
        images = images[which, rows[:, :, None], columns[:, None, :]]
    if recipe.flip:
        flipped = torch.rand(count, generator=generator).to(images.device) < 0.5
        images = torch.where(flipped[:, None, None, None], images.flip(2), images)
    return images


def _log_shares(data: View, sampling: str) -> Tensor:
    """Log of the share of each class, K, in the mass that the batches are drawn from.

    A class without any counts as the rarest that has some: at zero, training would leave its logit as it
    was initialised, and free to win.
    """
    mass = np.bincount(data.labels, weights=data.weights, minlength=len(data.classes)).astype(np.float64)
    if sampling == "balanced":
        mass = mass / np.maximum(data.class_counts, 1)
    mass = np.where(mass > 0, mass, mass[mass > 0].min(initial=mass.max()))
    return torch.from_numpy(np.log(mass / mass.sum())).float()


def _loss(
    logits: Tensor, labels: Tensor, weights: Tensor, smoothing: float, log_shares: Tensor | None = None
) -> Tensor:
    """Weighted mean of the batch's cross-entropy, with logits moved by `log_shares` where given."""
    if log_shares is None:
        losses = functional.cross_entropy(logits.float(), labels, label_smoothing=smoothing, reduction="none")
        return (losses * weights).mean()
    log_probs = functional.log_softmax(logits.float() + log_shares, 1)
    own = functional.nll_loss(log_probs, labels, reduction="none")
    # Spread evenly, it would ask of the moved logits that rare classes be as likely as common ones.
    spread = -(log_shares.exp() * log_probs).sum(1)
    return (((1 - smoothing) * own + smoothing * spread) * weights).mean()


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
