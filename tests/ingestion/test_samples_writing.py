"""The base on disk: pixels and rows in the same order, whatever the block."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from stages.dataset.base import SAMPLE_COLUMNS
from stages.dataset.ids import SPLITS, hex_ids
from stages.ingestion import samples as module
from stages.ingestion.blocks import RowFile
from stages.ingestion.items import Items
from stages.ingestion.samples import write_images, write_samples

COUNT = 50


@pytest.fixture
def samples() -> Items:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 2**63, COUNT + 10).astype(np.uint64)
    table = Items(
        place=np.arange(COUNT + 10),
        sample_id=ids,
        pixel_key=ids,
        perceptual=ids,
        flat=np.zeros(COUNT + 10, bool),
        label=np.zeros(COUNT + 10, np.int32),
        split=np.zeros(COUNT + 10, np.int8),
        group=np.zeros(COUNT + 10, np.uint64),
        weight=rng.uniform(0, 2, COUNT + 10).astype(np.float32),
        width=np.arange(COUNT + 10, dtype=np.int32),
        height=np.arange(COUNT + 10, dtype=np.int32) + 1,
        names=pa.chunked_array([[f"{i}.png" for i in range(30)], [f"{i}.png" for i in range(30, 60)]]),
        classes=["ä", "b/c"],
    )
    position = rng.permutation(COUNT + 10)[:COUNT]
    label = (np.arange(COUNT) % 3 - 1).astype(np.int32)
    split = np.where(label < 0, 3, np.arange(COUNT) // 3 % 3).astype(np.int8)
    return replace(table.at(position), label=label, split=split, group=ids[position])


@pytest.fixture
def squares(tmp_path: Path) -> RowFile:
    rows = RowFile(tmp_path / "squares", (8, 8, 3))
    rows.write(0, np.random.default_rng(1).integers(0, 256, (COUNT + 10, 8, 8, 3)).astype(np.uint8))
    return rows


@pytest.mark.parametrize("block", [1, 7 * 192, 2**24])
def test_images_stand_in_the_order_of_the_rows(
    samples: Items, squares: RowFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", block)
    channels = write_images(tmp_path / "images.npy", samples, squares)
    images = np.load(tmp_path / "images.npy", mmap_mode="r", allow_pickle=False)
    assert images.shape == (COUNT, 8, 8, 3)
    assert (images == squares.take(samples.place)).all()
    assert channels["split"].unique().tolist() == list(SPLITS)
    for row in channels.itertuples():
        there = images[samples.split == SPLITS.index(row.split)]
        pixels = there[..., ["red", "green", "blue"].index(row.channel)].astype(float)
        assert row.mean == pytest.approx(pixels.mean())
        assert row.std == pytest.approx(pixels.std())


@pytest.mark.parametrize("rows", [1, 16, 2**16])
def test_the_table_has_the_contracts_columns(
    samples: Items, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(module, "_TABLE_ROWS", rows)
    write_samples(tmp_path / "samples.parquet", samples)
    table = pd.read_parquet(tmp_path / "samples.parquet")
    assert list(table.columns) == SAMPLE_COLUMNS
    assert table["row"].tolist() == list(range(COUNT))
    assert table["sample_id"].tolist() == hex_ids(samples.sample_id)
    assert table["group"].tolist() == hex_ids(samples.group)
    assert table["split"].tolist() == [SPLITS[code] for code in samples.split]
    assert table["label"].isna().tolist() == (samples.label < 0).tolist()
    assert table["label"].dropna().tolist() == [samples.classes[i] for i in samples.label if i >= 0]
    assert table["source"].tolist() == [f"{i}.png" for i in samples.place]
    assert table["width"].tolist() == samples.place.tolist()
    assert table["weight"].tolist() == samples.weight.astype(float).tolist()


def test_a_base_without_a_row_still_has_its_columns(samples: Items, tmp_path: Path) -> None:
    write_samples(tmp_path / "samples.parquet", samples.at(np.zeros(0, np.int64)))
    assert list(pd.read_parquet(tmp_path / "samples.parquet").columns) == SAMPLE_COLUMNS


@pytest.mark.parametrize("rows", [7, 2**16])
def test_second_labels_are_a_column_where_there_are_any(
    samples: Items, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(module, "_TABLE_ROWS", rows)
    second = (samples.place % 3 - 1).astype(np.int32)
    write_samples(
        tmp_path / "samples.parquet", replace(samples, second=second, second_classes=["silk", "wool"])
    )
    table = pd.read_parquet(tmp_path / "samples.parquet")
    assert list(table.columns) == [*SAMPLE_COLUMNS, "second_label"]
    expected = [[None, "silk", "wool"][position % 3] for position in samples.place]
    written = table["second_label"]
    assert written.astype(object).where(written.notna(), None).tolist() == expected
