"""Planted problems: how many, where, and that they repeat."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from stages.dataset.base import TRUTH_COLUMNS
from stages.dataset.ids import bytes_id
from stages.errors import WinnowError
from stages.ingestion.simulate import no_truth, plant

CLASSES = ["a", "b", "c", "d"]


def samples(train: int = 100, val: int = 20, test: int = 30) -> pd.DataFrame:
    rows = [
        (bytes_id(f"{split}{label}{i}".encode()), split, label)
        for split, count in (("train", train), ("val", val), ("test", test))
        for label in CLASSES
        for i in range(count)
    ]
    return pd.DataFrame(rows, columns=["sample_id", "split", "label"])


def planted(table: pd.DataFrame | None = None, **changes: Any) -> Any:
    options = {"seed": 0, "label_noise": 0.0, "imbalance": 1.0, "max_per_class": None, **changes}
    return plant(samples() if table is None else table, CLASSES, **options)


def counts(table: pd.DataFrame, split: str) -> list[int]:
    return sorted(table.loc[table["split"] == split, "label"].value_counts())[::-1]


def test_nothing_to_plant_changes_nothing() -> None:
    result = planted()
    pd.testing.assert_frame_equal(result.samples, samples())
    assert not result.truth["removed"].any()


def test_the_long_tail_is_exponential_and_validation_follows() -> None:
    result = planted(imbalance=8.0, max_per_class=80)
    assert counts(result.samples, "train") == [80, 40, 20, 10]
    assert counts(result.samples, "val") == [16, 8, 4, 2]
    assert counts(result.samples, "test") == [30, 30, 30, 30]


def test_every_class_keeps_an_image() -> None:
    result = planted(imbalance=1000.0, max_per_class=10)
    assert counts(result.samples, "train")[-1] == 1
    assert counts(result.samples, "val")[-1] == 1


def test_the_seed_chooses_which_class_is_rare() -> None:
    rarest = {
        planted(imbalance=9.0, seed=seed).samples.query("split == 'train'")["label"].value_counts().idxmin()
        for seed in range(12)
    }
    assert len(rarest) > 2


def test_noise_is_exact_in_train_and_val_and_absent_in_test() -> None:
    result = planted(label_noise=0.25)
    truth = result.truth.assign(wrong=result.truth["true_label"] != result.truth["given_label"])
    assert truth.groupby("split")["wrong"].sum().to_dict() == {"train": 100, "val": 20}
    test = result.samples[result.samples["split"] == "test"]
    assert test["label"].tolist() == samples().query("split == 'test'")["label"].tolist()


def test_wrong_labels_are_spread_over_all_other_classes() -> None:
    truth = planted(samples(train=1000), label_noise=0.5).truth
    wrong = truth[(truth["true_label"] != truth["given_label"]) & (truth["split"] == "train")]
    pairs = wrong.groupby(["true_label", "given_label"]).size()
    assert len(pairs) == 12
    assert pairs.min() > 120  # 2,000 wrong labels over 12 pairs: 167 each on average
    assert pairs.max() < 215


def test_the_truth_covers_train_and_val_with_what_was_taken_away() -> None:
    table = samples()
    result = planted(label_noise=0.2, imbalance=4.0, max_per_class=50)
    truth = result.truth.set_index("sample_id")
    expected = table[table["split"] != "test"].set_index("sample_id")
    assert set(truth.index) == set(expected.index)
    assert (truth["true_label"] == expected["label"].reindex(truth.index)).all()
    left = result.samples[result.samples["split"] != "test"].set_index("sample_id")
    assert set(truth.index[~truth["removed"]]) == set(left.index)
    assert truth["given_label"].isna().equals(truth["removed"])
    assert (truth.loc[left.index, "given_label"] == left["label"]).all()


def test_the_order_of_rows_does_not_matter() -> None:
    options = {"label_noise": 0.2, "imbalance": 4.0, "max_per_class": 50}
    first, other = planted(**options), planted(samples().sample(frac=1, random_state=1), **options)
    pd.testing.assert_frame_equal(first.truth, other.truth)


def test_more_noise_and_more_images_only_add() -> None:
    def wrong(noise: float) -> set[str]:
        truth = planted(label_noise=noise).truth
        return set(truth.loc[truth["true_label"] != truth["given_label"], "sample_id"])

    def left(limit: int) -> set[str]:
        return set(planted(imbalance=4.0, max_per_class=limit).samples["sample_id"])

    assert wrong(0.1) < wrong(0.3)
    assert left(20) < left(60)


def test_the_seed_matters() -> None:
    assert not planted(label_noise=0.2).truth.equals(planted(label_noise=0.2, seed=1).truth)


def test_a_class_without_any_given_label_is_an_error() -> None:
    with pytest.raises(WinnowError, match="simulate leaves no training image"):
        planted(samples(train=2, val=1), label_noise=0.9, imbalance=2.0)


def test_the_empty_truth_has_the_same_types() -> None:
    truth = planted(label_noise=0.2).truth
    assert list(truth.columns) == TRUTH_COLUMNS
    assert no_truth().dtypes.to_dict() == truth.dtypes.to_dict()
