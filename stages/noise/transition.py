"""Estimate how labels were mixed up: the transition matrix, counted from suspected labels."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def estimated_transition(issues: pd.DataFrame, classes: list[str]) -> NDArray[np.float64]:
    """Count how labels were mixed up: P(given label | likely true one) in the training split.

    The likely true label is the suggested one where the given one is suspected, else the given one.

    Parameters
    ----------
    issues : `split`, `given_label`, `suggested_label`, `is_label_issue`
    classes : K names in index order

    Returns
    -------
    float64, K×K, rows the likely true class, each with a sum of 1, or of NaN where no sample is
    likely to be of that class.

    References
    ----------
    Northcutt, Jiang and Chuang, Confident Learning, arXiv 1911.00068, section 3: the joint of given
    and latent labels. Here the suspects are those of `find_label_errors`, not of a threshold a class.
    """
    training = issues[((issues["split"] == "train") & issues["given_label"].notna()).to_numpy()]
    likely = training["given_label"].where(~training["is_label_issue"], training["suggested_label"])
    true = pd.Index(classes).get_indexer(pd.Index(likely))
    given = pd.Index(classes).get_indexer(pd.Index(training["given_label"]))
    size = len(classes)
    counts = np.bincount(true * size + given, minlength=size * size).reshape(size, size).astype(np.float64)
    total = counts.sum(1, keepdims=True)
    return np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)


def transition_table(transition: NDArray[np.float64], classes: list[str]) -> pd.DataFrame:
    """Return the entries of a transition matrix that are not zero, as rows.

    Parameters
    ----------
    transition : K×K, rows the true class
    classes : K names in index order

    Returns
    -------
    `true_label`, `given_label`, `probability`, in the order of the matrix.
    """
    true, given = np.nonzero(np.nan_to_num(transition))
    names = np.asarray(classes, dtype=object)
    return pd.DataFrame(
        {
            "true_label": names[true],
            "given_label": names[given],
            "probability": transition[true, given].round(6),
        }
    )
