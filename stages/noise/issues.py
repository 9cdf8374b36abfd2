"""A row a sample and what is wrong with it: label errors, outliers, near-duplicates."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from stages.dataset import label_indices
from stages.noise.labels import better_than_chance, find_label_errors, suggest_labels

ISSUE_COLUMNS = [
    "sample_id",
    "split",
    "given_label",
    "suggested_label",
    "suggested_score",
    "label_score",
    "is_label_issue",
    "outlier_score",
    "is_outlier_issue",
    "near_duplicate_score",
    "is_near_duplicate_issue",
    "near_duplicate_set",
]


def build_issues(
    samples: pd.DataFrame,
    pred_probs: NDArray[np.float32],
    embeddings: NDArray[np.float32],
    classes: list[str],
    *,
    rule: str,
    neighbors: int,
    judged: NDArray[np.bool_] | None = None,
) -> pd.DataFrame:
    """Judge every sample.

    Parameters
    ----------
    samples : `dataset.SAMPLE_COLUMNS`
    pred_probs, embeddings : N×K and N×D, in the order of `samples`
    rule : see `find_label_errors`; each split is judged by itself, since probabilities outside the
        training split are means over models and are more confident
    neighbors : k of the nearest-neighbour graph
    judged : bool, N, in the order of `samples`; where False the models could not know the given
        label, and it is not called wrong (`folds.CrossValidation.train_judged`)

    Returns
    -------
    `ISSUE_COLUMNS`, in the order of `samples`. Scores lie between 0 and 1, and low is bad, as in
    cleanlab: `label_score` is the probability of the given label; `near_duplicate_set` numbers the
    sets, -1 for none. An unlabelled sample is suggested the likeliest class; its `given_label` and
    `label_score` are null, and it is no label issue. Where the model is no better than guessing at
    the training labels (`better_than_chance`), no label is called wrong.
    """
    table = samples[["sample_id", "split"]].copy()
    table["given_label"] = samples["label"]
    labelled = samples["label"].notna().to_numpy()
    trusted = labels_can_be_judged(samples, pred_probs, classes)
    table["suggested_label"] = pd.Series(None, index=table.index, dtype="str")
    table[["suggested_score", "label_score"]] = np.nan
    table["is_label_issue"] = False
    likeliest = pred_probs[~labelled].argmax(1)
    table.loc[~labelled, "suggested_label"] = np.asarray(classes, dtype=object)[likeliest]
    table.loc[~labelled, "suggested_score"] = pred_probs[~labelled].max(1).astype(np.float64)
    for split in samples.loc[labelled, "split"].unique():
        where = labelled & (samples["split"] == split).to_numpy()
        labels = label_indices(samples.loc[where, "label"], classes)
        probs = pred_probs[where].astype(np.float64)
        suggested, score = suggest_labels(labels, probs)
        table.loc[where, "suggested_label"] = np.asarray(classes, dtype=object)[suggested]
        table.loc[where, "suggested_score"] = score
        table.loc[where, "label_score"] = probs[np.arange(len(labels)), labels]
        if trusted:
            wrong = find_label_errors(labels, probs, rule)
            table.loc[where, "is_label_issue"] = wrong if judged is None else wrong & judged[where]
    neighbourhood = _neighbourhood_issues(embeddings, neighbors)
    return pd.concat([table.reset_index(drop=True), neighbourhood], axis=1)[ISSUE_COLUMNS]


def labels_can_be_judged(samples: pd.DataFrame, pred_probs: NDArray[np.float32], classes: list[str]) -> bool:
    """Whether the out-of-sample probabilities know enough of the training labels to contradict them."""
    training = (samples["split"] == "train").to_numpy()
    labels = label_indices(samples.loc[training, "label"], classes)
    return better_than_chance(labels, pred_probs[training].astype(np.float64))


def _neighbourhood_issues(embeddings: NDArray[np.float32], neighbors: int) -> pd.DataFrame:
    """Outliers and near-duplicates by cleanlab's Datalab, over all splits together."""
    count = len(embeddings)
    k = min(neighbors, count - 1)
    with _quiet():
        from cleanlab import Datalab

        # Datalab wants a dataset to attach its findings to; the embeddings are all it looks at.
        lab = Datalab(data={"row": list(range(count))}, verbosity=0)
        lab.find_issues(features=embeddings, issue_types={"outlier": {"k": k}, "near_duplicate": {"k": k}})
        issues = lab.get_issues()
        sets = lab.get_issues("near_duplicate")["near_duplicate_sets"]
    issues = issues.reset_index(drop=True)
    issues["near_duplicate_set"] = _number_sets(list(sets), count)
    return issues


def _number_sets(neighbours: list[NDArray[np.int64]], count: int) -> NDArray[np.int64]:
    """Connected components of the near-duplicate relation, numbered by first member; -1 for none."""
    rows = np.repeat(np.arange(count), [len(found) for found in neighbours])
    columns = np.concatenate([np.asarray(found, np.int64) for found in neighbours])
    graph = csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(count, count))
    _, component = connected_components(graph, directed=False)
    members = np.bincount(component)[component] > 1
    numbers = np.full(count, -1, np.int64)
    numbers[members] = pd.factorize(component[members])[0]
    return numbers


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Datalab prints hints about what it was not asked to do; keep them out of a stage's log."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(previous)
