from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from issue_table import KEEP, POLICY, clean_issues, with_kinds

from stages.curation.policy import (
    ACTIONS,
    NONE,
    KindPolicy,
    Policy,
    Why,
    check_kinds,
    decide,
    protect_classes,
    rare_classes,
)
from stages.dataset.issue_kinds import KINDS
from stages.errors import WinnowError

DROP_TWINS = with_kinds(
    near_duplicate=KindPolicy("drop", 0.0, "drop"), blurry=KindPolicy("drop", 0.0, "drop")
)

TEN = [("a", "a", "drop", 0.1 * number) for number in range(10)]


@pytest.fixture
def issues() -> pd.DataFrame:
    splits = ["train"] * 6 + ["val", "test"]
    ids = [f"{number:016x}" for number in range(8)]
    return clean_issues(pd.DataFrame({"sample_id": ids, "split": splits, "label": list("aaabbbab")}))


def found(issues: pd.DataFrame, kind: str, scores: dict[int, float]) -> None:
    for row, score in scores.items():
        issues.loc[row, [f"is_{kind}_issue", f"{kind}_score"]] = [True, score]


def suspected(issues: pd.DataFrame, row: int, label: float, suggested: float, agreement: float = 1.0) -> None:
    columns = ["is_label_issue", "label_score", "suggested_score", "suggested_agreement"]
    issues.loc[row, columns] = [True, label, suggested, agreement]


def decided(issues, policy=POLICY, rare=(), reviewed=None) -> tuple[list[str], list[str], list[Why]]:
    """Action, kind (empty for none) and why of every sample."""
    mask = np.isin(np.arange(len(issues)), list(rare))
    verdicts = decide(issues, policy, mask, reviewed)
    return (
        [ACTIONS[action] for action in verdicts.action],
        ["" if kind == NONE else KINDS[kind] for kind in verdicts.kind],
        [Why(why) for why in verdicts.why],
    )


def test_nothing_is_done_where_nothing_is_found(issues):
    actions, kinds, whys = decided(issues)
    assert set(actions) == {"keep"}
    assert set(kinds) == {""}
    assert set(whys) == {Why.NOTHING}


def test_a_relabel_needs_a_confident_model_and_an_ensemble_that_agrees(issues):
    suspected(issues, 0, 0.02, 0.8)
    suspected(issues, 1, 0.02, 0.79)
    suspected(issues, 2, 0.02, 0.95, agreement=0.5)
    suspected(issues, 3, 0.02, 0.95, agreement=0.6)
    actions, kinds, whys = decided(issues)
    assert actions[:4] == ["relabel", "drop", "drop", "relabel"]
    assert kinds[:4] == ["label_error"] * 4
    assert whys[:4] == [Why.SURE, Why.UNSURE, Why.UNSURE, Why.SURE]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_goes_by_its_own_score_and_threshold(issues, kind):
    policy = with_kinds(**{kind: KindPolicy("drop", 0.7, "reweight")})
    if kind == "label_error":
        suspected(issues, 0, 0.3, 0.1)
        suspected(issues, 3, 0.31, 0.1)
    else:
        found(issues, kind, {0: 0.3, 3: 0.31})
    issues["near_duplicate_set"] = [4, 4, -1, 4, -1, -1, -1, -1]
    if kind == "near_duplicate":  # the best of the set: the others are judged
        found(issues, kind, {1: 0.3})
        issues.loc[1, "label_score"] = 0.99
    actions, kinds, whys = decided(issues, policy)
    assert [actions[row] for row in (0, 2, 3)] == ["drop", "keep", "reweight"]
    assert (kinds[0], kinds[3]) == (kind, kind)
    assert (whys[0], whys[3]) == (Why.SURE, Why.UNSURE)


def test_keep_does_nothing_however_sure_and_whatever_otherwise_says(issues):
    suspected(issues, 0, 0.0, 1.0)
    suspected(issues, 1, 0.4, 0.4)
    actions, _, whys = decided(issues, with_kinds(label_error=KindPolicy("keep", 0.8, "drop")))
    assert actions[:2] == ["keep", "keep"]
    assert whys[:2] == [Why.KEPT, Why.KEPT]


