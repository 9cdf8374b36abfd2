"""How many samples each class should gain: shared by augmentation and synthesis."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Target = Literal["majority", "median"] | int


def target_size(counts: NDArray[np.int64], target: Target) -> int:
    """The size that classes are brought up to.

    Parameters
    ----------
    counts : int64, K; images of each class
    target : `majority` for the largest class, `median` for the median of those that have any
        (rounded down), or a number of images
    """
    if isinstance(target, int):
        return target
    present = counts[counts > 0]
    if len(present) == 0:
        return 0
    return int(present.max() if target == "majority" else np.median(present))


def quotas(counts: NDArray[np.int64], target: Target, max_factor: float) -> NDArray[np.int64]:
    """Samples that each class should gain, int64 K: up to the target, and no more than `max_factor`
    times the images that it has. A class without images gains none.
    """
    missing = np.maximum(target_size(counts, target) - counts, 0)
    return np.minimum(missing, np.floor(counts * max_factor + 1e-9)).astype(np.int64)
