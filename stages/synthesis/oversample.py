"""What each class gets: from the GAN if it may and the gate agrees, else from a simpler sampler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from stages.dataset import View, sample_seed
from stages.synthesis.interpolation import random_copies, smote

if TYPE_CHECKING:
    from stages.learning.loop import Device
    from stages.synthesis.gan import GANConfig, TrainedGAN
    from stages.synthesis.gate import GateConfig, Verdict

Method = Literal["gan", "smote", "random", "none"]
Decision = Literal["accepted", "reduced", "fallback", "not_needed", "off"]
CANDIDATES_PER_IMAGE = 4


@dataclass
class ClassQuality:
    """What was asked for, made, judged and decided for one class; a value of `quality.json`.

    Attributes
    ----------
    real : curated real training images
    target : images that the class was to be brought up to
    requested : images to add: up to the target and within the class's own limit
    candidates : images that the GAN generated
    agreed, copies, strays : candidates that the classifier recognised; near-copies; those far from
        every real image. A candidate may be counted more than once.
    accepted : candidates that passed the whole gate
    added : images in the delta
    mean_agreement : mean probability of their own label over the candidates; None without any
    method : what made the images that were added
    decision : `accepted`; `reduced`, where fewer passed than were asked for; `fallback` to random
        over-sampling; `not_needed`; or `off`
    reason : the decision in words
    """

    real: int
    target: int
    requested: int
    candidates: int = 0
    agreed: int = 0
    copies: int = 0
    strays: int = 0
    accepted: int = 0
    added: int = 0
    mean_agreement: float | None = None
    method: Method = "none"
    decision: Decision = "off"
    reason: str = "over-sampling is switched off"

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    def decide(self, method: Method, decision: Decision, reason: str) -> None:
        """Record what was decided."""
        self.method, self.decision, self.reason = method, decision, reason


@dataclass
class Synthetic:
    """Made images of all classes, by class, and how they came about.

    Attributes
    ----------
    images : uint8, M×H×W×C
    labels : int64, M
    parents : int64, M; indices into the real images. Random over-sampling: the image that was
        copied; SMOTE and GAN: the nearest image of the class, in pixels.
    methods : M names
    quality : by class name, in index order
    history : of the GAN's losses; empty where none was trained
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    parents: NDArray[np.int64]
    methods: list[str]
    quality: dict[str, ClassQuality]
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class _Made:
    images: NDArray[np.uint8]
    members: NDArray[np.int64]  # parents, as positions within their class


def oversample(
    real: View,
    quota: NDArray[np.int64],
    *,
    target: int,
    method: Method,
    min_real_per_class: int,
    gan: GANConfig,
    gate: GateConfig,
    seed: int,
    device: Device = "auto",
) -> Synthetic:
    """Make images for the classes that need some.

    Parameters
    ----------
    real : the curated real training images
    quota : int64, K; images to make for each class
    target : the size that `quota` leads to; for the report
    method : how; `gan` falls back to `random` class by class, as does `smote` for a single image
    min_real_per_class : real images under which the GAN is not tried for a class
    gan, gate, seed, device : see `GANConfig`, `Gate`

    Raises
    ------
    WinnowError
        For images that the GAN cannot make, or a training of it that failed.
    """
    quality = {
        name: ClassQuality(int(real.class_counts[label]), target, int(quota[label]))
        for label, name in enumerate(real.classes)
    }
    made: dict[int, _Made] = {}
    history: list[dict[str, float]] = []
    if method == "gan":
        made, history = _from_gan(real, quality, min_real_per_class, gan, gate, seed, device)
    for label, name in enumerate(real.classes):
        if method != "none" and label not in made:
            made[label] = _simply(real, label, quality[name], method, sample_seed(seed, f"copies/{name}"))
    return _together(real, made, quality, history)


def _simply(real: View, label: int, quality: ClassQuality, method: Method, seed: int) -> _Made:
    """SMOTE or random over-sampling for one class; also what the GAN falls back to."""
    members = np.flatnonzero(real.labels == label)
    own = real.images[members]
    if quality.requested == 0:
        quality.decide("none", "not_needed", _why_none(quality))
        return _Made(own[:0], members[:0])
    if method == "smote" and len(own) > 1:
        quality.decide("smote", "accepted", "interpolated between neighbours of the class")
        return _Made(*smote(own, quality.requested, seed))
    if method == "smote":
        quality.decide("random", "fallback", "a single image: nothing to interpolate between")
    elif method == "random":
        quality.decide("random", "accepted", "copies of real images")
    chosen = random_copies(len(own), quality.requested, seed)
    return _Made(own[chosen], chosen)


