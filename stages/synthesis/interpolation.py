"""Over-sample by imbalanced-learn: random copies, interpolation, and interpolation with cleaning."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stages.dataset.base import View
from stages.dataset.ids import sample_seed
from stages.images.distances import nearest_neighbours

SimpleMethod = Literal["random", "smote", "borderline_smote", "adasyn", "smote_enn", "smote_tomek"]
NEIGHBOURS = 5  # SMOTE's own choice (Chawla et al., arXiv 1106.1813, section 4)
_DANGER_NEIGHBOURS = 10  # imbalanced-learn's default for Borderline-SMOTE
_CLEANING_NEIGHBOURS = 3  # Wilson's edited nearest neighbours, as in imbalanced-learn
CLEANING = ("smote_enn", "smote_tomek")
_PIXEL_SCALE = np.float32(1e-6)  # beside the embedding: pixels ride along and do not tell in distances


@dataclass(frozen=True)
class Interpolated:
    """Images made of real ones, class by class in index order.

    Attributes
    ----------
    images : uint8, M×H×W×C
    labels : int64, M
    parents : int64, M; indices into the real images. Random over-sampling: the image that was copied;
        else the nearest image of the class in pixels, which with two neighbours is the closer end of
        the interpolation (imbalanced-learn does not tell the ends).
    methods : M names of what made them: the method, or what a class needed instead
    notes : by class, what went otherwise than asked, in words
    cleaned : int64, K; made images of each class that cleaning removed again
    doubtful : int64, K; real images of each class that cleaning would have removed, and did not: that
        is the ledger's business
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    parents: NDArray[np.int64]
    methods: list[str]
    cleaned: NDArray[np.int64]
    doubtful: NDArray[np.int64]
    notes: dict[int, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class _ClassRows:
    """Rows of features made for one class, and their parents where they are known."""

    label: int
    rows: NDArray[np.float32]
    method: str
    notes: list[str]
    parents: NDArray[np.int64] | None = None


def interpolate(
    real: View,
    quota: NDArray[np.int64],
    method: SimpleMethod,
    *,
    seed: int,
    embeddings: NDArray[np.float32] | None = None,
) -> Interpolated:
    """Make images for the classes that have a quota.

    `random` and `smote` look at the class alone, so that a class's images do not depend on the other
    classes; the others look at the whole set. A class of one image gets copies of it whatever the
    method, one of fewer than six images lowers the number of neighbours, and one without an image in
    danger (Borderline-SMOTE) or a neighbour of another class (ADASYN) gets SMOTE's: `notes` says so.
    ADASYN and cleaning may leave fewer images than were asked for.

    Parameters
    ----------
    real : the curated real training images
    quota : int64, K; images to make. A class without real images gets none.
    method : `random`; `smote` (Chawla et al., arXiv 1106.1813); `borderline_smote` (Han et al., 2005,
        doi 10.1007/11538059_91, borderline-1); `adasyn` (He et al., 2008,
        doi 10.1109/IJCNN.2008.4633969); `smote_enn` and `smote_tomek`, SMOTE and then cleaning by
        edited nearest neighbours or Tomek links (Batista et al., 2004, doi 10.1145/1007730.1007735)
    seed : of all that is drawn; each class has its own
    embeddings : float32, N×D, a row for each real image: neighbours are then looked for there, each
        dimension standardised, and pixels are mixed. None looks for them in the pixels.
    """
    features = _Features(real.images, embeddings)
    parts = [
        _sample(features, real, int(label), int(quota[label]), method, seed)
        for label in np.flatnonzero((quota > 0) & (real.class_counts > 0))
    ]
    cleaned, doubtful = np.zeros((2, len(real.classes)), np.int64)
    if method in CLEANING and parts:
        parts, cleaned, doubtful = _clean(features, real, parts, method)
    images = [features.to_pixels(part.rows) for part in parts]
    parents = [_parents(part, made, real) for part, made in zip(parts, images, strict=True)]
    none = np.zeros(0, np.int64)
    return Interpolated(
        images=np.concatenate([real.images[:0], *images]),
        labels=np.concatenate([none, *(np.full(len(part.rows), part.label, np.int64) for part in parts)]),
        parents=np.concatenate([none, *parents]),
        methods=[part.method for part in parts for _ in part.rows],
        cleaned=cleaned,
        doubtful=doubtful,
        notes={part.label: part.notes for part in parts if part.notes},
    )


class _Features:
    """Real images as rows in which a sampler finds neighbours, and from which pixels come back.

    With embeddings a row is `[pixels × a tiny factor, standardised embedding]`: every sampler then
    finds neighbours in the embedding, and mixes the pixels of the same pairs in the same shares.
    """

    def __init__(self, images: NDArray[np.uint8], embeddings: NDArray[np.float32] | None) -> None:
        self._images = images
        self._pixels = math.prod(images.shape[1:])
        self._scale = np.float32(1 if embeddings is None else _PIXEL_SCALE)
        self._embeddings = np.zeros((len(images), 0), np.float32)
        if embeddings is not None:
            spread = embeddings.std(0)
            standardised = (embeddings - embeddings.mean(0)) / np.where(spread > 0, spread, 1)
            self._embeddings = standardised.astype(np.float32)

    def of(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the rows of these images, float32."""
        pixels = self._images[index].reshape(len(index), self._pixels).astype(np.float32)
        return np.concatenate([pixels * self._scale, self._embeddings[index]], axis=1)

    @cached_property
    def all(self) -> NDArray[np.float32]:
        """Return the rows of all images."""
        return self.of(np.arange(len(self._images)))

    def to_pixels(self, rows: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Turn rows that a sampler made into images uint8 M×H×W×C."""
        pixels = (rows[:, : self._pixels] / self._scale).round().clip(0, 255)
        return pixels.astype(np.uint8).reshape(len(rows), *self._images.shape[1:])


def _sample(
    features: _Features, real: View, label: int, quota: int, method: SimpleMethod, seed: int
) -> _ClassRows:
    """Make one class's images, by the method or by what stands in for it."""
    own = np.flatnonzero(real.labels == label)
    class_seed = sample_seed(seed, f"copies/{real.classes[label]}")
    if method == "random" or len(own) == 1:
        chosen = own[_random_copies(len(own), quota, class_seed)]
        alone = ["a single image: nothing to interpolate between, so copies of it"]
        notes = [] if method == "random" else alone
        return _ClassRows(label, features.of(chosen), "random", notes, chosen)
    neighbours = min(NEIGHBOURS, len(own) - 1)
    notes = []
    if neighbours < NEIGHBOURS:
        notes.append(f"{len(own)} images: {neighbours} of {NEIGHBOURS} neighbours")
    if method in ("borderline_smote", "adasyn"):
        sampler = _borderline_smote if method == "borderline_smote" else _adasyn
        rows, fault = sampler(features.all, real.labels, label, quota, neighbours, class_seed)
        if not fault:
            if len(rows) < quota:
                notes.append(f"its shares of {quota} images, each rounded, come to {len(rows)}")
            return _ClassRows(label, rows, method, notes)
        rows = _smote(features.of(own), quota, neighbours, class_seed)
        return _ClassRows(label, rows, "smote", [f"{fault}, so SMOTE", *notes])
    return _ClassRows(label, _smote(features.of(own), quota, neighbours, class_seed), method, notes)


def _random_copies(count: int, quota: int, seed: int) -> NDArray[np.int64]:
    """Draw the indices of `quota` of `count` images, with replacement."""
    from imblearn.over_sampling import RandomOverSampler

    sampler = RandomOverSampler(sampling_strategy={1: count + quota}, random_state=seed)
    _resample(sampler, *_beside_another_class(np.zeros((count, 1), np.float32)))
    return np.asarray(sampler.sample_indices_[count + 1 :], dtype=np.int64)


def _smote(own: NDArray[np.float32], quota: int, neighbours: int, seed: int) -> NDArray[np.float32]:
    from imblearn.over_sampling import SMOTE

    strategy = {1: len(own) + quota}
    sampler = SMOTE(sampling_strategy=strategy, k_neighbors=neighbours, random_state=seed)
    return _resample(sampler, *_beside_another_class(own))


def _borderline_smote(
    rows: NDArray[np.float32], labels: NDArray[np.int64], label: int, quota: int, neighbours: int, seed: int
) -> tuple[NDArray[np.float32], str]:
    """Make rows from images that have half or more of their neighbours in other classes, not all."""
    from imblearn.over_sampling import BorderlineSMOTE

    sampler = BorderlineSMOTE(
        sampling_strategy={label: int((labels == label).sum()) + quota},
        random_state=seed,
        k_neighbors=neighbours,
        m_neighbors=min(_DANGER_NEIGHBOURS, len(rows) - 1),
    )
    made = _resample(sampler, rows, labels) if _classes_meet(labels) else rows[:0]
    return made, "" if len(made) else "no image lies at the border to another class"


def _adasyn(
    rows: NDArray[np.float32], labels: NDArray[np.int64], label: int, quota: int, neighbours: int, seed: int
) -> tuple[NDArray[np.float32], str]:
    """Make rows from each image as often as it has neighbours in other classes."""
    from imblearn.over_sampling import ADASYN

    sampler = ADASYN(
        sampling_strategy={label: int((labels == label).sum()) + quota},
        random_state=seed,
        n_neighbors=neighbours,
    )
    if not _classes_meet(labels):
        return rows[:0], "no image has a neighbour of another class"
    try:
        made = _resample(sampler, rows, labels)
    except RuntimeError:  # all shares are zero
        return rows[:0], "no image has a neighbour of another class"
    except ValueError as error:
        if "No samples will be generated" not in str(error):
            raise
        return rows[:0], f"the images' shares of {quota} are all rounded to none"
    if len(made) > quota:  # rounded up: any of them
        made = made[np.sort(np.random.default_rng(seed).choice(len(made), quota, replace=False))]
    return made, ""


def _clean(
    features: _Features, real: View, parts: list[_ClassRows], method: SimpleMethod
) -> tuple[list[_ClassRows], NDArray[np.int64], NDArray[np.int64]]:
    """Remove the made images that cleaning takes for overlap of classes.

    As imbalanced-learn's SMOTEENN and SMOTETomek, which take a single number of neighbours for SMOTE
    in all classes, and drop real images too.
    """
    labels = np.concatenate([real.labels, *(np.full(len(part.rows), part.label, np.int64) for part in parts)])
    clean = np.ones(len(labels), bool)
    if _classes_meet(labels):
        clean = _survive_cleaning(np.concatenate([features.all, *(p.rows for p in parts)]), labels, method)
    count = len(real.classes)
    cleaned = np.zeros(count, np.int64)
    doubtful = np.bincount(real.labels[~clean[: len(real)]], minlength=count).astype(np.int64)
    left, start = [], len(real)
    for part in parts:
        stays = clean[start : start + len(part.rows)] | (part.method != method)
        start += len(part.rows)
        cleaned[part.label] = gone = int((~stays).sum())
        notes = [f"cleaning removed {gone} of {len(part.rows)} made images"] if gone else []
        left.append(_ClassRows(part.label, part.rows[stays], part.method, part.notes + notes, part.parents))
    return left, cleaned, doubtful


def _survive_cleaning(
    rows: NDArray[np.float32], labels: NDArray[np.int64], method: SimpleMethod
) -> NDArray[np.bool_]:
    from imblearn.under_sampling import EditedNearestNeighbours, TomekLinks

    if method == "smote_enn":
        neighbours = min(_CLEANING_NEIGHBOURS, len(rows) - 1)
        cleaner = EditedNearestNeighbours(sampling_strategy="all", n_neighbors=neighbours)
    else:
        cleaner = TomekLinks(sampling_strategy="all")
    cleaner.fit_resample(rows, labels)
    survivors = np.zeros(len(rows), bool)
    survivors[cleaner.sample_indices_] = True
    return survivors


def _resample(sampler: Any, rows: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the rows that an over-sampler adds to those that it was given."""
    with warnings.catch_warnings():
        # `per_class` may well bring a class above the largest, and `random` sees one class at a time.
        warnings.filterwarnings("ignore", "After over-sampling", UserWarning)
        resampled: NDArray[np.float32] = sampler.fit_resample(rows, labels)[0]
    return resampled[len(rows) :]


def _beside_another_class(
    rows: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Label `rows` as class 1, and add one row of a class 0, without which no sampler starts."""
    labels = np.ones(len(rows) + 1, np.int64)
    labels[-1] = 0
    return np.concatenate([rows, np.zeros_like(rows[:1])]), labels


def _classes_meet(labels: NDArray[np.int64]) -> bool:
    return len(np.unique(labels)) > 1


def _parents(part: _ClassRows, made: NDArray[np.uint8], real: View) -> NDArray[np.int64]:
    """Return the real image of the class that each is nearest to, or was copied from."""
    if part.parents is not None:
        return part.parents
    own = np.flatnonzero(real.labels == part.label)
    return np.asarray(own[nearest_neighbours(made, real.images[own])[1]], np.int64)
