from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from issue_table import POLICY, clean_issues, with_kinds

from stages.curation.ledger import (
    build_ledger,
    changes_by_class,
    changes_by_reason,
    count_unlabeled,
    explain,
    summarise,
)
from stages.curation.policy import ACTIONS, KindPolicy, Policy
from stages.dataset.base import CONFLICT_COLUMNS, LEDGER_COLUMNS
from stages.dataset.issue_kinds import KINDS, flag_column, score_column

NO_REVIEWS = pd.DataFrame(columns=["sample_id", "decision", "label", "reviewer", "decided_at", "note"])
NO_CONFLICTS = pd.DataFrame(columns=CONFLICT_COLUMNS)
IDS = [f"{number:016x}" for number in range(8)]


@pytest.fixture
def samples() -> pd.DataFrame:
    splits = ["train"] * 6 + ["val", "test"]
    return pd.DataFrame({"sample_id": IDS, "split": splits, "label": list("aaabbbab")})


@pytest.fixture
def issues(samples: pd.DataFrame) -> pd.DataFrame:
    """0 surely b, 1 perhaps b, 3 outlier, 4 and 5 near-duplicates; 6 (val) and 7 (test) suspected."""
    table = clean_issues(samples)
    table["suggested_label"] = list("bbbaaaba")
    table["suggested_score"] = [0.95, 0.6, 0.1, 0.1, 0.1, 0.1, 0.95, 0.95]
    table["label_score"] = [0.02, 0.3, 0.9, 0.9, 0.8, 0.7, 0.02, 0.02]
    table.loc[[0, 1, 6, 7], "is_label_issue"] = True
    table.loc[3, ["is_outlier_issue", "outlier_score"]] = [True, 0.1]
    table.loc[4:5, "is_near_duplicate_issue"] = True
    table.loc[4:5, "near_duplicate_score"] = 0.0
    table.loc[4:5, "near_duplicate_set"] = 0
    return table


def decided(samples, issues, policy=POLICY, reviews=NO_REVIEWS, conflicts=NO_CONFLICTS) -> pd.DataFrame:
    return build_ledger(samples, issues, policy, reviews, conflicts)[0]


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
    assert ledger.loc[:1, "score"].tolist() == [0.02, 0.3]
    assert ledger["decided_by"].tolist() == ["policy"] * 8
    assert ledger.loc[2, "reason"] == ""


@pytest.mark.parametrize(("action", "weight"), [("drop", 0.0), ("reweight", 0.5), ("keep", 1.0)])
def test_label_errors_get_the_action_of_the_policy(samples, issues, action, weight):
    ledger = decided(samples, issues, with_kinds(label_error=KindPolicy(action, 0.5, "keep")))
    assert ledger.loc[:1, "action"].tolist() == [action, action]
    assert ledger.loc[:1, "weight"].tolist() == [weight, weight]
    assert ledger.loc[:1, "label"].tolist() == ["a", "a"]


def test_reason_and_score_are_of_the_kind_that_decided(samples, issues):
    policy = with_kinds(
        outlier=KindPolicy("drop", 0.5, "keep"), near_duplicate=KindPolicy("reweight", 0.5, "keep")
    )
    ledger = decided(samples, issues, policy)
    assert ledger["reason"].tolist() == [
        "label_error",
        "label_error: not sure enough to relabel",
        "",
        "outlier",
        "near_duplicate: the best of its set stays",
        "near_duplicate",
        "label_error: outside training, for review",
        "label_error: outside training, for review",
    ]
    assert ledger["score"].tolist() == [0.02, 0.3, 0.9, 0.1, 0.0, 0.0, 0.02, 0.02]
    assert ledger["weight"].tolist() == [1.0, 0.0, 1.0, 0.0, 1.0, 0.5, 1.0, 1.0]
    ledger = decided(samples, issues)
    assert ledger.loc[3, ["action", "reason"]].tolist() == ["keep", "outlier: kept by policy"]


def test_policies_leave_validation_and_test_alone_and_ask_for_review(samples, issues):
    issues.loc[7, ["is_label_issue", "is_dark_issue"]] = [False, True]
    ledger = decided(samples, issues, with_kinds(dark=KindPolicy("drop", 0.0, "drop")))
    assert ledger.loc[6:, "action"].tolist() == ["keep", "keep"]
    assert ledger.loc[6:, "label"].tolist() == ["a", "b"]
    assert ledger.loc[6:, "reason"].tolist() == [
        "label_error: outside training, for review",
        "dark: outside training",
    ]


