"""Train a model: the one loop of train, baseline, finetune, the judge and the folds of detect_noise.

The dataset lies on the device as uint8 where it fits; batches are gathered, transformed and normalised there.
The step and its state are in `stages.learning.trainer`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from stages.dataset.base import View
from stages.errors import WinnowError
from stages.learning.devices import choose_autocast, choose_device, chosen_kernels
from stages.learning.models import Classifier
from stages.learning.names import LOSSES, Device, Precision
from stages.learning.parallel import World, world
from stages.learning.prediction import predict
from stages.learning.recipe import Recipe
from stages.learning.resume import KeptTraining, Termination, training_key
from stages.learning.trainer import Trainer


@dataclass
class Fit:
    """The result of a training: the model, a row of figures an epoch, and the epoch that was kept.

    `notes` is a sentence each for what did not go as ordered: a smaller batch, a continued run. They differ
    from run to run, and belong into no file that DVC hashes.
    """

    model: Classifier
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    device: Device = "cpu"
    precision: Precision = "fp32"
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
    seed : of the order of batches and of all else that is random in training
    val : scored after each epoch; with `early_stopping` it picks the weights that are kept
    description : stands before the progress bar; empty for no bar
    on_epoch : called with each row of the history, also with those from before a run was killed
    keep_in : a folder for checkpoints: after each epoch (after several, where an epoch is so short that they
        would take over 5 % of the time), and on SIGTERM, with which the process then ends. A run that was
        killed goes on where it was and gives the same weights (on a CPU, to the bit); what was kept from
        other inputs is removed. The caller removes the folder when all is done.
    transition : float64, K×K; for the loss `forward_correction`
    unlabeled : uint8, M×H×W×C; images of the target domain, for `coral`

    Raises
    ------
    WinnowError
        Where there is nothing to train on, the loss is no longer a number, memory is too small for a single
        image, or the disk refuses a checkpoint.
    """
    here = world()
    _check(data, recipe, unlabeled, here)
    if not here.is_main:
        description, on_epoch = "", None
    target = choose_device(device)
    autocast = choose_autocast(target, recipe.precision)
    precision: Precision = "bf16" if autocast.bf16 else "fp32"
    result = Fit(model, device=cast("Device", target.type), precision=precision)
    key = ""
    if keep_in is not None:
        key = training_key(
            model, data, recipe, seed=seed, device=device, val=val, transition=transition, unlabeled=unlabeled
        )
    kept = KeptTraining(keep_in, here.from_main(key))
    model.to(target)
    with (
        _seeded(seed + here.rank, target),
        chosen_kernels(target),
        Termination(awaited=keep_in is not None) as termination,
    ):
        trainer = Trainer(
            model,
            data,
            recipe,
            seed=seed,
            device=target,
            autocast=autocast,
            name=description,
            transition=transition,
            unlabeled=unlabeled,
        )
        best = _Best(recipe)
        _resume(kept, trainer, best, result, on_epoch)
        trainer.compile_networks()
        if not here.alike(trainer.steps):
            raise WinnowError(
                f"the machines do not share their checkpoints: {keep_in} must be the same for all"
            )
        with (
            trainer.together(),
            tqdm(
                total=recipe.epochs,
                initial=trainer.epoch,
                desc=description,
                unit="epoch",
                disable=not description,
            ) as bar,
        ):
            while trainer.epoch < recipe.epochs:
                while trainer.position < recipe.steps_per_epoch:
                    trainer.step()
                    if termination.asked and here.is_main:  # the others end when they miss it
                        _keep(kept, trainer, best, result)
                        termination.end()
                row = {"epoch": trainer.epoch + 1.0, "train_loss": trainer.end_epoch()}
                if val is not None and len(val):
                    row |= _score(trainer.result, val, result, balanced=best.balanced)
                    best.see(row, trainer.result)
                result.history.append(row)
                if kept.due or trainer.epoch == recipe.epochs:
                    _keep(kept, trainer, best, result)
                bar.update()
                bar.set_postfix({name: f"{value:.3f}" for name, value in row.items() if name != "epoch"})
                if on_epoch is not None:
                    on_epoch(row)
        model.load_state_dict(best.weights or trainer.result.state_dict())
        result.best_epoch = best.epoch or recipe.epochs
        result.notes += trainer.notes
    model.eval()
    return result


