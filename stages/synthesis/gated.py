"""The GAN's images, of the classes that are large enough and for which the gate accepts them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stages.dataset import View, sample_seed
from stages.synthesis.gate.class_quality import UNCHECKED, judge_class, nearness_figures, real_images
from stages.synthesis.synthetic import Beside, GANRecord, Made, Recipe, Refused, Synthetic

if TYPE_CHECKING:
    from stages.learning.names import Device
    from stages.synthesis.gan.training import GANConfig, TrainedGAN
    from stages.synthesis.gate.gate import Gate, Verdict
    from stages.synthesis.judge import Judge

CANDIDATES_PER_IMAGE = 4
MIN_CANDIDATES = 64  # fewer tell little about the generator
_KEPT_REFUSED = 8  # of each class and check, to be looked at
_CHECKED_SINGLY = ("agreement", "copies", "copies_of_held_out")  # measures of what a check looks at too


def from_gan(
    real: View,
    result: Synthetic,
    recipe: Recipe,
    beside: Beside,
    seed: int,
    device: Device,
    keep_in: Path | None,
) -> list[Made]:
    """Images of the classes for which the gate accepts the GAN; the others are left out, and told why.

    Classes are tested for eligibility before anything is trained. Writes `gan`, `refused` and the
    classes' `quality` into `result`; see `oversample` for the rest.
    """
    from stages.synthesis.gan.training import check_image_shape
    from stages.synthesis.gate.gate import Gate
    from stages.synthesis.judge import train_judge

    height, width, channels = (int(side) for side in real.images.shape[1:])
    check_image_shape((height, width, channels))
    least = recipe.min_real_per_class
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
        recipe.gate,
        judge=judge,
        groups=beside.groups,
        held_out=beside.held_out,
        seed=sample_seed(seed, "gate"),
    )
    wanting = [label for label in wanting if _checkable(gate, label, result)]
    if not wanting:
        return []
    eligible = np.flatnonzero(real.class_counts >= least)
    trained, result.gan = _train(real, eligible, recipe.gan, beside, judge, seed, device, keep_in)
    made = []
    for label in wanting:
        number = int(np.searchsorted(eligible, label))
        part = _one_class(real, label, number, trained, gate, recipe.gate.min_accepted, result, seed)
        made += [part] if part is not None else []
    return made


def _checkable(gate: Gate, label: int, result: Synthetic) -> bool:
    """Whether the gate could tell if the class's images show it; if not, the class is told so."""
    if gate.can_check(label):
        return True
    entry = list(result.quality.values())[label]
    entry.decide("none", "fallback", f"{UNCHECKED}; the GAN is not tried")
    return False


def _one_class(
    real: View,
    label: int,
    number: int,
    trained: TrainedGAN,
    gate: Gate,
    min_accepted: float,
    result: Synthetic,
    seed: int,
) -> Made | None:
    """What the gate leaves of one class's candidates; None where it refuses the class.

    `number` is the class's among those that the GAN was trained on.
    """
    name, members = real.classes[label], np.flatnonzero(real.labels == label)
    entry = result.quality[name]
    entry.snapshot = int(trained.chosen[number])
    labels = np.full(max(MIN_CANDIDATES, CANDIDATES_PER_IMAGE * entry.requested), number, np.int64)
    candidates = trained.generate(labels, seed=sample_seed(seed, f"gan/{name}"))
    verdict = gate.judge(candidates, label)
    result.refused += _some_refused(candidates, verdict, members, label)
    if not judge_class(entry, verdict, min_accepted):
        return None
    chosen = np.flatnonzero(verdict.accepted)[: entry.requested]
    entry.nearness = nearness_figures(verdict.nearness[chosen], real.images[members])
    return Made(label, candidates[chosen], members[verdict.nearest[chosen]], "gan")


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
    """One GAN on all eligible classes, its snapshots chosen by validation in the judge's embedding."""
    from stages.synthesis.gan.training import train_gan

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
    """The images of some classes, and their labels as positions among these classes."""
    rows = np.isin(view.labels, eligible)
    return view.images[rows], np.searchsorted(eligible, view.labels[rows]).astype(np.int64)


def _some_refused(
    candidates: NDArray[np.uint8], verdict: Verdict, members: NDArray[np.int64], label: int
) -> list[Refused]:
    """A few candidates of each check that refused any; of a class that failed as a whole, of the rest."""
    kinds = {check: np.flatnonzero(refused) for check, refused in verdict.refused.items()}
    if verdict.failed and verdict.failed[0] not in _CHECKED_SINGLY:
        kinds[verdict.failed[0]] = np.flatnonzero(verdict.accepted)
    some = {check: rows[:_KEPT_REFUSED] for check, rows in kinds.items() if len(rows)}
    return [
        Refused(label, check, candidates[rows], members[verdict.nearest[rows]])
        for check, rows in some.items()
    ]
