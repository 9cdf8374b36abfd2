"""A version as it is laid together and read, also where it is old or wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from version_tables import ledger_of, samples_of, write_version

from stages.errors import WinnowError
from stages.versions.version import VERSION_COLUMNS, make_version, read_ledger, read_samples

BASE = samples_of({"a": "train cat", "b": "train dog", "u": "unlabeled"})


def test_the_ledger_lies_over_the_samples_in_any_order() -> None:
    ledger = ledger_of(BASE, b=("relabel", "cat", "label_error", "policy"), a=("drop", None, "x", "reviewer"))
    version = make_version("A", BASE, ledger[::-1])
    assert list(version.samples.columns) == VERSION_COLUMNS
    assert version.samples["sample_id"].tolist() == ["a", "b", "u"]
    assert version.samples["label"].tolist()[:2] == ["cat", "cat"]
    assert version.samples["given_label"].tolist()[:2] == ["cat", "dog"]
    assert version.samples["decided_by"].tolist() == ["reviewer", "policy", "policy"]
    assert version.in_use.tolist() == [False, True, True]
    assert version.curated
    assert version.notes == ()


def test_without_a_ledger_all_is_as_ingested_and_said_so() -> None:
    version = make_version("A", BASE)
    assert version.in_use.all()
    assert version.samples["action"].isna().all()
    assert not version.curated
    assert "no ledger" in version.notes[0]


def test_a_ledger_of_other_data_decides_about_what_it_names() -> None:
    ledger = ledger_of(BASE, a=("drop", None, "outlier", "policy"))
    grown = samples_of({"a": "train cat", "n": "val dog"})
    version = make_version("A", grown, ledger)
    assert version.in_use.tolist() == [False, True]
    assert version.samples["label"].tolist() == ["cat", "dog"]
    assert version.samples["split"].tolist() == ["train", "val"]
    assert version.samples["weight"].tolist() == [0.0, 1.0]
    assert "1 samples are not in it, 2 of its rows are of no sample" in version.notes[0]


def test_older_versions_lack_columns() -> None:
    old = BASE.drop(columns=["split", "weight", "source", "group"])
    version = make_version("A", old, ledger_of(BASE)[["sample_id", "label", "action"]])
    assert version.samples["weight"].tolist() == [1.0, 1.0, 1.0]
    assert version.samples["split"].isna().all()
    assert not version.has_splits
    assert "`split`" in version.notes[0]


def test_class_names_that_are_numbers_stay_what_they_look_like() -> None:
    numbered = BASE.assign(label=pd.array([3, 8, None], dtype="Int64"))
    assert make_version("A", numbered).samples["label"].tolist()[:2] == ["3", "8"]
    assert make_version("A", numbered).samples["label"].isna().tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (BASE.drop(columns="label"), "no column 'label'"),
        (BASE.drop(columns="sample_id"), "no column 'sample_id'"),
        (pd.concat([BASE, BASE[:1]]), "names sample a twice"),
        (BASE.assign(sample_id=["a", None, "u"]), "1 rows without a sample_id"),
        (BASE.assign(sample_id=[1, 2, 3]), r"column 'sample_id' is not text \(int64\)"),
        (BASE.assign(sample_id=[b"a", b"b", b"u"]), "column 'sample_id' is not text"),
        (BASE.assign(weight="heavy"), "column 'weight' holds no numbers"),
        (BASE.assign(weight="2"), "column 'weight' holds no numbers"),
        (BASE.assign(weight=[1.0, np.inf, -np.inf]), "column 'weight' is infinite in 2 rows"),
    ],
)
def test_what_is_no_table_of_samples_is_an_error(samples: pd.DataFrame, message: str) -> None:
    with pytest.raises(WinnowError, match=rf"^A: samples\.parquet.*{message}"):
        make_version("A", samples)


def test_a_ledger_without_actions_is_an_error() -> None:
    with pytest.raises(WinnowError, match=r"A: ledger.parquet has no column 'action'"):
        make_version("A", BASE, ledger_of(BASE).drop(columns="action"))


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("action", None, "column 'action' is empty in 3 rows"),
        ("action", ["keep", None, "drop"], "column 'action' is empty in 1 rows"),
        ("action", True, r"column 'action' is not text \(bool\)"),
        ("action", ["keep", "Drop\n", "drop"], r"column 'action' says 'Drop\\n', which is none of keep, "),
        ("weight", "half", "column 'weight' holds no numbers"),
        ("weight", np.inf, "column 'weight' is infinite in 3 rows"),
        ("sample_id", [1, 2, 3], "column 'sample_id' is not text"),
    ],
)
def test_a_ledger_is_not_read_as_keeping_all_where_it_means_nothing(
    column: str, values: object, message: str
) -> None:
    with pytest.raises(WinnowError, match=rf"^A: ledger\.parquet: {message}"):
        make_version("A", BASE, ledger_of(BASE).assign(**{column: values}))


def test_text_may_be_kept_as_categories_and_weights_may_be_missing() -> None:
    ledger = ledger_of(BASE, a=("drop", None, "outlier", "policy")).astype(
        {"sample_id": "category", "action": "category", "label": "category"}
    )
    version = make_version("A", BASE.astype({"sample_id": "category"}).assign(weight=None), ledger[::-1])
    assert version.in_use.tolist() == [False, True, True]
    assert version.samples["weight"].tolist() == [0.0, 1.0, 1.0]


def test_only_what_a_comparison_needs_is_read(tmp_path: Path) -> None:
    root = write_version(tmp_path, BASE, ledger_of(BASE))
    samples = read_samples(root / "data/ingested/samples.parquet", "samples")
    assert set(samples) == {"sample_id", "split", "label", "weight", "source"}
    with (root / "data/curated/ledger.parquet").open("rb") as file:
        assert "score" not in read_ledger(file, "ledger")


def test_a_column_of_lists_is_an_error_of_one_line(tmp_path: Path) -> None:
    file = tmp_path / "samples.parquet"
    BASE.assign(row=[[1]] * 3).to_parquet(file)  # not one that is asked for
    assert len(read_samples(file, "the samples")) == 3
    BASE.assign(split=[{"a": 1}] * 3).to_parquet(file)
    with pytest.raises(WinnowError, match=r"^the samples: column 'split' holds no single values [^\n]+$"):
        read_samples(file, "the samples")


def test_a_broken_file_is_an_error_of_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "samples.parquet"
    broken.write_bytes(b"PAR1 but no more")
    with pytest.raises(WinnowError, match=r"^the samples cannot be read as Parquet: [^\n]+$"):
        read_samples(broken, "the samples")
