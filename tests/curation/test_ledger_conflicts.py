import numpy as np
import pandas as pd
import pytest
from issue_table import clean_issues

from stages.curation.ledger import conflict_reasons, frozen_splits, suggest_claimed
from stages.dataset.base import CONFLICT_COLUMNS

IDS = [f"{number:016x}" for number in range(8)]
PROBS = np.tile(np.array([0.1, 0.2, 0.7], np.float32), (8, 1))  # c is what the models would have


def claimed(*disputes, split: str | None = None) -> pd.DataFrame:
    """Conflicts of some samples, each with the labels that it stands under; `split`, frozen, for all."""
    rows = [(name, label, f"{label}/{name}.png", split) for name, labels in disputes for label in labels]
    return pd.DataFrame(rows, columns=CONFLICT_COLUMNS)


@pytest.fixture
def issues() -> pd.DataFrame:
    """2 and 3 unlabelled."""
    splits = ["train"] * 2 + ["unlabeled"] * 2 + ["train"] * 2 + ["val", "test"]
    labels = ["a", "a", None, None, "b", "b", "a", "b"]
    return clean_issues(pd.DataFrame({"sample_id": IDS, "split": splits, "label": labels}))


@pytest.fixture
def disputed() -> pd.DataFrame:
    """2 stood under b and a, and so did 7, of the test split."""
    return claimed((IDS[2], "ba"), (IDS[7], "ba"))


def test_a_conflict_is_suggested_the_likeliest_of_the_claimed_labels(issues, disputed):
    before = issues.copy()
    suggested = suggest_claimed(issues, disputed, PROBS, list("abc"))
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
    for conflicts in (claimed(("f" * 16, "ab")), claimed()):
        pd.testing.assert_frame_equal(suggest_claimed(issues, conflicts, PROBS, list("abc")), issues)


def test_a_reason_names_a_few_of_many_conflicting_labels():
    conflicts = claimed((IDS[6], [f"class {number}" for number in range(12)]), (IDS[1], "ba"))
    reasons = conflict_reasons(conflicts)
    assert reasons[IDS[6]].endswith("class 10, class 11, class 2 and 7 more; for review")
    assert reasons[IDS[1]] == "conflicting_labels: a, b; for review"


def test_only_splits_that_models_use_are_frozen_ones():
    rows = [(IDS[0], "test"), (IDS[1], "val"), (IDS[2], "unlabeled"), (IDS[3], None)]
    conflicts = pd.concat([claimed((name, "ab"), split=split) for name, split in rows])
    assert frozen_splits(conflicts) == {IDS[0]: "test", IDS[1]: "val"}
    assert frozen_splits(claimed()) == {}
