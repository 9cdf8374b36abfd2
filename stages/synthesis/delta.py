"""Made images as a delta of the data contract."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.dataset import DELTA_COLUMNS, Dataset, derived_id, empty_delta


def derived_ids(parent_ids: Sequence[str], methods: Sequence[str]) -> list[str]:
    """Ids of made samples: those of one parent and method are numbered through, in their order."""
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
    """A delta for `base`: a row an image, in their order.

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
