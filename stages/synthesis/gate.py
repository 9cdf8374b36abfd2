"""Check generated images before they are trained on, each by itself and a class as a whole, and record why.

All is measured against real images that were held out. Embeddings are those of a judge whose models were
cross-fitted: in the space of model k the real images of fold k are as new as the candidates, and by them
alone the candidates are measured there. So limits need no units, and unseen real images pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from stages.dataset.base import View
from stages.images.distances import nearest_neighbours
from stages.synthesis.copies import (
    SAME,
    Floats,
    Likeness,
    Pixels,
    Usual,
    distance_to,
    distance_to_earlier,
    liker_than_real,
    outline,
    poses,
    shape,
    spectrum,
)
from stages.synthesis.interpolation import SimpleMethod
from stages.synthesis.quality import FEWEST, SOUND, Spaces, effective_number

if TYPE_CHECKING:
    from stages.learning.judge import Judge


CHECKS = ("agreement", "copy_of_train", "copy_of_held_out", "stray", "repeat")

# In the order of what says most: a cause stands before what follows from it.
MEASURES = ("diversity", "copies_of_held_out", "copies", "agreement", "density", "kid", "coverage")

# Measures whose limit is the most, not the least, that a class may have.
AT_MOST = ("copies", "copies_of_held_out", "kid")
_UNSURE = 0.25  # share of held-out real images that may fail the check of agreement, where the judge is weak
_FORMS = (shape, outline)  # in which copies are looked for
_STRAY_QUANTILE, _STRAY_FACTOR = 0.9, 1.5
_REPEAT = 0.5  # of the distance under which an image is a copy of a real one
_COPIES = (2.0, 0.2)  # times the share among held-out real images, and this share besides
_FLAT_OUT = 3.0  # a measure missed by this factor is no close thing
_MOST = 200  # images whose diversity is computed: the work grows with the cube
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


@dataclass(frozen=True)
class GateConfig:
    """How strict the gate is.

    Attributes
    ----------
    min_agreement : probability of its own label that a candidate needs, 0 to 1; less where a quarter of the
        held-out real images of the class do not reach it
    copy_quantile : a candidate nearer to a real image than this share of real images are to their
        nearest fellow is a copy, 0 to 1
    min_accepted : share of the candidates that must pass, or the class is refused, 0 to 1; for the caller
    min_density, min_coverage, min_diversity : of what held-out real images reach, 0 to 1
    max_kid : squared kernel distance to the class's real images; 1 is that of the nearest other class
    """

    min_agreement: float
    copy_quantile: float
    min_accepted: float
    min_density: float
    min_coverage: float
    min_diversity: float
    max_kid: float


@dataclass(frozen=True)
class Measure:
    """One figure of a class's candidates, the same of held-out real images, and what it has to reach.

    `real` is None where it was not measured.
    """

    value: float
    real: float | None
    limit: float
    passed: bool


@dataclass(frozen=True)
class GateVerdict:
    """The gate's findings for the N candidates of one class.

    Attributes
    ----------
    refused : bool N, by name of `CHECKS`; a candidate may be refused by several
    accepted : bool N, passed every check
    nearest : int64 N, which of the class's real images is nearest, in pixels
    nearness : float64 N, the distance to it, over the median of that distance among the class's real
        images; 0 is a copy
    measures : of the class, by name of `MEASURES`; those that could be measured soundly
    failed : measures that the class fails, what says most first; () is fine
    """

    refused: dict[str, NDArray[np.bool_]]
    accepted: NDArray[np.bool_]
    nearest: NDArray[np.int64]
    nearness: NDArray[np.float64]
    measures: dict[str, Measure]
    failed: tuple[str, ...]


class Gate:
    """Judge generated images class by class.

    Parameters
    ----------
    real : the curated real training images of all classes; the judge's
    config : how strict it is
    judge : trained on them; where it computes, embeddings are
    groups : N names; images of one name (near-duplicates, a patient) do not say how near unseen images
        come to one another: else a class with some twins would let pass what is as near as a twin
    held_out : images of the other splits by name; looked at for copies of them, and for nothing else
    seed : of the subsets on which the spread of KID, and diversity, are computed
    """

    def __init__(
        self,
        real: View,
        config: GateConfig,
        *,
        judge: Judge,
        groups: NDArray[np.object_] | None = None,
        held_out: Mapping[str, NDArray[np.uint8]] | None = None,
        seed: int,
    ) -> None:
        self.real, self.config, self._judge, self._seed = real, config, judge, seed
        self._groups = np.arange(len(real)) if groups is None else np.unique(groups, return_inverse=True)[1]
        self._probabilities = judge.held_out()
        self._spaces = Spaces(real, judge, max_kid=config.max_kid, seed=seed)
        others = np.concatenate([real.images[:0], *(held_out or {}).values()])
        self._held_out = [form(others) for form in _FORMS]
        self._likeness = Likeness(np.concatenate([real.images, others]))
        self._is_train = np.arange(len(real) + len(others)) < len(real)

    def judge(self, candidates: NDArray[np.uint8], label: int) -> GateVerdict:
        """Judge candidates for one class.

        Agreement, copies and diversity are measured on all candidates: they say what the generator does.
        Density, coverage and KID are measured on those accepted, which would be trained on; on all of
        them where hardly any are accepted.

        Parameters
        ----------
        candidates : uint8, N×H×W×C
        label : the class, with two real images at least

        Raises
        ------
        ValueError
            For a class of fewer: there is nothing to compare with.
        """
        own = np.flatnonzero(self.real.labels == label)
        if len(own) < 2:
            raise ValueError(f"class {self.real.classes[label]!r} has fewer than two real images")
        if len(candidates) == 0:
            none = np.zeros(0, bool)
            return GateVerdict(dict.fromkeys(CHECKS, none), none, np.zeros(0, np.int64), np.zeros(0), {}, ())
        images = self.real.images[own]
        among, _ = nearest_neighbours(images)
        distance, nearest = nearest_neighbours(candidates, images)
        probabilities, embedded = self._judge.of_new_embedded(candidates)
        (of_train, usual_train), repeat = self._copies_of_train(candidates, own)
        of_held_out, usual_held_out = self._copies_of_held_out(candidates, own)
        stray = _far(among, distance) | _far_from(outline(candidates), outline(images))
        refused = {
            "agreement": probabilities[:, label] < self._needed(own, label),
            "copy_of_train": of_train,
            "copy_of_held_out": of_held_out,
            "stray": stray | self._embedded_far(embedded, own),
            "repeat": repeat,
        }
        accepted = ~np.any(list(refused.values()), axis=0)
        chosen = accepted if accepted.sum() >= FEWEST else np.ones_like(accepted)
        measures = {
            **self._agreement(probabilities, own, label),
            **_copies("copies", of_train, usual_train),
            **_copies("copies_of_held_out", of_held_out, usual_held_out),
            **self._distribution([each[chosen] for each in embedded], own, label),
            **self._diversity(candidates, images),
        }
        scale = float(np.median(among)) or 1.0
        return GateVerdict(refused, accepted, nearest, distance / scale, measures, _failed(measures))

    def can_check(self, label: int) -> bool:
        """Return whether the judge tells the class's real images from others, by agreement or by KID.

        Where not, an image that shows another class would pass, and making any is not worth while.
        """
        own = np.flatnonzero(self.real.labels == label)
        return self._recognised(own, label) is not None or self._spaces.tell_apart(own, label)

    def _needed(self, own: NDArray[np.int64], label: int) -> float:
        """Return the probability of its label that a candidate needs: no more than most real images have."""
        usual = float(np.quantile(self._probabilities[own, label], _UNSURE))
        return min(self.config.min_agreement, usual)

    def _agreement(
        self, probabilities: NDArray[np.float32], own: NDArray[np.int64], label: int
    ) -> dict[str, Measure]:
        """Measure the share recognised, which must be nearer to real images' than to the closest rival's."""
        shares = self._recognised(own, label)
        if shares is None:
            return {}
        value, limit = float((probabilities.argmax(1) == label).mean()), sum(shares) / 2
        return {"agreement": Measure(value, shares[0], limit, value >= limit)}

    def _recognised(self, own: NDArray[np.int64], label: int) -> tuple[float, float] | None:
        """Return the shares of real images taken for the class: of its own, and of its closest rival's.

        None where the judge does not tell the two apart.
        """
        counts = self.real.class_counts
        taken = self._probabilities.argmax(1) == label
        shares = np.bincount(self.real.labels, weights=taken, minlength=len(counts)) / np.maximum(counts, 1)
        others = [k for k in np.flatnonzero(counts >= FEWEST) if k != label]
        if not others or len(own) < FEWEST:
            return None
        rival = max(others, key=lambda k: shares[k])
        real, other = float(shares[label]), float(shares[rival])
        error = math.sqrt(real * (1 - real) / len(own) + other * (1 - other) / counts[rival])
        return (real, other) if real - other > SOUND * error else None

    def _copies_of_train(
        self, made: NDArray[np.uint8], own: NDArray[np.int64]
    ) -> tuple[tuple[NDArray[np.bool_], float], NDArray[np.bool_]]:
        """Find copies of real images, with the share of real ones that pass for copies, and repeats."""
        images = self.real.images[own]
        spaces = list(zip(_in_poses(images), _in_poses(made), strict=True))
        groups = self._groups[own] if len(np.unique(self._groups[own])) > 1 else None
        usual = Usual([distance_to(old, groups=groups) for old, _ in spaces], self.config.copy_quantile)
        score = usual.score([distance_to(new, old[0]) for old, new in spaces])
        before = usual.score([distance_to_earlier(new[0]) for _, new in spaces])
        repeat = before <= max(_REPEAT * usual.limit, SAME)
        return self._with_alike(score, usual, made, own, self._is_train), repeat

    def _copies_of_held_out(
        self, made: NDArray[np.uint8], own: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], float | None]:
        """Find copies of images of the other splits, of which real ones are copies by chance alone."""
        if self._is_train.all():
            return np.zeros(len(made), bool), None
        images = self.real.images[own]
        among, across = (
            [distance_to(points, pool) for points, pool in zip(_in_poses(each), self._held_out, strict=True)]
            for each in (images, made)
        )
        usual = Usual(among, self.config.copy_quantile)
        score = usual.score(across)
        return self._with_alike(score, usual, made, own, ~self._is_train)

    def _with_alike(
        self,
        score: Floats,
        usual: Usual,
        made: NDArray[np.uint8],
        own: NDArray[np.int64],
        others: NDArray[np.bool_],
    ) -> tuple[NDArray[np.bool_], float]:
        """Join copies by distance and by perceptual hash, which knows the images of all classes."""
        likest = self._likeness.of(made, others)
        alike = liker_than_real(self._likeness.among(own, others), likest, self.config.copy_quantile)
        return (score <= usual.limit) | alike, usual.share

    def _embedded_far(self, embedded: list[NDArray[np.float32]], own: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Mark images that are, to any model, farther from real ones than these from one another."""
        far = np.zeros(len(embedded[0]), bool)
        for real, new in zip(self._spaces.held_out(own), embedded, strict=True):
            if len(real) >= 2:
                far |= _far_from(new, real)
        return far

    def _distribution(
        self, made: list[NDArray[np.float32]], own: NDArray[np.int64], label: int
    ) -> dict[str, Measure]:
        """Measure density, coverage and KID, the mean over the models, as far as they are sound."""
        config = self.config
        limits = {"density": config.min_density, "coverage": config.min_coverage}
        return {
            name: _measure(name, value, usual, limits[name] * usual if name in limits else config.max_kid)
            for name, (value, usual) in self._spaces.compare(made, own, label).items()
        }

    def _diversity(self, made: NDArray[np.uint8], real: NDArray[np.uint8]) -> dict[str, Measure]:
        """Compare the effective numbers of as many generated and real images, by their spectra.

        Not by embeddings: to a classifier all images of a kind that it never saw, noise for one, look alike.
        """
        size = min(len(real), len(made), _MOST)
        if size < FEWEST:
            return {}
        rng = np.random.default_rng(self._seed)
        parts = [each[np.sort(rng.permutation(len(each))[:size])] for each in (made, real)]
        new, old = (spectrum(part).reshape(size, -1) for part in parts)
        scale = float(np.median(nearest_neighbours(old)[0]))
        value, usual = effective_number(new, scale), effective_number(old, scale)
        return {"diversity": _measure("diversity", value, usual, self.config.min_diversity * usual)}


