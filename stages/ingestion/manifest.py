"""Read a manifest: a CSV or Parquet table that names the files and says what is known of each.

Anybody may have written it. It is read row by row: no file is too long, and no row takes the memory.
"""

from __future__ import annotations

import codecs
import csv
import io
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from stages.errors import UnusableError, WinnowError, shorten
from stages.ingestion import parquet
from stages.ingestion.cells import (
    AUTO,
    LONGEST_SHOWN,
    USUAL_NAMES,
    BlockBuilder,
    candidates,
    choose,
    file_name,
    unused,
)
from stages.ingestion.source import BLOCK, Block, Columns, printable
from stages.ingestion.trees import Tree

_HEAD = 2**20  # bytes in which the header ends
_LONGEST_ROW = 2**20  # characters
_PIECE = 2**20  # bytes that are read at a time to count the lines
_DELIMITERS = (",", ";", "\t")
_CSV = (".csv", ".tsv")
_PARQUET = ".parquet"
_ROWS = 2**12  # of a Parquet batch
_HELD = 2**22  # bytes of a Parquet batch


class CsvTable:
    """A table in UTF-8, with or without a byte order mark.

    Cells are separated by comma, semicolon or tab, whichever makes the header hold the columns, and
    quoted with `"` where need be; quoted cells may hold separators and line breaks. Lines end in
    LF, CR LF or CR.

    Parameters
    ----------
    tree : where it is
    name : in the tree
    columns : what the header is searched for

    Attributes
    ----------
    header : the cells of the first row that is not empty
    delimiter : what separates the cells
    count : of lines below the header: at least as many as there are rows

    Raises
    ------
    WinnowError
        Where it is no UTF-8, has no header, or cannot be read.
    """

    def __init__(self, tree: Tree, name: str, columns: Columns) -> None:
        self._tree = tree
        self._name = name
        self._shown = f"ingest.source {tree.shown}: {printable(name)}"
        head = _head(tree, name)
        if _utf_16(head):
            raise WinnowError(f"{self._shown} is UTF-16: save it as UTF-8")
        self.count = max(self._checked_lines() - 1, 0)
        self.delimiter, self.header = _header(_decoded(head), columns)
        if not any(cell.strip() for cell in self.header):
            raise WinnowError(f"{self._shown} has no header: its first line has to name the columns")

    def rows(self) -> Iterator[tuple[int, list[str] | str]]:
        """Yield every row below the header that is not empty, with the line it starts in, counted from 1.

        What is no row is yielded as the reason why not.

        Raises
        ------
        WinnowError
            Where it cannot be told where the next row starts, such as after a quote that nothing closes.
        """
        with (
            self._errors_for_users(),
            io.TextIOWrapper(self._tree.open(self._name), encoding="utf-8-sig", newline="") as text,
        ):
            lines = _Lines(text)
            reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
            header = True
            while True:
                start = lines.begin()
                try:
                    row = next(reader, None)
                except csv.Error as error:
                    if header or lines.number > start:
                        raise WinnowError(
                            f"{self._shown}, lines {start} to {lines.number}: {error}; is a quote not closed?"
                        ) from error
                    yield start, str(error)
                    continue
                if row is None:
                    return
                if row and not header:
                    yield start, row
                header = header and not row

    def _checked_lines(self) -> int:
        """Count the lines, and check that all of them are UTF-8 before any image is read."""
        decoder = codecs.getincrementaldecoder("utf-8-sig")()
        lines, last = 0, b"\n"
        with self._errors_for_users(), self._tree.open(self._name) as stream:
            while True:
                piece = stream.read(_PIECE)
                try:
                    decoder.decode(piece, final=not piece)
                except UnicodeDecodeError as error:
                    line = lines + _breaks(error.object[: error.start]) + 1
                    raise WinnowError(f"{self._shown}, line {line}: not UTF-8; save it as UTF-8") from error
                if not piece:
                    return lines + (last not in b"\r\n")
                lines, last = lines + _breaks(piece), piece[-1:]

    @contextmanager
    def _errors_for_users(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
            raise WinnowError(f"{self._shown} cannot be read to its end: bring it again") from error


def has_paths(tree: Tree, name: str, columns: Columns) -> bool:
    """Return whether a CSV has a column of paths, in whatever encoding."""
    _, header = _header(_decoded(_head(tree, name)), columns)
    return bool(_places("path", header, columns))


class _Lines:
    """The lines of a text, counted; refuses a row of more characters than are held at once.

    Attributes
    ----------
    number : of the last line that was read, from 1
    """

    def __init__(self, text: TextIO) -> None:
        self._readline = text.readline
        self._held = 0
        self.number = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._readline(_LONGEST_ROW)
        if not line:
            raise StopIteration
        self.number += 1
        self._held += len(line)
        if self._held >= _LONGEST_ROW:
            while line and line[-1] not in "\r\n":
                line = self._readline(_LONGEST_ROW)
            raise csv.Error(f"a row of more than {_LONGEST_ROW} characters")
        return line

    def begin(self) -> int:
        """Return the number of the line that the next row starts in."""
        self._held = 0
        return self.number + 1


def _head(tree: Tree, name: str) -> bytes:
    with tree.open(name) as stream:
        return stream.read(_HEAD)


def _utf_16(head: bytes) -> bool:
    start = head[:400]
    marked = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return marked or 4 * start.count(0) > len(start)


def _decoded(head: bytes) -> str:
    if _utf_16(head):
        little = head.startswith(codecs.BOM_UTF16_LE) or head[1:2] == b"\0"
        return head.decode("utf-16-le" if little else "utf-16-be", "replace").removeprefix("\ufeff")
    return head.decode("utf-8-sig", "replace")


def _header(head: str, columns: Columns) -> tuple[str, list[str]]:
    """Return the delimiter under which most of path and label are found (else most cells), and the cells."""
    best: tuple[tuple[int, int], str, list[str]] = ((-1, -1), ",", [])
    for delimiter in _DELIMITERS:
        cells = _first_row(head, delimiter)
        roles = sum(bool(_places(role, cells, columns)) for role in ("path", "label"))
        if (roles, len(cells)) > best[0]:
            best = ((roles, len(cells)), delimiter, cells)
    return best[1], best[2]


def _first_row(head: str, delimiter: str) -> list[str]:
    try:
        reader = csv.reader(io.StringIO(head, newline=""), delimiter=delimiter, strict=True)
        return next((row for row in reader if row), [])
    except csv.Error:
        return []


def _places(role: str, header: list[str], columns: Columns) -> list[int]:
    name = getattr(columns, role)
    if name == AUTO:
        return candidates(role, header)
    return [at for at, cell in enumerate(header) if cell.strip() == name]


def _breaks(piece: bytes) -> int:
    return piece.count(b"\n") + piece.count(b"\r") - piece.count(b"\r\n")


def find(tree: Tree, columns: Columns) -> str | None:
    """Find the manifest at the top of a tree: the one table with a column of paths.

    Raises
    ------
    WinnowError
        Where there are several, or a Parquet file is damaged.
    """
    manifests = [name for name in tree.files() if _is_manifest(tree, name, columns)]
    if len(manifests) > 1:
        names = ", ".join(map(printable, manifests))
        raise WinnowError(
            f"ingest.source {tree.shown} holds several manifests ({names}): leave one; "
            "a column `split` says what two files, train and test, would have said"
        )
    return manifests[0] if manifests else None


class Manifest:
    """Reads a table with a row for each image; see `CsvTable` for what a CSV may be.

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
        """Yield all items, row by row; see `source.Source.blocks`."""
        folder, table = self._name.rpartition("/")[0], printable(self._name)
        rows: BlockBuilder[str] = BlockBuilder(second="second_label" in self._columns)
        for number, row in self._csv_rows(self._csv) if self._csv else self._parquet_rows():
            path = None
            try:
                if isinstance(row, UnusableError):
                    raise row
                path, *cells = row
                file = file_name(path, folder)
                rows.add(printable(file), file, *cells)
            except UnusableError as error:
                shown = shorten(printable(path.strip(" ")), LONGEST_SHOWN) if path else ""
                place = f"{table}, {'line' if self._csv else 'row'} {number}"
                rows.refuse(shown or f"{table}#{number}", error.reason, f"{place}: {error.detail}")
            if len(rows) >= BLOCK:
                yield rows.take(self._tree.payload)
        if len(rows):
            yield rows.take(self._tree.payload)

    def _csv_rows(self, table: CsvTable) -> Iterator[tuple[int, Sequence[Any] | UnusableError]]:
        """Yield line and cells of every row, in the order of `USUAL_NAMES`, or why it is none."""
        width = len(self._header)
        path, label, split, group, weight, second = (self._columns.get(role, width) for role in USUAL_NAMES)
        decimal_comma = table.delimiter == ";"  # as spreadsheets write it where numbers have one
        for line, row in table.rows():
            if isinstance(row, str):
                yield line, UnusableError("bad_row", row)
            elif len(row) != width:
                yield line, UnusableError("bad_row", f"{len(row)} cells, but the header has {width}")
            elif row[path] or any(row):
                row.append("")  # the cell of a column that is not there
                weight_cell = row[weight].replace(",", ".") if decimal_comma else row[weight]
                yield line, (row[path], row[label], row[split], row[group], weight_cell, row[second])

    def _parquet_rows(self) -> Iterator[tuple[int, Sequence[Any]]]:
        """Yield number and cells of every row, in the order of `USUAL_NAMES`."""
        names = {role: self._header[at] for role, at in self._columns.items()}
        first = 0
        for batch in self._parquet.batches(list(names.values()), _ROWS, _HELD):
            empty = [None] * batch.num_rows
            cells = (
                self._cells(role, batch.column(names[role])) if role in names else empty
                for role in USUAL_NAMES
            )
            yield from enumerate(zip(*cells, strict=True), first)
            first += batch.num_rows

    def _cells(self, role: str, column: Any) -> list[Any]:
        shown = f"{self._shown}: the column {self._header[self._columns[role]]!r}"
        return parquet.cells_of(role, column, shown)

    def _check_types(self) -> None:
        """Refuse a column of a wrong type before any image is read."""
        schema = self._parquet.schema
        path = self._columns["path"]
        if path in _no_paths(schema):
            raise WinnowError(
                f"{self._shown}: the column {self._header[path]!r} holds values of type "
                f"{schema.types[path]}: paths are needed (ingest.columns.path)"
            )
        for role, at in self._columns.items():
            self._cells(role, parquet.empty_column(schema.types[at]))


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
    """Return the positions of the columns whose type holds no paths."""
    return frozenset(at for at, kind in enumerate(schema.types) if not parquet.is_text(kind))
