"""A class's images in the judge's embeddings: how their distribution compares with that of held-out ones.

Each model of a cross-fitted judge has a space of its own, in which the real images of its fold are as new as
the candidates. Figures are taken in each of these spaces and averaged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stages.dataset import View
from stages.synthesis.gate.quality import FEWEST, density_coverage, expected_coverage, kernel_distance

if TYPE_CHECKING:
    from stages.synthesis.judge import Judge

SOUND = 3.0  # standard errors that must lie between a class and what it is told from
_SPLITS = 8  # of the real images into halves

Embeddings = NDArray[np.float32]


class Spaces:
    """The spaces of a judge's models, with the real images in them.

    Parameters
    ----------
    real : of all classes; the judge's
    judge : where it computes, they are embedded
    max_kid : as the gate has it; where the spread of real images' own KID exceeds it, KID tells nothing
    seed : of the subsets on which KID is computed
    """

    def __init__(self, real: View, judge: Judge, *, max_kid: float, seed: int) -> None:
        self._real, self._fold, self._max_kid, self._seed = real, judge.fold, max_kid, seed
        self._embedded = [judge.embed(real.images, k) for k in range(len(judge.models))]
        # KID's kernel is cubic: features have to be about 1 in size.
        self._scales = [float(np.sqrt((one**2).mean())) or 1.0 for one in self._embedded]
        self._kid_of_real: dict[tuple[int, int], tuple[float, float] | None] = {}

    def held_out(self, own: NDArray[np.int64]) -> list[Embeddings]:
        """Of the real images in rows `own` those that each model did not see, where it sees them."""
        return [one[own[self._fold[own] == k]] for k, one in enumerate(self._embedded)]

    def tell_apart(self, own: NDArray[np.int64], label: int) -> bool:
        """Whether KID tells the class, whose rows are `own`, from the nearest other one in any space."""
        return any(
            len(real) >= FEWEST and self._known_kid(real, k, label) is not None
            for k, real in enumerate(self.held_out(own))
        )

    def compare(
        self, made: list[Embeddings], own: NDArray[np.int64], label: int
    ) -> dict[str, tuple[float, float]]:
        """Density, coverage and KID, each of made images and of held-out real ones; what is sound of these.

        Parameters
        ----------
        made : N×D, a model
        own : rows of the class's real images
        label : the class
        """
        found: dict[str, list[tuple[float, float]]] = {"density": [], "coverage": [], "kid": []}
        for k, (real, new) in enumerate(zip(self.held_out(own), made, strict=True)):
            size = min(len(real), len(new))
            if size < FEWEST:
                continue
            parts = [
                density_coverage(real, new[at : at + size]) for at in range(0, len(new) - size + 1, size)
            ]
            density, coverage = (float(x) for x in np.mean(parts, axis=0))
            found["density"].append((density, 1.0))
            found["coverage"].append((coverage, expected_coverage(len(real), size)))
            found["kid"] += self._kid(real, new, k, label)
        means = {name: np.mean(pairs, axis=0) for name, pairs in found.items() if pairs}
        return {name: (float(value), float(usual)) for name, (value, usual) in means.items()}

    def _kid(self, real: Embeddings, new: Embeddings, k: int, label: int) -> list[tuple[float, float]]:
        """KID of candidates and of held-out real images, in units of that to the nearest other class."""
        known = self._known_kid(real, k, label)
        if known is None:
            return []
        unit, usual = known
        return [(kernel_distance(real / self._scales[k], new / self._scales[k], self._seed) / unit, usual)]

    def _known_kid(self, real: Embeddings, k: int, label: int) -> tuple[float, float] | None:
        """`_kid_unit`, computed once."""
        if (k, label) not in self._kid_of_real:
            self._kid_of_real[k, label] = self._kid_unit(real, k, label)
        return self._kid_of_real[k, label]

    def _kid_unit(self, real: Embeddings, k: int, label: int) -> tuple[float, float] | None:
        """KID to the nearest other class, and in it that of real images; None where too few to tell."""
        others = self._other_classes(k, label)
        if not others:
            return None
        scale, centre = self._scales[k], real.mean(0)
        other = min(others, key=lambda one: float(np.linalg.norm(one.mean(0) - centre)))
        unit = kernel_distance(real / scale, other / scale, self._seed)
        rng = np.random.default_rng(self._seed)
        halves = [np.array_split(real[rng.permutation(len(real))], 2) for _ in range(_SPLITS)]
        usual = [kernel_distance(one / scale, two / scale, self._seed) for one, two in halves]
        # Halves are half as large, and the spread of an unbiased KID falls with the size.
        if unit <= 0 or SOUND * np.std(usual) / 2 > self._max_kid * unit:
            return None
        return unit, float(np.mean(usual)) / unit

    def _other_classes(self, k: int, label: int) -> list[Embeddings]:
        labels = np.where(self._fold == k, self._real.labels, -1)
        parts = [self._embedded[k][labels == one] for one in range(len(self._real.classes)) if one != label]
        return [part for part in parts if len(part) >= FEWEST]
