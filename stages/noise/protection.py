"""How far policies may go: what they may take from a class, and which classes are rare."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.issue_kinds import PROTECTIONS
from stages.noise.policy import Policy


def rare_classes(issues: pd.DataFrame, rare_below: float) -> list[str]:
    """The classes with few training images, by name.

    Only labels that are not suspected count. Noise flows from the common classes into the rare ones:
    with 20 % wrong labels at 10:1 the rarest class has three times as many labels as images, and a
    count of labels would not call it rare.

    Parameters
    ----------
    issues : one row a sample, as `noise.issues` makes them
    rare_below : 0 to 1; a class is rare with fewer unsuspected training labels than this share of
        what the median class has
    """
    training = issues.loc[(issues["split"] == "train").to_numpy(), ["given_label", "is_label_issue"]]
    training = training[training["given_label"].notna()]
    trusted = (~training["is_label_issue"].astype(bool)).groupby(training["given_label"]).sum()
    return [str(name) for name in trusted.index[trusted < rare_below * trusted.median()]]


def protect_classes(ledger: pd.DataFrame, policy: Policy) -> None:
    """Take back, in place, what policies take from a class beyond `max_lost_per_class` and `min_per_class`.

    Drops come back before relabels, and of each the best-scored first: what is lost is what is
    surest. What reviewers decided stays, and counts for both: of a class that they took its share from,
    policies take nothing. A class that had fewer than `min_per_class` to begin with keeps what it had.

    Parameters
    ----------
    ledger : `LEDGER_COLUMNS`, and `kind`, the name of the kind of issue that decided
    policy : `max_lost_per_class`, `min_per_class`
    """
    training = (ledger["split"] == "train").to_numpy()
    given = ledger.loc[training, "given_label"].value_counts()
    # 0.29 of 100 is 28.999999999999996: the share as written, not as rounded, is allowed.
    allowed = np.floor(policy.max_lost_per_class * given + 1e-9)
    taken = ledger.loc[_gone(ledger, training), "given_label"].value_counts()
    _take_back(ledger, _lost(ledger, training), taken - allowed.reindex(taken.index), "max_lost_per_class")
    while True:  # a relabel that is taken back leaves the other class with one less
        used = training & (ledger["action"] != "drop").to_numpy()
        left = ledger.loc[used, "label"].value_counts().reindex(given.index, fill_value=0)
        back = _take_back(ledger, _lost(ledger, training), policy.min_per_class - left, "min_per_class")
        if not back:
            return


def _gone(ledger: pd.DataFrame, training: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What has lost its given label or its place, whoever decided; a new label may be the given one."""
    relabelled = (ledger["action"] == "relabel") & (ledger["label"] != ledger["given_label"])
    return training & ((ledger["action"] == "drop") | relabelled).to_numpy()


def _lost(ledger: pd.DataFrame, training: NDArray[np.bool_]) -> pd.DataFrame:
    """What policies drop or relabel, with its place in the order in which its class takes it back."""
    where = _gone(ledger, training) & (ledger["decided_by"] == "policy").to_numpy()
    lost = ledger.loc[where, ["sample_id", "given_label", "action", "score"]]
    lost = lost.sort_values(["action", "score", "sample_id"], ascending=[True, False, True])
    return lost.assign(turn=lost.groupby("given_label").cumcount())


def _take_back(ledger: pd.DataFrame, lost: pd.DataFrame, wanted: pd.Series, protection: str) -> int:
    """Keep as many of `lost` as each class wants (a number by class name, 0 or less for none); how many."""
    if lost.empty:
        return 0
    back = lost.index[(lost["turn"] < lost["given_label"].map(wanted)).to_numpy()]
    ledger.loc[back, "label"] = ledger.loc[back, "given_label"]
    ledger.loc[back, "reason"] = ledger.loc[back, "kind"] + protected(protection)
    ledger.loc[back, "action"] = "keep"
    ledger.loc[back, "weight"] = 1.0
    return len(back)


def protected(protection: str) -> str:
    """The end of the reason of a sample that a protection keeps."""
    return f", but {PROTECTIONS[protection]}: for review"
