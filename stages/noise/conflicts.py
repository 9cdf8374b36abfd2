"""Labels in conflict: what was claimed, what to suggest, and where a sample returns to."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

_MOST_NAMED = 5  # of conflicting labels, in a reason


def conflict_reasons(conflicts: pd.DataFrame) -> pd.Series:
    """By `sample_id`, which labels are in conflict, in words.

    Parameters
    ----------
    conflicts : `dataset.CONFLICT_COLUMNS`
    """
    return conflicts.groupby("sample_id")["label"].agg(_name_labels).astype("str")


def _name_labels(labels: pd.Series) -> str:
    names = sorted(set(labels.astype(str)))
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"conflicting_labels: {', '.join(names[:_MOST_NAMED])}{more}; for review"


def frozen_splits(conflicts: pd.DataFrame) -> dict[str, str]:
    """The split that each disputed sample was frozen in, by its id; nothing of those that were not.

    Parameters
    ----------
    conflicts : `dataset.CONFLICT_COLUMNS`
    """
    frozen = conflicts[conflicts["split"].isin(["train", "val", "test"])]
    return dict(zip(frozen["sample_id"].astype(str), frozen["split"].astype(str), strict=True))


def suggest_claimed(
    issues: pd.DataFrame,
    conflicts: pd.DataFrame,
    pred_probs: NDArray[np.floating] | None,
    classes: list[str],
) -> pd.DataFrame:
    """Let issues suggest for labels in conflict the likeliest of the claimed ones.

    The models may find a class likelier that nobody claimed; but the question that a conflict asks is
    which of the claims is right.

    Parameters
    ----------
    issues : one row a sample, as `noise.issues` makes them
    conflicts : `dataset.CONFLICT_COLUMNS`
    pred_probs : N×K, in the order of `issues`; None where there are none at hand
    classes : K names

    Returns
    -------
    A copy of `issues`. `suggested_label` and `suggested_score` of a sample in conflict are null
    without `pred_probs`, and where no claimed label but the given one is a class.
    """
    issues = issues.copy()
    if conflicts.empty:
        return issues
    disputed = issues["sample_id"].isin(conflicts["sample_id"])
    issues.loc[disputed, "suggested_label"] = None
    issues.loc[disputed, "suggested_score"] = np.nan
    if pred_probs is None:
        return issues
    claims = pd.DataFrame(
        {
            "row": pd.Index(issues["sample_id"]).get_indexer(pd.Index(conflicts["sample_id"])),
            "label": pd.Index(classes).get_indexer(pd.Index(conflicts["label"])),
        }
    )
    given = pd.Index(classes).get_indexer(pd.Index(issues["given_label"]))
    claims = claims[(claims >= 0).all(axis=1)]
    claims = claims[claims["label"].to_numpy() != given[claims["row"].to_numpy()]]
    claims["score"] = pred_probs[claims["row"].to_numpy(), claims["label"].to_numpy()].astype(np.float64)
    claims = claims.sort_values(["score", "label"], ascending=[False, True]).drop_duplicates("row")
    rows = issues.index[claims["row"]]
    issues.loc[rows, "suggested_label"] = np.asarray(classes, dtype=object)[claims["label"]]
    issues.loc[rows, "suggested_score"] = claims["score"].to_numpy()
    return issues
