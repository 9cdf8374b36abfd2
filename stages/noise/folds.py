"""Compute out-of-sample predicted probabilities by repeated stratified k-fold cross-validation.

Samples of one group (near-duplicates, a patient, a video) are always in the same fold: a model that
saw the twin of an image would repeat the twin's label, and find no error in it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from stages.dataset.base import View
from stages.dataset.checkpoints import Arrays, Checkpoints
from stages.errors import WinnowError
from stages.learning import resume
from stages.learning.loop import fit
from stages.learning.models import Classifier, build_model, pixel_statistics
from stages.learning.names import Device
from stages.learning.networks.layers import ModelSpec
from stages.learning.networks.zoo import is_torchvision
from stages.learning.prediction import predict
from stages.learning.pretrained import backbone_from, pretrained_from_torchvision
from stages.learning.recipe import Recipe, steps_per_epoch
from stages.learning.splitting import Fold, split_folds
from stages.learning.store import SPEC, read_spec

_BACKBONE_LR_FACTOR = 0.1  # of pretrained weights, which a fresh head's rate would wash out
_WEIGHTS = {".safetensors", ".pt", ".pth", ".bin"}

# In stages/; tests/noise/test_cross_validation.py holds it against what this file imports.
_CODE = (*resume.CODE, "noise/folds.py")
_LIBRARIES = ("numpy", "scikit-learn", "torch", "torchvision")


@dataclass(frozen=True)
class CrossValidation:
    """The models that are trained on the folds, and how; everything but data, seed and device.

    Attributes
    ----------
    models : architectures; each is trained on every fold of every repeat
    folds, repeats : k of the cross-validation, and how often it is done with other seeds and folds
    epochs, batch_size, learning_rate : of each model
    shift : random translation in training by up to so many pixels
    flip : random horizontal flips in training, and the mean over an image and its mirror image in
        prediction
    downweight_suspects : from the second repeat on, a label weighs less in training the less plausible
        the repeats before found it
    pretrained : weights to start from instead of afresh: torchvision's name, for the model of that
        architecture, or a file (`.safetensors` or a torch state dict), for the last of `models`
    """

    models: tuple[str, ...]
    folds: int
    repeats: int
    epochs: int
    batch_size: int
    learning_rate: float
    shift: int = 1
    flip: bool = False
    downweight_suspects: bool = False
    pretrained: str | None = None

    @property
    def pretrained_architecture(self) -> str | None:
        """Name the one of `models` that starts from the pretrained weights; None without weights."""
        if self.pretrained is None:
            return None
        if _is_file(self.pretrained):
            return self.models[-1]
        return self.pretrained.partition(".")[0].removesuffix("_Weights").lower()

    def start(self, architecture: str, spec: ModelSpec, seed: int) -> Classifier:
        """Build a model to train, around the pretrained backbone where that is of this architecture.

        Raises
        ------
        WinnowError
            Where there are no such weights (and no network to get them), they do not fit, or they
            come from a model that was trained on the labels at hand.
        """
        spec = replace(spec, architecture=architecture)
        if self.pretrained is None or architecture != self.pretrained_architecture:
            return build_model(spec, seed=seed)
        try:
            if not _is_file(self.pretrained):
                return pretrained_from_torchvision(self.pretrained, spec, seed=seed)[0]
            source = Path(self.pretrained)
            if source.is_dir():
                raise WinnowError(f"{source} is a folder; name a file of weights")
            if (source.parent / SPEC).is_file() and read_spec(source.parent).classes == spec.classes:
                raise WinnowError(
                    f"{source} was trained on these classes, and would repeat the labels it was shown; name "
                    "weights that come from other data"
                )
            return backbone_from(source, spec, architecture=architecture, seed=seed)[0]
        except WinnowError as error:
            raise WinnowError(f"detect_noise.pretrained: {error}") from error

    def check(self, spec: ModelSpec) -> None:
        """Raise what `start` would raise, before hours of training."""
        if self.pretrained is None:
            return
        architecture = self.pretrained_architecture
        if is_torchvision(architecture) and architecture not in self.models:
            raise WinnowError(
                f"detect_noise.pretrained = {self.pretrained!r} is for {architecture}, which is not in "
                f"detect_noise.models ({', '.join(self.models)}): add it there"
            )
        self.start(str(architecture), spec, 0)

    def recipe(self, samples: int, architecture: str) -> Recipe:
        """Return the recipe by which the training loop trains a model on so many samples."""
        return Recipe(
            epochs=self.epochs,
            steps_per_epoch=steps_per_epoch(samples, self.batch_size),
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            backbone_lr_factor=_BACKBONE_LR_FACTOR if architecture == self.pretrained_architecture else 1.0,
            shift=self.shift,
            flip=self.flip,
        )


def inputs_digest(
    train: View,
    others: NDArray[np.uint8],
    groups: NDArray[np.int64] | None,
    cv: CrossValidation,
    *,
    seed: int,
    device: Device,
) -> str:
    """Return 64 hex that name all that the folds' figures follow from, to the bit.

    Data, options, seed, the code of this room and of the training loop, the libraries, and the
    machine's arithmetic: a fold that was computed from anything else is not this one's.
    """
    files = resume.code_files(_CODE)
    if cv.pretrained is not None and Path(cv.pretrained).is_file():
        files.append(Path(cv.pretrained))
    arrays = (train.images, train.labels, train.weights, others, groups)
    facts = [train.classes, asdict(cv), seed]
    return resume.inputs_digest(arrays, files, facts, device=device, libraries=_LIBRARIES)


def _is_file(name: str) -> bool:
    """Tell whether a name means a file, there or not; torchvision's have no slash and one dot."""
    return Path(name).exists() or "/" in name or Path(name).suffix in _WEIGHTS


