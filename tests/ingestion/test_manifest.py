"""Manifests: columns, cells, paths, encodings, and tables that nobody should have written."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.errors import REASONS, UnusableError, WinnowError
from stages.ingestion import manifest as module
from stages.ingestion.manifest import Manifest, find
from stages.ingestion.source import BLOCK, Block, Columns, Quarantined
from stages.ingestion.trees import FolderTree

# One folder for all examples; and how long they take to draw says how busy the machine is.
ONE_FOLDER = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]

AUTO = Columns()


def manifest(folder: Path, text: str | bytes, columns: Columns = AUTO, name: str = "labels.csv") -> Manifest:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return Manifest(FolderTree(folder), name, columns)


def table(folder: Path, columns: dict[str, object], chosen: Columns = AUTO) -> Manifest:
    pq.write_table(pa.table(columns), folder / "labels.parquet")
    return Manifest(FolderTree(folder), "labels.parquet", chosen)


def rows(source: Manifest) -> list[tuple[str, str | None, str | None, str | None, float]]:
    return [
        row
        for block in source.blocks()
        for row in zip(block.names, block.labels, block.splits, block.groups, block.weights, strict=True)
    ]


def refused(source: Manifest) -> list[Quarantined]:
    return [row for block in source.blocks() for row in block.refused]


def reasons(source: Manifest) -> dict[str, str]:
    return {row.path: row.reason for row in refused(source)}


def names_and_labels(source: Manifest) -> list[tuple[str, str | None]]:
    return [(name, label) for name, label, *_ in rows(source)]


def test_every_column_of_a_csv_is_read(tmp_path: Path) -> None:
    source = manifest(tmp_path, "path,label,split,group,weight\na/1.png,cat,train,p1,0.5\n2.png,dog,Val,,\n")
    assert rows(source) == [("a/1.png", "cat", "train", "p1", 0.5), ("2.png", "dog", "val", None, 1.0)]
    assert source.count == 2
    assert source.kind == "a manifest, labels.csv"
    assert source.notes == []


def test_the_payload_reads_the_files_of_the_block(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.png").write_bytes(b"one")
    (tmp_path / "2.png").write_bytes(b"two")
    (block,) = manifest(tmp_path, "path,label\na/1.png,x\nmissing.png,x\n./a/../2.png,y\n").blocks()
    one, missing, two = block.payload.read()
    assert (one, two) == (b"one", b"two")
    assert isinstance(missing, UnusableError)
    assert missing.reason == "unreadable"
    assert block.names == ["a/1.png", "missing.png", "2.png"]


@pytest.mark.parametrize(
    "header",
    ["Path,Label", "FILE_NAME,Class", " img , category ", '"image","target"', "filename,labels"],
)
def test_usual_names_are_found_in_any_case(tmp_path: Path, header: str) -> None:
    assert names_and_labels(manifest(tmp_path, f"{header}\n1.png,cat\n")) == [("1.png", "cat")]


def test_named_columns_and_columns_that_are_switched_off(tmp_path: Path) -> None:
    text = "where,what,path,label,split,group\n1.png,cat,9.png,dog,train,p\n"
    source = manifest(tmp_path, text, Columns(path="where", label="what", split=None, group=None))
    assert rows(source) == [("1.png", "cat", None, None, 1.0)]
    assert source.notes == ["columns not used: path, label, split, group"]


def test_unused_columns_without_a_name_are_not_mentioned(tmp_path: Path) -> None:
    assert manifest(tmp_path, ",path,label\n0,1.png,cat\n").notes == []


@pytest.mark.parametrize(
    ("header", "columns", "said"),
    [
        ("path,label,class", AUTO, "(label, class): name one of them as ingest.columns.label"),
        ("path,image,label", AUTO, "ingest.columns.path"),
        ("path,label,split,set", AUTO, "ingest.columns.split"),
        ("path,label,label", AUTO, "ingest.columns.label"),
        ("where,label", AUTO, "no column for the path"),
        ("path,what", AUTO, "no column for the label: name one of its columns (path, what)"),
        (
            "path,label",
            Columns(label="kind"),
            "no column 'kind' (ingest.columns.label); its columns are path, label",
        ),
        ("path,label", Columns(group="patient"), "no column 'patient' (ingest.columns.group)"),
        ("path,label", Columns(label="label", group="label"), "both name the column 'label'"),
        ("path,x,x", Columns(label="x"), "2 columns 'x'"),
        ("", AUTO, "no header"),
        ("\n,,", AUTO, "no header"),
    ],
)
def test_columns_that_cannot_be_told_are_said_so(
    tmp_path: Path, header: str, columns: Columns, said: str
) -> None:
    with pytest.raises(WinnowError) as caught:
        manifest(tmp_path, f"{header}\n", columns)
    assert said in str(caught.value)
    assert "labels.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_byte_order_marks_line_ends_and_delimiters(
    tmp_path: Path, end: str, mark: bytes, delimiter: str
) -> None:
    lines = [["path", "label"], ["ä/1.png", "kätzchen"], [], ["2.png", "dog"]]
    text = end.join(delimiter.join(cells) for cells in lines)
    source = manifest(tmp_path, mark + text.encode())
    assert names_and_labels(source) == [("ä/1.png", "kätzchen"), ("2.png", "dog")]
    assert source.count == 3


def test_quoted_cells(tmp_path: Path) -> None:
    source = manifest(tmp_path, 'path,label,note\n"a, b/1.png","say ""cat""","two\nlines"\n2.png,dog,\n')
    assert names_and_labels(source) == [("a, b/1.png", 'say "cat"'), ("2.png", "dog")]