def test_a_suspect_of_a_rare_class_waits_for_review(samples, issues):
    """Class a: one label that nobody suspects, of three; b has three."""
    policy = replace(POLICY, rare_below=0.6)
    ledger = decided(samples, issues, policy)
    assert ledger.loc[:1, "action"].tolist() == ["relabel", "keep"]
    assert ledger.loc[1, ["label", "weight"]].tolist() == ["a", 1.0]
    assert ledger.loc[1, "reason"] == "label_error, but the class is rare: for review"


def test_no_policy_leaves_a_class_with_fewer_than_the_minimum(samples, issues):
    issues.loc[2, ["is_label_issue", "suggested_score", "label_score"]] = [True, 0.5, 0.25]
    policy = with_kinds(label_error=KindPolicy("drop", 0.0, "drop"))
    ledger = decided(samples, issues, replace(policy, min_per_class=2))
    # of the three dropped samples of class a the two with the likeliest labels come back
    assert ledger.loc[:2, "action"].tolist() == ["drop", "keep", "keep"]
    assert ledger.loc[1, "reason"] == "label_error, but the class needs it: for review"


def test_reviewers_outrank_policies_in_every_split(samples, issues):
    reviews = pd.DataFrame(
        [review(IDS[0], "keep"), review(IDS[2], "drop", note="blurred"), review(IDS[7], "relabel", "a"),
         review("f" * 16, "drop")]
    )  # fmt: skip
    ledger, unknown = build_ledger(samples, issues, POLICY, reviews, NO_CONFLICTS)
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
    assert ledger.loc[7, ["reason", "score"]].tolist() == ["reviewed", 0.02]


def test_reviews_leave_the_other_rows_as_they_are(samples, issues):
    before = decided(samples, issues)
    after = decided(samples, issues, reviews=pd.DataFrame([review(IDS[3], "drop")]))
    pd.testing.assert_frame_equal(before.drop(index=3), after.drop(index=3))


def test_what_reviewers_drop_counts_for_the_minimum(samples, issues):
    """Of class a the reviewer drops the good one: what the policy would drop is needed."""
    policy = replace(POLICY, min_per_class=1)
    assert decided(samples, issues, policy).loc[:2, "action"].tolist() == ["relabel", "drop", "keep"]
    ledger = decided(samples, issues, policy, pd.DataFrame([review(IDS[2], "drop")]))
    assert ledger.loc[:2, "action"].tolist() == ["relabel", "keep", "drop"]
    assert ledger.loc[2, "decided_by"] == "reviewer"


def test_issues_in_another_order_are_refused(samples, issues):
    with pytest.raises(ValueError, match="another order"):
        decided(samples, issues[::-1])


def test_changes_are_counted_by_given_class(samples, issues):
    changes = changes_by_class(decided(samples, issues)).set_index("class")
    assert changes.loc["a", ["given", "keep", "relabel", "drop", "curated"]].tolist() == [3, 1, 1, 1, 1]
    assert changes.loc["b", ["given", "keep", "curated"]].tolist() == [3, 3, 4]


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
    policy = with_kinds(outlier=KindPolicy("drop", 0.0, "drop"))
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


def test_reasons_are_read_back_and_counted(samples, issues):
    reviews = pd.DataFrame([review(IDS[2], "drop", note="label_error, but the class is rare: for review")])
    ledger = decided(samples, issues, replace(POLICY, rare_below=0.9), reviews)
    why = explain(ledger)
    assert why["kind"].tolist() == [
        "label_error", "label_error", "review", "outlier", "near_duplicate", "near_duplicate",
        "label_error", "label_error",
    ]  # fmt: skip
    assert why["protection"].tolist() == ["", "rare_class", *[""] * 6]
    reasons = changes_by_reason(ledger)
    assert reasons["samples"].sum() == 8
    row = reasons[reasons["protection"] == "rare_class"].iloc[0]
    assert row.tolist() == ["train", "label_error", "rare_class", "keep", "a", 1]
    assert summarise(reasons) == {
        "kinds": {
            "label_error": {"keep": 1, "relabel": 1},
            "near_duplicate": {"keep": 2},
            "outlier": {"keep": 1},
            "review": {"drop": 1},
        },
        "protection": {"rare_class": 1, "max_lost_per_class": 0, "min_per_class": 0},
        "outside_training": {"test": 1, "val": 1},
    }


def test_nothing_found_leaves_nothing_to_explain(samples):
    ledger = decided(samples, clean_issues(samples))
    assert (explain(ledger) == "").all().all()
    assert changes_by_reason(ledger).empty
    assert summarise(changes_by_reason(ledger))["kinds"] == {}


