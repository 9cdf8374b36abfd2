"""What generated images have to pass before they may be trained on: each for itself, and a class as a whole.

All is measured against real images that were held out. Embeddings are those of a judge whose models were
cross-fitted: in the space of model k the real images of fold k are as new as the candidates, and by them
alone the candidates are measured there. So limits need no units, and unseen real images pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stages.dataset import View
from stages.synthesis.distances import nearest_neighbours
from stages.synthesis.gate.copies import (
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
from stages.synthesis.gate.quality import FEWEST, effective_number
from stages.synthesis.gate.spaces import SOUND, Spaces

if TYPE_CHECKING:
    from stages.synthesis.judge import Judge

CHECKS = ("agreement", "copy_of_train", "copy_of_held_out", "stray", "repeat")
# In the order of what says most: a cause stands before what follows from it.
MEASURES = ("diversity", "copies_of_held_out", "copies", "agreement", "density", "kid", "coverage")
AT_MOST = ("copies", "copies_of_held_out", "kid")

_UNSURE = 0.25  # share of held-out real images that may fail the check of agreement, where the judge is weak
_FORMS = (shape, outline)  # in which copies are looked for
_STRAY_QUANTILE, _STRAY_FACTOR = 0.9, 1.5
_REPEAT = 0.5  # of the distance under which an image is a copy of a real one
_COPIES = (2.0, 0.2)  # times the share among held-out real images, and this share besides
_FLAT_OUT = 3.0  # a measure missed by this factor is no close thing
_MOST = 200  # images whose diversity is computed: the work grows with the cube


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
class Verdict:
    """What the gate found for the N candidates of one class.

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
    """The gate for generated images.

    Parameters
    ----------
    real : the curated real training images of all classes; the judge's
    config : how strict it is
    judge : trained on them; where it computes, embeddings are
    groups : N names; images of one name (near-duplicates, a patient) do not say how near unseen images
        come to one another: else a class with some twins would let pass what is as near as a twin
    held_out : images of the other splits by name; looked at for copies of them, and for nothing else
    seed : of the subsets on which KID and diversity are computed
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

    def judge(self, candidates: NDArray[np.uint8], label: int) -> Verdict:
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
            return Verdict(dict.fromkeys(CHECKS, none), none, np.zeros(0, np.int64), np.zeros(0), {}, ())
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
        return Verdict(refused, accepted, nearest, distance / scale, measures, _failed(measures))

    def can_check(self, label: int) -> bool:
        """Whether the judge tells the class's real images from others, by agreement or by KID.

        Where not, an image that shows another class would pass, and making any is not worth while.
        """
        own = np.flatnonzero(self.real.labels == label)
        return self._recognised(own, label) is not None or self._spaces.tell_apart(own, label)

    def _needed(self, own: NDArray[np.int64], label: int) -> float:
        """Probability of its label that a candidate needs: no more than most held-out real images have."""
        usual = float(np.quantile(self._probabilities[own, label], _UNSURE))
        return min(self.config.min_agreement, usual)

    def _agreement(
        self, probabilities: NDArray[np.float32], own: NDArray[np.int64], label: int
    ) -> dict[str, Measure]:
        """The share recognised: nearer to real images' than to that of the class most taken for it."""
        shares = self._recognised(own, label)
        if shares is None:
            return {}
        value, limit = float((probabilities.argmax(1) == label).mean()), sum(shares) / 2
        return {"agreement": Measure(value, shares[0], limit, value >= limit)}

    def _recognised(self, own: NDArray[np.int64], label: int) -> tuple[float, float] | None:
        """Shares of the class's held-out real images taken for it, and of those of the class most taken
        for it; None where the judge does not tell them apart."""
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
        """Copies of real images, the share of those that would be called so, and copies of one another."""
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
        """The same for images of the other splits, of which the real ones are copies by chance alone."""
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
        """Copies by distance, or by perceptual hash, which knows the images of all classes."""
        likest = self._likeness.of(made, others)
        alike = liker_than_real(self._likeness.among(own, others), likest, self.config.copy_quantile)
        return (score <= usual.limit) | alike, usual.share

    def _embedded_far(self, embedded: list[NDArray[np.float32]], own: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Farther from the class's real images than these from one another, to any of the models."""
        far = np.zeros(len(embedded[0]), bool)
        for real, new in zip(self._spaces.held_out(own), embedded, strict=True):
            if len(real) >= 2:
                far |= _far_from(new, real)
        return far

    def _distribution(
        self, made: list[NDArray[np.float32]], own: NDArray[np.int64], label: int
    ) -> dict[str, Measure]:
        """Density, coverage and KID, the mean over the models; what is sound of these."""
        config = self.config
        limits = {"density": config.min_density, "coverage": config.min_coverage}
        return {
            name: _measure(name, value, usual, limits[name] * usual if name in limits else config.max_kid)
            for name, (value, usual) in self._spaces.compare(made, own, label).items()
        }

    def _diversity(self, made: NDArray[np.uint8], real: NDArray[np.uint8]) -> dict[str, Measure]:
        """Effective numbers of as many made and real images, by their spectra.

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
    """The images in each pose, in each of the forms in which copies are looked for."""
    found = poses(images)
    return [[form(pose) for pose in found] for form in _FORMS]


def _far(among: Floats, distance: Floats) -> NDArray[np.bool_]:
    """Clearly farther than real images are from one another."""
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
    """Names of the failed: those missed by far first, among equals in the order of `MEASURES`."""

    def rank(name: str) -> tuple[bool, int]:
        measure = measures[name]
        good, bad = measure.value, measure.limit
        if name in AT_MOST:
            good, bad = bad, good
        return good * _FLAT_OUT > bad, MEASURES.index(name)

    return tuple(sorted((name for name, measure in measures.items() if not measure.passed), key=rank))
