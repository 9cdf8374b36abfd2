"""From issues, conflicts and reviews to the ledger: for every sample what is done, by whom, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.dataset import LEDGER_COLUMNS

_MOST_NAMED = 5  # of conflicting labels, in a reason


@dataclass(frozen=True)
class Policy:
    """What is done about each kind of issue; the fields are those of `curate` in params.yaml."""

    label_errors: Literal["relabel", "drop", "reweight", "keep"]
    relabel_confidence: float
    outliers: Literal["drop", "reweight", "keep"]
    near_duplicates: Literal["drop", "reweight", "keep"]
    reweight_to: float
    min_per_class: int


def build_ledger(
    samples: pd.DataFrame,
    issues: pd.DataFrame,
    policy: Policy,
    reviews: pd.DataFrame,
    conflicts: pd.DataFrame | None = None,
) -> tuple[pd.DataFrame, list[str]]:
    """Decide about every sample.

    The policy acts on the training split alone: suspects elsewhere are kept, with a reason that
    asks for review. A reviewer's decision outranks it, in any split. An unlabelled sample that a
    reviewer gives a label moves to the training split, or returns to the one that it was frozen in
    before its label was disputed; till then no model is trained on it.

    Parameters
    ----------
    samples : `SAMPLE_COLUMNS`
    issues : one row a sample, as `noise.issues` makes them
    reviews : as `review.reviews.read_reviews` gives them; at most one row a sample
    conflicts : `dataset.CONFLICT_COLUMNS`; None for none

    Returns
    -------
    The ledger (`LEDGER_COLUMNS`, in the order of `samples`) and the ids of reviews whose sample is
    not there. `split` is the one that the sample is used in: for an unlabelled one that was
    relabelled its frozen one (`frozen_splits`), else `train`; for all others the ingested one.
    `given_label` is null where none was given, and `label` where none is known.
    """
    table = samples[["sample_id", "split", "label"]].merge(
        issues.drop(columns=["split", "given_label"]), on="sample_id", how="left", validate="1:1"
    )
    ledger = pd.DataFrame(
        {
            "sample_id": table["sample_id"],
            "split": table["split"],
            "given_label": table["label"],
            "label": table["label"],
            "action": "keep",
            "weight": 1.0,
            "score": table["label_score"].astype(float),
            "reason": "",
            "decided_by": "policy",
        }
    )
    training = table["split"] == "train"
    _apply_near_duplicates(ledger, table, training, policy)
    _apply(ledger, training & table["is_outlier_issue"], policy.outliers, "outlier", policy)
    _apply_label_errors(ledger, table, training, policy)
    _keep_at_least(ledger, policy.min_per_class)
    _apply_missing_labels(ledger, conflicts)
    unknown = _apply_reviews(ledger, reviews, frozen_splits(conflicts))
    return ledger[LEDGER_COLUMNS], unknown


def _apply(ledger: pd.DataFrame, where: pd.Series, action: str, reason: str, policy: Policy) -> None:
    """Write an action and its reason; later calls outrank earlier ones."""
    if action == "keep":
        ledger.loc[where & (ledger["reason"] == ""), "reason"] = f"{reason}: kept by policy"
        return
    weight = {"drop": 0.0, "reweight": policy.reweight_to, "relabel": 1.0}[action]
    ledger.loc[where, ["action", "weight", "reason"]] = [action, weight, reason]


def _apply_near_duplicates(
    ledger: pd.DataFrame, table: pd.DataFrame, training: pd.Series, policy: Policy
) -> None:
    """Of each set of near-duplicates the best-labelled stays as it is."""
    flagged = training & table["is_near_duplicate_issue"]
    ranked = table[flagged].sort_values(["label_score", "sample_id"], ascending=[False, True])
    best = ranked.drop_duplicates("near_duplicate_set").index
    _apply(ledger, flagged & ~table.index.isin(best), policy.near_duplicates, "near_duplicate", policy)


def _apply_label_errors(
    ledger: pd.DataFrame, table: pd.DataFrame, training: pd.Series, policy: Policy
) -> None:
    wrong = table["is_label_issue"]
    _apply(ledger, wrong & ~training, "keep", "label_error: outside training, for review", policy)
    wrong = wrong & training
    if policy.label_errors != "relabel":
        _apply(ledger, wrong, policy.label_errors, "label_error", policy)
        return
    sure = table["suggested_score"] >= policy.relabel_confidence
    _apply(ledger, wrong & ~sure, "drop", "label_error: no label is sure enough", policy)
    _apply(ledger, wrong & sure, "relabel", "label_error", policy)
    ledger.loc[wrong & sure, "label"] = table.loc[wrong & sure, "suggested_label"]


def _keep_at_least(ledger: pd.DataFrame, least: int) -> None:
    """Take back what a class lost to the policy, until no class has fewer than `least` for it.

    Drops come back before relabels, and of each the best-scored first. A class that had fewer to
    begin with keeps what it had.
    """
    training = ledger["split"] == "train"
    for name in ledger.loc[training, "given_label"].dropna().unique():
        kept = (training & (ledger["label"] == name) & (ledger["action"] != "drop")).sum()
        lost = ledger["action"].isin(["drop", "relabel"])
        back = ledger[training & (ledger["given_label"] == name) & lost]
        back = back.sort_values(["action", "score", "sample_id"], ascending=[True, False, True])
        index = back.index[: max(0, least - int(kept))]
        ledger.loc[index, "reason"] = ledger.loc[index, "reason"] + ", but the class needs it"
        ledger.loc[index, ["label", "action", "weight"]] = [name, "keep", 1.0]


def _apply_missing_labels(ledger: pd.DataFrame, conflicts: pd.DataFrame | None) -> None:
    """Say why unlabelled samples stay out of training, and which labels were in conflict."""
    ledger.loc[ledger["split"] == "unlabeled", "reason"] = "unlabeled"
    if conflicts is None or conflicts.empty:
        return
    claimed = conflicts.groupby("sample_id")["label"].agg(_conflict)
    reasons = ledger["sample_id"].map(claimed)
    where = reasons.notna()
    ledger.loc[where, "reason"] = reasons[where].astype("str")


def _conflict(labels: pd.Series) -> str:
    names = sorted(set(labels.astype(str)))
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"conflicting_labels: {', '.join(names[:_MOST_NAMED])}{more}; for review"


def _apply_reviews(ledger: pd.DataFrame, reviews: pd.DataFrame, frozen: Mapping[str, str]) -> list[str]:
    """Write the reviewers' decisions over the policy's; the ids that are not there."""
    position = pd.Index(ledger["sample_id"]).get_indexer(pd.Index(reviews["sample_id"]))
    for at, review in zip(position, reviews.itertuples(index=False), strict=True):
        if at < 0:
            continue
        row = ledger.index[at]
        given = ledger.loc[row, "given_label"]
        label = review.label if review.decision == "relabel" else given
        weight = 0.0 if review.decision == "drop" else 1.0
        ledger.loc[row, ["label", "action", "weight"]] = [label, review.decision, weight]
        ledger.loc[row, ["reason", "decided_by"]] = [review.note or "reviewed", "reviewer"]
        if review.decision == "relabel" and ledger.loc[row, "split"] == "unlabeled":
            ledger.loc[row, "split"] = frozen.get(str(review.sample_id), "train")
    return [str(name) for name in reviews["sample_id"].to_numpy()[position < 0]]


def frozen_splits(conflicts: pd.DataFrame | None) -> dict[str, str]:
    """The split that each disputed sample was frozen in, by its id; nothing of those that were not.

    Without the column `split`, as an older version of `ingest` writes them, none is known.
    """
    if conflicts is None or "split" not in conflicts:
        return {}
    frozen = conflicts[conflicts["split"].isin(["train", "val", "test"])]
    return dict(zip(frozen["sample_id"].astype(str), frozen["split"].astype(str), strict=True))


def suggest_claimed(
    issues: pd.DataFrame,
    conflicts: pd.DataFrame | None,
    pred_probs: NDArray[np.floating] | None,
    classes: list[str],
) -> pd.DataFrame:
    """Let issues suggest for labels in conflict the likeliest of the claimed ones.

    The models may find a class likelier that nobody claimed; but the question that a conflict asks is
    which of the claims is right.

    Parameters
    ----------
    issues : one row a sample, as `noise.issues` makes them
    conflicts : `dataset.CONFLICT_COLUMNS`; None for none
    pred_probs : N×K, in the order of `issues`; None where there are none at hand
    classes : K names

    Returns
    -------
    A copy of `issues`. `suggested_label` and `suggested_score` of a sample in conflict are null
    without `pred_probs`, and where no claimed label but the given one is a class.
    """
    issues = issues.copy()
    if conflicts is None or conflicts.empty:
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


def count_unlabeled(samples: pd.DataFrame, ledger: pd.DataFrame) -> dict[str, int]:
    """Unlabelled samples as ingested, and what reviewers did: gave a label, or dropped. Empty if none.

    With a label they are in whatever split the ledger says.

    Parameters
    ----------
    samples, ledger : in the same order
    """
    rows = ledger[(samples["split"] == "unlabeled").to_numpy()]
    if rows.empty:
        return {}
    return {
        "unlabeled": len(rows),
        "labelled": int((rows["split"] != "unlabeled").sum()),
        "dropped": int((rows["action"] == "drop").sum()),
    }


def changes_by_class(ledger: pd.DataFrame) -> pd.DataFrame:
    """Counts of the training split: a row a given class, a column an action, and what it has now.

    Samples that had no label and were given one by a reviewer count in `curated` alone.
    """
    training = ledger[ledger["split"] == "train"]
    counts = pd.crosstab(training["given_label"], training["action"])
    counts = counts.reindex(columns=["keep", "relabel", "reweight", "drop"], fill_value=0)
    now = training.loc[training["action"] != "drop", "label"].value_counts()
    counts.insert(0, "given", counts.sum(axis=1))
    counts["curated"] = now.reindex(counts.index, fill_value=0).astype(np.int64)
    counts.index.name = "class"
    counts.columns.name = None
    return counts.reset_index()
