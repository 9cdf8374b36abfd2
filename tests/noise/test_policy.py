from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from stages.dataset import CONFLICT_COLUMNS, LEDGER_COLUMNS
from stages.noise.policy import (
    Policy,
    build_ledger,
    changes_by_class,
    count_unlabeled,
    frozen_splits,
    suggest_claimed,
)

POLICY = Policy("relabel", 0.8, "keep", "keep", 0.5, 0)
NO_REVIEWS = pd.DataFrame(columns=["sample_id", "decision", "label", "reviewer", "decided_at", "note"])
IDS = [f"{number:016x}" for number in range(8)]


@pytest.fixture
def samples() -> pd.DataFrame:
    splits = ["train"] * 6 + ["val", "test"]
    return pd.DataFrame({"sample_id": IDS, "split": splits, "label": list("aaabbbab")})


@pytest.fixture
def issues(samples: pd.DataFrame) -> pd.DataFrame:
    """0 surely b, 1 perhaps b, 3 outlier, 4 and 5 near-duplicates; 6 (val) and 7 (test) suspected."""
    return pd.DataFrame(
        {
            "sample_id": IDS,
            "split": samples["split"],
            "given_label": samples["label"],
            "suggested_label": list("bbbaaaba"),
            "suggested_score": [0.95, 0.6, 0.1, 0.1, 0.1, 0.1, 0.95, 0.95],
            "label_score": [0.02, 0.3, 0.9, 0.9, 0.8, 0.7, 0.02, 0.02],
            "is_label_issue": [True, True, False, False, False, False, True, True],
            "outlier_score": 0.5,
            "is_outlier_issue": [False, False, False, True, False, False, False, False],
            "near_duplicate_score": 0.5,
            "is_near_duplicate_issue": [False, False, False, False, True, True, False, False],
            "near_duplicate_set": [-1, -1, -1, -1, 0, 0, -1, -1],
        }
    )


def decided(samples, issues, policy=POLICY, reviews=NO_REVIEWS) -> pd.DataFrame:
    return build_ledger(samples, issues, policy, reviews)[0]


def review(sample_id: str, decision: str, label: str = "", note: str = "") -> dict[str, str]:
    return {"sample_id": sample_id, "decision": decision, "label": label, "reviewer": "r",
            "decided_at": "2026-01-01", "note": note}  # fmt: skip


def test_sure_errors_are_relabelled_and_unsure_ones_dropped(samples, issues):
    ledger = decided(samples, issues)
    assert list(ledger.columns) == LEDGER_COLUMNS
    assert ledger.loc[0, ["label", "action", "weight"]].tolist() == ["b", "relabel", 1.0]
    assert ledger.loc[1, ["label", "action", "weight"]].tolist() == ["a", "drop", 0.0]
    assert ledger["given_label"].tolist() == samples["label"].tolist()
    assert ledger.loc[:1, "reason"].str.startswith("label_error").all()
    assert (ledger.loc[2:5, "action"] == "keep").all()


@pytest.mark.parametrize(("action", "weight"), [("drop", 0.0), ("reweight", 0.5), ("keep", 1.0)])
def test_label_errors_get_the_action_of_the_policy(samples, issues, action, weight):
    ledger = decided(samples, issues, replace(POLICY, label_errors=action))
    assert ledger.loc[:1, "action"].tolist() == [action, action]
    assert ledger.loc[:1, "weight"].tolist() == [weight, weight]
    assert ledger.loc[:1, "label"].tolist() == ["a", "a"]


def test_policies_leave_validation_and_test_alone_and_ask_for_review(samples, issues):
    ledger = decided(samples, issues)
    assert ledger.loc[6:, "action"].tolist() == ["keep", "keep"]
    assert ledger.loc[6:, "label"].tolist() == ["a", "b"]
    assert ledger.loc[6:, "reason"].str.contains("review").all()


def test_outliers_and_all_but_the_best_of_near_duplicates_get_theirs(samples, issues):
    ledger = decided(samples, issues, replace(POLICY, outliers="drop", near_duplicates="reweight"))
    assert ledger.loc[3, ["action", "reason"]].tolist() == ["drop", "outlier"]
    assert ledger.loc[4, "action"] == "keep"
    assert ledger.loc[5, ["action", "weight", "reason"]].tolist() == ["reweight", 0.5, "near_duplicate"]


def test_no_policy_leaves_a_class_with_fewer_than_the_minimum(samples, issues):
    issues.loc[2, ["is_label_issue", "suggested_score", "label_score"]] = [True, 0.5, 0.25]
    ledger = decided(samples, issues, replace(POLICY, label_errors="drop", min_per_class=2))
    # of the three dropped samples of class a the two with the likeliest labels come back
    assert ledger.loc[:2, "action"].tolist() == ["drop", "keep", "keep"]
    assert ledger.loc[1, "reason"].endswith("the class needs it")


