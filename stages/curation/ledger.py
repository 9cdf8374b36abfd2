"""Build the ledger: for every sample what is done, by whom, and why; and count what comes of it.

Labels in conflict are part of it: what was claimed, what to suggest, and where a sample returns to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.curation.policy import (
    ACTIONS,
    NONE,
    Policy,
    PolicyActions,
    Why,
    decide,
    protect_classes,
    protected,
    rare_classes,
)
from stages.dataset.base import LEDGER_COLUMNS
from stages.dataset.issue_kinds import KINDS, PROTECTIONS, score_column

_MOST_NAMED = 5  # of conflicting labels, in a reason
FOR_REVIEW = "for review"  # the end of the reason of what a person should look at


def conflict_reasons(conflicts: pd.DataFrame) -> pd.Series:
    """Say for each disputed sample which labels are in conflict, by `sample_id`.

    Parameters
    ----------
    conflicts : `dataset.CONFLICT_COLUMNS`
    """

    def reason(labels: pd.Series) -> str:
        names = sorted(set(labels.astype(str)))
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        return f"conflicting_labels: {', '.join(names[:_MOST_NAMED])}{more}; {FOR_REVIEW}"

    return conflicts.groupby("sample_id")["label"].agg(reason).astype("str")


def frozen_splits(conflicts: pd.DataFrame) -> dict[str, str]:
    """Return the split that each disputed sample was frozen in, by its id, where it was.

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


def build_ledger(
    samples: pd.DataFrame,
    issues: pd.DataFrame,
    policy: Policy,
    reviews: pd.DataFrame,
    conflicts: pd.DataFrame,
) -> tuple[pd.DataFrame, list[str]]:
    """Decide about every sample.

    The policy acts on the training split alone: suspects elsewhere are kept, with a reason that
    asks for review. A reviewer's decision outranks it, in any split. An unlabelled sample that a
    reviewer gives a label moves to the training split, or returns to the one that it was frozen in
    before its label was disputed; till then no model is trained on it.

    Parameters
    ----------
    samples : `SAMPLE_COLUMNS`
    issues : one row a sample in the same order, as `noise.issues` makes them
    reviews : as `reviews.read_reviews` gives them; at most one row a sample
    conflicts : `dataset.CONFLICT_COLUMNS`

    Returns
    -------
    The ledger (`LEDGER_COLUMNS`, in the order of `samples`) and the ids of reviews whose sample is
    not there. `split` is the one that the sample is used in: for an unlabelled one that was
    relabelled its frozen one (`frozen_splits`), else `train`; for all others the ingested one.
    `given_label` is null where none was given, and `label` where none is known. `score` is that of
    the kind of issue that decided, where none did and for reviewers `label_score`; low is bad.
    `reason` begins with the kind (`explain`), a reviewer's is the note. It is empty only where
    nothing was found.

    Raises
    ------
    ValueError
        Where `issues` are of other samples, or in another order.
    """
    if not np.array_equal(samples["sample_id"], issues["sample_id"]):
        raise ValueError("issues are of other samples, or in another order")
    position = pd.Index(samples["sample_id"]).get_indexer(pd.Index(reviews["sample_id"]))
    matched = reviews[position >= 0].assign(row=position[position >= 0])
    reviewed = np.full(len(samples), NONE, np.int8)
    reviewed[matched["row"]] = [ACTIONS.index(decision) for decision in matched["decision"]]
    rare = samples["label"].isin(rare_classes(issues, policy.rare_below)).to_numpy()
    decided = decide(issues, policy, rare, reviewed)
    ledger = _write(samples, issues, decided, policy)
    _explain_missing_labels(ledger, conflicts, issues["label_score"])
    _apply_reviews(ledger, matched, frozen_splits(conflicts), issues["label_score"])
    protect_classes(ledger, policy)
    return ledger[LEDGER_COLUMNS], [str(name) for name in reviews["sample_id"][position < 0]]


def _write(
    samples: pd.DataFrame, issues: pd.DataFrame, decided: PolicyActions, policy: Policy
) -> pd.DataFrame:
    """Write the policies' actions as a ledger, with the deciding `kind` (empty for none) besides."""
    action = np.asarray(ACTIONS, dtype=object)[decided.action]
    weights = {"keep": 1.0, "reweight": policy.reweight_to, "relabel": 1.0, "drop": 0.0}
    label = np.where(action == "relabel", issues["suggested_label"].to_numpy(object), samples["label"])
    score = issues["label_score"].to_numpy(np.float64, copy=True)
    for number in np.unique(decided.kind[decided.kind != NONE]):
        rows = decided.kind == number
        score[rows] = issues[score_column(KINDS[number])].to_numpy(np.float64)[rows]
    reasons = [[_reason(kind, why, policy) for why in Why] for kind in KINDS]
    reasons.append([""] * len(Why))  # `NONE`, as the index from behind
    return pd.DataFrame(
        {
            "sample_id": samples["sample_id"].to_numpy(),
            "split": samples["split"].to_numpy(),
            "given_label": samples["label"].to_numpy(),
            "label": pd.array(label, dtype=samples["label"].dtype),
            "action": pd.array(action, dtype="str"),
            "weight": np.array([weights[name] for name in ACTIONS])[decided.action],
            "score": score,
            "reason": pd.array(np.array(reasons, dtype=object)[decided.kind, decided.why], dtype="str"),
            "decided_by": "policy",
            "kind": pd.array(np.array([*KINDS, ""], dtype=object)[decided.kind], dtype="str"),
        }
    )