@dataclass(frozen=True)
class OutOfSample:
    """Probabilities, votes and embeddings that cross-validation gives of every sample.

    Attributes
    ----------
    train_probs : float32, N×K; each row from models that were not trained on that sample
    other_probs : float32, M×K; mean over all folds' models, for images outside the training split
    train_votes, other_votes : float32, N×K and M×K; share of the members whose likeliest class it
        is. For a training sample the members are those that were not trained on it: one a repeat and
        architecture.
    train_embeddings, other_embeddings : float32, N×D and M×D; all by one and the same network, the
        first fold's of the first architecture, so that distances compare
    train_judged : bool, N; whether every model that was asked about a sample had seen another one
        of its label. Where not, as for a class that is all one group, the model could not have said
        that label, and its contradiction means nothing.
    """

    train_probs: NDArray[np.float32]
    other_probs: NDArray[np.float32]
    train_votes: NDArray[np.float32]
    other_votes: NDArray[np.float32]
    train_embeddings: NDArray[np.float32]
    other_embeddings: NDArray[np.float32]
    train_judged: NDArray[np.bool_]


def cross_validate(
    train: View,
    others: NDArray[np.uint8],
    cv: CrossValidation,
    *,
    seed: int,
    groups: NDArray[np.object_] | None = None,
    device: Device = "auto",
    keep_in: Path | None = None,
    on_fold: Callable[[dict[str, float]], None] | None = None,
) -> OutOfSample:
    """Train each member on all folds but one, and ask it about the rest.

    Averaging over repeats with other folds and other initial weights steadies the probabilities,
    which decides more about the label errors found than the rule does. With
    `cv.downweight_suspects` it is done iteratively: each repeat weighs the labels it learns by
    what the repeats before, none of which had learned them, found of each. A held-out sample's own
    label then still reaches its judge, faintly: the models that weighed the other samples had learned
    it. Nested cross-validation would shut that out at k times the cost and gains nothing: with 20 % of
    the digits' labels planted wrong and logistic regression, a wrong label has a mean probability of
    .031, nested .028, and AUROC is .996, nested .995.

    Parameters
    ----------
    train : the training split with its given labels; its weights count in the folds' losses
    others : uint8, M×H×W×C; images of the other splits, and the unlabelled ones
    cv : what is trained on the folds, and how
    seed : of folds, initial weights and batches
    groups : N names; samples of one name stay in one fold. Where all differ it is as without.
    keep_in : a folder for what is finished. A run that was killed goes on with the next fold, and
        gives the same bytes; what was kept from other inputs is removed. The caller removes the
        folder when all is done.
    on_fold : called after each fold with its figures

    Raises
    ------
    WinnowError
        Where no class has as many images as there are folds, or there are fewer groups; where
        pretrained weights cannot be had, or do not fit.
    """
    numbers = None if groups is None else np.unique(groups, return_inverse=True)[1]
    spec = ModelSpec(cv.models[0], train.classes, train.images.shape[1:], *pixel_statistics(train.images))
    trainer = _FoldTrainer(train, others, cv, spec, device)
    plan = _plan(train, cv, numbers, seed)
    cv.check(spec)
    key = inputs_digest(train, others, numbers, cv, seed=seed, device=device) if keep_in else ""
    checkpoints = Checkpoints(keep_in, key)
    sums = _Sums(len(train), len(others), len(train.classes))
    weights, repeat_before = train.weights, 0
    for number, (repeat, architecture, fold) in enumerate(plan, start=1):
        label = f"fold {number}/{len(plan)}"
        if cv.downweight_suspects and repeat != repeat_before:
            weights, repeat_before = train.weights * sums.plausibility(train.labels), repeat
        outputs = checkpoints.read(number)
        if outputs is None:
            model_seed = (seed + 1000 * number) % 2**32
            outputs = trainer.train(architecture, fold, weights, model_seed, label, embeddings=number == 1)
            checkpoints.write(number, outputs)
        else:
            tqdm.write(f"{label}: kept from a run that did not end", file=sys.stderr)
        sums.add(outputs, fold, train)
        if on_fold is not None:
            agreement = float((outputs["probs"].argmax(1) == train.labels[fold[1]]).mean())
            on_fold({"epoch": number, "agreement": agreement, "train_loss": float(outputs["train_loss"])})
    return sums.means()