def test_reviewers_outrank_policies_in_every_split(samples, issues):
    reviews = pd.DataFrame(
        [review(IDS[0], "keep"), review(IDS[2], "drop", note="blurred"), review(IDS[7], "relabel", "a"),
         review("f" * 16, "drop")]
    )  # fmt: skip
    ledger, unknown = build_ledger(samples, issues, POLICY, reviews)
    assert unknown == ["f" * 16]
    assert ledger.loc[0, ["label", "action", "weight", "decided_by"]].tolist() == [
        "a",
        "keep",
        1.0,
        "reviewer",
    ]
    assert ledger.loc[2, ["action", "weight", "reason"]].tolist() == ["drop", 0.0, "blurred"]
    assert ledger.loc[7, ["label", "action"]].tolist() == ["a", "relabel"]
    assert (ledger["decided_by"] == "reviewer").sum() == 3


def test_changes_are_counted_by_given_class(samples, issues):
    changes = changes_by_class(decided(samples, issues)).set_index("class")
    assert changes.loc["a", ["given", "keep", "relabel", "drop", "curated"]].tolist() == [3, 1, 1, 1, 1]
    assert changes.loc["b", ["given", "keep", "curated"]].tolist() == [3, 3, 4]


def test_relabels_are_taken_back_too_where_a_class_would_end_with_fewer(samples, issues):
    # class a: one surely b, one perhaps b, one good; with a floor of 3 all of them stay
    ledger = decided(samples, issues, replace(POLICY, min_per_class=3))
    assert ledger.loc[:2, "label"].tolist() == ["a", "a", "a"]
    assert ledger.loc[:2, "action"].tolist() == ["keep"] * 3
    # with a floor of 2 the drop comes back and the sure relabel stands
    ledger = decided(samples, issues, replace(POLICY, min_per_class=2))
    assert ledger.loc[:2, "action"].tolist() == ["relabel", "keep", "keep"]


def claimed(*disputes, split: str | None = None) -> pd.DataFrame:
    """Conflicts of some samples, each with the labels that it stands under; `split`, frozen, for all."""
    rows = [(name, label, f"{label}/{name}.png", split) for name, labels in disputes for label in labels]
    return pd.DataFrame(rows, columns=CONFLICT_COLUMNS)


@pytest.fixture
def unlabelled(samples, issues):
    """Samples 2 and 3 without a label; 2 stood under b and a, and so did 7, of the test split."""
    for table, column in ((samples, "label"), (issues, "given_label")):
        table.loc[2:3, "split"] = "unlabeled"
        table.loc[2:3, column] = None
    issues.loc[2:3, "label_score"] = float("nan")
    return claimed((IDS[2], "ba"), (IDS[7], "ba"))


def test_unlabelled_samples_stay_unlabelled_with_the_reason(samples, issues, unlabelled):
    policy = replace(POLICY, outliers="drop")
    ledger, _ = build_ledger(samples, issues, policy, NO_REVIEWS, unlabelled)
    rows = ledger.loc[2:3]
    assert (
        rows[["split", "action", "weight", "decided_by"]].to_numpy().tolist()
        == [["unlabeled", "keep", 1.0, "policy"]] * 2
    )  # sample 3 is an outlier, but policies act on the training split alone
    assert rows[["given_label", "label"]].isna().all().all()
    assert rows["reason"].tolist() == ["conflicting_labels: a, b; for review", "unlabeled"]
    assert ledger.loc[7, ["label", "action"]].tolist() == ["b", "keep"]
    assert ledger.loc[7, "reason"].startswith("conflicting_labels")
    assert count_unlabeled(samples, ledger) == {"unlabeled": 2, "labelled": 0, "dropped": 0}


def test_a_label_from_a_reviewer_moves_a_sample_to_training(samples, issues, unlabelled):
    reviews = pd.DataFrame([review(IDS[2], "relabel", "a"), review(IDS[3], "drop")])
    ledger, _ = build_ledger(samples, issues, POLICY, reviews, unlabelled)
    assert ledger.loc[2, ["split", "label", "action", "weight", "decided_by"]].tolist() == [
        "train", "a", "relabel", 1.0, "reviewer",
    ]  # fmt: skip
    assert pd.isna(ledger.loc[2, "given_label"])
    assert ledger.loc[3, ["split", "action", "weight"]].tolist() == ["unlabeled", "drop", 0.0]
    assert count_unlabeled(samples, ledger) == {"unlabeled": 2, "labelled": 1, "dropped": 1}
    changes = changes_by_class(ledger).set_index("class")
    before = changes_by_class(build_ledger(samples, issues, POLICY, NO_REVIEWS, unlabelled)[0])
    before = before.set_index("class")
    assert changes.loc["a", "curated"] == before.loc["a", "curated"] + 1
    assert changes.loc["a", "given"] == before.loc["a", "given"]