def test_the_strongest_action_holds_and_of_equal_ones_the_first_kind(issues):
    policy = with_kinds(
        outlier=KindPolicy("reweight", 0.5, "keep"),
        blurry=KindPolicy("drop", 0.5, "keep"),
        dark=KindPolicy("drop", 0.5, "keep"),
    )
    suspected(issues, 0, 0.02, 0.95)
    suspected(issues, 1, 0.02, 0.95)
    found(issues, "outlier", {0: 0.1, 2: 0.1, 3: 0.1, 4: 0.1})
    found(issues, "blurry", {1: 0.1, 2: 0.1, 3: 0.9})
    found(issues, "dark", {2: 0.1})
    found(issues, "odd_size", {4: 0.1, 5: 0.1})
    actions, kinds, _ = decided(issues, policy)
    assert actions[:6] == ["relabel", "drop", "drop", "reweight", "reweight", "keep"]
    assert kinds[:6] == ["label_error", "blurry", "dark", "outlier", "outlier", "odd_size"]


def test_policies_leave_other_splits_alone(issues):
    suspected(issues, 6, 0.0, 1.0)
    found(issues, "outlier", {7: 0.0})
    issues.loc[7, "split"] = "unlabeled"
    actions, kinds, whys = decided(issues, with_kinds(outlier=KindPolicy("drop", 0.0, "drop")))
    assert actions[6:] == ["keep", "keep"]
    assert kinds[6:] == ["label_error", "outlier"]
    assert whys[6:] == [Why.OUTSIDE, Why.OUTSIDE]


def test_in_a_rare_class_only_what_is_sure_is_done(issues):
    """0 is sure by 0.95 / 0.97; 1 and 2 are low, but nothing else is likelier by far."""
    suspected(issues, 0, 0.02, 0.95)
    suspected(issues, 1, 0.02, 0.1)
    suspected(issues, 2, 0.1, 0.85)
    suspected(issues, 3, 0.1, 0.85)
    found(issues, "outlier", {4: 0.1, 5: 0.2})
    policy = with_kinds(outlier=KindPolicy("drop", 0.5, "keep"))
    actions, _, whys = decided(issues, policy, rare=[0, 1, 2, 4, 5])
    assert actions[:6] == ["relabel", "keep", "keep", "relabel", "drop", "keep"]
    assert whys[:6] == [Why.SURE, Why.RARE, Why.RARE, Why.SURE, Why.SURE, Why.RARE]
    assert decided(issues, policy)[0][:6] == ["relabel", "drop", "relabel", "relabel", "drop", "drop"]


def test_a_rare_class_changes_nothing_where_the_policy_keeps(issues):
    suspected(issues, 0, 0.4, 0.5)
    found(issues, "outlier", {1: 0.6})
    policy = with_kinds(label_error=KEEP, outlier=KindPolicy("drop", 0.5, "keep"))
    assert decided(issues, policy, rare=[0, 1])[2][:2] == [Why.KEPT, Why.UNSURE]


def test_of_two_kinds_that_keep_the_one_that_asks_for_review_is_named(issues):
    suspected(issues, 0, 0.02, 0.1)
    found(issues, "outlier", {0: 0.4})
    policy = with_kinds(label_error=KEEP, outlier=KindPolicy("drop", 0.5, "keep"))
    _, kinds, whys = decided(issues, policy, rare=[0])
    assert (kinds[0], whys[0]) == ("outlier", Why.RARE)


@pytest.fixture
def twins(issues) -> pd.DataFrame:
    """0, 1 and 2 are one set, 0 with the likeliest label; 4 and 6 another, 6 outside training."""
    found(issues, "near_duplicate", {0: 0.0, 1: 0.0, 2: 0.0, 4: 0.0, 6: 0.0})
    issues.loc[[0, 1, 2, 4, 6], "near_duplicate_set"] = [0, 0, 0, 1, 1]
    issues.loc[:2, "label_score"] = [0.9, 0.7, 0.8]
    return issues


def test_of_near_duplicates_the_best_labelled_stays(twins):
    actions, kinds, whys = decided(twins, DROP_TWINS)
    assert actions[:5] == ["keep", "drop", "drop", "keep", "keep"]
    assert kinds[:3] == ["near_duplicate"] * 3
    assert (whys[0], whys[4], whys[6]) == (Why.BEST, Why.BEST, Why.OUTSIDE)


def test_a_set_keeps_one_that_nothing_else_takes_away(twins):
    found(twins, "blurry", {0: 0.1})
    actions, kinds, _ = decided(twins, DROP_TWINS)
    assert actions[:3] == ["drop", "drop", "keep"]
    assert kinds[0] == "blurry"
    found(twins, "blurry", {1: 0.1, 2: 0.1})
    assert decided(twins, DROP_TWINS)[0][:3] == ["drop"] * 3


