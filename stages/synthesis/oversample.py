"""Make images for rare classes: by the GAN where the gate accepts them, else by a simpler sampler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from stages.dataset.base import View
from stages.dataset.ids import sample_seed
from stages.synthesis.gate import (
    UNCHECKED,
    ClassQuality,
    Method,
    judge_class,
    nearness_figures,
    real_images,
    why_none,
)
from stages.synthesis.interpolation import CLEANING, SimpleMethod, interpolate

if TYPE_CHECKING:
    from stages.learning.judge import Judge
    from stages.learning.names import Device
    from stages.synthesis.gan_trainer import GANConfig
    from stages.synthesis.gan_training import TrainedGAN
    from stages.synthesis.gate import Gate, GateConfig, GateVerdict


CANDIDATES_PER_IMAGE = 4
MIN_CANDIDATES = 64  # fewer tell little about the generator
_REFUSED_SAMPLE = 8  # of each class and check, to be looked at
_CHECKED_SINGLY = ("agreement", "copies", "copies_of_held_out")  # measures of what a check looks at too

_MADE_BY = {
    "random": "copies of real images",
    "smote": "interpolated between neighbours of the class",
    "borderline_smote": "interpolated from images at the border to another class",
    "adasyn": "interpolated, most where other classes are near",
    "smote_enn": "interpolated, and cleaned by edited nearest neighbours",
    "smote_tomek": "interpolated, and cleaned of Tomek links",
}


@dataclass(frozen=True)
class OversamplingConfig:
    """The methods that make images, and how strict they are.

    Attributes
    ----------
    method : `gan`, one of the simple samplers (see `interpolate`), or `none`
    fallback : for classes for which the GAN is not tried or is refused: a simple sampler, or `none`
    min_real_per_class : real images under which the GAN is not tried for a class
    gan, gate : see `GANConfig`, `GateConfig`
    """

    method: Method
    fallback: SimpleMethod | Literal["none"]
    min_real_per_class: int
    gan: GANConfig
    gate: GateConfig


@dataclass(frozen=True)
class Beside:
    """Data beside the real training images, of which nothing is made.

    Attributes
    ----------
    embeddings : float32, N×D, a row for each real image, where neighbours are looked for; None looks
        for them in the pixels
    groups : N names; images of one name are never on both sides of the judge's folds, and no measure of how
        near unseen images come to one another
    validation : among snapshots of the GAN, what chooses; None leaves the last
    held_out : uint8 images by the name of their split, only ever looked at for copies of them
    """

    embeddings: NDArray[np.float32] | None = None
    groups: NDArray[np.object_] | None = None
    validation: View | None = None
    held_out: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)


@dataclass(frozen=True)
class RefusedCandidates:
    """A few candidates that one check refused, or that were refused with their class: uint8, n×H×W×C.

    `parents` (int64, n) are the nearest real images of the class; indices into the real images.
    """

    label: int
    check: str
    images: NDArray[np.uint8]
    parents: NDArray[np.int64]


@dataclass
class GANRecord:
    """The record of the GAN's training.

    Attributes
    ----------
    trained_on : names of its classes
    steps, batch_size : at the end; fewer steps than `steps_asked` where it went back to a good state
    notes : what happened on the way, each one sentence
    history : rows of losses
    scores : a row a snapshot and class: `step`, `class` (its name), `score`, `chosen`
    progress : by step uint8 K×n×H×W×C, what the generator made of the same latents each time
    """

    trained_on: list[str]
    steps: int
    steps_asked: int
    batch_size: int
    notes: list[str] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)
    scores: list[dict[str, Any]] = field(default_factory=list)
    progress: dict[int, NDArray[np.uint8]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the value of `gan` in `quality.json`."""
        names = ("trained_on", "steps", "steps_asked", "batch_size", "notes")
        return {name: getattr(self, name) for name in names}


