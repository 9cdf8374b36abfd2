"""Read Parquet files in the layout of the Hugging Face hub: the images are in the table.

https://huggingface.co/docs/datasets/image_dataset, and for the names of files and splits
https://huggingface.co/docs/hub/datasets-file-names-and-splits
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stages.dataset.ids import Split
from stages.errors import MAX_BYTES, UnusableError, WinnowError
from stages.ingestion import cells, parquet
from stages.ingestion.cells import AUTO, BlockBuilder, candidates, choose, listed, unused
from stages.ingestion.parquet import BytesPayload
from stages.ingestion.source import (
    Block,
    Columns,
    EmptyPayload,
    class_name,
    label_problem,
    printable,
    split_of,
)
from stages.ingestion.trees import Tree

_ROWS = 64  # of a batch, and so items of a block
_HELD = 2**23  # bytes of a batch
_FEW_FOLDERS = 16  # a dataset has few folders of shards; many folders are classes
_NO_LABEL = "-1"  # the hub's, in test sets whose labels are kept back


def find(tree: Tree) -> list[str]:
    """Find the shards at the top of a tree, else one folder down; none where they are in another layout.

    Raises
    ------
    WinnowError
        Where a Parquet file is damaged, or shards lie in several folders that are no splits: those
        are other versions of the same dataset.
    """
    shards = _shards(tree, "")
    if shards:
        return shards
    folders = tree.folders()
    if len(folders) > _FEW_FOLDERS:
        folders = [name for name in folders if name == "data" or split_of(name)]
    by_folder = {folder: shards for folder in folders if (shards := _shards(tree, folder))}
    if len(by_folder) > 1 and not all(map(split_of, by_folder)):
        names = ", ".join(f"{printable(folder)}/" for folder in by_folder)
        raise WinnowError(
            f"ingest.source {tree.shown} has Parquet files in several folders ({names}): "
            "name one of them as ingest.source"
        )
    return [name for shards in by_folder.values() for name in shards]


class HuggingFace:
    """Reads images from a column of structs of `bytes` and `path`, as `datasets` writes them.

    Bytes that are null are those of the file at `path`, relative to the shard's folder, else to the
    top of the tree. Labels are texts, or numbers of the names that the file's metadata gives
    (`ClassLabel`; -1 and null are no label), or numbers without names. The split is that of a column,
    else the one that the shard's name or folder says, such as `data/train-00000-of-00002.parquet`.
    Items are called `<shard>#<row>`, counted from 0.

    Parameters
    ----------
    tree : where the shards are
    names : of the shards in the tree
    columns : which columns say what; `path` is the column of images

    Raises
    ------
    WinnowError
        Where a shard cannot be read, has not the columns, or other class names than the first.
    """

    def __init__(self, tree: Tree, names: Sequence[str], columns: Columns) -> None:
        self._tree = tree
        self._shards = [_open(tree, name, columns) for name in names]
        self.count = sum(shard.count for shard in self._shards)
        self.classes = _classes(self._shards)
        splits = sorted({shard.split for shard in self._shards if shard.split})
        many = "1 file" if len(self._shards) == 1 else f"{len(self._shards)} files"
        self.kind = f"Parquet with images, {many}" + (f" ({', '.join(splits)})" if splits else "")
        self.notes = sorted({line for shard in self._shards for line in shard.notes})

    def blocks(self) -> Iterator[Block]:
        """Yield all items, shard by shard and row by row; see `source.Source.blocks`."""
        for shard in self._shards:
            first = 0
            table = parquet.ParquetTable(self._tree, shard.name)
            for batch in table.batches(list(shard.columns.values()), _ROWS, _HELD):
                yield _block(self._tree, shard, batch, first)
                first += batch.num_rows


@dataclass(frozen=True)
class _Shard:
    """A file whose columns have been found; nothing of it is open."""

    name: str
    shown: str
    count: int
    columns: dict[str, str]  # by role
    numbered: bool  # labels are numbers
    class_names: list[str] | None  # what the numbers mean, as the file has it
    second_names: list[str] | None  # the same of the second labels
    split: Split | None
    notes: list[str]


def _shards(tree: Tree, folder: str) -> list[str]:
    names = [name for name in tree.files(folder) if name.lower().endswith(".parquet")]
    return [name for name in names if parquet.image_columns(parquet.ParquetTable(tree, name).schema)]


def _open(tree: Tree, name: str, columns: Columns) -> _Shard:
    shown = f"ingest.source {tree.shown}: {printable(name)}"
    table = parquet.ParquetTable(tree, name)
    schema, header = table.schema, table.header
    features = _features(schema.metadata)
    image = _image_column(columns, schema, shown)
    if columns.label == AUTO and not candidates("label", header):
        labelled = [column for column in header if _names_of(features, column) is not None]
        columns = replace(columns, label=labelled[0]) if len(labelled) == 1 else columns
    found = choose(columns, header, shown, {"path": image})
    for role, at in found.items():
        if role != "path":
            parquet.cells_of(
                role, parquet.empty_column(schema.types[at]), f"{shown}: the column {header[at]!r}"
            )
    numbered = {role for role, at in found.items() if parquet.is_number(schema.types[at])}
    class_names, second_names = (
        _names_of(features, header[found[role]]) if role in numbered else None
        for role in ("label", "second_label")
    )
    return _Shard(
        name=name,
        shown=shown,
        count=table.count,
        columns={role: header[at] for role, at in found.items()},
        numbered="label" in numbered,
        class_names=class_names,
        second_names=second_names,
        split=None if "split" in found else _split_in(name),
        notes=unused(header, found),
    )


def _image_column(columns: Columns, schema: Any, shown: str) -> int:
    images = parquet.image_columns(schema)
    names = listed([schema.names[at] for at in images])
    if columns.path != AUTO:
        named = [at for at in images if schema.names[at] == columns.path]
        if not named:
            raise WinnowError(
                f"{shown} has no column {columns.path!r} of images (ingest.columns.path); "
                f"its columns of images are {names}"
            )
        return named[0]
    if len(images) != 1:
        has = f"several columns of images ({names})" if images else "no column of images"
        raise WinnowError(f"{shown} has {has}: name one as ingest.columns.path")
    return images[0]


def _features(metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    """Return what `datasets` says of the columns; empty where it cannot be understood."""
    value: Any = None
    try:
        value = json.loads((metadata or {}).get(b"huggingface", b"{}"))
        for key in ("info", "features"):
            value = value.get(key) if isinstance(value, dict) else None
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _names_of(features: dict[str, Any], column: str) -> list[str] | None:
    """Return the class names of a column of numbers, None where there are none."""
    feature = features.get(column)
    names = feature.get("names") if isinstance(feature, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return [class_name(name) for name in names]


def _classes(shards: Sequence[_Shard]) -> list[str]:
    """Return the class names that the shards agree on, less those that no class can have."""
    named = [shard for shard in shards if shard.class_names is not None]
    if not named:
        return []
    first = named[0].class_names or []
    for shard in named:
        if shard.class_names != first:
            raise WinnowError(f"{shard.shown} has other class names than {printable(named[0].name)}")
    if len(set(first)) < len(first):
        raise WinnowError(f"{named[0].shown}: the same class name stands twice in its metadata")
    return [name for name in first if not label_problem(name)]


def _split_in(name: str) -> Split | None:
    """Return the split that a shard's name says, else its folder's; None where it is none or several."""
    folder, _, file = name.rpartition("/")
    for text in (file.rpartition(".")[0], folder):
        splits = {split for word in re.split(r"[^A-Za-z]+", text) if (split := split_of(word))}
        if splits:
            return splits.pop() if len(splits) == 1 else None
    return None


def _block(tree: Tree, shard: _Shard, batch: Any, first: int) -> Block:
    """Read one batch of rows; `first` is the number of its first row in the shard."""
    columns = {
        role: parquet.cells_of(role, batch.column(name), f"{shard.shown}: the column {name!r}")
        for role, name in shard.columns.items()
        if role != "path"
    }
    empty = [None] * batch.num_rows
    cells = (columns.get(role, empty) for role in ("label", "split", "group", "weight", "second_label"))
    rows: BlockBuilder[int] = BlockBuilder(second="second_label" in shard.columns)
    for row, (label, split, group, weight, second) in enumerate(zip(*cells, strict=True)):
        name = f"{printable(shard.name)}#{first + row}"
        try:
            known = None if shard.numbered and label == _NO_LABEL else _named(label, shard.class_names)
            second_label = _named(second, shard.second_names)
            rows.add(name, row, known, split or shard.split, group, weight, second_label)
        except UnusableError as error:
            rows.refuse(name, error.reason, error.detail)
    images, folder = batch.column(shard.columns["path"]), shard.name.rpartition("/")[0]
    return rows.take(lambda taken: _payload(tree, folder, images, taken))


def _named(label: str | None, names: list[str] | None) -> str | None:
    """Return what a number stands for; the label itself where numbers have no names."""
    if names is None or label is None or label == _NO_LABEL:
        return None if names is not None else label
    number = int(label)
    if not 0 <= number < len(names):
        raise UnusableError("bad_label", f"label {number}, but there are {len(names)} names")
    return names[number] or " "  # a blank name is no missing label


def _payload(tree: Tree, folder: str, images: Any, rows: Sequence[int]) -> BytesPayload:
    """Return the images of some rows of a batch."""
    fields = {images.type.field(at).name: column for at, column in enumerate(images.flatten())}
    content, paths = fields["bytes"], fields.get("path")
    sizes = parquet.sizes(content)
    items: list[bytes | UnusableError | None] = []
    files: list[str] = []
    for row in rows:
        size = sizes[row]
        if size is None:
            cell = parquet.words(paths.slice(row, 1), "path")[0] if paths is not None else None
            items.append(_file(tree, folder, cell, files))
        elif size > MAX_BYTES:
            items.append(UnusableError("too_large", f"{size} bytes; at most {MAX_BYTES}"))
        else:
            items.append(content[row].as_py())
    return BytesPayload(items, tree.payload(files) if files else EmptyPayload())


def _file(tree: Tree, folder: str, cell: str | None, files: list[str]) -> UnusableError | None:
    """Add the file that stands for an image without bytes to `files`, or say why there is none."""
    if not cell:
        return UnusableError("unreadable", "neither bytes nor a path")
    try:
        name = cells.file_name(cell, folder)
        if folder and tree.problem(name):
            top = cells.file_name(cell)
            name = name if tree.problem(top) else top
    except UnusableError as error:
        return error
    files.append(name)
    return None