def _in_poses(images: NDArray[np.uint8]) -> list[list[Pixels]]:
    """Return the images in each pose, in each of the forms in which copies are looked for."""
    turned = poses(images)
    return [[form(pose) for pose in turned] for form in _FORMS]


def _far(among: Floats, distance: Floats) -> NDArray[np.bool_]:
    """Mark what is clearly farther than real images are from one another."""
    far: NDArray[np.bool_] = distance > np.quantile(among, _STRAY_QUANTILE) * _STRAY_FACTOR
    return far


def _far_from(made: Pixels, real: Pixels) -> NDArray[np.bool_]:
    return _far(nearest_neighbours(real)[0], nearest_neighbours(made, real)[0])


def _copies(name: str, found: NDArray[np.bool_], usual: float | None) -> dict[str, Measure]:
    if usual is None:
        return {}
    times, besides = _COPIES
    return {name: _measure(name, float(found.mean()), usual, times * usual + besides)}


def _measure(name: str, value: float, real: float, limit: float) -> Measure:
    return Measure(value, real, limit, value <= limit if name in AT_MOST else value >= limit)


def _failed(measures: Mapping[str, Measure]) -> tuple[str, ...]:
    """Sort the failed measures: those missed by far first, among equals in the order of `MEASURES`."""

    def rank(name: str) -> tuple[bool, int]:
        measure = measures[name]
        good, bad = measure.value, measure.limit
        if name in AT_MOST:
            good, bad = bad, good
        return good * _FLAT_OUT > bad, MEASURES.index(name)

    return tuple(sorted((name for name, measure in measures.items() if not measure.passed), key=rank))


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
        """Return plain JSON values."""
        return asdict(self)

    def decide(self, method: Method, decision: Decision, reason: str) -> None:
        """Record what was decided."""
        self.method, self.decision, self.reason = method, decision, reason


