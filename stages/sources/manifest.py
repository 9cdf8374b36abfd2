"""A manifest: a CSV or Parquet table that names the files and says what is known of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from stages.errors import WinnowError
from stages.sources.base import Block, Columns, UnusableError
from stages.sources.files.trees import Tree
from stages.sources.names import printable
from stages.sources.tables import parquet
from stages.sources.tables.cells import Rows
from stages.sources.tables.columns import AUTO, USUAL, candidates, choose, unused
from stages.sources.tables.csvtable import CsvTable, has_paths

_CSV = (".csv", ".tsv")
_PARQUET = ".parquet"
_ROWS = 2**12  # of a Parquet batch
_HELD = 2**22  # bytes of a Parquet batch


def find(tree: Tree, columns: Columns) -> str | None:
    """The manifest at the top of a tree: the one table there with a column of paths.

    Raises
    ------
    WinnowError
        Where there are several, or a Parquet file is damaged.
    """
    found = [name for name in tree.files() if _is_manifest(tree, name, columns)]
    if len(found) > 1:
        names = ", ".join(printable(name) for name in found)
        raise WinnowError(
            f"ingest.source {tree.shown} holds several manifests ({names}): leave one; "
            "a column `split` says what two files, train and test, would have said"
        )
    return found[0] if found else None


class Manifest:
    """Reads a table with a row for each image; see `csvtable.CsvTable` for what a CSV may be.

    Paths are relative to the table's folder. An empty label cell, and the split `unlabeled`, make an
    unlabeled item, which is in no split. In Parquet, labels and groups may be whole numbers: they
    become their decimal digits. A row that cannot be right is refused with its line, counted from 1
    (in Parquet with its row, counted from 0). Rows of a CSV in which every cell is empty are passed over.

    Parameters
    ----------
    tree : where table and files are
    name : of the table in the tree: `.csv`, `.tsv` or `.parquet`
    columns : which of its columns say what

    Raises
    ------
    WinnowError
        Where the table cannot be read, or has not the columns.
    """

    def __init__(self, tree: Tree, name: str, columns: Columns) -> None:
        self._tree = tree
        self._name = name
        self._shown = f"ingest.source {tree.shown}: {printable(name)}"
        self._csv: CsvTable | None = None
        if name.lower().endswith(_PARQUET):
            self._parquet = parquet.ParquetTable(tree, name)
            self._header = self._parquet.header
            self.count = self._parquet.count
            no_paths = _no_paths(self._parquet.schema)
            self._columns = choose(columns, self._header, self._shown, no_paths=no_paths)
            self._check_types()
        else:
            self._csv = CsvTable(tree, name, columns)
            self._header = self._csv.header
            self.count = self._csv.count
            self._columns = choose(columns, self._header, self._shown)
        self.kind = f"a manifest, {printable(name)}"
        self.classes: Sequence[str] = ()
        self.notes = unused(self._header, self._columns)

    def blocks(self) -> Iterator[Block]:
        """All items, row by row; see `base.Source.blocks`."""
        rows = Rows(
            self._name,
            "line" if self._csv else "row",
            self._name.rpartition("/")[0],
            second="second_label" in self._columns,
        )
        for _ in self._csv_rows(self._csv, rows) if self._csv else self._parquet_rows(rows):
            if rows.full:
                yield rows.take(self._tree.payload)
        if not rows.empty:
            yield rows.take(self._tree.payload)

    def _csv_rows(self, table: CsvTable, rows: Rows) -> Iterator[None]:
        """Hand row after row to `rows`, which may be emptied after each."""
        width = len(self._header)
        path, label, split, group, weight, second = (self._columns.get(role, width) for role in USUAL)
        decimal_comma = table.delimiter == ";"  # as spreadsheets write it where numbers have one
        for line, row in table.rows():
            if isinstance(row, str):
                rows.refuse(line, None, UnusableError("bad_row", row))
            elif len(row) != width:
                wrong = f"{len(row)} cells, but the header has {width}"
                rows.refuse(line, None, UnusableError("bad_row", wrong))
            elif row[path] or any(row):
                row.append("")  # the cell of a column that is not there
                weighs = row[weight].replace(",", ".") if decimal_comma else row[weight]
                rows.add(line, row[path], row[label], row[split], row[group], weighs, row[second])
            yield

    def _parquet_rows(self, rows: Rows) -> Iterator[None]:
        names = {role: self._header[at] for role, at in self._columns.items()}
        number = 0
        for batch in self._parquet.batches(list(names.values()), _ROWS, _HELD):
            nothing = [None] * batch.num_rows
            cells = [
                self._cells(role, batch.column(names[role])) if role in names else nothing for role in USUAL
            ]
            for row in zip(*cells, strict=True):
                rows.add(number, *row)
                number += 1
                yield

    def _cells(self, role: str, column: Any) -> list[Any]:
        shown = f"{self._shown}: the column {self._header[self._columns[role]]!r}"
        return parquet.numbers(column, shown) if role == "weight" else parquet.words(column, shown)

    def _check_types(self) -> None:
        """Complain of a column's type before any image is read."""
        schema = self._parquet.schema
        path = self._columns["path"]
        if path in _no_paths(schema):
            raise WinnowError(
                f"{self._shown}: the column {self._header[path]!r} holds values of type "
                f"{schema.types[path]}: paths are needed (ingest.columns.path)"
            )
        for role, at in self._columns.items():
            self._cells(role, parquet.nothing(schema.types[at]))


def _is_manifest(tree: Tree, name: str, columns: Columns) -> bool:
    if name.lower().endswith(_CSV):
        return has_paths(tree, name, columns)
    if not name.lower().endswith(_PARQUET):
        return False
    table = parquet.ParquetTable(tree, name)
    if parquet.image_columns(table.schema):
        return False
    if columns.path == AUTO:
        return bool(candidates("path", table.header, _no_paths(table.schema)))
    return columns.path in [name.strip() for name in table.header]


def _no_paths(schema: Any) -> frozenset[int]:
    """Positions of the columns whose type holds no paths."""
    return frozenset(at for at, kind in enumerate(schema.types) if not parquet.is_text(kind))
