"""From people's labels to a scored model, in memory, by what the stages are made of."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.machine import Span, measured
from benchmarks.measuring import ROOT
from benchmarks.remedies_data import Suspicion, Task, curate
from benchmarks.results import Row
from stages.dataset.base import View
from stages.learning.names import LOSSES
from stages.workflow.params import PARAMS_FILE, load_params

if TYPE_CHECKING:
    import torch

    from stages.learning.adapting import Phase
    from stages.learning.loop import Fit
    from stages.learning.models import Classifier
    from stages.learning.names import Device
    from stages.learning.recipe import Recipe


@dataclass(frozen=True)
class Settings:
    """All that a run follows from beside labels, seed, rule and policies, which are those of params.yaml.

    Attributes
    ----------
    images : training images, the same number of each class by its true labels; 0: all there are
    fold_models : networks of the cross-validation. A ResNet-9 learns in few epochs, for a third of the
        arithmetic of a ResNet-34; and what one network came to believe another kind need not repeat.
    folds, repeats, fold_epochs : as params.yaml has them (`settings_by_default`)
    fold_batch_size, fold_learning_rate : of AdamW, which the cross-validation always uses
    model : what is trained on the curated labels, and scored
    epochs : of the curated training; one epoch is as many steps as one pass over all images
    optimiser, batch_size, learning_rate, l2 : SGD as is usual for CIFAR, the rate in proportion to the batch
        (.1 for 128), decay coupled as in the papers
    loss, label_smoothing : as params.yaml has them. The policies drop more of some classes than of others,
        and balanced softmax makes up for that.
    mixup, cutmix : in turns by chance. On labels of which few are wrong, mixing is what best keeps a network
        from learning those by heart (Zhang et al., arXiv 1710.09412, section 3.4). With `early_learning`
        set both to 0: it remembers what was said of each image, and mixtures blur that.
    cutout : in pixels; 0: none
    average : decay of the moving average of the weights, over some five epochs, as in ELR+
    shift : of folds and training, with flips
    head_epochs, finetune_epochs, finetune_rate : of the fine-tuning; its mode and the backbone's share of
        the rate are those of params.yaml
    development : score on images of the training set with their true labels: settings are chosen there
    """

    images: int = 0
    fold_models: tuple[str, ...] = ("resnet9",)
    folds: int = 5
    repeats: int = 3
    fold_epochs: int = 8
    fold_batch_size: int = 256
    fold_learning_rate: float = 0.005
    model: str = "resnet34"
    epochs: int = 70
    optimiser: str = "sgd"
    batch_size: int = 256
    learning_rate: float = 0.2
    l2: float = 0.0005
    loss: str = "balanced_softmax"
    label_smoothing: float = 0.05
    mixup: float = 1.0
    cutmix: float = 1.0
    cutout: int = 0
    average: float = 0.999
    shift: int = 4
    head_epochs: int = 1
    finetune_epochs: int = 10
    finetune_rate: float = 0.02
    development: bool = False


def settings_by_default() -> Settings:
    """With what params.yaml says of them."""
    params = load_params(ROOT / PARAMS_FILE)
    noise, train = params.detect_noise, params.train
    return Settings(
        folds=noise.folds,
        repeats=noise.repeats,
        fold_epochs=noise.epochs,
        loss=train.loss,
        label_smoothing=train.label_smoothing,
    )


@dataclass(frozen=True)
class Chain:
    """One run: its images and labels, settings, and where it computes and keeps what is done.

    Attributes
    ----------
    place : a folder for checkpoints, gone when the run is done
    say : is told when a part ends
    """

    task: Task
    settings: Settings
    seed: int
    device: Device
    target: torch.device
    place: Path
    say: Callable[[str], None]

    def run(self) -> Row:
        """Folds, rule, curated training and fine-tuning; figures of each."""
        task, settings = self.task, self.settings
        continued = self._continued()
        with measured(self.target) as folds:
            found = self._cross_validate()
        accuracy_of_folds = float((found.train_probs.argmax(1) == task.true).mean())
        self._tell("folds", folds, f"accuracy out of fold {accuracy_of_folds:.4f}")
        with measured(self.target) as rule:
            suspicion = curate(
                task.train,
                found.train_probs,
                seed=self.seed,
                judged=found.train_judged,
                agreement=found.train_votes,
            )
        figures = detection(suspicion.flagged, task.train.labels != task.true)
        left = wrong_left(task, suspicion.curated)
        self._tell("rule", rule, f"F1 {figures['f1']:.4f}, {left:.2%} of the labels left are wrong")
        recipe = training_recipe(settings, len(task.train), suspicion)
        with measured(self.target) as training:
            fitted = self._fit(suspicion.curated, recipe, suspicion.transition)
        trained = accuracy(fitted.model, task.test, self.device)
        self._tell("curated training", training, f"accuracy {trained:.4f}")
        with measured(self.target) as finetuning:
            self._finetune(fitted.model, suspicion.curated, recipe)
        finetuned = accuracy(fitted.model, task.test, self.device)
        self._tell("fine-tuning", finetuning, f"accuracy {finetuned:.4f}")
        shutil.rmtree(self.place, ignore_errors=True)
        spans = {"folds": folds, "rule": rule, "training": training, "finetuning": finetuning}
        return figures | {
            "accuracy_of_folds": accuracy_of_folds,
            "accuracy_trained": trained,
            "accuracy": finetuned,
            "images": len(task.train),
            "images_left": len(suspicion.curated),
            "actions": suspicion.actions,
            "wrong": float((task.train.labels != task.true).mean()),
            "wrong_left": left,
            **_took(spans, fitted, continued=continued),
        }

    def run_baseline(self) -> Row:
        """Plain cross-entropy on the given labels, for as many steps as curated training and fine-tuning."""
        task, settings = self.task, self.settings
        continued = self._continued()
        plain = replace(
            settings,
            epochs=settings.epochs + settings.head_epochs + settings.finetune_epochs,
            loss="cross_entropy",
            label_smoothing=0.0,
            mixup=0.0,
            cutmix=0.0,
            cutout=0,
            average=0.0,
        )
        with measured(self.target) as training:
            fitted = self._fit(task.train, training_recipe(plain, len(task.train)), None)
        reached = accuracy(fitted.model, task.test, self.device)
        self._tell("baseline", training, f"accuracy {reached:.4f}")
        shutil.rmtree(self.place, ignore_errors=True)
        return {
            "accuracy": reached,
            "images": len(task.train),
            "wrong": float((task.train.labels != task.true).mean()),
            **_took({"training": training}, fitted, continued=continued),
        }

    def _continued(self) -> bool:
        """Whether a run that was killed has left something here: then seconds are of the rest alone."""
        return self.place.is_dir() and any(self.place.rglob("*.part"))

    def _cross_validate(self) -> Any:
        from stages.noise.folds import CrossValidation, cross_validate

        settings = self.settings
        noise = load_params(ROOT / PARAMS_FILE).detect_noise
        ensemble = CrossValidation(
            settings.fold_models,
            settings.folds,
            settings.repeats,
            settings.fold_epochs,
            settings.fold_batch_size,
            settings.fold_learning_rate,
            shift=settings.shift,
            flip=True,
            downweight_suspects=noise.downweight_suspects,
        )
        view = self.task.train
        return cross_validate(
            view,
            view.images[:0],
            ensemble,
            seed=self.seed,
            device=self.device,
            keep_in=self.place / "folds",
            on_fold=lambda row: self.say(f"fold {row['epoch']:.0f}: agreement {row['agreement']:.3f}"),
        )

    def _fit(self, view: View, recipe: Recipe, transition: NDArray[np.float64] | None) -> Fit:
        from stages.learning.loop import fit
        from stages.learning.models import build_model, pixel_statistics
        from stages.learning.networks.layers import ModelSpec

        images = self.task.train.images
        spec = ModelSpec(self.settings.model, view.classes, images.shape[1:], *pixel_statistics(images))
        return fit(
            build_model(spec, seed=self.seed),
            view,
            recipe,
            seed=self.seed,
            device=self.device,
            description="",
            keep_in=self.place / "training",
            transition=transition,
        )

    def _finetune(self, model: Classifier, view: View, recipe: Recipe) -> None:
        from stages.learning.adapting import transfer

        transfer(
            model,
            view,
            finetuning_plan(model, self.settings, recipe),
            seed=self.seed,
            device=self.device,
            description=None,
            keep_in=self.place / "finetuning",
        )

    def _tell(self, part: str, span: Span, figures: str) -> None:
        self.say(f"{part}: {figures}; {span.seconds:.1f} s")


def training_recipe(settings: Settings, images: int, suspicion: Suspicion | None = None) -> Recipe:
    """How to train; of `co_teaching` the share that is forgotten is that of the suspected labels."""
    from stages.learning.recipe import LossOptions, Recipe, steps_per_epoch

    forgotten = LossOptions() if suspicion is None else LossOptions(forget_rate=suspicion.wrong_share)
    return Recipe(
        epochs=settings.epochs,
        steps_per_epoch=steps_per_epoch(images, settings.batch_size),
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        optimiser=settings.optimiser,  # type: ignore[arg-type]
        weight_decay=0.0,
        l2=settings.l2,
        average_weights=settings.average,
        loss=settings.loss,
        loss_options=forgotten,
        label_smoothing=settings.label_smoothing,
        shift=settings.shift,
        flip=True,
        mixup=settings.mixup,
        cutmix=settings.cutmix,
        cutout=settings.cutout,
    )


def finetuning_plan(model: Classifier, settings: Settings, recipe: Recipe) -> list[Phase]:
    """The phases, as the stage `finetune` has them: classes drawn equally often, in params.yaml's mode."""
    from stages.learning.adapting import phases
    from stages.learning.networks.zoo import stages_of

    choices = load_params(ROOT / PARAMS_FILE).finetune
    return phases(
        choices.mode,
        replace(
            recipe,
            epochs=settings.finetune_epochs,
            learning_rate=settings.finetune_rate,
            # As in the stage `finetune`: others give way to even sampling.
            loss=recipe.loss if LOSSES[recipe.loss].transfers else "cross_entropy",
            sampling="balanced",
        ),
        head_epochs=settings.head_epochs,
        backbone_lr_factor=choices.backbone_lr_factor,
        layer_decay=choices.layer_decay,
        stages=len(stages_of(model.backbone)),
    )