def test_a_sample_with_its_own_label_stays_before_a_relabelled_one(twins):
    suspected(twins, 0, 0.95, 0.96)
    assert decided(twins, DROP_TWINS)[0][:3] == ["drop", "drop", "keep"]


def test_what_reviewers_did_settles_which_of_a_set_is_left(twins):
    reviewed = np.full(len(twins), NONE, np.int8)
    reviewed[0] = ACTIONS.index("drop")
    assert decided(twins, DROP_TWINS, reviewed=reviewed)[0][1:3] == ["drop", "keep"]
    reviewed[[0, 1]] = NONE, ACTIONS.index("relabel")
    assert decided(twins, DROP_TWINS, reviewed=reviewed)[0][:3] == ["drop", "keep", "drop"]


def test_near_duplicates_of_no_set_are_no_set_together(twins):
    twins.loc[:2, "near_duplicate_set"] = -1
    assert decided(twins, DROP_TWINS)[0][:3] == ["keep"] * 3


def test_scores_that_are_missing_are_not_sure(issues):
    suspected(issues, 0, np.nan, np.nan, np.nan)
    found(issues, "outlier", {1: np.nan})
    policy = with_kinds(outlier=KindPolicy("drop", 0.0, "reweight"))
    assert decided(issues, policy)[0][:2] == ["drop", "reweight"]
    assert decided(issues, policy, rare=[0, 1])[0][:2] == ["keep", "keep"]


def test_a_kind_without_a_policy_is_kept(issues):
    found(issues, "light", {0: 0.0})
    actions, kinds, whys = decided(issues, replace(POLICY, kinds={}))
    assert (actions[0], kinds[0], whys[0]) == ("keep", "light", Why.KEPT)


def test_issues_of_an_older_version_are_named(issues):
    check_kinds(issues)
    with pytest.raises(WinnowError, match="without blurry: run `dvc repro`"):
        check_kinds(issues.drop(columns="is_blurry_issue"))
    with pytest.raises(WinnowError, match="without suggested_agreement: run `dvc repro`"):
        check_kinds(issues.drop(columns="suggested_agreement"))


def issues_of(**counts: tuple[int, int]) -> pd.DataFrame:
    """Training labels by class: (all, suspected ones among them); one of each class in validation."""
    rows = [("train", name, number < bad) for name, (count, bad) in counts.items() for number in range(count)]
    rows += [("val", name, False) for name in counts]
    table = pd.DataFrame(rows, columns=["split", "label", "suspected"])
    issues = clean_issues(table.assign(sample_id=[f"{number:016x}" for number in range(len(table))]))
    return issues.assign(is_label_issue=table["suspected"])


def test_a_class_is_rare_by_the_labels_that_nobody_suspects():
    issues = issues_of(common=(40, 5), other=(36, 6), drowned=(30, 22), small=(16, 0))
    assert rare_classes(issues, 0.5) == ["drowned"]  # 8 of 30 against a median of (30 + 16) / 2
    assert rare_classes(issues, 0.9) == ["drowned", "small"]
    assert rare_classes(issues, 0.0) == []


def test_no_class_is_rare_where_there_is_one_or_none():
    assert rare_classes(issues_of(only=(5, 4)), 1.0) == []
    assert rare_classes(issues_of(a=(0, 0)), 1.0) == []


def test_a_class_whose_labels_are_all_suspected_is_rare():
    assert rare_classes(issues_of(a=(9, 9), b=(9, 0), c=(9, 0)), 0.1) == ["a"]


def ledger_of(rows: list[tuple[str, str, str, float]]) -> pd.DataFrame:
    """Given label, label, action and score; all of the training split, and by the policy."""
    ledger = pd.DataFrame(rows, columns=["given_label", "label", "action", "score"])
    return ledger.assign(
        sample_id=[f"{number:016x}" for number in range(len(ledger))],
        split="train",
        weight=ledger["action"].map({"drop": 0.0, "relabel": 1.0, "keep": 1.0}),
        reason="outlier",
        decided_by="policy",
        kind="outlier",
    )


def limits(most: float, least: int) -> Policy:
    return Policy({}, 0.5, 0.5, least, most, 0.0, 0.9)