def why_none(quality: ClassQuality) -> str:
    """Explain why a class is to gain nothing."""
    if quality.real == 0:
        return "no real images: nothing to make any from"
    if quality.real >= quality.target:
        return f"{real_images(quality.real)} of a target of {quality.target}"
    return "max_factor leaves no room for any"


def real_images(count: int) -> str:
    """Return `1 real image`, or `9 real images`."""
    return f"{count} real image{'' if count == 1 else 's'}"


def judge_class(quality: ClassQuality, verdict: GateVerdict, min_accepted: float) -> bool:
    """Record the gate's findings, and return whether the class keeps the GAN's images.

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
    """Return what most candidates were refused for; of equals the first check."""
    check = max(quality.refused, key=lambda name: quality.refused[name])
    return _count(quality, check)


def _count(quality: ClassQuality, check: str) -> str:
    """Return words such as `312 of 400 are near-copies of training images`."""
    return f"{quality.refused.get(check, 0)} of {quality.candidates} {_FAULTS.get(check, check)}"


def _failure(quality: ClassQuality, name: str) -> str:
    """Describe a measure that the class fails: its figure, that of real images, and the limit."""
    measure = quality.measures[name]
    if name in _SHARES and measure["real"] is not None:
        return f"{_count(quality, _SHARES[name])}, {_percent(measure['real'])} are expected"
    if name == "agreement" and measure["real"] is not None:
        value, real, limit = (_percent(measure[key]) for key in ("value", "real", "limit"))
        return f"{value} are recognised as the class, of real images {real}; at least {limit} must be"
    bound = "at most" if name in AT_MOST else "at least"
    real = "" if measure["real"] is None else f", of real images {measure['real']:.2f}"
    return f"{name} {measure['value']:.2f}{real}; {bound} {measure['limit']:.2f} is asked for"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def nearness_figures(made: NDArray[np.float64], own: NDArray[np.uint8]) -> dict[str, float] | None:
    """Compute the figures of `ClassQuality.nearness`.

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
