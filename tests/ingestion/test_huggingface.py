"""Parquet files with images in them: layouts, class names, splits, and what cannot be trusted."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.errors import REASONS, UnusableError, WinnowError
from stages.ingestion import huggingface
from stages.ingestion.huggingface import HuggingFace, find
from stages.ingestion.source import Block, Columns
from stages.ingestion.trees import FolderTree

# One folder for all examples; and how long they take to draw says how busy the machine is.
ONE_FOLDER = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]

AUTO = Columns()
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def images(*cells: tuple[bytes | None, str | None] | None, kind: pa.DataType = IMAGE) -> pa.Array:
    return pa.array([None if cell is None else {"bytes": cell[0], "path": cell[1]} for cell in cells], kind)


def shard(
    folder: Path, name: str = "train-00000-of-00001.parquet", said: object = None, **columns: Any
) -> HuggingFace:
    """A file of some columns (two images without more), and its reader; `said` is in the metadata."""
    columns = columns or {"image": images((b"one", "1.png"), (b"two", None)), "label": [0, 1]}
    whole = pa.table(columns)
    if said is not None:
        encoded = said if isinstance(said, bytes) else json.dumps(said).encode()
        whole = whole.replace_schema_metadata({b"huggingface": encoded})
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(whole, path)
    return HuggingFace(FolderTree(folder), [name], AUTO)


def class_label(*names: str, column: str = "label") -> dict[str, Any]:
    return {"info": {"features": {column: {"names": list(names), "_type": "ClassLabel"}}}}


def rows(source: HuggingFace) -> list[tuple[str, str | None, str | None, str | None, float]]:
    return [
        row
        for block in source.blocks()
        for row in zip(block.names, block.labels, block.splits, block.groups, block.weights, strict=True)
    ]


def labels(source: HuggingFace) -> list[str | None]:
    return [row[1] for row in rows(source)]


def refused(source: HuggingFace) -> list[tuple[str, str]]:
    return [(row.path, row.reason) for block in source.blocks() for row in block.refused]


def read(source: HuggingFace) -> list[bytes | str]:
    """Bytes, or the reason why there are none."""
    found = [item for block in source.blocks() for item in block.payload.read()]
    return [item.reason if isinstance(item, UnusableError) else bytes(item) for item in found]


def test_images_and_class_names(tmp_path: Path) -> None:
    source = shard(tmp_path, said=class_label("dog", "cat"))
    assert source.classes == ["dog", "cat"]
    assert rows(source) == [
        ("train-00000-of-00001.parquet#0", "dog", "train", None, 1.0),
        ("train-00000-of-00001.parquet#1", "cat", "train", None, 1.0),
    ]
    assert read(source) == [b"one", b"two"]
    assert source.count == 2
    assert source.kind == "Parquet with images, 1 file (train)"
    assert source.notes == []


def test_every_column_is_read(tmp_path: Path) -> None:
    source = shard(
        tmp_path,
        img=images((b"1", None), (b"2", None)),
        label=["cat", "dog"],
        split=["test", "validation"],
        group=["p", None],
        weight=[0.5, None],
        extra=[1, 2],
    )
    assert [row[1:] for row in rows(source)] == [("cat", "test", "p", 0.5), ("dog", "val", None, 1.0)]
    assert source.notes == ["columns not used: extra"]
    assert source.classes == []


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00002.parquet", "train"),
        ("data/validation-00000-of-00001.parquet", "val"),
        ("data/test-00000-of-00001-0a1b2c.parquet", "test"),
        ("test/0000.parquet", "test"),
        ("mnist-dev.parquet", "val"),
        ("test/train.parquet", "train"),
        ("data/0000.parquet", None),
        ("data/training-test.parquet", None),
        ("data/pretrained.parquet", None),
    ],
)
def test_the_split_of_a_files_name(tmp_path: Path, name: str, split: str | None) -> None:
    assert {row[2] for row in rows(shard(tmp_path, name))} == {split}


def test_an_unlabeled_split(tmp_path: Path) -> None:
    source = shard(tmp_path, "unlabeled-00000-of-00001.parquet")
    assert {row[1:3] for row in rows(source)} == {(None, None)}


def test_missing_labels_and_labels_out_of_range(tmp_path: Path) -> None:
    source = shard(
        tmp_path,
        "test.parquet",
        said=class_label("cat", "dog"),
        image=images(*[(bytes([i]), None) for i in range(6)]),
        label=[1, -1, None, 2, -2, 0],
    )
    assert [row[:3] for row in rows(source)] == [
        ("test.parquet#0", "dog", "test"),
        ("test.parquet#1", None, "test"),
        ("test.parquet#2", None, "test"),
        ("test.parquet#5", "cat", "test"),
    ]
    assert refused(source) == [("test.parquet#3", "bad_label"), ("test.parquet#4", "bad_label")]
    assert read(source) == [b"\0", b"\1", b"\2", b"\5"]


@pytest.mark.parametrize(
    ("given_labels", "expected"),
    [
        ([7, 12, -1], ["7", "12", None]),
        (pa.array([7.0, math.nan, -1.0]), ["7", None, None]),
        (["cat", "", "-1"], ["cat", None, "-1"]),
    ],
)
def test_labels_without_class_names(tmp_path: Path, given_labels: Any, expected: list[str | None]) -> None:
    source = shard(tmp_path, image=images(*[(b"x", None)] * 3), label=given_labels)
    assert labels(source) == expected


def test_texts_are_labels_whatever_the_metadata_says(tmp_path: Path) -> None:
    source = shard(tmp_path, said=class_label("x"), image=images((b"x", None)), label=["cat"])
    assert (source.classes, labels(source)) == ([], ["cat"])


def test_the_one_column_with_class_names_is_the_label(tmp_path: Path) -> None:
    columns = {"image": images((b"x", None)), "species": [0]}
    assert labels(shard(tmp_path, said=class_label("wren", column="species"), **columns)) == ["wren"]
    with pytest.raises(WinnowError, match=r"no column for the label.*ingest\.columns\.label"):
        shard(tmp_path, said=class_label("wren", column="other"), **columns)


def test_class_names_that_no_class_can_have(tmp_path: Path) -> None:
    source = shard(
        tmp_path,
        said=class_label("../..", "cat", ""),
        image=images(*[(b"x", None)] * 3),
        label=[0, 1, 2],
    )
    assert source.classes == ["cat"]
    assert labels(source) == ["cat"]
    assert [reason for _, reason in refused(source)] == ["bad_label", "bad_label"]


def test_the_same_class_name_twice(tmp_path: Path) -> None:
    with pytest.raises(WinnowError, match="the same class name stands twice"):
        shard(tmp_path, said=class_label("cat", " cat"))


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\xff{",
        b"[" * 100_000,
        [],
        {"info": []},
        {"info": {"features": [1]}},
        {"info": {"features": {"label": 3}}},
        {"info": {"features": {"label": {"names": "cat"}}}},
        {"info": {"features": {"label": {"names": [1, None]}}}},
    ],
)
def test_metadata_that_means_nothing_is_passed_over(tmp_path: Path, said: object) -> None:
    source = shard(tmp_path, said=said)
    assert (source.classes, labels(source)) == ([], ["0", "1"])


def test_shards_have_to_agree_on_class_names(tmp_path: Path) -> None:
    shard(tmp_path, "train-0.parquet", said=class_label("cat", "dog"))
    shard(tmp_path, "train-1.parquet", said=class_label("cat", "dog"))
    names = ["train-0.parquet", "train-1.parquet"]
    assert HuggingFace(FolderTree(tmp_path), names, AUTO).count == 4
    shard(tmp_path, "train-1.parquet", said=class_label("dog", "cat"))
    with pytest.raises(WinnowError, match=r"train-1\.parquet has other class names than train-0\.parquet"):
        HuggingFace(FolderTree(tmp_path), names, AUTO)


def test_images_that_are_files(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/1.png").write_bytes(b"beside")
    (tmp_path / "1.png").write_bytes(b"never: the shard's folder comes first")
    (tmp_path / "2.png").write_bytes(b"top")
    cells = [(None, "1.png"), (b"held", "x"), (None, "2.png"), (None, "3.png"), (None, "../../4.png")]
    cells += [(None, "/etc/passwd"), (None, "a\0"), (None, ""), (None, None), None]
    source = shard(tmp_path, "data/train.parquet", image=images(*cells), label=[0] * len(cells))
    assert read(source) == [
        b"beside",
        b"held",
        b"top",
        "unreadable",
        "outside_source",
        "outside_source",
        "bad_name",
        "unreadable",
        "unreadable",
        "unreadable",
    ]


@pytest.mark.parametrize(
    "kind",
    [
        pa.struct([("path", pa.large_string()), ("bytes", pa.large_binary())]),
        pa.struct([("bytes", pa.binary_view()), ("path", pa.null())]),
        pa.struct([("bytes", pa.binary())]),
    ],
)
def test_other_types_of_images(tmp_path: Path, kind: pa.DataType) -> None:
    source = shard(tmp_path, picture=pa.array([{"bytes": b"x"}, {"bytes": None}], kind), label=[0, 1])
    assert read(source) == [b"x", "unreadable"]


def test_an_image_of_too_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface, "MAX_BYTES", 2)
    assert read(shard(tmp_path, image=images((b"xx", None), (b"xxx", None)), label=[0, 1])) == [
        b"xx",
        "too_large",
    ]


def test_which_column_holds_the_images(tmp_path: Path) -> None:
    two = {"front": images((b"f", None)), "back": images((b"b", None)), "label": ["x"]}
    with pytest.raises(WinnowError, match=r"several columns of images \(front, back\)"):
        shard(tmp_path, "a.parquet", **two)
    tree = FolderTree(tmp_path)
    assert read(HuggingFace(tree, ["a.parquet"], Columns(path="back"))) == [b"b"]
    with pytest.raises(WinnowError, match=r"no column 'label' of images \(ingest\.columns\.path\)"):
        HuggingFace(tree, ["a.parquet"], Columns(path="label"))
    with pytest.raises(WinnowError, match="no column of images"):
        shard(tmp_path, "b.parquet", image=[b"x"], label=["x"])


def test_columns_of_types_that_say_nothing(tmp_path: Path) -> None:
    with pytest.raises(WinnowError, match="'label' holds values of type list"):
        shard(tmp_path, image=images((b"x", None)), label=[[1]])
    with pytest.raises(WinnowError, match="'group' holds numbers that are not whole"):
        rows(shard(tmp_path, image=images((b"x", None)), label=[1], group=[0.5]))


def test_large_images_come_in_small_blocks(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 2**20), np.uint8)
    source = shard(tmp_path, image=images(*[(row.tobytes(), None) for row in pixels]), label=[0] * 40)
    sizes = [len(block.names) for block in source.blocks()]
    assert sum(sizes) == 40
    assert max(sizes) <= 8
    small = shard(tmp_path, image=images(*[(b"x", None)] * 1000), label=[0] * 1000)
    assert max(len(block.names) for block in small.blocks()) == 64


def test_a_repeated_large_value_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.ingestion.parquet._MOST_EXPANDED", 2**22)
    source = shard(tmp_path, image=images(*[(bytes(2**20), None)] * 50), label=[0] * 50)
    assert (tmp_path / "train-00000-of-00001.parquet").stat().st_size < 2**17
    assert max(len(block.names) for block in source.blocks()) <= 4


def test_payloads_travel_without_the_table_libraries(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"file")
    (block,) = shard(tmp_path, image=images((b"held", None), (None, "1.png")), label=[0, 1]).blocks()
    (tmp_path / "payload").write_bytes(pickle.dumps(block.payload))
    code = (
        "import pickle, sys, pathlib\n"
        "payload = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "print(list(payload.read()), 'pandas' in sys.modules or 'pyarrow' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "payload"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[b'held', b'file'] False"


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(64) + b"PARE"])
def test_a_damaged_or_encrypted_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train.parquet").write_bytes(content)
    with pytest.raises(WinnowError, match=r"train\.parquet is damaged, encrypted"):
        HuggingFace(FolderTree(tmp_path), ["train.parquet"], AUTO)
    with pytest.raises(WinnowError, match=r"train\.parquet is damaged, encrypted"):
        find(FolderTree(tmp_path))


def test_find_looks_at_the_top_and_one_folder_down(tmp_path: Path) -> None:
    tree = FolderTree(tmp_path)
    assert find(tree) == []
    pq.write_table(pa.table({"path": ["x"], "label": [1]}), tmp_path / "labels.parquet")
    shard(tmp_path, "data/deep/train.parquet")
    assert find(tree) == []
    shard(tmp_path, "data/train-1.parquet")
    shard(tmp_path, "data/test-0.parquet")
    assert find(tree) == ["data/test-0.parquet", "data/train-1.parquet"]
    shard(tmp_path, "top.parquet")
    assert find(tree) == ["top.parquet"]


def test_find_takes_a_folder_for_each_split_but_not_two_versions(tmp_path: Path) -> None:
    shard(tmp_path, "train/0000.parquet")
    shard(tmp_path, "test/0000.parquet")
    tree = FolderTree(tmp_path)
    assert find(tree) == ["test/0000.parquet", "train/0000.parquet"]
    shard(tmp_path, "cropped/0000.parquet")
    with pytest.raises(WinnowError, match=r"several folders \(cropped/, test/, train/\)"):
        find(tree)


def test_find_does_not_look_through_many_class_folders(tmp_path: Path) -> None:
    for number in range(40):
        shard(tmp_path, f"class {number}/x.parquet")
    assert find(FolderTree(tmp_path)) == []


def _checked(blocks: list[Block]) -> None:
    for block in blocks:
        items = list(block.payload.read())
        for column in (block.labels, block.splits, block.groups, block.weights, block.payload, items):
            assert len(column) == len(block.names)
        for row in block.refused:
            assert row.reason in REASONS


@settings(max_examples=150, deadline=None, suppress_health_check=ONE_FOLDER)
@given(changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=20))
def test_any_damage_is_blocks_or_an_error_in_words(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    shard(tmp_path, "train.parquet", said=class_label("cat", "dog"))
    path = tmp_path / "train.parquet"
    content = bytearray(path.read_bytes())
    for place, value in changes:
        content[place % len(content)] = value
    path.write_bytes(content)
    tree = FolderTree(tmp_path)
    try:
        _checked(list(HuggingFace(tree, find(tree) or ["train.parquet"], AUTO).blocks()))
    except WinnowError as error:
        assert "\n" not in str(error)


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.sampled_from(["cat", "dog"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["info", "features", "label", "names", "_type"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None, suppress_health_check=ONE_FOLDER)
@given(feature=_JSON)
def test_any_metadata_is_blocks_or_an_error_in_words(tmp_path: Path, feature: Any) -> None:
    try:
        _checked(list(shard(tmp_path, said={"info": {"features": {"label": feature}}}).blocks()))
    except WinnowError as error:
        assert "\n" not in str(error)


def test_a_second_column_of_labels_has_its_own_names(tmp_path: Path) -> None:
    cells = images((b"1", "1.png"), (b"2", None), (b"3", None), (b"4", None))
    columns = {"image": cells, "label": [0, 1, 0, 1], "fabric": [1, -1, None, 7]}
    shard(tmp_path, said=class_label("wool", "silk", column="fabric"), **columns)
    name = "train-00000-of-00001.parquet"
    source = HuggingFace(FolderTree(tmp_path), [name], Columns(second_label="fabric"))
    (block,) = source.blocks()
    assert block.second_labels == ["silk", None, None]
    assert [row.reason for row in block.refused] == ["bad_label"]
    (block,) = HuggingFace(FolderTree(tmp_path), [name], AUTO).blocks()
    assert block.second_labels is None
    texts = pa.table({"image": images((b"1", None)), "label": ["a"], "fabric": ["wool"]})
    pq.write_table(texts, tmp_path / "text.parquet")
    (block,) = HuggingFace(FolderTree(tmp_path), ["text.parquet"], Columns(second_label="fabric")).blocks()
    assert block.second_labels == ["wool"]