def _reason(kind: str, why: Why, policy: Policy) -> str:
    if why is Why.NOTHING:
        return ""
    if why is Why.RARE:
        return kind + protected("rare_class")
    action = policy.kinds[kind].action if kind in policy.kinds else "keep"
    suffix = {
        Why.KEPT: ": kept by policy",
        Why.OUTSIDE: f": outside training, {FOR_REVIEW}" if kind == "label_error" else ": outside training",
        Why.BEST: ": the best of its set stays",
        Why.UNSURE: f": not sure enough to {action}",
        Why.SURE: "",
    }
    return kind + suffix[why]


def _explain_missing_labels(ledger: pd.DataFrame, conflicts: pd.DataFrame, label_score: pd.Series) -> None:
    """Say why unlabelled samples stay out of training, and which labels were in conflict.

    No kind of issue decided about these, so the score is the label's: null where there is none.
    """
    reasons = ledger["sample_id"].map(conflict_reasons(conflicts))
    reasons = reasons.where(ledger["action"] == "keep").astype("object")
    reasons = reasons.mask(reasons.isna() & (ledger["split"] == "unlabeled"), "unlabeled")
    where = reasons.notna().to_numpy()
    ledger.loc[where, "reason"] = reasons[where].astype("str")
    ledger.loc[where, "score"] = label_score.to_numpy(np.float64)[where]
    ledger.loc[where, "kind"] = ""


def _apply_reviews(
    ledger: pd.DataFrame, reviews: pd.DataFrame, frozen: Mapping[str, str], label_score: pd.Series
) -> None:
    """Write the reviewers' decisions over the policy's.

    Parameters
    ----------
    reviews : those whose sample is there, with `row`, its place in the ledger
    """
    rows = ledger.index[reviews["row"]]
    decision, note = reviews["decision"].to_numpy(object), reviews["note"].to_numpy(object)
    relabelled = decision == "relabel"
    given = ledger.loc[rows, "given_label"].to_numpy(object)
    ledger.loc[rows, "label"] = np.where(relabelled, reviews["label"].to_numpy(object), given)
    ledger.loc[rows, "action"] = decision
    ledger.loc[rows, "weight"] = np.where(decision == "drop", 0.0, 1.0)
    ledger.loc[rows, "score"] = label_score.to_numpy(np.float64)[reviews["row"]]
    ledger.loc[rows, "reason"] = np.where(note == "", "reviewed", note)
    ledger.loc[rows, ["decided_by", "kind"]] = ["reviewer", ""]
    moving = rows[relabelled & (ledger.loc[rows, "split"] == "unlabeled").to_numpy()]
    names = ledger.loc[moving, "sample_id"]
    ledger.loc[moving, "split"] = [frozen.get(str(name), "train") for name in names]


def count_unlabeled(samples: pd.DataFrame, ledger: pd.DataFrame) -> dict[str, int]:
    """Count the unlabelled samples as ingested, and those that reviewers labelled or dropped; empty if none.

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
    """Count the training split: a row a given class, a column an action, and the size that it has now.

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


def explain(ledger: pd.DataFrame) -> pd.DataFrame:
    """Read from each row's reason which kind of issue and which protection are behind it.

    Returns
    -------
    In the order of `ledger`: `kind`, one of `issue_kinds.KINDS`, `conflicting_labels`, `unlabeled`,
    `review` where a reviewer decided, or empty where nothing was found; and `protection`, one of
    `issue_kinds.PROTECTIONS`, or empty.
    """
    number, reasons = pd.factorize(ledger["reason"])
    texts = pd.Series(reasons, dtype="str")
    kinds = texts.str.extract(r"^(\w*)", expand=False)
    protections = pd.Series("", index=texts.index)
    for name in PROTECTIONS:
        protections[texts.str.endswith(protected(name))] = name
    by_policy = (ledger["decided_by"] == "policy").to_numpy()
    return pd.DataFrame(
        {
            "kind": np.where(by_policy, kinds.to_numpy(object)[number], "review"),
            "protection": np.where(by_policy, protections.to_numpy(object)[number], ""),
        },
        index=ledger.index,
        dtype="str",
    )


def changes_by_reason(ledger: pd.DataFrame) -> pd.DataFrame:
    """Count the samples with a reason in every split, a row for each combination that occurs.

    Returns
    -------
    `split`, `kind` and `protection` (see `explain`), `action`, `class` (the given one; empty for
    none) and `samples`, in this order.
    """
    table = explain(ledger).assign(
        split=ledger["split"], action=ledger["action"], **{"class": ledger["given_label"].fillna("")}
    )
    by = ["split", "kind", "protection", "action", "class"]
    counts = table[table["kind"] != ""].groupby(by, sort=True).size()
    return counts.rename("samples").reset_index()


def summarise(reasons: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Add up the counts over all classes.

    Parameters
    ----------
    reasons : as `changes_by_reason` gives them

    Returns
    -------
    `kinds`: of the training split, by kind and action, how many samples the kind decided about;
    `protection`: by protection, how many of them it kept for review; `outside_training`: by split,
    how many suspected label errors were left as they are.
    """
    training = reasons[reasons["split"] == "train"]
    outside = reasons[(reasons["split"] != "train") & (reasons["kind"] == "label_error")]
    actions = training.groupby(["kind", "action"], sort=True)["samples"].sum()
    protections = training.groupby("protection")["samples"].sum().reindex(list(PROTECTIONS), fill_value=0)
    kinds: dict[str, dict[str, int]] = {}
    for (kind, action), count in actions.items():
        kinds.setdefault(str(kind), {})[str(action)] = int(count)
    return {
        "kinds": kinds,
        "protection": {str(name): int(count) for name, count in protections.items()},
        "outside_training": {
            str(name): int(count) for name, count in outside.groupby("split")["samples"].sum().items()
        },
    }
