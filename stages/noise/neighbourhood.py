"""Judge samples by their nearest neighbours: outliers, near-duplicates, order, groups; by Datalab.

The neighbours are one graph, computed once, that all checks share. The checks are those of cleanlab's
Datalab.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from stages.dataset.issue_kinds import flag_column, score_column
from stages.errors import WinnowError

# From here on every sample is compared with its part of the data only: all pairs would take hours.
EXACT_UP_TO = 50_000

_CELL = 2_000  # samples of a cell, on average
_BLOCK = 4096  # rows
_PROBES = 8  # nearest cells that are searched, its own among them

# A group is called underperforming where its labels are, on average, less than this share as
# probable as all labels are. Datalab's own 0.1 is for groups that are wrong altogether.
UNDERPERFORMING = 0.3

_GROUP = 50  # samples of a group, on average
_MOST_GROUPS = 256
_SMALLEST_GROUP = 10
_ORDERED = 50  # samples from which on their order can be judged
_MOST_PAIRS = 1_000_000  # Datalab keeps 25 permutations of all pairs of neighbours in memory
_SAME = 1e-6  # what float32 leaves of equal numbers


def nearest_neighbours(embeddings: NDArray[np.floating], k: int, seed: int = 0) -> csr_matrix:
    """Find each sample's nearest others by cosine, as a graph that Datalab takes.

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
    if count <= EXACT_UP_TO:
        from sklearn.neighbors import NearestNeighbors

        search = NearestNeighbors(n_neighbors=k, algorithm="brute", metric="sqeuclidean")
        squared, index = search.fit(vectors).kneighbors()
    else:
        squared, index = _by_cells(vectors, k, seed)
    starts = np.arange(0, count * k + 1, k)
    # Of unit vectors the squared Euclidean distance is twice the cosine distance. scikit-learn has
    # a fast search for the former only.
    return csr_matrix((squared.ravel() / 2.0, index.ravel(), starts), shape=(count, count))


def unit_vectors(embeddings: NDArray[np.floating]) -> NDArray[np.float64]:
    """Scale rows to length 1; a row of zeros stays one."""
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
    """Return N×k indices of each sample's nearest, at most `most` of them, nearest first."""
    count = graph.shape[0]
    return graph.indices.reshape(count, -1)[:, :most].astype(np.int64)


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
        squared, at = search.fit(vectors[candidates]).kneighbors(vectors[members[cell]])
        itself = candidates[at] == members[cell][:, None]
        itself[~itself.any(1), -1] = True  # so many twins that a sample is not among its own nearest
        distances[members[cell]] = squared[~itself].reshape(-1, k)
        index[members[cell]] = candidates[at][~itself].reshape(-1, k)
    return distances, index


def all_alike(embeddings: NDArray[np.floating]) -> bool:
    """Tell whether all embeddings have one and the same direction: then neighbours say nothing."""
    return bool(np.ptp(unit_vectors(embeddings), axis=0).max(initial=0.0) < _SAME)


def outliers_and_duplicates(graph: csr_matrix) -> pd.DataFrame:
    """Find outliers and near-duplicates, over all splits together.

    Parameters
    ----------
    graph : of `nearest_neighbours`; N of at least 2

    Returns
    -------
    N rows: `outlier_score`, `is_outlier_issue`, `near_duplicate_score`, `is_near_duplicate_issue`,
    `near_duplicate_set` (int64; sets numbered by first member, -1 for none). An outlier is far from
    its neighbours, a near-duplicate near to one, each by the measure of the data's own distances;
    see cleanlab's guide to Datalab's issue types. Scores are NaN, and flags False, where Datalab fails.
    """
    table, infos = _datalab(graph, {"outlier": {}, "near_duplicate": {}})
    table["near_duplicate_set"] = np.full(graph.shape[0], -1, np.int64)
    if "near_duplicate" in infos:
        sets = list(infos["near_duplicate"]["near_duplicate_sets"])
        table["near_duplicate_set"] = _number_sets(sets, graph.shape[0])
    return table