def detection(flagged: NDArray[np.bool_], wrong: NDArray[np.bool_]) -> dict[str, float]:
    """Precision, recall and F1 (0 to 1) of flagged labels; 0 where there are none to divide by."""
    hits = float((flagged & wrong).sum())
    precision, recall = hits / max(1, int(flagged.sum())), hits / max(1, int(wrong.sum()))
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * hits / max(1, int(flagged.sum()) + int(wrong.sum())),
    }


def wrong_left(task: Task, view: View) -> float:
    """Share of wrong labels in what is left of the task's training view."""
    place = {name: row for row, name in enumerate(task.train.sample_ids)}
    rows = np.array([place[name] for name in view.sample_ids], np.int64)
    return float((view.labels != task.true[rows]).mean())


def accuracy(model: Classifier, view: View, device: Device) -> float:
    """Share of the images that it is right on, 0 to 1."""
    from stages.learning.prediction import predict

    probabilities, _ = predict(model, view.images, device, "auto")
    return float((probabilities.argmax(1) == view.labels).mean())


def _took(spans: dict[str, Span], fitted: Fit, *, continued: bool) -> Row:
    seconds = {name: round(span.seconds, 2) for name, span in spans.items()}
    return {
        "seconds": seconds | {"all": round(sum(seconds.values()), 2)},
        "continued": continued,
        "peak_bytes": max(span.peak_bytes for span in spans.values()),
        "computed_in": fitted.precision,
        "notes": fitted.notes,
    }