@dataclass(frozen=True)
class _FoldTrainer:
    """Trains one model on all folds but one, and asks it about the rest."""

    view: View
    others: NDArray[np.uint8]
    cv: CrossValidation
    spec: ModelSpec
    device: Device

    def train(
        self,
        architecture: str,
        fold: Fold,
        weights: NDArray[np.float32],
        seed: int,
        label: str,
        *,
        embeddings: bool,
    ) -> Arrays:
        """Train one model, and return what it says of the samples that it did not see."""
        inside, outside = fold
        view = self.view
        data = View(
            view.images[inside], view.labels[inside], weights[inside], view.sample_ids[inside], view.classes
        )
        model = self.cv.start(architecture, self.spec, seed)
        recipe = self.cv.recipe(len(data), architecture)
        result = fit(model, data, recipe, seed=seed, device=self.device, description=label)
        probs, outer = self._ask(model, view.images[outside], exact=embeddings)
        other_probs, other_embeddings = self._ask(model, self.others, exact=embeddings)
        loss = np.array(result.history[-1]["train_loss"])
        outputs: Arrays = {"train_loss": loss, "probs": probs, "other_probs": other_probs}
        if embeddings:
            together = np.empty((len(view), outer.shape[1]), np.float32)
            together[outside], together[inside] = outer, predict(model, data.images, self.device)[1]
            outputs |= {"embeddings": together, "other_embeddings": other_embeddings}
        return outputs

    def _ask(
        self, model: Classifier, images: NDArray[np.uint8], *, exact: bool
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return probabilities, over both mirror images where `flip` is on, and embeddings.

        `exact` is for embeddings that are compared: in bf16 distances would be coarse.
        """
        precision: Literal["fp32", "auto"] = "fp32" if exact else "auto"
        probs, embeddings = predict(model, images, self.device, precision)
        if self.cv.flip:
            probs = (probs + predict(model, images[:, :, ::-1], self.device, precision)[0]) / np.float32(2)
        return probs, embeddings


class _Sums:
    """Adds up the members' answers, in the order of the folds: a sum of floats depends on it."""

    def __init__(self, train: int, others: int, classes: int) -> None:
        self._probs, self._votes = np.zeros((2, train, classes))
        self._other_probs, self._other_votes = np.zeros((2, others, classes))
        self._judged = np.ones(train, bool)
        self._embeddings = (np.zeros((0, 0), np.float32), np.zeros((0, 0), np.float32))

    def add(self, outputs: Arrays, fold: Fold, train: View) -> None:
        """Add one fold's answers."""
        inside, outside = fold
        self._probs[outside] += outputs["probs"]
        self._votes[outside, outputs["probs"].argmax(1)] += 1
        self._other_probs += outputs["other_probs"]
        self._other_votes[np.arange(len(self._other_votes)), outputs["other_probs"].argmax(1)] += 1
        taught = np.bincount(train.labels[inside], minlength=len(train.classes)) > 0
        self._judged[outside] &= taught[train.labels[outside]]
        if "embeddings" in outputs:
            self._embeddings = (outputs["embeddings"], outputs["other_embeddings"])

    def plausibility(self, labels: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return each label's probability so far against the mean of its class, at most 1: N, 0 to 1.

        The mean is confident learning's threshold of a class (Northcutt et al., arXiv 1911.00068):
        against it, labels of a rare class, which models seldom are sure of, do not all count little.
        What could not be judged counts in full.
        """
        probs = self._probs[np.arange(len(labels)), labels]
        probs = probs / np.maximum(self._probs.sum(1), 1e-12)
        counts = np.bincount(labels, weights=self._judged)
        mean = np.bincount(labels, weights=probs * self._judged) / np.maximum(counts, 1)
        share = np.minimum(1.0, probs / np.maximum(mean[labels], 1e-12))
        return np.where(self._judged, share, 1.0).astype(np.float32)

    def means(self) -> OutOfSample:
        """Return the means, rows that sum to 1 as well as float32 can."""
        sums = (self._probs, self._other_probs, self._votes, self._other_votes)
        train, other, votes, other_votes = (
            (each / np.maximum(each.sum(1, keepdims=True), 1e-12)).astype(np.float32) for each in sums
        )
        return OutOfSample(train, other, votes, other_votes, *self._embeddings, self._judged)


def _plan(
    train: View, cv: CrossValidation, groups: NDArray[np.int64] | None, seed: int
) -> list[tuple[int, str, Fold]]:
    """List repeat, architecture and fold of each model to train; architectures share a repeat's folds."""
    if cv.repeats < 1 or not cv.models:
        raise ValueError("repeats and models must be at least 1")
    repeats = [
        split_folds(train.labels, groups, cv.folds, seed + number, named="detect_noise.folds")
        for number in range(cv.repeats)
    ]
    return [
        (repeat, model, fold) for repeat, folds in enumerate(repeats) for model in cv.models for fold in folds
    ]
