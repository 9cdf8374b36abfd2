"""The ways to treat a long tail that `benchmarks.long_tail` compares: what is trained on, by which loss."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.cifar_images import LongTail
from stages.dataset.base import View
from stages.dataset.delta import ClassTarget, quotas, target_sizes
from stages.dataset.ids import sample_seed
from stages.learning.losses import class_weighted

if TYPE_CHECKING:
    from stages.learning.names import Device
    from stages.synthesis.gan_trainer import GANConfig
    from stages.synthesis.oversample import Synthetic

_NO_LIMIT = 1e6


@dataclass(frozen=True)
class Arm:
    """One way.

    Attributes
    ----------
    make : how images are made for classes with fewer than the largest; None for none. `augment` is the
        preset for photos, without the look whether labels survive it; `gan` falls back to `random`.
    max_factor : made images, at most this many times the real ones of a class
    weight : of a made image in the loss; a real one's is 1
    loss : of training
    class_weighting : as of `class_weighted`
    gated : by the gate as params.yaml has it; else all that the GAN generates is taken
    """

    make: Literal["random", "smote", "augment", "gan"] | None = None
    max_factor: float = _NO_LIMIT
    weight: float = 1.0
    loss: Literal["cross_entropy", "balanced_softmax"] = "cross_entropy"
    class_weighting: Literal["none", "balanced", "sqrt"] = "none"
    gated: bool = True


_AUGMENT = Arm("augment", max_factor=5, weight=0.5)  # as params.yaml has it; so the GAN's
_GAN = Arm("gan", max_factor=1, weight=0.3)
ARMS = {
    "none": Arm(),
    "random": Arm("random"),
    "smote": Arm("smote"),
    "class_weights": Arm(class_weighting="balanced"),
    "balanced_softmax": Arm(loss="balanced_softmax"),
    "augmentation": _AUGMENT,
    "augmentation_balanced_softmax": replace(_AUGMENT, loss="balanced_softmax"),
    "augmentation_to_majority": Arm("augment"),
    # what the GAN's arm does where the GAN is refused, in all classes
    "random_as_gan": replace(_GAN, make="random"),
    "gan": _GAN,
    "gan_balanced_softmax": replace(_GAN, loss="balanced_softmax"),
    "gan_ungated": replace(_GAN, gated=False),
    "gan_to_majority": Arm("gan"),
}


@dataclass(frozen=True)
class GANSettings:
    """Of the GAN's arms: size and training of the network, and the real images that a class needs."""

    steps: int = 2000
    batch_size: int = 32
    latent_dim: int = 64
    width: int = 32
    learning_rate: float = 0.0007
    snapshots: int = 4
    min_real_per_class: int = 50

    def config(self) -> GANConfig:
        """Without what is no setting of the network."""
        from stages.synthesis.gan_trainer import GANConfig

        fields = asdict(self)
        del fields["min_real_per_class"]
        return GANConfig(**fields)


@dataclass(frozen=True)
class Treated:
    """What an arm trains on, and how it came about.

    Attributes
    ----------
    view : real and made images with their weights
    made : made images by method
    decisions : by class with a quota the reason in words, of the GAN's arms
    """

    view: View
    made: dict[str, int]
    decisions: dict[str, str]


def arm_settings(arm: Arm, gan: GANSettings, gate: dict[str, float]) -> dict[str, Any]:
    """All that the arm's images follow from beside the real ones, as plain JSON values."""
    settings = asdict(arm)
    if arm.make == "augment":
        settings["policy"] = [[name, dict(args)] for name, args in _policy()]
    if arm.make == "gan":
        settings |= {"gan": asdict(gan), "gate": gate if arm.gated else None}
    return settings


