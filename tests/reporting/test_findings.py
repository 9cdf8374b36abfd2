from __future__ import annotations

import pandas as pd
import pytest

from stages.reporting.findings import (
    done_by_kind,
    found_by_split,
    kept_for_review,
    order_line,
    rare_classes,
    switched_off,
)

SPLITS = {
    "test": {"samples": 5, "label_error": 1, "outlier": 2, "dark": 0},
    "train": {"samples": 10, "label_error": 3, "outlier": 4, "dark": 0},
    "unlabeled": {"samples": 2, "outlier": 1, "dark": 0},
}
CHECKS = {"label_error": "on", "outlier": "on", "dark": "90 % are"}


def test_counts_by_kind_and_split():
    table = found_by_split({"splits": SPLITS, "checks": CHECKS})
    assert table.columns.tolist() == ["kind", "train", "test", "unlabeled", "all"]
    assert table["kind"].tolist() == ["samples looked at", "label errors", "outliers"]
    assert table["all"].tolist() == [17, 4, 7]
    assert table["unlabeled"].isna().tolist() == [False, True, False]


def test_splits_may_stand_at_the_top_under_the_names_that_they_had():
    older = {"train": {"samples": 10, "label_errors": 3, "outliers": 4, "near_duplicates": 0}}
    table = found_by_split(older)
    assert table.to_numpy().tolist() == [
        ["samples looked at", 10],
        ["label errors", 3],
        ["outliers", 4],
        ["near-duplicates", 0],
    ]


def test_what_was_not_looked_for_and_why():
    assert switched_off({"checks": CHECKS}) == [("dark images", "90 % are")]


@pytest.mark.parametrize(("p", "said"), [(0.001, True), (0.05, False), (1.0, False), (None, False)])
def test_an_order_that_tells_something_is_named(p, said):
    assert ("p = 0.001" in order_line({"non_iid": p})) == said


def test_what_was_done_by_what_decided():
    kinds = {"outlier": {"keep": 7}, "label_error": {"drop": 2, "relabel": 3}, "new_kind": {"drop": 1}}
    table = done_by_kind({"kinds": kinds})
    assert table.to_numpy().tolist() == [
        ["label errors", 2, 3, 0, 0],
        ["outliers", 0, 0, 0, 7],
        ["new_kind", 1, 0, 0, 0],
    ]


def test_what_waits_for_review():
    summary = {"protection": {"rare_class": 4, "min_per_class": 0}, "outside_training": {"test": 7}}
    assert kept_for_review(summary) == [
        ("in training, because the class is rare", 4),
        ("suspected labels in test", 7),
    ]


def test_many_rare_classes_are_counted():
    assert rare_classes({"rare_classes": ["a", "b"]}) == "a, b"
    assert rare_classes({"rare_classes": [str(i) for i in range(500)]}).endswith("19 and 480 more")


@pytest.mark.parametrize("summary", [{}, {"splits": 3, "checks": [], "kinds": {"a": 1}, "non_iid": "?"}])
def test_nothing_and_nonsense_are_empty(summary):
    pd.testing.assert_frame_equal(found_by_split(summary), pd.DataFrame())
    assert done_by_kind(summary).empty
    assert (switched_off(summary), kept_for_review(summary)) == ([], [])
    assert (order_line(summary), rare_classes(summary)) == ("", "")