@dataclass
class _Best:
    """The epoch that early stopping keeps, and its weights.

    It goes by accuracy, not by loss: with wrong labels in the validation split the loss punishes confidence
    in right answers, and would stop training far too early. Where the loss or the weights of classes are for
    balanced classes it goes by balanced accuracy: the validation split is as skewed as the training one.
    Classes that are drawn equally often leave it at accuracy: they steady a training on few images whatever
    it is after, and a loss for balanced classes can be named besides.
    """

    recipe: Recipe
    score: float = -math.inf
    epoch: int = 0
    weights: dict[str, Any] | None = None

    @property
    def balanced(self) -> bool:
        return LOSSES[self.recipe.loss].balances or self.recipe.class_weighting != "none"

    def see(self, row: dict[str, float], model: Classifier) -> None:
        """Take the model's weights where its epoch is the best so far."""
        score = row["val_balanced_accuracy" if self.balanced else "val_accuracy"]
        # On equal terms the later epoch: validation sets here are small, and ties are common.
        if self.recipe.early_stopping and score >= self.score:
            self.score, self.epoch = score, int(row["epoch"])
            self.weights = copy.deepcopy(model.state_dict())

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.score, self.epoch, self.weights = state["score"], state["epoch"], state["weights"]


def _check(data: View, recipe: Recipe, unlabeled: NDArray[np.uint8] | None, here: World) -> None:
    if len(data) == 0:
        raise WinnowError("there are no training images: every one was dropped or none was there")
    if not data.weights.any():
        raise WinnowError("all samples weigh nothing: there is nothing to learn from")
    if min(recipe.batch_size, len(data)) < here.size:
        raise WinnowError(
            f"{here.size} processes cannot share batches of {min(recipe.batch_size, len(data))}: start fewer"
        )
    if recipe.coral > 0 and (unlabeled is None or len(unlabeled) == 0):
        raise WinnowError(f"coral = {recipe.coral:g}, but there are no unlabelled images to adapt to")
    if recipe.coral > 0 and min(recipe.batch_size, len(data)) == 1:
        raise WinnowError(
            f"coral = {recipe.coral:g} compares covariances, which a batch of one image has not: raise "
            "batch_size"
        )


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generator, which dropout draws from, and restore its state afterwards."""
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _keep(kept: KeptTraining, trainer: Trainer, best: _Best, result: Fit) -> None:
    """Write a checkpoint by the first process; all read it."""
    if kept.keeps and world().is_main:
        kept.write({"trainer": trainer.state_dict(), "best": best.state_dict(), "history": result.history})


def _resume(
    kept: KeptTraining,
    trainer: Trainer,
    best: _Best,
    result: Fit,
    on_epoch: Callable[[dict[str, float]], None] | None,
) -> None:
    """Go on from the checkpoint, if there is one."""
    state = kept.read()
    if state is None:
        return
    trainer.load_state_dict(state["trainer"])
    best.load_state_dict(state["best"])
    result.history += state["history"]
    # The trainer's notes go into its next checkpoint; this one is about this process alone.
    result.notes.append(f"went on after step {trainer.steps} of a run that did not end")
    trainer.say(result.notes[-1])
    for row in result.history:
        if on_epoch is not None:
            on_epoch(row)


@torch.inference_mode()
def _score(model: Classifier, val: View, how: Fit, *, balanced: bool) -> dict[str, float]:
    """Score an epoch on validation; with balanced accuracy where early stopping goes by it.

    In the precision of the training: on two cores fp32 took 2.5 times as long, after every epoch.
    """
    here = world()
    rows, _ = predict(model, val.images[here.rows(len(val))], how.device, how.precision)
    probabilities = here.gather(torch.from_numpy(rows), len(val)).numpy()
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
    """Concatenate the histories of several fits, their epochs numbered through."""
    rows = [row for result in results for row in result.history]
    return [{**row, "epoch": float(number)} for number, row in enumerate(rows, start=1)]