def test_a_decimal_comma_where_semicolons_separate(tmp_path: Path) -> None:
    assert rows(manifest(tmp_path, "path;label;weight\n1.png;cat;0,5\n"))[0][4] == 0.5


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_said_so(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(WinnowError, match="UTF-16: save it as UTF-8"):
        manifest(tmp_path, "path,label\n1.png,cat\n".encode(encoding))
    assert find(FolderTree(tmp_path), AUTO) == "labels.csv"


def test_other_encodings_are_named_with_their_line(tmp_path: Path) -> None:
    with pytest.raises(WinnowError, match="line 3: not UTF-8"):
        manifest(tmp_path, "path,label\r\n1.png,cat\r\n2.png,kätzchen\r\n".encode("latin-1"))


@pytest.mark.parametrize("cut", ["ä".encode()[:1], b"\xff"])
def test_a_broken_end_is_no_utf_8(tmp_path: Path, cut: bytes) -> None:
    with pytest.raises(WinnowError, match="line 2: not UTF-8"):
        manifest(tmp_path, b"path,label\n1.png," + cut)


def test_the_split_unlabeled_takes_the_label_away(tmp_path: Path) -> None:
    text = "path,label,split\n1.png,,test\n2.png,cat,Unlabeled\n3.png,cat,\n4.png,cat, \n"
    assert [row[:3] for row in rows(manifest(tmp_path, text))] == [
        ("1.png", None, "test"),
        ("2.png", None, None),
        ("3.png", "cat", None),
        ("4.png", "cat", None),
    ]


@pytest.mark.parametrize(
    ("cell", "reason", "said"),
    [
        ("   ", "bad_label", "blank"),
        ("../..", "bad_label", "climbs"),
        ("a/../../b", "bad_label", "climbs"),
        ("..\\x", "bad_label", "climbs"),
        ('"a\nb"', "bad_label", "\\n"),
        ("a\0b", "bad_label", "\\x00"),
        ("x" * 201, "bad_label", "201 characters"),
        ("x" * 5000, "bad_label", "5000 characters"),
    ],
)
def test_labels_that_name_no_class(tmp_path: Path, cell: str, reason: str, said: str) -> None:
    source = manifest(tmp_path, f"path,label\n1.png,{cell}\n2.png,cat\n")
    (row,) = refused(source)
    assert (row.path, row.reason) == ("1.png", reason)
    assert row.detail.startswith("labels.csv, line 2: ")
    assert said in row.detail
    assert names_and_labels(source) == [("2.png", "cat")]


def test_labels_are_compared_without_blanks_and_composed(tmp_path: Path) -> None:
    source = manifest(tmp_path, "path,label\n1.png, cafe\u0301 \n2.png,café\n")
    assert {label for _, label in names_and_labels(source)} == {"café"}


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("/etc/passwd", "outside_source"),
        ("../x.png", "outside_source"),
        ("a/../../x.png", "outside_source"),
        ("..\\x.png", "outside_source"),
        ("C:\\x.png", "outside_source"),
        ("c:/x.png", "outside_source"),
        ("\\\\server\\x.png", "outside_source"),
        ("s3://bucket/x.png", "outside_source"),
        ("https://example.org/x.png", "outside_source"),
        ("file:///x.png", "outside_source"),
        ("a\0.png", "bad_name"),
        ('"a\n.png"', "bad_name"),
        ("a\u2028.png", "bad_name"),
        ("x" * 5000, "bad_name"),
        ("", "bad_row"),
        (" ", "bad_row"),
        ("./", "bad_row"),
        ("a/..", "bad_row"),
    ],
)
def test_paths_that_are_refused(tmp_path: Path, cell: str, reason: str) -> None:
    source = manifest(tmp_path, f"path,label\n{cell},cat\n2.png,cat\n")
    (row,) = refused(source)
    assert row.reason == reason
    assert row.path.isprintable()
    assert len(row.path) <= 300
    assert row.detail.startswith("labels.csv, line 2: ")
    assert names_and_labels(source) == [("2.png", "cat")]


