"""The data contract: ids, views, and writing that is whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stages.dataset.base import (
    CONFLICT_COLUMNS,
    DELTA_COLUMNS,
    LEDGER_COLUMNS,
    SAMPLE_COLUMNS,
    Dataset,
    empty_delta,
    label_indices,
    read_conflicts,
    read_dataset,
    split_hash,
    split_view,
    training_view,
    write_dataset,
)
from stages.dataset.files import new_folder, write_table
from stages.dataset.ids import bytes_id, derived_id, pixel_id, sample_seed
from stages.errors import WinnowError


@pytest.fixture
def ledger(tiny_dataset: Dataset) -> pd.DataFrame:
    """A ledger that keeps everything as it is."""
    samples = tiny_dataset.samples
    return pd.DataFrame(
        {
            "sample_id": samples["sample_id"],
            "split": samples["split"],
            "given_label": samples["label"],
            "label": samples["label"],
            "action": "keep",
            "weight": 1.0,
            "score": 1.0,
            "reason": "",
            "decided_by": "policy",
        }
    )[LEDGER_COLUMNS]


def delta(base: Dataset, label: str, count: int, weight: float) -> Dataset:
    parent = base.samples["sample_id"].iloc[0]
    samples = pd.DataFrame(
        {
            "sample_id": [derived_id(parent, "copy", i) for i in range(count)],
            "row": range(count),
            "split": "train",
            "label": label,
            "source": "copy",
            "width": 16,
            "height": 16,
            "group": parent,
            "weight": weight,
            "parent_id": parent,
            "method": "copy",
        }
    )
    return Dataset(np.full((count, *base.image_shape), 9, np.uint8), samples, base.classes)


def test_ids_are_fixed_for_ever() -> None:
    """Frozen splits, reviews and lock files refer to them: these values must never change."""
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert bytes_id(b"winnow") == "f1c01ae726fd268e"
    assert pixel_id(image) == "7a2bc60dc0a6f896"
    assert derived_id("a", "m", 1) == "a4efef9022160363"
    assert sample_seed(0, "a") == 2372608467
    assert pixel_id(image) == pixel_id(np.asfortranarray(image))
    assert pixel_id(image) != pixel_id(image.reshape(4, 1, 3))
    assert derived_id("a", "m", 1) != derived_id("a", "m", 2)


def test_sample_seeds_depend_on_both_parts() -> None:
    seeds = {sample_seed(seed, name) for seed in range(3) for name in ("a", "b")}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_labels_become_indices_and_unknown_ones_are_named() -> None:
    assert label_indices(["b", "a", "b"], ["a", "b"]).tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match="unknown class names: zebra"):
        label_indices(["a", "zebra"], ["a", "b"])


def test_images_and_rows_must_match(tiny_dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="images but"):
        Dataset(tiny_dataset.images[1:], tiny_dataset.samples, tiny_dataset.classes)


def test_a_dataset_round_trips_and_stays_on_disk(tiny_dataset: Dataset, tmp_path: Path) -> None:
    with new_folder(tmp_path / "base") as folder:
        write_dataset(folder, tiny_dataset)
    read = read_dataset(tmp_path / "base")
    assert isinstance(read.images, np.memmap)
    assert (read.images == tiny_dataset.images).all()
    pd.testing.assert_frame_equal(read.samples, tiny_dataset.samples)
    assert read.classes == tiny_dataset.classes
    assert read.image_shape == (16, 16, 1)


def test_what_is_not_there_is_said_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(WinnowError, match=r"images\.npy is not there: run `dvc repro`"):
        read_dataset(tmp_path)


def test_conflicts_are_read_where_there_are_any(conflicts: pd.DataFrame, tmp_path: Path) -> None:
    none = read_conflicts(tmp_path)
    assert (len(none), list(none.columns)) == (0, CONFLICT_COLUMNS)
    write_table(tmp_path / "conflicts.parquet", conflicts)
    pd.testing.assert_frame_equal(read_conflicts(tmp_path), conflicts)


def test_a_view_is_one_split_with_its_own_pixels(tiny_dataset: Dataset) -> None:
    view = split_view(tiny_dataset, "train")
    assert view.class_counts.tolist() == [30, 20, 10]
    assert (view.weights == 1).all()
    for image, sample_id in zip(view.images, view.sample_ids, strict=True):
        assert pixel_id(image) == sample_id


def test_the_ledger_drops_relabels_and_weighs(tiny_dataset: Dataset, ledger: pd.DataFrame) -> None:
    ledger.loc[0, "action"] = "drop"
    ledger.loc[1, ["label", "action"]] = ["c", "relabel"]
    ledger.loc[2, ["weight", "action"]] = [0.5, "reweight"]
    shuffled = ledger.sample(frac=1, random_state=0)
    view = split_view(tiny_dataset, "train", shuffled)
    ids = tiny_dataset.samples["sample_id"]
    assert view.class_counts.tolist() == [28, 20, 11]
    assert ids[0] not in set(view.sample_ids)
    labels = dict(zip(view.sample_ids, view.labels, strict=True))
    weights = dict(zip(view.sample_ids, view.weights, strict=True))
    assert labels[ids[1]] == 2
    assert weights[ids[2]] == 0.5
    for image, sample_id in zip(view.images, view.sample_ids, strict=True):
        assert pixel_id(image) == sample_id


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_weights_of_source_and_ledger_multiply(
    tiny_dataset: Dataset, ledger: pd.DataFrame, dtype: type
) -> None:
    tiny_dataset.samples["weight"] = tiny_dataset.samples["weight"].astype(dtype)
    tiny_dataset.samples.loc[:2, "weight"] = [0.3, 0.3, 0.0]
    ledger.loc[1, ["weight", "action"]] = [0.5, "reweight"]
    raw, treated = split_view(tiny_dataset, "train"), split_view(tiny_dataset, "train", ledger)
    assert raw.weights.dtype == treated.weights.dtype == np.float32
    assert raw.weights[:4] == pytest.approx([0.3, 0.3, 0.0, 1.0])
    assert treated.weights[:4] == pytest.approx([0.3, 0.15, 0.0, 1.0])


def test_unlabelled_samples_are_in_no_view(partly_labelled: Dataset) -> None:
    assert split_view(partly_labelled, "train").class_counts.tolist() == [26, 20, 10]
    assert len(split_view(partly_labelled, "unlabeled")) == 0


def test_a_sample_that_the_ledger_moves_is_trained_on(partly_labelled: Dataset, ledger: pd.DataFrame) -> None:
    ledger.loc[:3, ["split", "given_label", "label"]] = ["unlabeled", None, None]
    ledger.loc[1, ["split", "label", "action"]] = ["train", "c", "relabel"]
    for view in (split_view(partly_labelled, "train", ledger), training_view(partly_labelled, ledger)):
        assert view.class_counts.tolist() == [26, 20, 11]
        assert view.sample_ids[0] == partly_labelled.samples.loc[1, "sample_id"]
        assert view.labels[0] == 2
        assert pixel_id(view.images[0]) == view.sample_ids[0]
    assert len(split_view(partly_labelled, "unlabeled", ledger)) == 0
    assert split_hash(partly_labelled, "test", ledger) == split_hash(partly_labelled, "test")


def test_deltas_come_behind_the_base(tiny_dataset: Dataset, ledger: pd.DataFrame) -> None:
    view = training_view(tiny_dataset, ledger, [delta(tiny_dataset, "c", 4, 0.3), empty_delta(tiny_dataset)])
    assert view.class_counts.tolist() == [30, 20, 14]
    assert (view.images[-4:] == 9).all()
    assert view.weights[-4:] == pytest.approx(0.3)
    assert len(view) == 64


def test_a_delta_for_other_classes_is_refused(tiny_dataset: Dataset) -> None:
    made = delta(tiny_dataset, "c", 1, 1.0)
    with pytest.raises(ValueError, match="other classes"):
        training_view(tiny_dataset, None, [Dataset(made.images, made.samples, ["a", "c"])])


def test_an_empty_delta_has_the_columns_and_types_of_a_full_one(tiny_dataset: Dataset) -> None:
    empty = empty_delta(tiny_dataset)
    full = delta(tiny_dataset, "a", 2, 1.0)
    assert list(tiny_dataset.samples.columns) == SAMPLE_COLUMNS
    assert list(empty.samples.columns) == DELTA_COLUMNS
    assert empty.samples.dtypes.to_dict() == full.samples.dtypes.to_dict()


def test_the_split_hash_sees_labels_but_not_order(tiny_dataset: Dataset, ledger: pd.DataFrame) -> None:
    plain = split_hash(tiny_dataset, "test")
    assert split_hash(tiny_dataset, "test", ledger) == plain
    turned = Dataset(tiny_dataset.images, tiny_dataset.samples.iloc[::-1], tiny_dataset.classes)
    assert split_hash(turned, "test") == plain
    ledger.loc[ledger["split"] == "train", "label"] = "a"
    assert split_hash(tiny_dataset, "test", ledger) == plain
    ledger.loc[ledger.index[-1], "label"] = "a"
    assert split_hash(tiny_dataset, "test", ledger) != plain


def with_second(dataset: Dataset) -> Dataset:
    """A second label of every third training sample, in two classes."""
    second = [["x", "y", None][row % 3] for row in range(len(dataset.samples))]
    return Dataset(dataset.images, dataset.samples.assign(second_label=second), dataset.classes)


def test_second_labels_are_in_every_view_where_the_source_has_them(tiny_dataset):
    view = split_view(with_second(tiny_dataset), "val")
    assert view.second_classes == ["x", "y"]
    assert view.second_labels.tolist() == [0, 1, -1] * 5
    assert view.take(np.array([2, 0])).second_labels.tolist() == [-1, 0]
    plain = split_view(tiny_dataset, "val")
    assert (plain.second_labels, plain.second_classes) == (None, [])
    assert plain.take(np.arange(3)).second_labels is None


def test_copies_have_their_parents_second_label_and_generated_images_none(tiny_dataset):
    base = with_second(tiny_dataset)
    parents = base.samples.iloc[[0, 1, 2, 0]]
    made = parents.drop(columns="second_label").assign(
        sample_id=list("wxyz"),
        parent_id=parents["sample_id"],
        method=["augment", "random", "augment", "gan"],
    )
    delta = Dataset(base.images[:4], made, base.classes)
    view = training_view(base, None, [delta, empty_delta(base)])
    assert view.second_labels[:3].tolist() == view.second_labels[60:63].tolist() == [0, 1, -1]
    assert view.second_labels[63] == -1
    assert training_view(tiny_dataset, None, [delta]).second_labels is None
    taken = view.take(np.array([63, 0]))
    assert taken.sample_ids.tolist() == ["z", base.samples["sample_id"][0]]
    assert taken.images.shape == (2, 16, 16, 1)
