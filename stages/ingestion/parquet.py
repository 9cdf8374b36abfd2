"""Read Parquet files in small batches: what is in memory does not grow with the file.

Nothing that a file says of itself is trusted: a damaged one is an error in words, and a value's
size is bounded before it is unpacked, as far as the file's own statistics allow. Worker processes
import this module for `BytesPayload`, so pyarrow is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.errors import UnusableError, WinnowError
from stages.ingestion.cells import word
from stages.ingestion.source import EmptyPayload, Payload, printable
from stages.ingestion.trees import Tree

_BUFFER = 2**18  # bytes that are read ahead of each column
_MOST_EXPANDED = 2**30  # bytes that a batch may come to where a file may be a bomb
_HIGH_RATIO = 16  # unpacked to packed; encoded images come nowhere near


@dataclass(frozen=True)
class BytesPayload:
    """Encoded images that a table brings in its own cells, in memory.

    Attributes
    ----------
    items : for each its bytes, or why there are none, or None where it is the next one of `files`
    files : the others
    """

    items: list[bytes | UnusableError | None]
    files: Payload = field(default_factory=EmptyPayload)

    def __len__(self) -> int:
        return len(self.items)

    def read(self) -> Iterator[bytes | NDArray[np.uint8] | UnusableError]:
        """Read every item in order; see `source.Payload`."""
        files = self.files.read()
        for item in self.items:
            yield next(files) if item is None else item

    def part(self, start: int, stop: int) -> BytesPayload:
        """See `source.Payload`."""
        before, inside = self.items[:start].count(None), self.items[start:stop].count(None)
        return BytesPayload(self.items[start:stop], self.files.part(before, before + inside))


class ParquetTable:
    """One Parquet file.

    Parameters
    ----------
    tree : where it is
    name : in the tree

    Attributes
    ----------
    schema : Arrow's
    header : the names of the columns
    count : how many rows it says it has

    Raises
    ------
    WinnowError
        Where it is damaged, encrypted or something else, or cannot be read.
    """

    def __init__(self, tree: Tree, name: str) -> None:
        import pyarrow.parquet as pq

        self._shown = f"ingest.source {tree.shown}: {printable(name)}"
        path = tree.local(name)
        with self._errors_for_users():
            self._bytes = path.stat().st_size
            self._file = pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
            self.schema: Any = self._file.schema_arrow
            self.header: list[str] = self.schema.names
            self.count = max(int(self._file.metadata.num_rows), 0)

    def batches(self, columns: Sequence[str], most: int, held: int) -> Iterator[Any]:
        """Read the rows of some columns as Arrow record batches, in order.

        Parameters
        ----------
        columns : names of top-level columns
        most : rows of a batch
        held : bytes that a batch should have at most, going by the average row

        Raises
        ------
        WinnowError
            Where the file turns out to be damaged.
        """
        with self._errors_for_users():
            rows = self._batch_rows(columns, most, held)
            stream = self._file.iter_batches(batch_size=rows, columns=list(columns), use_threads=False)
        while True:
            with self._errors_for_users():
                batch = next(stream, None)
            if batch is None:
                return
            yield batch

    def _batch_rows(self, columns: Sequence[str], most: int, held: int) -> int:
        """Return the rows of a batch: few where rows are large, or might unpack to far more than the file.

        The statistics of single columns would tell more, but Arrow ends the process over damaged ones.
        """
        metadata = self._file.metadata
        groups = [metadata.row_group(at) for at in range(metadata.num_row_groups)]
        # Every row may repeat the largest value. Arrow itself ends at 2 GiB, but not for `large` types.
        bomb = sum(group.total_byte_size for group in groups) > _HIGH_RATIO * self._bytes or any(
            _is_boundless(self.schema.field(name).type) for name in columns
        )
        rows = most
        for group in groups:
            unpacked = max(group.total_byte_size, 1)
            rows = min(rows, held * max(group.num_rows, 1) // unpacked)
            if bomb:
                rows = min(rows, _MOST_EXPANDED // unpacked)
        return max(rows, 1)

    @contextmanager
    def _errors_for_users(self) -> Iterator[None]:
        """Turn whatever Arrow raises over a file into one line for its user."""
        import pyarrow as pa

        try:
            yield
        except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
            raise WinnowError(
                f"{self._shown} is damaged, encrypted or no Parquet file: bring it again, or take it away"
            ) from error


def empty_column(kind: Any) -> Any:
    """Make an empty column of an Arrow type, to try whether such a column can be used."""
    import pyarrow as pa

    return pa.array([], kind)


def is_text(kind: Any) -> bool:
    """Return whether values of an Arrow type are texts."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def is_number(kind: Any) -> bool:
    """Return whether values of an Arrow type are numbers; pandas makes floats of integers with gaps."""
    from pyarrow import types

    return bool(types.is_integer(kind) or types.is_floating(kind))


