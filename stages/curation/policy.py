"""Decide by policy about each sample that has an issue, and limit what policies may take from a class.

For each kind of issue a policy names an action and the confidence that it needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.dataset.issue_kinds import KINDS, PROTECTIONS, flag_column, score_column
from stages.errors import WinnowError

Action = Literal["keep", "reweight", "relabel", "drop"]
ACTIONS: tuple[Action, ...] = ("keep", "reweight", "relabel", "drop")  # the stronger, the later
NONE = -1  # in place of a kind, and of an action that nobody has decided about
_KEEP, _DROP = ACTIONS.index("keep"), ACTIONS.index("drop")
_NEAR_DUPLICATE = KINDS.index("near_duplicate")

# What is looked at besides a kind's own score.
_EVIDENCE = [
    "sample_id",
    "split",
    "suggested_score",
    "suggested_agreement",
    "label_score",
    "near_duplicate_set",
]


@dataclass(frozen=True)
class KindPolicy:
    """The policy for one kind of issue.

    Attributes
    ----------
    action : taken from `confidence` (0 to 1) on; `relabel` for label errors alone. With `keep`
        nothing is done, however sure
    otherwise : taken on what is less sure; never `relabel`
    """

    action: Action
    confidence: float
    otherwise: Action


@dataclass(frozen=True)
class Policy:
    """The policy for each kind of issue, and how far it may go; section `curate` of params.yaml.

    Attributes
    ----------
    kinds : by name of `KINDS`; a kind that is missing is kept
    relabel_agreement : share of the ensemble's members that a relabel needs, 0 to 1
    reweight_to : weight of a sample with the action `reweight`
    min_per_class : no policy leaves a class with fewer training samples
    max_lost_per_class : share of a class's given training labels that may be dropped or relabelled in
        all; what reviewers do counts, and is never taken back
    rare_below, rare_confidence : in a class that is rare (`rare_classes`) every action
        but `keep` needs this confidence
    """

    kinds: Mapping[str, KindPolicy]
    relabel_agreement: float
    reweight_to: float
    min_per_class: int
    max_lost_per_class: float
    rare_below: float
    rare_confidence: float


class Why(IntEnum):
    """The reason why a kind of issue leads to its action."""

    NOTHING = 0  # there is no issue
    KEPT = 1  # the policy keeps this kind
    OUTSIDE = 2  # not of the training split
    BEST = 3  # of its set of near-duplicates
    UNSURE = 4  # `otherwise` was taken
    SURE = 5  # `action` was taken
    RARE = 6  # kept for review, because the class is rare


@dataclass(frozen=True)
class PolicyActions:
    """The actions that policies take on N samples.

    Attributes
    ----------
    action, kind : int8, N; indices into `ACTIONS` and `KINDS`, `NONE` where there is no issue
    why : int8, N; a `Why`
    """

    action: NDArray[np.int8]
    kind: NDArray[np.int8]
    why: NDArray[np.int8]

    @classmethod
    def none(cls, count: int) -> PolicyActions:
        """Return the actions on samples that have no issue yet."""
        return cls(np.full(count, _KEEP, np.int8), np.full(count, NONE, np.int8), np.zeros(count, np.int8))

    def add(self, kind: int, at: NDArray[np.intp], action: NDArray[np.int8], why: NDArray[np.int8]) -> None:
        """Replace weaker actions by those of another kind of issue; in a tie the earlier kind holds.

        Of two that keep a sample, the one that asks for review holds.
        """

        def strength(actions: NDArray[np.int8], whys: NDArray[np.int8]) -> NDArray[np.int8]:
            asked = (whys == Why.RARE).astype(np.int8)
            return np.where(whys == Why.NOTHING, np.int8(-1), 2 * actions + asked).astype(np.int8)

        stronger = strength(action, why) > strength(self.action[at], self.why[at])
        rows = at[stronger]
        self.action[rows], self.kind[rows], self.why[rows] = action[stronger], kind, why[stronger]


def decide(
    issues: pd.DataFrame,
    policy: Policy,
    rare: NDArray[np.bool_],
    reviewed: NDArray[np.int8] | None = None,
) -> PolicyActions:
    """Return the policies' action on every sample.

    Policies act on the training split alone. Where several kinds of issue are found in one sample,
    the strongest action holds: drop, relabel, reweight, keep; of kinds that ask for the same, the
    first of `KINDS`. Near-duplicates come last, since they are about what is left: of those of a set
    that the policy would act on, and that nothing else takes away, the best-labelled one stays.

    Parameters
    ----------
    issues : one row a sample, as `noise.issues` makes them
    policy : see `Policy`
    rare : bool, N; whether the sample's given class is rare
    reviewed : int8, N; the index in `ACTIONS` of what a reviewer decided, `NONE` where nobody did.
        It settles which of a set of near-duplicates is left; the policies' action itself does not change
    """
    decided = PolicyActions.none(len(issues))
    reviewed = np.full(len(issues), NONE, np.int8) if reviewed is None else reviewed
    others = [number for number in range(len(KINDS)) if number != _NEAR_DUPLICATE]
    for number in [*others, _NEAR_DUPLICATE]:
        kind = KINDS[number]
        at = np.flatnonzero(issues[flag_column(kind)].to_numpy(bool))
        flagged = issues[list(dict.fromkeys([*_EVIDENCE, score_column(kind)]))].iloc[at]
        action, why = _judge(flagged, kind, policy, rare[at])
        if number == _NEAR_DUPLICATE:
            left = np.where(reviewed == NONE, decided.action, reviewed)[at]
            best = _best_of_sets(flagged, left, reviewed[at], acted=action != _KEEP)
            action[best], why[best] = _KEEP, Why.BEST
        decided.add(number, at, action, why)
    return decided


def _judge(
    flagged: pd.DataFrame, kind: str, policy: Policy, rare: NDArray[np.bool_]
) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """Return action and `Why` of samples that all have an issue of this kind."""
    rule = policy.kinds.get(kind, KindPolicy("keep", 0.0, "keep"))
    action = np.full(len(flagged), _KEEP, np.int8)
    why = np.full(len(flagged), Why.KEPT, np.int8)
    if rule.action != "keep":
        score = flagged[score_column(kind)].to_numpy(np.float64)
        sure = 1.0 - score >= rule.confidence
        if rule.action == "relabel":
            agreed = flagged["suggested_agreement"].to_numpy(np.float64) >= policy.relabel_agreement
            sure = agreed & (flagged["suggested_score"].to_numpy(np.float64) >= rule.confidence)
        action[:] = np.where(sure, ACTIONS.index(rule.action), ACTIONS.index(rule.otherwise))
        why[:] = np.where(sure, Why.SURE, Why.UNSURE)
        doubtful = rare & (action != _KEEP) & ~(_certainty(flagged, kind) >= policy.rare_confidence)
        action[doubtful], why[doubtful] = _KEEP, Why.RARE
    outside = (flagged["split"] != "train").to_numpy()
    action[outside], why[outside] = _KEEP, Why.OUTSIDE
    return action, why


def _certainty(flagged: pd.DataFrame, kind: str) -> NDArray[np.float64]:
    """Return how sure it is, 0 to 1, that a sample of a rare class has the issue.

    A model that has seen few examples of a class gives all of them a low probability, the good ones
    too, and with many classes any label has one. What tells a wrong label is that another class is
    far likelier: the share of the suggested label in the two probabilities.
    """
    score = flagged[score_column(kind)].to_numpy(np.float64)
    if kind != "label_error":
        return 1.0 - score
    suggested = flagged["suggested_score"].to_numpy(np.float64)
    return suggested / np.maximum(suggested + score, np.finfo(np.float64).tiny)


def _best_of_sets(
    flagged: pd.DataFrame,
    left: NDArray[np.int8],
    reviewed: NDArray[np.int8],
    acted: NDArray[np.bool_],
) -> NDArray[np.intp]:
    """Return the position of each set's sample that stays; none of a set that others drop whole.

    A sample that a reviewer left in comes first, then what keeps its label, then the likeliest label.
    """
    sets = flagged["near_duplicate_set"].to_numpy(np.int64)
    table = pd.DataFrame(
        {
            "set": np.where(sets >= 0, sets, -1 - np.arange(len(sets))),  # of no set: one of its own
            "unseen": reviewed == NONE,
            "action": left,
            "label_score": flagged["label_score"].to_numpy(np.float64),
            "sample_id": flagged["sample_id"].to_numpy(object),
        }
    )[acted & (left != _DROP)]
    order = ["unseen", "action", "label_score", "sample_id"]
    table = table.sort_values(order, ascending=[True, True, False, True])
    return table.drop_duplicates("set").index.to_numpy(np.intp)


def check_kinds(issues: pd.DataFrame) -> None:
    """Raise a WinnowError where issues know nothing of some kind, as those of older versions do."""
    missing: list[str] = [
        kind for kind in KINDS if not {flag_column(kind), score_column(kind)} <= set(issues.columns)
    ]
    missing += [name for name in (*_EVIDENCE, "suggested_label") if name not in issues.columns]
    if missing:
        raise WinnowError(
            f"data/noise/issues.parquet is an older version's, without {', '.join(missing)}: run `dvc repro`"
        )


def rare_classes(issues: pd.DataFrame, rare_below: float) -> list[str]:
    """Name the classes with few training images.

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
    """Flag what has lost its given label or its place, whoever decided; a new label may be the given one."""
    relabelled = (ledger["action"] == "relabel") & (ledger["label"] != ledger["given_label"])
    return training & ((ledger["action"] == "drop") | relabelled).to_numpy()


