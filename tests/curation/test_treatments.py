from __future__ import annotations

import pandas as pd
import pytest

from stages.curation.treatments import sample_counts, treatments_by_class
from stages.dataset.base import LEDGER_COLUMNS


@pytest.fixture
def ledger():
    rows = [
        ("train", "a", "a", "keep"),
        ("train", "a", "a", "keep"),
        ("train", "a", "b", "relabel"),
        ("train", "b", "b", "drop"),
        ("train", "b", "b", "reweight"),
        ("val", "c", "a", "relabel"),  # a reviewer's: no treatment of the training split
        ("test", "c", "c", "drop"),
    ]
    table = pd.DataFrame(rows, columns=["split", "given_label", "label", "action"])
    return table.reindex(columns=LEDGER_COLUMNS)


def delta(*rows):
    return pd.DataFrame(rows, columns=["label", "method"])


def test_a_row_a_class_that_adds_up(ledger):
    augmented, synthetic = delta(("b", "albumentations")), delta(("b", "random"), ("b", "gan"), ("b", "gan"))
    table = treatments_by_class(ledger, augmented, synthetic, ["a", "b", "c"]).set_index("class")
    assert table.loc["a"].tolist() == [3, 0, 1, 0, 0, 2, 0, 0, ""]
    assert table.loc["b"].tolist() == [2, 1, 0, 1, 1, 2, 1, 3, "gan 2, random 1"]
    assert table.loc["c"].tolist() == [0, 0, 0, 0, 0, 0, 0, 0, ""]
    real = table["given"] - table["dropped"] - table["relabelled"] + table["gained"]
    assert real.tolist() == table["real"].tolist()


def test_totals_are_of_the_training_split(ledger):
    counts = sample_counts(ledger, delta(("b", "albumentations")), delta(("b", "smote"), ("a", "gan")))
    assert counts == {
        "ingested": 5,
        "kept": 2,
        "dropped": 1,
        "relabelled": 1,
        "reweighted": 1,
        "augmented": 1,
        "synthesised": 2,
        "synthesised_by": {"gan": 1, "smote": 1},
    }


def test_empty_deltas(ledger):
    counts = sample_counts(ledger, delta(), delta())
    assert (counts["augmented"], counts["synthesised"], counts["synthesised_by"]) == (0, 0, {})
    table = treatments_by_class(ledger, delta(), delta(), ["a", "b", "c"])
    assert table[["augmented", "synthesised"]].to_numpy().sum() == 0


def test_samples_that_reviewers_labelled_are_gained_and_counted_apart(ledger):
    rows = [
        ("train", None, "b", "relabel"),
        ("unlabeled", None, None, "keep"),
        ("unlabeled", None, None, "drop"),
    ]
    more = pd.DataFrame(rows, columns=["split", "given_label", "label", "action"])
    together = pd.concat([ledger, more.reindex(columns=LEDGER_COLUMNS)], ignore_index=True)
    table = treatments_by_class(together, delta(), delta(), ["a", "b", "c"]).set_index("class")
    assert table.loc["b"].tolist() == [2, 1, 0, 1, 2, 3, 0, 0, ""]
    real = table["given"] - table["dropped"] - table["relabelled"] + table["gained"]
    assert real.tolist() == table["real"].tolist()
    counts = sample_counts(together, delta(), delta())
    assert (counts["ingested"], counts["relabelled"]) == (5, 1)
    assert (counts["unlabeled"], counts["labelled"]) == (2, 1)
    assert "unlabeled" not in sample_counts(ledger, delta(), delta())