def is_binary(kind: Any) -> bool:
    """Return whether values of an Arrow type are bytes."""
    from pyarrow import types

    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def image_columns(schema: Any) -> list[int]:
    """Find the columns of images as Hugging Face's `datasets` writes them.

    Such a column is a struct of `bytes` (an encoded image) and `path`; either may be null throughout.
    https://huggingface.co/docs/datasets/image_dataset
    """
    from pyarrow import types

    found = []
    for at, kind in enumerate(schema.types):
        if not types.is_struct(kind):
            continue
        inner = {kind.field(place).name: kind.field(place).type for place in range(kind.num_fields)}
        content, path = inner.get("bytes"), inner.get("path")
        if content is None or not (is_binary(content) or types.is_null(content)):
            continue
        if path is None or is_text(path) or types.is_null(path):
            found.append(at)
    return found


def cells_of(role: str, column: Any, shown: str) -> list[Any]:
    """Convert the column of a role to cells: weights to numbers, all others to texts."""
    return numbers(column, shown) if role == "weight" else words(column, shown)


def words(column: Any, shown: str) -> list[str | None]:
    """Convert an Arrow column to texts; bytes that are no UTF-8 become lone surrogates (`surrogateescape`).

    Parameters
    ----------
    column : Arrow array of texts, integers, truth values, or floats that are whole numbers
    shown : the column, for messages

    Raises
    ------
    WinnowError
        For other types, and for numbers that are not whole.
    """
    from pyarrow import types

    kind = column.type
    if types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), kind.value_type
    if is_text(kind):
        return _texts(column)
    if not (is_number(kind) or types.is_boolean(kind) or types.is_null(kind)):
        raise WinnowError(f"{shown} holds values of type {kind}: texts or whole numbers are needed")
    try:
        return [word(value) for value in column.to_pylist()]
    except (ValueError, OverflowError) as error:
        raise WinnowError(f"{shown} holds numbers that are not whole: save it as texts") from error


def sizes(column: Any) -> list[int | None]:
    """Count the bytes in each value of an Arrow column of bytes, None for a null."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import types

    if types.is_null(column.type):
        return [None] * len(column)
    if types.is_binary_view(column.type):
        column = column.cast(pa.large_binary())
    lengths: list[int | None] = pc.binary_length(column).to_pylist()
    return lengths


def numbers(column: Any, shown: str) -> list[str | float | None]:
    """Convert an Arrow column to weights, still to be checked; texts stay texts.

    Raises
    ------
    WinnowError
        For types that are neither numbers nor texts.
    """
    from pyarrow import types

    kind = column.type
    if is_number(kind) or types.is_null(kind):
        values: list[str | float | None] = column.to_pylist()
        return values
    if is_text(kind):
        return list(words(column, shown))
    raise WinnowError(f"{shown} holds values of type {kind}: numbers are needed")


def _texts(column: Any) -> list[str | None]:
    try:
        values: list[str | None] = column.to_pylist()
        return values
    except UnicodeDecodeError:
        return [_text(scalar) for scalar in column]


def _text(scalar: Any) -> str | None:
    # As Python writes file names that are no UTF-8: the file can be found, and no class is called so.
    return scalar.as_buffer().to_pybytes().decode("utf-8", "surrogateescape") if scalar.is_valid else None


def _is_boundless(kind: Any) -> bool:
    """Return whether a column of a type may hold more than 2 GiB at once."""
    from pyarrow import types

    if types.is_struct(kind):
        return any(_is_boundless(kind.field(at).type) for at in range(kind.num_fields))
    return bool(
        types.is_large_binary(kind)
        or types.is_large_string(kind)
        or types.is_binary_view(kind)
        or types.is_string_view(kind)
    )