def test_remote_files_are_sent_to_dvc(tmp_path: Path) -> None:
    assert "dvc import-url" in refused(manifest(tmp_path, "path,label\ns3://b/x.png,cat\n"))[0].detail


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        ("./a.png", "a.png"),
        ("a/./b//c.png", "a/b/c.png"),
        ("a/../b.png", "b.png"),
        ("a\\b.png", "a/b.png"),
        ("data/train\\b.png", "data/train/b.png"),
        (" a.png ", "a.png"),
        ("a b/c (1).png", "a b/c (1).png"),
        ("ab:c.png", "ab:c.png"),
        ("..a/b..png", "..a/b..png"),
    ],
)
def test_paths_are_brought_to_one_form(tmp_path: Path, cell: str, name: str) -> None:
    assert names_and_labels(manifest(tmp_path, f"path,label\n{cell},cat\n")) == [(name, "cat")]


def test_paths_are_relative_to_the_manifests_folder(tmp_path: Path) -> None:
    text = "path,label\nimg/1.png,cat\n../2.png,cat\n../../3.png,cat\n"
    source = manifest(tmp_path, text, name="meta/labels.csv")
    assert names_and_labels(source) == [("meta/img/1.png", "cat"), ("2.png", "cat")]
    assert reasons(source) == {"../../3.png": "outside_source"}


def test_a_name_that_is_no_plain_text_is_shown_escaped(tmp_path: Path) -> None:
    (block,) = manifest(tmp_path, "path,label\na\u200b.png,cat\n").blocks()
    assert block.names == ["a\\u200b.png"]
    (tmp_path / "a\u200b.png").write_bytes(b"pixels")
    assert list(block.payload.read()) == [b"pixels"]


@pytest.mark.parametrize("cell", ["nan", "inf", "-1", "x", "1e39", "1,5"])
def test_weights_that_are_none(tmp_path: Path, cell: str) -> None:
    source = manifest(tmp_path, f'path,label,weight\n1.png,cat,"{cell}"\n2.png,cat,2\n')
    assert reasons(source) == {"1.png": "bad_row"}
    assert [row[4] for row in rows(source)] == [2.0]


def test_unknown_splits_and_rows_of_other_lengths(tmp_path: Path) -> None:
    text = "path,label,split\n1.png,cat,holdout\n2.png,cat\n3.png,cat,train,x\n\n,,\n4.png,cat,train\n"
    source = manifest(tmp_path, text)
    assert [(row.path, row.reason) for row in refused(source)] == [
        ("1.png", "bad_row"),
        ("labels.csv#3", "bad_row"),
        ("labels.csv#4", "bad_row"),
    ]
    details = [row.detail for row in refused(source)]
    assert "'holdout'" in details[0]
    assert details[1] == "labels.csv, line 3: 2 cells, but the header has 3"
    assert names_and_labels(source) == [("4.png", "cat")]


def test_a_quote_in_the_wrong_place_costs_one_row(tmp_path: Path) -> None:
    source = manifest(tmp_path, 'path,label\n"1".png,cat\n2.png,cat\n')
    assert reasons(source) == {"labels.csv#2": "bad_row"}
    assert names_and_labels(source) == [("2.png", "cat")]