@pytest.mark.parametrize(("most", "lost"), [(0.0, 0), (0.29, 2), (0.3, 3), (0.7, 7), (1.0, 10)])
def test_policies_take_no_more_than_their_share_of_a_class_and_the_surest_first(most, lost):
    ledger = ledger_of(TEN)
    protect_classes(ledger, limits(most, 0))
    assert (ledger["action"] == "drop").tolist() == [number < lost for number in range(10)]
    kept = ledger[ledger["action"] == "keep"]
    assert (kept["weight"] == 1.0).all()
    assert (kept["reason"] == "outlier, but the class has lost its share: for review").all()
    assert (ledger.loc[ledger["action"] == "drop", "reason"] == "outlier").all()


def test_a_share_is_taken_as_it_is_written():
    ledger = ledger_of([("a", "a", "drop", 0.1)] * 100)  # 0.29 * 100 is 28.999999999999996
    protect_classes(ledger, limits(0.29, 0))
    assert (ledger["action"] == "drop").sum() == 29


def test_drops_come_back_before_relabels():
    ledger = ledger_of([("a", "b", "relabel", 0.9), ("a", "a", "drop", 0.1), ("b", "b", "keep", 1.0)])
    protect_classes(ledger, limits(0.5, 0))
    assert ledger["action"].tolist() == ["relabel", "keep", "keep"]
    assert ledger["label"].tolist() == ["b", "a", "b"]
    protect_classes(ledger, limits(0.0, 0))
    assert ledger["label"].tolist() == ["a", "a", "b"]


def test_a_relabel_that_is_taken_back_may_leave_another_class_in_need():
    """a takes its sample back from b, which then needs its own dropped one."""
    ledger = ledger_of([("a", "b", "relabel", 0.1), ("b", "b", "drop", 0.1), ("b", "c", "relabel", 0.1)])
    protect_classes(ledger, limits(1.0, 1))
    assert ledger["label"].tolist() == ["a", "b", "c"]
    assert ledger["action"].tolist() == ["keep", "keep", "relabel"]
    assert ledger.loc[:1, "reason"].str.contains("the class needs it").all()


@pytest.mark.parametrize(("most", "lost"), [(0.0, 0), (0.3, 0), (0.5, 2), (0.7, 4), (1.0, 7)])
def test_what_reviewers_took_counts_for_the_share_and_is_not_taken_back(most, lost):
    """Of ten, the reviewer drops two and relabels one; the policy would drop the seven others."""
    ledger = ledger_of(TEN)
    ledger.loc[7:, "decided_by"] = "reviewer"
    ledger.loc[9, ["action", "label"]] = ["relabel", "b"]
    before = ledger.loc[7:].copy()
    protect_classes(ledger, limits(most, 0))
    assert ledger["action"].tolist() == [*["drop"] * lost, *["keep"] * (7 - lost), "drop", "drop", "relabel"]
    pd.testing.assert_frame_equal(ledger.loc[7:], before)


def test_a_sample_that_a_reviewer_left_its_label_is_not_lost():
    ledger = ledger_of(TEN)
    ledger.loc[8, ["decided_by", "action"]] = ["reviewer", "relabel"]  # as what it was
    ledger.loc[9, ["decided_by", "action"]] = ["reviewer", "keep"]
    protect_classes(ledger, limits(0.5, 0))
    assert (ledger["action"] == "drop").sum() == 5


def test_what_reviewers_drop_is_not_taken_back_for_the_minimum():
    ledger = ledger_of(TEN)
    ledger.loc[5:, "decided_by"] = "reviewer"
    protect_classes(ledger, limits(1.0, 1))
    assert ledger["action"].tolist() == [*["drop"] * 4, "keep", *["drop"] * 5]


def test_a_class_that_had_fewer_keeps_what_it_had():
    ledger = ledger_of([("a", "a", "drop", 0.1), ("b", "b", "keep", 0.1)])
    protect_classes(ledger, limits(1.0, 7))
    assert ledger["action"].tolist() == ["keep", "keep"]


def test_equal_scores_come_back_in_the_order_of_the_ids():
    ledger = ledger_of([("a", "a", "drop", 0.1)] * 4)
    shuffled = ledger.sample(frac=1.0, random_state=3)
    protect_classes(shuffled, limits(0.5, 0))
    assert shuffled.sort_values("sample_id")["action"].tolist() == ["keep", "keep", "drop", "drop"]
