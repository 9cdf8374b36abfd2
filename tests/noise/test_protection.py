import pandas as pd
import pytest
from issue_table import clean_issues

from stages.noise.policy import Policy
from stages.noise.protection import protect_classes, rare_classes


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


TEN = [("a", "a", "drop", 0.1 * number) for number in range(10)]


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