@dataclass
class Synthetic:
    """Made images of all classes, with the record of each class and of the GAN.

    Attributes
    ----------
    images : uint8, M×H×W×C
    labels : int64, M
    parents : int64, M; indices into the real images. Random over-sampling: the image that was copied;
        else the nearest image of the class, in pixels.
    methods : M names
    quality : by class name, in index order
    gan : None where none was trained
    refused : some of the candidates that the gate refused
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    parents: NDArray[np.int64]
    methods: list[str]
    quality: dict[str, ClassQuality]
    gan: GANRecord | None = None
    refused: list[RefusedCandidates] = field(default_factory=list)


@dataclass(frozen=True)
class ClassImages:
    """Images of one class, and their parents among the real images."""

    label: int
    images: NDArray[np.uint8]
    parents: NDArray[np.int64]
    method: str


def from_gan(
    real: View,
    result: Synthetic,
    config: OversamplingConfig,
    beside: Beside,
    seed: int,
    device: Device,
    keep_in: Path | None,
) -> list[ClassImages]:
    """Make images of the classes for which the gate accepts the GAN; record why not for the others.

    Classes are tested for eligibility before anything is trained. Writes `gan`, `refused` and the
    classes' `quality` into `result`; see `oversample` for the rest.
    """
    from stages.learning.judge import train_judge
    from stages.synthesis.gan_training import check_image_shape
    from stages.synthesis.gate import Gate

    height, width, channels = (int(side) for side in real.images.shape[1:])
    check_image_shape((height, width, channels))
    least = config.min_real_per_class
    wanting = []
    for label, entry in enumerate(result.quality.values()):
        if entry.requested and entry.real >= least:
            wanting.append(label)
        elif entry.requested:
            reason = f"{real_images(entry.real)}; the GAN is not tried under {least}"
            entry.decide("none", "fallback", reason)
    if not wanting:
        return []
    judge = train_judge(real, groups=beside.groups, seed=sample_seed(seed, "judge"), device=device)
    gate = Gate(
        real,
        config.gate,
        judge=judge,
        groups=beside.groups,
        held_out=beside.held_out,
        seed=sample_seed(seed, "gate"),
    )
    checkable = [label for label in wanting if gate.can_check(label)]
    for label in set(wanting) - set(checkable):
        entry = result.quality[real.classes[label]]
        entry.decide("none", "fallback", f"{UNCHECKED}; the GAN is not tried")
    if not checkable:
        return []
    eligible = np.flatnonzero(real.class_counts >= least)
    trained, result.gan = _train(real, eligible, config.gan, beside, judge, seed, device, keep_in)
    made = []
    for label in checkable:
        number = int(np.searchsorted(eligible, label))
        part = _one_class(real, label, number, trained, gate, config.gate.min_accepted, result, seed)
        made += [part] if part is not None else []
    return made


def _one_class(
    real: View,
    label: int,
    number: int,
    trained: TrainedGAN,
    gate: Gate,
    min_accepted: float,
    result: Synthetic,
    seed: int,
) -> ClassImages | None:
    """Generate and judge one class's candidates; None where the gate refuses the class.

    `number` is the class's among those that the GAN was trained on.
    """
    name, members = real.classes[label], np.flatnonzero(real.labels == label)
    entry = result.quality[name]
    entry.snapshot = int(trained.chosen[number])
    labels = np.full(max(MIN_CANDIDATES, CANDIDATES_PER_IMAGE * entry.requested), number, np.int64)
    candidates = trained.generate(labels, seed=sample_seed(seed, f"gan/{name}"))
    verdict = gate.judge(candidates, label)
    result.refused += _sample_refused(candidates, verdict, members, label)
    if not judge_class(entry, verdict, min_accepted):
        return None
    chosen = np.flatnonzero(verdict.accepted)[: entry.requested]
    entry.nearness = nearness_figures(verdict.nearness[chosen], real.images[members])
    return ClassImages(label, candidates[chosen], members[verdict.nearest[chosen]], "gan")


def _train(
    real: View,
    eligible: NDArray[np.int64],
    config: GANConfig,
    beside: Beside,
    judge: Judge,
    seed: int,
    device: Device,
    keep_in: Path | None,
) -> tuple[TrainedGAN, GANRecord]:
    """Train one GAN on all eligible classes; validation chooses snapshots in the judge's embedding."""
    from stages.synthesis.gan_training import train_gan

    images, labels = _only(real, eligible)
    validation = _only(beside.validation, eligible) if beside.validation is not None else None
    progress: dict[int, NDArray[np.uint8]] = {}
    trained = train_gan(
        images,
        labels,
        config,
        seed=sample_seed(seed, "gan"),
        device=device,
        validation=validation if validation is not None and len(validation[1]) else None,
        embed=lambda new: judge.embed(new, 0),
        keep_in=keep_in,
        on_samples=lambda step, samples: progress.update({step: samples}),
    )
    names = [real.classes[label] for label in eligible]
    scores = [
        {
            "step": int(row["step"]),
            "class": names[int(row["class"])],
            "score": float(row["score"]),
            "chosen": int(row["step"]) == int(trained.chosen[int(row["class"])]),
        }
        for row in trained.scores
    ]
    record = GANRecord(
        trained_on=names,
        steps=max(trained.steps),
        steps_asked=config.steps,
        batch_size=trained.batch_size,
        notes=list(trained.notes),
        history=trained.history,
        scores=scores,
        progress=progress,
    )
    return trained, record