def test_a_quote_that_nothing_closes_is_an_error_with_its_lines(tmp_path: Path) -> None:
    source = manifest(tmp_path, 'path,label\n1.png,cat\n"2.png,cat\n3.png,cat\n')
    with pytest.raises(WinnowError, match="lines 3 to 4"):
        rows(source)


def test_a_huge_cell_takes_no_memory(tmp_path: Path) -> None:
    with (tmp_path / "labels.csv").open("wb") as file:
        file.write(b"path,label\n")
        for _ in range(32):
            file.write(b"x" * 2**20)
        file.write(b",cat\n2.png,cat\n")
    tracemalloc.start()
    source = Manifest(FolderTree(tmp_path), "labels.csv", AUTO)
    found = names_and_labels(source)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == [("2.png", "cat")]
    assert reasons(source) == {"labels.csv#2": "bad_row"}
    assert peak < 2**24


def test_a_row_of_endless_lines_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONGEST_ROW", 1000)
    source = manifest(tmp_path, "path,label\n1.png" + ',"\n"' * 1000)
    with pytest.raises(WinnowError, match="more than 1000 characters"):
        rows(source)


def test_ten_thousand_classes_come_in_blocks(tmp_path: Path) -> None:
    lines = "".join(f"{i}.png,class {i}\n" for i in range(10_000))
    blocks = list(manifest(tmp_path, f"path,label\n{lines}").blocks())
    assert max(len(block.names) for block in blocks) == BLOCK
    assert sum(len(block.payload) for block in blocks) == 10_000
    assert len({label for block in blocks for label in block.labels}) == 10_000


def test_refusals_come_in_blocks_too(tmp_path: Path) -> None:
    blocks = list(manifest(tmp_path, "path,label\n" + "../x.png,cat\n" * 1000).blocks())
    assert max(len(block.refused) for block in blocks) <= BLOCK
    assert sum(len(block.refused) for block in blocks) == 1000


def test_a_path_listed_twice_is_listed_twice(tmp_path: Path) -> None:
    source = manifest(tmp_path, "path,label\n1.png,cat\n1.png,dog\n")
    assert names_and_labels(source) == [("1.png", "cat"), ("1.png", "dog")]


def test_every_column_of_a_parquet_file_is_read(tmp_path: Path) -> None:
    source = table(
        tmp_path,
        {
            "path": ["1.png", "2.png", "3.png"],
            "label": pa.array(["cat", None, "dog"]).dictionary_encode(),
            "split": ["train", "test", None],
            "group": [7, None, 8],
            "weight": [0.5, None, 2.0],
            "extra": [[1], [2], [3]],
        },
    )
    assert rows(source) == [
        ("1.png", "cat", "train", "7", 0.5),
        ("2.png", None, "test", None, 1.0),
        ("3.png", "dog", None, "8", 2.0),
    ]
    assert source.count == 3
    assert source.notes == ["columns not used: extra"]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([3, 12, None], ["3", "12", None]),
        (pa.array([3.0, math.nan, None]), ["3", None, None]),
        ([True, False, None], ["True", "False", None]),
        (pa.array(["a", "", None], pa.large_string()), ["a", None, None]),
        (pa.array(["a", "b", None], pa.string_view()), ["a", "b", None]),
        (np.array([0, 1, 255], np.uint8), ["0", "1", "255"]),
    ],
)
def test_labels_of_other_types(tmp_path: Path, labels: object, expected: list[str | None]) -> None:
    source = table(tmp_path, {"path": ["1", "2", "3"], "label": labels})
    assert [label for _, label in names_and_labels(source)] == expected


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"path": ["1"], "label": [[1]]}, "'label' holds values of type list"),
        ({"path": ["1"], "label": [b"x"]}, "'label' holds values of type binary"),
        ({"path": ["1"], "label": ["x"], "weight": [[1.0]]}, "'weight' holds values of type list"),
        ({"image": [b"x"], "label": ["x"]}, "no column for the path"),
    ],
)
def test_types_that_hold_no_such_thing(tmp_path: Path, columns: dict[str, object], said: str) -> None:
    with pytest.raises(WinnowError) as caught:
        table(tmp_path, columns)
    assert said in str(caught.value)