def test_the_score_of_what_no_kind_decided_is_the_labels(samples, issues, unlabelled):
    """2 and 7 are in conflict, 3 is unlabelled; all are outliers, and 7 is a suspect too."""
    issues.loc[[2, 3, 7], ["is_outlier_issue", "outlier_score"]] = [True, 0.1]
    assert decided(samples, issues).loc[[2, 3], "reason"].tolist() == ["unlabeled"] * 2
    ledger = decided(samples, issues, conflicts=unlabelled)
    assert explain(ledger).loc[[2, 3, 7], "kind"].tolist() == [
        "conflicting_labels",
        "unlabeled",
        "conflicting_labels",
    ]
    assert ledger.loc[[2, 3], "score"].isna().all()
    assert ledger.loc[7, "score"] == 0.02
    issues.loc[7, ["is_label_issue", "label_score"]] = [False, 0.7]  # now outlier alone
    assert decided(samples, issues).loc[7, "score"] == 0.1
    assert decided(samples, issues, conflicts=unlabelled).loc[7, "score"] == 0.7


def test_unlabelled_rows_are_counted_without_a_class(samples, issues, unlabelled):
    reasons = changes_by_reason(decided(samples, issues, conflicts=unlabelled)).set_index(["split", "kind"])
    assert reasons.loc[("unlabeled", "unlabeled"), ["class", "samples"]].tolist() == ["", 1]
    assert reasons.loc[("test", "conflicting_labels"), ["class", "samples"]].tolist() == ["b", 1]


@st.composite
def cases(draw) -> tuple[pd.DataFrame, pd.DataFrame, Policy, pd.DataFrame]:
    """Any table of issues, any policy, some reviews."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(1, 60))
    classes = np.array(list("abcd"), dtype=object)
    samples = pd.DataFrame(
        {
            "sample_id": [f"{number:016x}" for number in range(count)],
            "split": rng.choice(["train", "train", "train", "val", "test"], count),
            "label": classes[np.minimum(rng.geometric(0.5, count) - 1, 3)],
        }
    )
    issues = clean_issues(samples)
    given = pd.Index(classes).get_indexer(pd.Index(samples["label"]))
    issues["suggested_label"] = classes[(given + rng.integers(1, 4, count)) % 4]
    issues["suggested_score"], issues["suggested_agreement"] = rng.random(count), rng.random(count)
    for kind in KINDS:
        issues[flag_column(kind)], issues[score_column(kind)] = rng.random(count) < 0.3, rng.random(count)
    issues["near_duplicate_set"] = rng.integers(-1, 5, count)
    kinds = {}
    for kind in KINDS:
        first = rng.choice(ACTIONS if kind == "label_error" else ["keep", "reweight", "drop"])
        kinds[kind] = KindPolicy(first, rng.random(), rng.choice(["keep", "reweight", "drop"]))
    policy = Policy(
        kinds, rng.random(), 0.5, int(rng.integers(0, 6)), rng.random(), rng.random(), rng.random()
    )
    seen = samples["sample_id"][rng.random(count) < 0.1]
    decisions = rng.choice(["keep", "drop", "relabel"], len(seen))
    rows = [review(n, d, "a" if d == "relabel" else "") for n, d in zip(seen, decisions, strict=True)]
    return samples, issues, policy, pd.DataFrame(rows, columns=NO_REVIEWS.columns)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_whatever_the_issues_the_ledger_keeps_its_promises(case):
    samples, issues, policy, reviews = case
    ledger = decided(samples, issues, policy, reviews)
    seen = ledger["sample_id"].isin(reviews["sample_id"])
    assert ((ledger["decided_by"] == "reviewer") == seen).all()
    own = ledger[~seen]
    flagged = issues[[flag_column(kind) for kind in KINDS]].any(axis=1)
    assert ((own["reason"] != "") == flagged[~seen]).all()
    assert (own.loc[own["split"] != "train", "action"] == "keep").all()
    weights = {"keep": 1.0, "relabel": 1.0, "reweight": 0.5, "drop": 0.0}
    assert (own["weight"] == own["action"].map(weights)).all()
    assert (
        own.loc[own["action"] != "relabel", "label"] == own["given_label"][own["action"] != "relabel"]
    ).all()
    training = ledger["split"] == "train"
    lost = own[(own["split"] == "train") & own["action"].isin(["drop", "relabel"])]
    for name, given_count in ledger.loc[training, "given_label"].value_counts().items():
        taken = (lost["given_label"] == name).sum()
        gone = ledger[training & (ledger["given_label"] == name)]
        gone = gone[(gone["action"] == "drop") | (gone["label"] != name)]
        assert len(gone) <= policy.max_lost_per_class * given_count + 1e-9 or taken == 0
        left = (training & (ledger["label"] == name) & (ledger["action"] != "drop")).sum()
        assert left >= policy.min_per_class or taken == 0
