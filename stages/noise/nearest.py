"""The nearest neighbours of every sample: one graph, computed once, that all checks share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from stages.errors import WinnowError

# From here on every sample is compared with its part of the data only: all pairs would take hours.
EXACT_UP_TO = 50_000
_CELL = 2_000  # samples of a cell, on average
_BLOCK = 4096  # rows
_PROBES = 8  # nearest cells that are searched, its own among them


def nearest_neighbours(embeddings: NDArray[np.floating], k: int, seed: int = 0) -> csr_matrix:
    """Each sample's nearest others by cosine, as a graph that Datalab takes.

    Up to `EXACT_UP_TO` samples the neighbours are exact. Beyond, samples are parted into cells by
    k-means, and the nearest are looked for in the nearest `_PROBES` cells: an inverted file, as in
    Jégou, Douze and Schmid, "Product quantization for nearest neighbor search" (2011). Memory is
    linear in N either way.

    Parameters
    ----------
    embeddings : floats, N×D
    k : neighbours of a sample; N - 1 where there are fewer others
    seed : of the cells

    Returns
    -------
    N×N sparse matrix with k entries a row, nearest first; the entries are cosine distances, 0 to 2.
    A vector of zeros has no direction: it is at 0 from others of its kind, at 0.5 from all others.

    Raises
    ------
    WinnowError
        Where the embeddings are not N×D, or hold NaN or infinity.
    """
    vectors = unit_vectors(embeddings)
    count = len(vectors)
    k = min(k, count - 1)
    if k < 1:
        return csr_matrix((count, count), dtype=np.float64)
    squared, index = _exact(vectors, k) if count <= EXACT_UP_TO else _by_cells(vectors, k, seed)
    starts = np.arange(0, count * k + 1, k)
    # Of unit vectors the squared Euclidean distance is twice the cosine distance. scikit-learn has
    # a fast search for the former only.
    return csr_matrix((squared.ravel() / 2.0, index.ravel(), starts), shape=(count, count))


def unit_vectors(embeddings: NDArray[np.floating]) -> NDArray[np.float64]:
    """Rows of length 1; a row of zeros stays one."""
    if embeddings.ndim != 2:
        raise WinnowError(f"embeddings must be N×D, not {embeddings.shape}")
    if not np.isfinite(embeddings).all():
        raise WinnowError("embeddings hold NaN or infinity: the model diverged; lower its learning rate")
    vectors = embeddings.astype(np.float64)
    for start in range(0, len(vectors), _BLOCK):  # the norm squares a copy of what it is given
        block = vectors[start : start + _BLOCK]
        block /= np.maximum(np.linalg.norm(block, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return vectors


def neighbours_of(graph: csr_matrix, most: int) -> NDArray[np.int64]:
    """N×k indices of each sample's nearest, at most `most` of them, nearest first."""
    count = graph.shape[0]
    return graph.indices.reshape(count, -1)[:, :most].astype(np.int64)


def _exact(vectors: NDArray[np.float64], k: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=k, algorithm="brute", metric="sqeuclidean").fit(vectors)
    found: tuple[NDArray[np.float64], NDArray[np.int64]] = search.kneighbors()
    return found


def _by_cells(
    vectors: NDArray[np.float64], k: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.neighbors import NearestNeighbors

    count = len(vectors)
    cells = max(1, count // max(_CELL, k + 1))
    kmeans = MiniBatchKMeans(cells, random_state=seed % 2**32, batch_size=4096, n_init=1).fit(vectors)
    order = np.argsort(kmeans.labels_, kind="stable")
    sizes = np.bincount(kmeans.labels_, minlength=cells)
    members = np.split(order, np.cumsum(sizes)[:-1])
    centres = NearestNeighbors(n_neighbors=cells, algorithm="brute").fit(kmeans.cluster_centers_)
    nearest_cells = centres.kneighbors(kmeans.cluster_centers_, return_distance=False)
    distances = np.empty((count, k), np.float64)
    index = np.empty((count, k), np.int64)
    for cell in np.flatnonzero(sizes):
        # Small cells take in more of them: there must be k others to be found.
        enough = int(np.searchsorted(np.cumsum(sizes[nearest_cells[cell]]), k + 1)) + 1
        candidates = np.concatenate([members[c] for c in nearest_cells[cell][: max(_PROBES, enough)]])
        search = NearestNeighbors(n_neighbors=k + 1, algorithm="brute", metric="sqeuclidean")
        found, at = search.fit(vectors[candidates]).kneighbors(vectors[members[cell]])
        own = candidates[at] == members[cell][:, None]
        own[~own.any(1), -1] = True  # so many twins that a sample is not among its own nearest
        distances[members[cell]] = found[~own].reshape(-1, k)
        index[members[cell]] = candidates[at][~own].reshape(-1, k)
    return distances, index