def test_a_reviewer_who_keeps_an_unlabelled_sample_leaves_it_unlabelled(samples, issues, unlabelled):
    ledger, _ = build_ledger(samples, issues, POLICY, pd.DataFrame([review(IDS[3], "keep")]), unlabelled)
    assert ledger.loc[3, ["split", "action", "decided_by"]].tolist() == ["unlabeled", "keep", "reviewer"]
    assert pd.isna(ledger.loc[3, "label"])


def test_a_reviewer_moves_nothing_out_of_test(samples, issues, unlabelled):
    reviews = pd.DataFrame([review(IDS[7], "relabel", "a")])
    ledger, _ = build_ledger(samples, issues, POLICY, reviews, unlabelled)
    assert ledger.loc[7, ["split", "label", "decided_by"]].tolist() == ["test", "a", "reviewer"]


def test_a_reason_names_a_few_of_many_conflicting_labels(samples, issues):
    conflicts = claimed((IDS[6], [f"class {number}" for number in range(12)]))
    ledger, _ = build_ledger(samples, issues, POLICY, NO_REVIEWS, conflicts)
    assert ledger.loc[6, "reason"].endswith("class 10, class 11, class 2 and 7 more; for review")


def test_without_unlabelled_samples_there_is_nothing_to_count(samples, issues):
    assert count_unlabeled(samples, decided(samples, issues)) == {}


@pytest.mark.parametrize(
    ("frozen", "split"),
    [("train", "train"), ("val", "val"), ("test", "test"), ("unlabeled", "train"), (None, "train")],
)
def test_a_disputed_sample_returns_to_the_split_it_was_frozen_in(samples, issues, unlabelled, frozen, split):
    conflicts = claimed((IDS[2], "ba"), split=frozen)
    reviews = pd.DataFrame([review(IDS[2], "relabel", "a"), review(IDS[3], "relabel", "b")])
    ledger, _ = build_ledger(samples, issues, POLICY, reviews, conflicts)
    assert ledger.loc[2:3, "split"].tolist() == [split, "train"]
    assert ledger.loc[2, ["label", "action", "decided_by"]].tolist() == ["a", "relabel", "reviewer"]
    assert count_unlabeled(samples, ledger) == {"unlabeled": 2, "labelled": 2, "dropped": 0}


@pytest.mark.parametrize("decision", ["keep", "drop"])
def test_only_a_label_brings_a_disputed_sample_back(samples, issues, unlabelled, decision):
    conflicts = claimed((IDS[2], "ba"), split="test")
    reviews = pd.DataFrame([review(IDS[2], decision)])
    assert build_ledger(samples, issues, POLICY, reviews, conflicts)[0].loc[2, "split"] == "unlabeled"
    assert build_ledger(samples, issues, POLICY, NO_REVIEWS, conflicts)[0].loc[2, "split"] == "unlabeled"


def test_conflicts_of_an_older_base_name_no_frozen_split(samples, issues, unlabelled):
    older = unlabelled.drop(columns="split")
    assert frozen_splits(older) == frozen_splits(unlabelled) == frozen_splits(None) == {}
    reviews = pd.DataFrame([review(IDS[2], "relabel", "a")])
    assert build_ledger(samples, issues, POLICY, reviews, older)[0].loc[2, "split"] == "train"


PROBS = np.tile(np.array([0.1, 0.2, 0.7], np.float32), (8, 1))  # c is what the models would have


def test_a_conflict_is_suggested_the_likeliest_of_the_claimed_labels(issues, unlabelled):
    before = issues.copy()
    suggested = suggest_claimed(issues, unlabelled, PROBS, list("abc"))
    assert suggested.loc[2, "suggested_label"] == "b"
    assert suggested.loc[2, "suggested_score"] == pytest.approx(0.2)
    assert suggested.loc[7, "suggested_label"] == "a"  # b is what it is labelled
    assert suggested.loc[7, "suggested_score"] == pytest.approx(0.1)
    others = [0, 1, 3, 4, 5, 6]
    pd.testing.assert_frame_equal(suggested.loc[others], before.loc[others])
    pd.testing.assert_frame_equal(issues, before)


def test_equally_likely_claims_are_suggested_in_the_order_of_the_classes(issues):
    probs = np.full((8, 3), 1 / 3, np.float32)
    assert (
        suggest_claimed(issues, claimed((IDS[0], "cb")), probs, list("abc")).loc[0, "suggested_label"] == "b"
    )


@pytest.mark.parametrize(
    ("labels", "probs"), [("bc", None), (["zebra"], PROBS), (["a"], PROBS)], ids=["blind", "unknown", "given"]
)
def test_without_probabilities_or_another_claimed_class_nothing_is_suggested(issues, labels, probs):
    row = suggest_claimed(issues, claimed((IDS[0], labels)), probs, list("abc")).loc[0]
    assert row[["suggested_label", "suggested_score"]].isna().all()


def test_claims_of_samples_that_are_not_there_suggest_nothing(issues):
    for conflicts in (claimed(("f" * 16, "ab")), claimed(), None):
        pd.testing.assert_frame_equal(suggest_claimed(issues, conflicts, PROBS, list("abc")), issues)
