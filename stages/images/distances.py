"""Find the nearest of many images or embeddings, in chunks that fit into memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CHUNK = 512


def nearest_neighbours(
    points: NDArray[Any],
    others: NDArray[Any] | None = None,
    *,
    pairwise: bool = False,
    groups: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return distance to, and index of, the nearest of `others`; without them the nearest other point.

    Points are flattened; distances are Euclidean, float64 N. Ties go to the lowest index. `pairwise`:
    `others` are the same in another form (mirrored), and none is its own neighbour. `groups`, N: nor is
    one of the same group; two groups at least.
    """
    flat = points.reshape(len(points), math.prod(points.shape[1:])).astype(np.float64)
    pool = flat if others is None else others.reshape(len(others), flat.shape[1]).astype(np.float64)
    distances, indices = np.zeros(len(flat)), np.zeros(len(flat), np.int64)
    norms = np.einsum("ij,ij->i", pool, pool)
    for start in range(0, len(flat), _CHUNK):
        part = flat[start : start + _CHUNK]
        squares = np.einsum("ij,ij->i", part, part)[:, None] + norms - 2 * part @ pool.T
        if others is None or pairwise:
            rows = np.arange(len(part))
            squares[rows, start + rows] = np.inf
            if groups is not None:
                squares[groups[start : start + _CHUNK, None] == groups] = np.inf
        best = squares.argmin(1)
        indices[start : start + _CHUNK] = best
        # Again by subtraction: the expansion above leaves a rest where the distance is zero.
        distances[start : start + _CHUNK] = np.linalg.norm(part - pool[best], axis=1)
    return distances, indices
