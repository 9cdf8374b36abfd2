"""Rows in a file, by place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from stages.reading.rowfile import RowFile

ROWS = np.random.default_rng(0).integers(0, 256, (50, 4, 3)).astype(np.uint8)


@pytest.fixture(params=["by position", "by seeking"])
def file(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RowFile]:
    if request.param == "by seeking":  # as on Windows
        monkeypatch.delattr(os, "preadv", raising=False)
        monkeypatch.delattr(os, "pwrite", raising=False)
    with RowFile(tmp_path / "rows", (4, 3)) as opened:
        yield opened


def test_rows_come_back_in_any_order(file: RowFile) -> None:
    file.write(0, ROWS)
    assert len(file) == 50
    places = np.array([3, 4, 5, 49, 0, 1, 7, 6, 6, 9])
    assert (file.take(places) == ROWS[places]).all()
    assert (file.take(np.arange(50)) == ROWS).all()
    assert file.take(np.array([], np.int64)).shape == (0, 4, 3)


def test_rows_can_be_written_in_any_order_and_through_other_handles(file: RowFile, tmp_path: Path) -> None:
    with RowFile(tmp_path / "rows", (4, 3)) as other:
        other.write(30, ROWS[30:])
    file.write(0, ROWS[:10])
    assert (file.take(np.array([5, 35])) == ROWS[[5, 35]]).all()
    assert not file.take(np.array([20])).any()  # nobody wrote it


def test_strided_rows_are_written_as_they_look(file: RowFile) -> None:
    file.write(0, ROWS[::-2])
    assert (file.take(np.arange(25)) == ROWS[::-2]).all()


@pytest.mark.parametrize("place", [-1, 50])
def test_there_is_no_row_outside(file: RowFile, place: int) -> None:
    file.write(0, ROWS)
    with pytest.raises(IndexError):
        file.take(np.array([0, place]))


@pytest.mark.parametrize("rows", [ROWS[:, :3], ROWS.astype(np.int16)])
def test_rows_of_another_kind_are_refused(file: RowFile, rows: np.ndarray) -> None:
    with pytest.raises(ValueError, match="in a file of"):
        file.write(0, rows)
