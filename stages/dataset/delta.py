"""Put made images into a delta of the data contract, and say how many each class should gain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.dataset.base import DELTA_COLUMNS, Dataset, empty_delta
from stages.dataset.ids import derived_id
from stages.errors import WinnowError

Target = Literal["majority", "median"] | int


def derived_ids(parent_ids: Sequence[str], methods: Sequence[str]) -> list[str]:
    """Return ids of made samples: those of one parent and method are numbered through, in their order."""
    seen: Counter[tuple[str, str]] = Counter()
    ids = []
    for pair in zip(parent_ids, methods, strict=True):
        ids.append(derived_id(*pair, seen[pair]))
        seen[pair] += 1
    return ids


def build_delta(
    base: Dataset,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    parent_ids: Sequence[str],
    methods: Sequence[str],
    weights: NDArray[np.float64],
    sample_ids: Sequence[str] | None = None,
) -> Dataset:
    """Make a delta for `base`: a row an image, in their order.

    Parameters
    ----------
    base : the ingested dataset
    images : uint8, M×H×W×C
    labels : int64, M; indices into the classes of `base`
    parent_ids : M ids of samples of `base`; a made sample's `source` and `group` are its parent's
    methods : M names: `augment`, `gan`, `smote` or `random`
    weights : M weights in the loss
    sample_ids : M ids, if they are known already; else those of `derived_ids`
    """
    if len(images) == 0:
        return empty_delta(base)
    parents = base.samples.set_index("sample_id").loc[list(parent_ids)]
    samples = pd.DataFrame(
        {
            "sample_id": derived_ids(parent_ids, methods) if sample_ids is None else list(sample_ids),
            "row": np.arange(len(images), dtype=np.int64),
            "split": "train",
            "label": np.asarray(base.classes, dtype=object)[labels],
            "source": parents["source"].to_numpy(),
            "width": images.shape[2],
            "height": images.shape[1],
            "group": parents["group"].to_numpy(),
            "weight": np.asarray(weights, dtype=np.float64),
            "parent_id": list(parent_ids),
            "method": list(methods),
        }
    )[DELTA_COLUMNS]
    return Dataset(images, samples.astype(empty_delta(base).samples.dtypes.to_dict()), base.classes)


@dataclass(frozen=True)
class ClassTarget:
    """The size that a class is brought up to.

    Attributes
    ----------
    to : `majority` for the size of the largest class, `median` for the median of those that have any
        images (rounded down), or a number of images
    max_factor : samples that it gains, at most this many times the images that it has
    """

    to: Target
    max_factor: float


def target_sizes(
    counts: NDArray[np.int64],
    default: ClassTarget,
    classes: Sequence[str] = (),
    per_class: Mapping[str, ClassTarget] | None = None,
) -> NDArray[np.int64]:
    """Return the size that each class is brought up to, int64 K; `max_factor` may stop it earlier.

    Parameters
    ----------
    counts : int64, K; images of each class
    default : of every class that `per_class` does not name
    classes : K names in index order; only needed with `per_class`
    per_class : targets of single classes

    Raises
    ------
    WinnowError
        For a name that no class has; the message lists those that there are.
    """
    return np.array(
        [_size(counts, target.to) for target in _targets(len(counts), default, classes, per_class)], np.int64
    )


def quotas(
    counts: NDArray[np.int64],
    default: ClassTarget,
    classes: Sequence[str] = (),
    per_class: Mapping[str, ClassTarget] | None = None,
) -> NDArray[np.int64]:
    """Return how many samples each class should gain, int64 K.

    Up to its target, and no more than `max_factor` times the images that it has. A class without images
    gains none.

    Parameters and errors are those of `target_sizes`.
    """
    missing = np.maximum(target_sizes(counts, default, classes, per_class) - counts, 0)
    factors = [target.max_factor for target in _targets(len(counts), default, classes, per_class)]
    # as floats to the end: a factor that means "without limit" would not fit an integer
    return np.minimum(missing, np.floor(counts * np.asarray(factors) + 1e-9)).astype(np.int64)


def _targets(
    count: int, default: ClassTarget, classes: Sequence[str], per_class: Mapping[str, ClassTarget] | None
) -> list[ClassTarget]:
    targets = per_class or {}
    for name in targets:
        if name not in classes:
            known = ", ".join(classes[:20]) + (", …" if len(classes) > 20 else "")
            raise WinnowError(f"per_class names {name!r}, and there is no such class; there are {known}")
    return [targets.get(name, default) for name in classes] if targets else [default] * count


def _size(counts: NDArray[np.int64], to: Target) -> int:
    if isinstance(to, int):
        return to
    present = counts[counts > 0]
    if len(present) == 0:
        return 0
    return int(present.max() if to == "majority" else np.median(present))