def _lost(ledger: pd.DataFrame, training: NDArray[np.bool_]) -> pd.DataFrame:
    """Return what policies drop or relabel, with its place in the order in which its class takes it back."""
    where = _gone(ledger, training) & (ledger["decided_by"] == "policy").to_numpy()
    lost = ledger.loc[where, ["sample_id", "given_label", "action", "score"]]
    lost = lost.sort_values(["action", "score", "sample_id"], ascending=[True, False, True])
    return lost.assign(turn=lost.groupby("given_label").cumcount())


def _take_back(ledger: pd.DataFrame, lost: pd.DataFrame, wanted: pd.Series, protection: str) -> int:
    """Keep as many of `lost` as each class wants (a number by class name), and count them."""
    if lost.empty:
        return 0
    back = lost.index[(lost["turn"] < lost["given_label"].map(wanted)).to_numpy()]
    ledger.loc[back, "label"] = ledger.loc[back, "given_label"]
    ledger.loc[back, "reason"] = ledger.loc[back, "kind"] + protected(protection)
    ledger.loc[back, "action"] = "keep"
    ledger.loc[back, "weight"] = 1.0
    return len(back)


def protected(protection: str) -> str:
    """Return the end of the reason of a sample that a protection keeps."""
    return f", but {PROTECTIONS[protection]}: for review"