def treated(
    tail: LongTail,
    arm: Arm,
    gan: GANSettings,
    gate: dict[str, float],
    *,
    seed: int,
    device: Device,
    keep_in: Path,
) -> Treated:
    """The real images of the training part with those that the arm makes.

    Parameters
    ----------
    tail : of the validation part the GAN's snapshots are chosen by; test images are looked at for
        copies of them
    gan, gate : of the GAN's arms
    seed, device : of all that is drawn and trained
    keep_in : a folder for the trained GAN: arms with the same one train it once
    """
    real = tail.train
    if arm.make is None:
        return Treated(class_weighted(real, arm.class_weighting), {}, {})
    target = ClassTarget("majority", arm.max_factor)
    quota = quotas(real.class_counts, target)
    if arm.make == "augment":
        from stages.augmentation.copying import augment_copies

        names = [str(name) for name in real.sample_ids]
        images, parents, _ = augment_copies(
            real.images, real.labels, names, quota, _policy(), seed, processes=1
        )
        made, decisions, labels = {"augment": len(images)}, {}, real.labels[parents]
    elif arm.make == "gan" and arm.gated:
        result = _gated(tail, quota, target, gan, gate, seed, device, keep_in)
        images, labels, made = result.images, result.labels, dict(Counter(result.methods))
        decisions = {name: entry.reason for name, entry in result.quality.items() if entry.requested}
    else:
        from stages.synthesis.interpolation import interpolate

        drawn = _ungated(tail, quota, gan, seed, device, keep_in) if arm.make == "gan" else {}
        left = np.where(np.isin(np.arange(len(quota)), list(drawn)), 0, quota)
        found = interpolate(real, left, "smote" if arm.make == "smote" else "random", seed=seed)
        images = np.concatenate([found.images, *drawn.values()])
        labels = np.concatenate([found.labels, *(np.full(len(own), k) for k, own in drawn.items())])
        made, decisions = dict(Counter(found.methods)), {}
        if drawn:
            made["gan"] = sum(len(own) for own in drawn.values())
    view = _with_made(real, images, labels, arm.weight)
    return Treated(class_weighted(view, arm.class_weighting), made, decisions)


def _policy() -> Any:
    from stages.augmentation.presets import PRESETS

    return PRESETS["photos"].policy


def _gated(
    tail: LongTail,
    quota: NDArray[np.int64],
    target: ClassTarget,
    gan: GANSettings,
    gate: dict[str, float],
    seed: int,
    device: Device,
    keep_in: Path,
) -> Synthetic:
    """As the stage does it."""
    from stages.synthesis.gate import GateConfig
    from stages.synthesis.oversample import Beside, OversamplingConfig, oversample

    real = tail.train
    return oversample(
        real,
        quota,
        target_sizes(real.class_counts, target),
        OversamplingConfig(
            method="gan",
            fallback="random",
            min_real_per_class=gan.min_real_per_class,
            gan=gan.config(),
            gate=GateConfig(**gate),
        ),
        beside=Beside(validation=tail.val, held_out={"val": tail.val.images, "test": tail.test.images}),
        seed=seed,
        device=device,
        keep_in=keep_in,
    )


def _ungated(
    tail: LongTail, quota: NDArray[np.int64], gan: GANSettings, seed: int, device: Device, keep_in: Path
) -> dict[int, NDArray[np.uint8]]:
    """By class what the same GAN generates, as it comes; of classes that are large enough for it."""
    from stages.learning.judge import train_judge
    from stages.synthesis.gan_training import train_gan

    real, val = tail.train, tail.val
    eligible = np.flatnonzero(real.class_counts >= gan.min_real_per_class)
    rows, shown = (np.isin(view.labels, eligible) for view in (real, val))
    # the stage's seeds: what was trained for the gated arm is found in `keep_in`
    judge = train_judge(real, seed=sample_seed(seed, "judge"), device=device, description="")
    trained = train_gan(
        real.images[rows],
        np.searchsorted(eligible, real.labels[rows]).astype(np.int64),
        gan.config(),
        seed=sample_seed(seed, "gan"),
        device=device,
        validation=(val.images[shown], np.searchsorted(eligible, val.labels[shown]).astype(np.int64)),
        embed=lambda images: judge.embed(images, 0),
        keep_in=keep_in,
    )
    drawn = {}
    for number, label in enumerate(eligible):
        if quota[label]:
            wanted = np.full(quota[label], number, np.int64)
            own_seed = sample_seed(seed, f"gan/{real.classes[label]}")
            drawn[int(label)] = trained.generate(wanted, seed=own_seed)
    return drawn


def _with_made(real: View, images: NDArray[np.uint8], labels: NDArray[np.int64], weight: float) -> View:
    names = np.array([f"made/{row}" for row in range(len(labels))], dtype=object)
    return View(
        np.concatenate([real.images, images]),
        np.concatenate([real.labels, labels]),
        np.concatenate([real.weights, np.full(len(labels), weight, np.float32)]),
        np.concatenate([real.sample_ids, names]),
        real.classes,
    )
