"""What was asked for, made, judged and decided for each class, in figures and in words."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from stages.synthesis.distances import nearest_neighbours
from stages.synthesis.interpolation import SimpleMethod

if TYPE_CHECKING:
    from stages.synthesis.gate.gate import Verdict

Method = Literal["gan", "none"] | SimpleMethod
Decision = Literal["accepted", "reduced", "fallback", "not_needed", "off"]
UNCHECKED = "the judge cannot tell the class's real images from others, so no label can be checked"
_DIGITS = 4
_FAULTS = {
    "agreement": "are not recognised as the class",
    "copy_of_train": "are near-copies of training images",
    "copy_of_held_out": "are near-copies of validation or test images",
    "stray": "are unlike any real image of the class",
    "repeat": "repeat others",
}
# Measures that are shares of candidates which a check refused.
_SHARES = {"copies": "copy_of_train", "copies_of_held_out": "copy_of_held_out"}
# Of these at least one has to be measured: nothing else would notice that an image shows another class.
_OF_THE_LABEL = ("agreement", "kid")
# Measures whose limit is the most, not the least, that a class may have.
_LOW_IS_GOOD = (*_SHARES, "kid")


@dataclass
class ClassQuality:
    """The record of one class; a value of `classes` in `quality.json`.

    Attributes
    ----------
    real : curated real training images
    target : images that the class was to be brought up to
    requested : images to add: up to the target and within the class's own limit
    candidates : images that the GAN generated
    refused : candidates that each check of the gate refused; one may be counted more than once
    accepted : candidates that passed every check
    added : images in the delta
    method : what made the images that were added
    decision : `accepted`; `reduced`, where fewer came out than were asked for; `fallback` to a simpler
        sampler, or to none, where the GAN was not tried or refused; `not_needed`; or `off`
    reason : the decision in words
    snapshot : step of the GAN's state that generated the candidates; None without any
    measures : the gate's of the class: `value`, `real` (the same of held-out real images, or None),
        `limit` and `passed`
    nearness : of the GAN's images that were added: distance to the nearest real image of the class, in
        pixels, over the median of that distance among real images; 0 is a copy. `min`, `median`, and
        `real_min`, the least among real images. None without any.
    cleaned : of SMOTE-ENN and SMOTE-Tomek: `made` images removed again, and `real` ones that would have
        been, which stay. None without cleaning.
    """

    real: int
    target: int
    requested: int
    candidates: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    accepted: int = 0
    added: int = 0
    method: Method = "none"
    decision: Decision = "off"
    reason: str = "over-sampling is switched off"
    snapshot: int | None = None
    measures: dict[str, dict[str, Any]] = field(default_factory=dict)
    nearness: dict[str, float] | None = None
    cleaned: dict[str, int] | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    def decide(self, method: Method, decision: Decision, reason: str) -> None:
        """Record what was decided."""
        self.method, self.decision, self.reason = method, decision, reason


def why_none(quality: ClassQuality) -> str:
    """Why a class is to gain nothing, in words."""
    if quality.real == 0:
        return "no real images: nothing to make any from"
    if quality.real >= quality.target:
        return f"{real_images(quality.real)} of a target of {quality.target}"
    return "max_factor leaves no room for any"


def real_images(count: int) -> str:
    """`1 real image`, `9 real images`."""
    return f"{count} real image{'' if count == 1 else 's'}"


def judge_class(quality: ClassQuality, verdict: Verdict, min_accepted: float) -> bool:
    """Record what the gate found, and whether the class keeps the GAN's images.

    It does where no measure of the class failed, one of them could tell whether the label is right, and
    at least the share `min_accepted` (0 to 1) of the candidates passed every check, one at least. With
    fewer of them than were asked for, the quota shrinks.
    """
    quality.candidates = len(verdict.accepted)
    quality.refused = {check: int(refused.sum()) for check, refused in verdict.refused.items()}
    quality.accepted = int(verdict.accepted.sum())
    quality.measures = {
        name: {
            "value": round(float(measure.value), _DIGITS),
            "real": None if measure.real is None else round(float(measure.real), _DIGITS),
            "limit": round(float(measure.limit), _DIGITS),
            "passed": bool(measure.passed),
        }
        for name, measure in verdict.measures.items()
    }
    found = f"{quality.accepted} of {quality.candidates} candidates passed every check"
    needed = max(1, math.ceil(min_accepted * quality.candidates))
    if verdict.failed:
        words = "; ".join(_failure(quality, name) for name in verdict.failed[:2])
        quality.decide("none", "fallback", f"{words} ({found})")
    elif quality.accepted < needed:
        quality.decide("none", "fallback", f"{found}, {needed} must: {_main_fault(quality)}")
    elif not any(name in verdict.measures for name in _OF_THE_LABEL):
        quality.decide("none", "fallback", f"{UNCHECKED} ({found})")
    elif quality.accepted < quality.requested:
        quality.decide("gan", "reduced", f"{found}: fewer than the {quality.requested} asked for")
    else:
        quality.decide("gan", "accepted", found)
    return quality.method == "gan"


def _main_fault(quality: ClassQuality) -> str:
    """What most of the candidates were refused for; of equals the first check."""
    check = max(quality.refused, key=lambda name: quality.refused[name])
    return _count(quality, check)


def _count(quality: ClassQuality, check: str) -> str:
    """`312 of 400 are near-copies of training images`."""
    return f"{quality.refused.get(check, 0)} of {quality.candidates} {_FAULTS.get(check, check)}"


def _failure(quality: ClassQuality, name: str) -> str:
    """A measure that the class fails: its figure beside what real images have, and the limit."""
    measure = quality.measures[name]
    if name in _SHARES and measure["real"] is not None:
        return f"{_count(quality, _SHARES[name])}, {_percent(measure['real'])} are expected"
    if name == "agreement" and measure["real"] is not None:
        value, real, limit = (_percent(measure[key]) for key in ("value", "real", "limit"))
        return f"{value} are recognised as the class, of real images {real}; at least {limit} must be"
    bound = "at most" if name in _LOW_IS_GOOD else "at least"
    beside = "" if measure["real"] is None else f", of real images {measure['real']:.2f}"
    return f"{name} {measure['value']:.2f}{beside}; {bound} {measure['limit']:.2f} is asked for"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def nearness_figures(made: NDArray[np.float64], own: NDArray[np.uint8]) -> dict[str, float] | None:
    """Figures of `nearness`.

    Parameters
    ----------
    made : float64, M; distances of made images to the nearest real one, over the median among real ones
    own : uint8, N×H×W×C; the real images of the class
    """
    if len(made) == 0:
        return None
    among, _ = nearest_neighbours(own)
    real_min = among.min() / (float(np.median(among)) or 1.0)  # the gate's scale
    figures = {"min": made.min(), "median": np.median(made), "real_min": real_min}
    return {name: round(float(value), _DIGITS) for name, value in figures.items()}