def _why_none(quality: ClassQuality) -> str:
    if quality.real == 0:
        return "no real images: nothing to make any from"
    if quality.real >= quality.target:
        return f"{quality.real} real images of a target of {quality.target}"
    return "max_factor leaves no room for any"


def _from_gan(
    real: View,
    quality: Mapping[str, ClassQuality],
    min_real_per_class: int,
    config: GANConfig,
    gate_config: GateConfig,
    seed: int,
    device: Device,
) -> tuple[dict[int, _Made], list[dict[str, float]]]:
    """Images of the classes for which the gate accepts the GAN; the others are left out, and told why."""
    from stages.synthesis.gan import check_image_shape, train_gan
    from stages.synthesis.gate import Gate

    height, width, channels = (int(side) for side in real.images.shape[1:])
    check_image_shape((height, width, channels))
    eligible = np.flatnonzero(real.class_counts >= min_real_per_class)
    for label, name in enumerate(real.classes):
        if label not in eligible and quality[name].requested:
            reason = f"{quality[name].real} real images; the GAN is not tried under {min_real_per_class}"
            quality[name].decide("random", "fallback", reason)
    wanting = [int(label) for label in eligible if quality[real.classes[label]].requested]
    if not wanting:
        return {}, []
    rows = np.isin(real.labels, eligible)
    trained = train_gan(
        real.images[rows],
        np.searchsorted(eligible, real.labels[rows]).astype(np.int64),
        config,
        seed=sample_seed(seed, "gan"),
        device=device,
    )
    gate = Gate(real, gate_config, seed=sample_seed(seed, "gate"), device=device)
    made = {}
    for label in wanting:
        name = real.classes[label]
        candidates = _candidates(trained, int(np.searchsorted(eligible, label)), quality[name], seed, name)
        verdict = gate.judge(candidates, label)
        if decide(quality[name], verdict, gate_config.min_accepted):
            chosen = np.flatnonzero(verdict.accepted)[: quality[name].requested]
            made[label] = _Made(candidates[chosen], verdict.nearest[chosen])
    return made, trained.history


def _candidates(
    trained: TrainedGAN, label: int, quality: ClassQuality, seed: int, name: str
) -> NDArray[np.uint8]:
    labels = np.full(CANDIDATES_PER_IMAGE * quality.requested, label, np.int64)
    return trained.generate(labels, seed=sample_seed(seed, f"gan/{name}"))


def decide(quality: ClassQuality, verdict: Verdict, min_accepted: float) -> bool:
    """Record what the gate found, and whether the class keeps the GAN's images."""
    quality.candidates = len(verdict.accepted)
    quality.agreed = int(verdict.agrees.sum())
    quality.copies = int(verdict.copy.sum())
    quality.strays = int(verdict.stray.sum())
    quality.accepted = int(verdict.accepted.sum())
    quality.mean_agreement = round(float(verdict.agreement.mean()), 4)
    found = f"{quality.accepted} of {quality.candidates} candidates passed the gate"
    if quality.accepted == 0 or quality.accepted < min_accepted * quality.candidates:
        reason = f"{found}: {_main_fault(quality)}"
        quality.decide("random", "fallback", reason)
        return False
    if quality.accepted < quality.requested:
        quality.decide("gan", "reduced", f"{found}: fewer than the {quality.requested} asked for")
    else:
        quality.decide("gan", "accepted", found)
    return True


def _main_fault(quality: ClassQuality) -> str:
    """What most of the candidates were refused for."""
    faults = {
        "the classifier does not recognise the class": quality.candidates - quality.agreed,
        "near-copies of real images": quality.copies,
        "unlike any real image of the class": quality.strays,
    }
    return max(faults, key=lambda fault: faults[fault])


def _together(
    real: View,
    made: Mapping[int, _Made],
    quality: dict[str, ClassQuality],
    history: list[dict[str, float]],
) -> Synthetic:
    """The images of all classes, in index order."""
    images, labels, parents, methods = [real.images[:0]], [real.labels[:0]], [real.labels[:0]], []
    for label, name in enumerate(real.classes):
        if label not in made:
            continue
        part = made[label]
        members = np.flatnonzero(real.labels == label)
        images.append(part.images)
        labels.append(np.full(len(part.images), label, np.int64))
        parents.append(members[part.members])
        methods += [str(quality[name].method)] * len(part.images)
        quality[name].added = len(part.images)
    return Synthetic(
        np.concatenate(images), np.concatenate(labels), np.concatenate(parents), methods, quality, history
    )