def test_a_named_column_of_paths_has_to_hold_texts(tmp_path: Path) -> None:
    with pytest.raises(WinnowError, match="'id' holds values of type int64: paths are needed"):
        table(tmp_path, {"id": [1], "label": ["x"]}, Columns(path="id"))


@pytest.mark.parametrize("value", [0.5, math.inf])
def test_labels_that_are_no_whole_numbers_are_an_error(tmp_path: Path, value: float) -> None:
    source = table(tmp_path, {"path": ["1"], "label": [value]})
    with pytest.raises(WinnowError, match="'label' holds numbers that are not whole"):
        rows(source)


def test_bad_rows_of_a_parquet_file_are_refused_one_by_one(tmp_path: Path) -> None:
    source = table(
        tmp_path,
        {
            "path": ["1.png", None, "../3.png", "4.png", "5.png"],
            "label": ["cat", "cat", "cat", " ", "cat"],
            "weight": [math.nan, 1, 1, 1, 1],
        },
    )
    found = refused(source)
    assert [(row.path, row.reason) for row in found] == [
        ("1.png", "bad_row"),
        ("labels.parquet#1", "bad_row"),
        ("../3.png", "outside_source"),
        ("4.png", "bad_label"),
    ]
    assert found[3].detail == "labels.parquet, row 3: a blank class name"
    assert names_and_labels(source) == [("5.png", "cat")]


def test_texts_that_are_no_utf_8(tmp_path: Path) -> None:
    def broken(*values: bytes) -> pa.Array:
        return pa.Array.from_buffers(pa.string(), len(values), pa.array(values).buffers())

    (tmp_path / "ok.png").write_bytes(b"pixels")
    source = table(
        tmp_path,
        {
            "path": broken(b"\xff.png", b"1.png", b"2.png", b"ok.png"),
            "label": broken(b"cat", b"\xfe", b"cat", b"cat"),
            "group": broken(b"", b"", b"\xfd", b"g"),
        },
    )
    assert reasons(source) == {"1.png": "bad_label", "2.png": "bad_row"}
    assert names_and_labels(source) == [("\ufffd.png", "cat"), ("ok.png", "cat")]
    (block,) = source.blocks()
    missing, there = block.payload.read()
    assert isinstance(missing, UnusableError)
    assert there == b"pixels"


def test_large_parquet_files_come_in_blocks(tmp_path: Path) -> None:
    source = table(tmp_path, {"path": [f"{i}.png" for i in range(10_000)], "label": ["x"] * 10_000})
    blocks = list(source.blocks())
    assert max(len(block.names) for block in blocks) <= BLOCK
    assert [name for block in blocks for name in block.names] == [f"{i}.png" for i in range(10_000)]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet at all", b"PAR1" + b"\0" * 50 + b"PAR1"])
