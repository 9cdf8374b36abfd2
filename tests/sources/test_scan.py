"""Reading a whole source, good files and bad."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.sources.folders import ClassFolders
from stages.sources.scan import Scan, scan


@pytest.fixture
def source(tmp_path: Path) -> ClassFolders:
    rng = np.random.default_rng(0)
    for index in range(600):  # more than one batch
        path = tmp_path / "ab"[index % 2] / f"{index:03d}.png"
        path.parent.mkdir(exist_ok=True)
        if index % 100 == 7:
            path.write_text("not an image")
        else:
            Image.fromarray(rng.integers(0, 256, (6, 9), dtype=np.uint8)).save(path)
    return ClassFolders(tmp_path)


def read(source: ClassFolders) -> tuple[Scan, np.ndarray]:
    squares = np.zeros((len(source.items), 8, 8, 3), np.uint8)
    return scan(source, squares, "rgb"), squares


def test_good_files_are_found_and_bad_ones_named(source: ClassFolders) -> None:
    result, squares = read(source)
    assert len(result.found) == 594
    assert [row.source for row in result.quarantine] == [f"b/{i}07.png" for i in range(6)]
    assert {row.reason for row in result.quarantine} == {"not_an_image"}
    assert set(zip(result.found["width"], result.found["height"], strict=True)) == {(9, 6)}
    last = result.found.iloc[-1]
    assert source.items[last["place"]].source == last["source"]
    assert squares[result.found["place"]].reshape(594, -1).any(axis=1).all()


@pytest.mark.parametrize("threads", [1, 7])
def test_threads_change_nothing(source: ClassFolders, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    plain, pixels = read(source)
    monkeypatch.setattr("os.cpu_count", lambda: threads)
    result, squares = read(source)
    assert result.found.equals(plain.found)
    assert result.quarantine == plain.quarantine
    assert (squares == pixels).all()