def order_issues(
    samples: pd.DataFrame, graph: csr_matrix, classes: list[str], seed: int
) -> tuple[pd.DataFrame, float | None]:
    """Test whether the order of the files says something of the images, such as bursts or drift.

    Datalab's `non_iid` asks whether neighbours by embedding are near in the table too. A table
    sorted by class is always so, and Winnow's, sorted by id within a class, never; neither means
    anything. What is judged here is the order of `source` (numbers in names counted as numbers)
    within split, class, and the class that the path names, where labels were changed afterwards.
    Each such part is spread at random over a common line, in its own order: if that order says
    nothing, the whole is in random order, which is just what Datalab's test by permutation takes it
    for, so one test serves all classes, and needs no correction for their number.

    Parameters
    ----------
    samples : `dataset.SAMPLE_COLUMNS`, N rows; an unlabelled sample counts to the class `label`
        that its row was given by the caller
    graph : of `nearest_neighbours`
    classes : class names
    seed : of places on the line, and of permutations

    Returns
    -------
    `non_iid_score` and `is_non_iid_issue` (as in Datalab: where the data set is not iid, the one
    sample that shows it most), and the p-value of the data set, or None where there are too few,
    or Datalab fails, as it does where all its permutations are alike.
    """
    count = len(samples)
    table = pd.DataFrame({"non_iid_score": np.full(count, np.nan), "is_non_iid_issue": np.zeros(count, bool)})
    if count < _ORDERED:
        return table, None
    order = np.argsort(_places(samples, classes, np.random.default_rng(seed % 2**32)), kind="stable")
    k = max(1, min(graph.nnz // count, _MOST_PAIRS // count))
    rank = np.empty(count, np.int64)
    rank[order] = np.arange(count)
    neighbours = rank[graph.indices.reshape(count, -1)[order, :k]]
    distances = graph.data.reshape(count, -1)[order, :k]
    starts = np.arange(0, count * k + 1, k)
    ordered = csr_matrix((distances.ravel(), neighbours.ravel(), starts), shape=(count, count))
    ordered_table, infos = _datalab(ordered, {"non_iid": {"seed": seed % 2**32}})
    if "non_iid" not in infos:
        return table, None
    table.loc[order, "non_iid_score"] = ordered_table["non_iid_score"].to_numpy()
    table.loc[order, "is_non_iid_issue"] = ordered_table["is_non_iid_issue"].to_numpy()
    return table, float(np.clip(infos["non_iid"]["p-value"], 0.0, 1.0))


def underperforming_groups(
    embeddings: NDArray[np.floating],
    labels: NDArray[np.int64],
    pred_probs: NDArray[np.floating],
    seed: int,
) -> pd.DataFrame:
    """Find groups of like images in which the model gives the labels little probability.

    Groups are clusters by k-means of the embeddings' directions, about one for 50 samples; Datalab's
    own DBSCAN does not scale. A group of fewer than 10 is not judged.

    Parameters
    ----------
    embeddings : floats, N×D
    labels : int, N; 0 to K-1, given ones
    pred_probs : floats, N×K; out-of-sample, all by models of one kind, or they do not compare

    Returns
    -------
    N rows: `underperforming_group_score` (mean probability of the labels in the group by that of
    all, 1 where it is not under it), `is_underperforming_group_issue` (the score is under
    `UNDERPERFORMING`: all such groups, where Datalab names the worst one only), and
    `underperforming_group` (int64; the group's number, by first member; -1 where there is no issue).
    Scores are NaN, and flags False, where Datalab fails.
    """
    from sklearn.cluster import MiniBatchKMeans

    groups = int(np.clip(len(labels) // _GROUP, 1, _MOST_GROUPS))
    kmeans = MiniBatchKMeans(groups, random_state=seed % 2**32, batch_size=4096, n_init=3)
    clusters = kmeans.fit(unit_vectors(embeddings)).labels_.astype(np.int64)
    number = pd.factorize(clusters)[0].astype(np.int64)
    # Datalab takes labels for indices into the columns: those of absent classes must go.
    present, dense = np.unique(labels, return_inverse=True)
    score = np.ones(len(labels))
    if np.bincount(number).max(initial=0) >= _SMALLEST_GROUP:
        options = {
            "cluster_ids": number,
            "min_cluster_samples": _SMALLEST_GROUP,
            "threshold": UNDERPERFORMING,
        }
        table, _ = _datalab(None, {"underperforming_group": options}, dense, pred_probs[:, present])
        score = table["underperforming_group_score"].to_numpy(np.float64)
    flagged = score < UNDERPERFORMING
    return pd.DataFrame(
        {
            "underperforming_group_score": score,
            "is_underperforming_group_issue": flagged,
            "underperforming_group": np.where(flagged, number, -1),
        }
    )


def _datalab(
    graph: csr_matrix | None,
    checks: dict[str, dict[str, Any]],
    labels: NDArray[np.int64] | None = None,
    pred_probs: NDArray[np.floating] | None = None,
) -> tuple[pd.DataFrame, dict[str, dict[str, Any]]]:
    """Return Datalab's findings, and what it says of each check.

    A check that fails stops nothing in Datalab, which prints a line and leaves it out. Here its scores are
    NaN, its flags False, and nothing is said of it.
    """
    count = graph.shape[0] if graph is not None else len(labels if labels is not None else [])
    with _quiet():
        from cleanlab import Datalab

        # Datalab wants a dataset to attach its findings to; the graph is all it looks at.
        data = {"row": np.arange(count)} | ({} if labels is None else {"label": labels})
        lab = Datalab(data=data, label_name=None if labels is None else "label", verbosity=0)
        lab.find_issues(pred_probs=pred_probs, knn_graph=graph, issue_types=checks)
        table = lab.issues.reset_index(drop=True)  # `get_issues` raises where no check succeeded
        infos = {name: lab.get_info(name) for name in checks if score_column(name) in table}
    for name in [name for name in checks if name not in infos]:
        table[score_column(name)], table[flag_column(name)] = np.nan, False
    return table, infos


def _number_sets(neighbours: list[NDArray[np.int64]], count: int) -> NDArray[np.int64]:
    """Number the connected components of the near-duplicate relation by first member; -1 for none."""
    rows = np.repeat(np.arange(count), [len(nearest) for nearest in neighbours])
    columns = np.concatenate([np.asarray(nearest, np.int64) for nearest in neighbours])
    graph = csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(count, count))
    _, component = connected_components(graph, directed=False)
    members = np.bincount(component)[component] > 1
    numbers = np.full(count, -1, np.int64)
    numbers[members] = pd.factorize(component[members])[0]
    return numbers


def _places(samples: pd.DataFrame, classes: list[str], rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw random places on a line, 0 to 1; those of one split and class in the order of their files."""
    known = set(classes)
    sources = samples["source"].astype(str).tolist()
    in_path = [next((step for step in PurePosixPath(name).parts if step in known), "") for name in sources]
    strata = pd.DataFrame(
        {"split": samples["split"].to_numpy(), "label": samples["label"].to_numpy(), "path": in_path}
    )
    stratum = strata.groupby(list(strata), dropna=False, sort=True).ngroup().to_numpy()
    by_name = sorted(range(len(sources)), key=[_natural(name) for name in sources].__getitem__)
    place = np.empty(len(sources), np.int64)
    place[by_name] = np.arange(len(sources))
    spread = rng.random(len(sources))
    result = np.empty(len(sources))
    # Sorted by stratum both, the n-th name of a stratum gets the n-th smallest of its random places.
    result[np.lexsort((place, stratum))] = spread[np.lexsort((spread, stratum))]
    return result


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts `img_2` before `img_10`: numbers as numbers, and before text."""
    return [(int(run), "") if run.isdecimal() else (-1, run) for run in re.split(r"(\d+)", name)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Datalab's hints out of a stage's log, and its seeds out of numpy's global generator."""
    previous = logging.root.manager.disable
    state = np.random.get_state()
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(previous)
        np.random.set_state(state)