def test_a_file_that_is_no_parquet(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(WinnowError, match=r"labels\.parquet is damaged, encrypted or no Parquet file"):
        manifest(tmp_path, content, name="labels.parquet")


def test_a_parquet_file_with_a_damaged_middle(tmp_path: Path) -> None:
    table(tmp_path, {"path": [f"{i}.png" for i in range(10_000)], "label": ["x"] * 10_000})
    path = tmp_path / "labels.parquet"
    content = bytearray(path.read_bytes())
    content[100:5000] = b"\xff" * 4900
    path.write_bytes(content)
    with pytest.raises(WinnowError, match="is damaged"):
        rows(Manifest(FolderTree(tmp_path), "labels.parquet", AUTO))


def test_find_takes_the_one_table_with_paths(tmp_path: Path) -> None:
    (tmp_path / "labels.TSV").write_text("file\tlabel\n")
    (tmp_path / "colours.csv").write_text("name,value\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "notes.txt").write_text("path,label\n")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "numbers.parquet")
    assert find(FolderTree(tmp_path), AUTO) == "labels.TSV"
    assert find(FolderTree(tmp_path), Columns(path="name")) == "colours.csv"
    assert find(FolderTree(tmp_path), Columns(path="where")) is None


def test_find_takes_parquet_with_paths_but_none_with_images(tmp_path: Path) -> None:
    images = pa.array([{"bytes": b"x", "path": "x"}])
    pq.write_table(pa.table({"image": images, "label": [1], "file": ["x"]}), tmp_path / "images.parquet")
    assert find(FolderTree(tmp_path), AUTO) is None
    pq.write_table(pa.table({"image": ["a.png"], "label": [1]}), tmp_path / "labels.parquet")
    assert find(FolderTree(tmp_path), AUTO) == "labels.parquet"


def test_find_does_not_choose_between_two(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("path,label\n")
    with pytest.raises(WinnowError, match=r"several manifests \(a\.csv, b\.csv\)"):
        find(FolderTree(tmp_path), AUTO)


def _checked(blocks: list[Block]) -> None:
    for block in blocks:
        for column in (block.labels, block.splits, block.groups, block.weights, block.payload):
            assert len(column) == len(block.names)
        assert len(block.names) + len(block.refused) <= BLOCK
        for name in block.names:
            assert name.isprintable()
            assert not name.startswith("/")
            assert ".." not in name.split("/")
        for row in block.refused:
            assert row.reason in REASONS
            assert "\n" not in row.path + row.detail


_TEXTS = st.lists(
    st.sampled_from([*'path,label"\n\r;\t./\\ :é0', "\0", "..", "split", "\u2028", "train"])
).map(lambda parts: "".join(parts).encode())


@settings(max_examples=200, deadline=None, suppress_health_check=ONE_FOLDER)
@given(
    content=st.one_of(st.binary(), _TEXTS),
    header=st.sampled_from([b"", b"path,label\n", b"path;label;split\n"]),
)
def test_any_bytes_as_csv_are_rows_refusals_or_an_error_in_words(
    tmp_path: Path, content: bytes, header: bytes
) -> None:
    try:
        _checked(list(manifest(tmp_path, header + content).blocks()))
    except WinnowError as error:
        assert "\n" not in str(error)


_CELL = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=100, deadline=None, suppress_health_check=ONE_FOLDER)
@given(cells=st.lists(st.tuples(_CELL, _CELL, _CELL), min_size=1, max_size=5))
def test_any_texts_in_parquet_are_rows_or_refusals(tmp_path: Path, cells: list[tuple[str, str, str]]) -> None:
    path, label, group = (list(column) for column in zip(*cells, strict=True))
    blocks = list(table(tmp_path, {"path": path, "label": label, "group": group}).blocks())
    _checked(blocks)
    found = sum(len(block.names) + len(block.refused) for block in blocks)
    assert found == len(cells)


@settings(max_examples=100, deadline=None, suppress_health_check=ONE_FOLDER)
@given(changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=20))
def test_any_damage_to_parquet_is_rows_refusals_or_an_error_in_words(
    tmp_path: Path, changes: list[tuple[int, int]]
) -> None:
    table(tmp_path, {"path": ["1.png", "2.png"], "label": ["cat", "dog"], "weight": [1.0, 2.0]})
    path = tmp_path / "labels.parquet"
    content = bytearray(path.read_bytes())
    for place, value in changes:
        content[place % len(content)] = value
    path.write_bytes(content)
    try:
        _checked(list(Manifest(FolderTree(tmp_path), "labels.parquet", AUTO).blocks()))
    except WinnowError as error:
        assert "\n" not in str(error)


def seconds(source: Manifest) -> list[list[str | None] | None]:
    return [block.second_labels for block in source.blocks()]


def test_a_second_column_of_labels_is_read_where_it_is_named(tmp_path: Path) -> None:
    named = Columns(second_label="fabric")
    text = "path,label,fabric\n1.png,coat, wool\n2.png,hat,\n3.png,hat,../x\n"
    source = manifest(tmp_path, text, named)
    assert seconds(source) == [["wool", None]]
    assert reasons(manifest(tmp_path, text, named)) == {"3.png": "bad_label"}
    assert seconds(manifest(tmp_path, text)) == [None]
    with pytest.raises(WinnowError, match=r"no column 'fabrics' \(ingest\.columns\.second_label\)"):
        manifest(tmp_path, text, Columns(second_label="fabrics"))
    with pytest.raises(WinnowError, match="both name the column 'label'"):
        manifest(tmp_path, text, Columns(label="label", second_label="label"))


def test_second_labels_of_a_parquet_table(tmp_path: Path) -> None:
    columns = {"path": ["1.png", "2.png"], "label": ["coat", "hat"], "fabric": [3, None]}
    assert seconds(table(tmp_path, columns, Columns(second_label="fabric"))) == [["3", None]]
