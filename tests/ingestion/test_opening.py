"""Which reader a source gets."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.errors import WinnowError
from stages.ingestion.opening import open_source
from stages.ingestion.source import Columns, Source


def put(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(path)
    return path


def opened(path: Path, **options: object) -> Source:
    scratch = path.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    return open_source(path, scratch, **options)


def names(source: Source) -> list[str]:
    return [name for block in source.blocks() for name in block.names]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    return tmp_path / "mine"


def test_nothing_there(mine: Path) -> None:
    with pytest.raises(WinnowError, match="is not there"):
        opened(mine)


@pytest.mark.parametrize("wrapping", ["", "photos", "photos/2024/raw"])
def test_folders_that_only_wrap_are_looked_through(mine: Path, wrapping: str) -> None:
    put(mine / wrapping / "a/1.png")
    put(mine / wrapping / "b/2.png")
    source = opened(mine)
    assert names(source) == ["a/1.png", "b/2.png"]
    assert list(source.classes) == ["a", "b"]


def test_the_only_class_folder_is_no_wrapping(mine: Path) -> None:
    put(mine / "a/1.png")
    assert list(opened(mine).classes) == ["a"]


def test_the_only_split_folder_is_no_wrapping(mine: Path) -> None:
    put(mine / "train/a/1.png")
    put(mine / "train/b/1.png")
    source = opened(mine)
    assert list(source.classes) == ["a", "b"]
    assert {split for block in source.blocks() for split in block.splits} == {"train"}


def test_a_manifest_is_more_telling_than_the_folders_beside_it(mine: Path) -> None:
    put(mine / "a/1.png")
    put(mine / "b/2.png")
    (mine / "labels.csv").write_text("path,label\na/1.png,x\nb/2.png,y\n")
    block = next(iter(opened(mine).blocks()))
    assert block.labels == ["x", "y"]
    assert list(opened(mine, format="folders").classes) == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "image_id,diagnosis\n1,x\n",
            "no column for the path: name one of its columns (image_id, diagnosis)",
        ),
        ("file,comment\na/1.png,nice\n", "no column for the label"),
    ],
)
def test_class_folders_beside_a_table_that_is_not_understood(mine: Path, text: str, said: str) -> None:
    put(mine / "images_1/1.png")
    put(mine / "images_2/2.png")
    (mine / "table.csv").write_text(text)
    for format in ("auto", "manifest"):
        with pytest.raises(WinnowError) as caught:
            opened(mine, format=format)
        assert said in str(caught.value)
    with pytest.raises(WinnowError, match=r"set ingest\.format: folders"):
        opened(mine)
    assert opened(mine, format="folders").kind.startswith("class folders")


def test_a_column_that_is_asked_for_has_to_be_in_some_table(mine: Path) -> None:
    put(mine / "a/1.png")
    put(mine / "b/2.png")
    with pytest.raises(WinnowError, match=r"ingest\.columns\.path = 'phto', but .* has no table"):
        opened(mine, columns=Columns(path="phto"))
    (mine / "labels.csv").write_text("photo,label\na/1.png,x\n")
    with pytest.raises(WinnowError, match="phto") as caught:
        opened(mine, columns=Columns(path="phto"))
    assert "photo" in str(caught.value)


def test_an_address_is_for_dvc_to_bring(tmp_path: Path) -> None:
    with pytest.raises(WinnowError, match="dvc import-url"):
        open_source(Path("s3://bucket/photos"), tmp_path)


def test_a_manifest_inside_the_wrapping(mine: Path) -> None:
    put(mine / "set/pictures/1.png")
    (mine / "set/labels.csv").write_text("path,label\npictures/1.png,x\n")
    assert names(opened(mine)) == ["pictures/1.png"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_folder_with_nothing_but_an_archive(mine: Path, kind: str) -> None:
    inside = mine.parent / "inside"
    files = [put(inside / "a/1.png"), put(inside / "b/2.png")]
    mine.mkdir()
    if kind == "zip":
        with zipfile.ZipFile(mine / "all.zip", "w") as archive:
            for file in files:
                archive.write(file, file.relative_to(inside))
    else:
        with tarfile.open(mine / "all.tar.gz", "w:gz") as packed:
            packed.add(inside, "top")
    (mine / ".DS_Store").touch()
    assert names(opened(mine)) == ["a/1.png", "b/2.png"]
    (archive_path,) = mine.glob("all.*")
    assert names(opened(archive_path)) == ["a/1.png", "b/2.png"]


def test_one_npz_as_a_file_and_in_a_folder(mine: Path) -> None:
    mine.mkdir()
    np.savez(mine / "x.npz", images=np.zeros((2, 4, 4), np.uint8), labels=np.array([0, 1]))
    assert names(opened(mine)) == names(opened(mine / "x.npz"))
    assert "2" not in opened(mine / "x.npz").classes


@pytest.mark.parametrize("name", ["labels.csv", "x.npy", "train-images-idx3-ubyte.gz", "rows.parquet"])
def test_one_file_of_several_names_its_folder(mine: Path, name: str) -> None:
    mine.mkdir()
    if name.endswith("parquet"):
        import pandas as pd

        pd.DataFrame({"path": ["a.png"], "label": ["a"]}).to_parquet(mine / name)
    else:
        (mine / name).write_text("path,label\n")
    with pytest.raises(WinnowError, match="name its folder"):
        opened(mine / name)


def test_a_file_that_nobody_reads(mine: Path) -> None:
    mine.mkdir()
    (mine / "notes.txt").write_text("hello")
    with pytest.raises(WinnowError, match="a file that no reader takes") as caught:
        opened(mine / "notes.txt")
    assert ".tar.gz" in str(caught.value)


def test_a_folder_of_loose_images(mine: Path) -> None:
    put(mine / "1.png")
    with pytest.raises(WinnowError, match="a folder for each class"):
        opened(mine)


def test_wrapping_without_end(mine: Path) -> None:
    (mine / "/".join("x" * 40)).mkdir(parents=True)
    assert names(opened(mine)) == []


def refused(source: Source) -> dict[str, str]:
    return {row.path: row.reason for block in source.blocks() for row in block.refused}


def test_what_an_archive_refuses_is_told_whatever_reads_it(mine: Path) -> None:
    mine.mkdir()
    with zipfile.ZipFile(mine / "all.zip", "w") as archive:
        archive.writestr("top/labels.csv", "path,label\n1.png,x\n")
        archive.write(put(mine.parent / "1.png"), "top/1.png")
        archive.writestr("../../x", "out")
    assert refused(opened(mine)) == {"../../x": "outside_source"}


def test_what_lies_beside_the_wrapping_is_told(mine: Path) -> None:
    put(mine / "top/a/1.png")
    put(mine / "top/b/2.png")
    (mine / "out.png").symlink_to(put(mine.parent / "secret.png"))
    assert refused(opened(mine)) == {"out.png": "outside_source"}