def _only(view: View, eligible: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Select the images of these classes, with labels as positions among them."""
    rows = np.isin(view.labels, eligible)
    return view.images[rows], np.searchsorted(eligible, view.labels[rows]).astype(np.int64)


def _sample_refused(
    candidates: NDArray[np.uint8], verdict: GateVerdict, members: NDArray[np.int64], label: int
) -> list[RefusedCandidates]:
    """Take a few candidates that each check refused; of a class that failed as a whole, of the rest too."""
    kinds = {check: np.flatnonzero(refused) for check, refused in verdict.refused.items()}
    if verdict.failed and verdict.failed[0] not in _CHECKED_SINGLY:
        kinds[verdict.failed[0]] = np.flatnonzero(verdict.accepted)
    samples = {check: rows[:_REFUSED_SAMPLE] for check, rows in kinds.items() if len(rows)}
    return [
        RefusedCandidates(label, check, candidates[rows], members[verdict.nearest[rows]])
        for check, rows in samples.items()
    ]


def oversample(
    real: View,
    quota: NDArray[np.int64],
    targets: NDArray[np.int64],
    config: OversamplingConfig,
    *,
    beside: Beside | None = None,
    seed: int,
    device: Device = "auto",
    keep_in: Path | None = None,
) -> Synthetic:
    """Make images for the classes that need some.

    Parameters
    ----------
    real : the curated real training images
    quota : int64, K; images to make for each class
    targets : int64, K; the sizes that `quota` leads to; for the report
    config : how
    beside : validation and test images, embeddings, groups
    seed, device : of all that is trained and drawn
    keep_in : a folder for what the GAN's training has finished, so that a killed run goes on

    Raises
    ------
    WinnowError
        For images that the GAN cannot make, or a training of it that failed.
    """
    beside = beside or Beside()
    quality = {
        name: ClassQuality(int(real.class_counts[label]), int(targets[label]), int(quota[label]))
        for label, name in enumerate(real.classes)
    }
    result = Synthetic(real.images[:0], real.labels[:0], real.labels[:0], [], quality)
    if config.method == "none":
        return result
    for entry in quality.values():
        if entry.requested == 0:
            entry.decide("none", "not_needed", why_none(entry))
    made: list[ClassImages] = []
    sampler: str = config.method
    if config.method == "gan":
        made = from_gan(real, result, config, beside, seed, device, keep_in)
        sampler = config.fallback
    if sampler != "none":
        done = [part.label for part in made]
        left = np.where(np.isin(np.arange(len(quota)), done), 0, quota)
        made += _by_sampler(real, left, quality, sampler, seed, beside.embeddings)
    return _together(real, result, made)


def _by_sampler(
    real: View,
    quota: NDArray[np.int64],
    quality: Mapping[str, ClassQuality],
    method: str,
    seed: int,
    embeddings: NDArray[np.float32] | None,
) -> list[ClassImages]:
    """Make images by a simple sampler, which is also what the GAN falls back to."""
    result = interpolate(real, quota, method, seed=seed, embeddings=embeddings)  # type: ignore[arg-type]
    if method in CLEANING and quota.any():
        for entry, made, real_ones in zip(quality.values(), result.cleaned, result.doubtful, strict=True):
            entry.cleaned = {"made": int(made), "real": int(real_ones)}
    parts = []
    for label in np.flatnonzero(quota):
        entry, rows = quality[real.classes[label]], np.flatnonzero(result.labels == label)
        by: Any = result.methods[rows[0]] if len(rows) else method
        notes = [*result.notes.get(int(label), [])]
        if entry.decision == "fallback":
            entry.decide(by, "fallback", "; ".join([entry.reason, *notes]))
        else:
            # Not a fallback where another method stood in: nothing was refused.
            decision = "accepted" if len(rows) == entry.requested else "reduced"
            entry.decide(by, decision, "; ".join([_MADE_BY[by], *notes]))  # type: ignore[arg-type]
        parts.append(ClassImages(int(label), result.images[rows], result.parents[rows], by))
    return parts


def _together(real: View, result: Synthetic, made: list[ClassImages]) -> Synthetic:
    """Add the images of all classes to the result, in index order."""
    made = sorted(made, key=lambda part: part.label)
    for part in made:
        result.quality[real.classes[part.label]].added = len(part.images)
    result.images = np.concatenate([result.images, *(part.images for part in made)])
    labels = [np.full(len(part.images), part.label, np.int64) for part in made]
    result.labels = np.concatenate([result.labels, *labels])
    result.parents = np.concatenate([result.parents, *(part.parents for part in made)])
    result.methods = [part.method for part in made for _ in part.images]
    return result
