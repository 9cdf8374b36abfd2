"""Read every item of a source once: ids, sizes and squares, or the reason why not."""

from __future__ import annotations

import hashlib
import itertools
import os
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm import tqdm

from stages.errors import WinnowError
from stages.ingestion.blocks import (
    BlockResult,
    Output,
    RowFile,
    Shape,
    cannot_write,
    open_output,
    read_block,
)
from stages.ingestion.items import NO_LABEL, NO_SPLIT, SPLIT_CODE, Items
from stages.ingestion.source import BLOCK, Block, Quarantined, Source
from stages.ingestion.workers import Job, Pool, cores

_FEW = 1500  # items that are hardly worth the start of processes
_PATIENCE = 0.5  # seconds: unless they turn out to be large
_FIRST_SIZE = 16  # items of the first pieces that go to a process
_PIECE_SECONDS = 0.25  # that a piece is to take
_PIECE = 2**16  # rows that columns begin with, and names that are packed together

_DTYPES = {  # as in `Items`
    "place": np.int64,
    "sample_id": np.uint64,
    "pixel_key": np.uint64,
    "perceptual": np.uint64,
    "flat": np.bool_,
    "label": np.int32,
    "split": np.int8,
    "group": np.uint64,
    "weight": np.float32,
    "width": np.int32,
    "height": np.int32,
}


@dataclass(frozen=True)
class Scan:
    """The items of a source, and their pixels.

    Attributes
    ----------
    items : a row for every item that could be read, in the order of the source
    squares : uint8 rows size×size×1 or size×size×3, by `items.place`
    thumbs : uint8 rows 16×16, grey, by `items.place`
    quarantine : all others, sorted by path and reason
    """

    items: Items
    squares: RowFile
    thumbs: RowFile
    quarantine: list[Quarantined]


def scan(
    source: Source,
    scratch: Path,
    shape: Shape,
    *,
    workers: int | None = None,
    pool: Pool | None = None,
) -> Scan:
    """Read all items of `source` and write their squares and thumbnails.

    Memory is flat in the number of items but for about 100 bytes each. The result depends neither
    on the number of processes nor on which of them was first.

    Parameters
    ----------
    source : what to read; its `blocks` are used up
    scratch : a folder for two files that the result reads from; made where it is missing
    shape : of the squares
    workers : processes; 0 reads in this one, None is one for every core where there is enough to do
    pool : of `start_pool` with the same arguments; used instead of other processes

    Raises
    ------
    WinnowError
        Where the whole source cannot be used, squares cannot be written, or processes keep crashing.
    """
    output = _new_output(scratch, shape) if pool is None else pool.output
    columns = _Columns(source.classes)
    with tqdm(total=source.count, desc="ingest", unit="img", mininterval=0.5) as progress:
        for block, result in _read_all(source, output, workers, pool):
            columns.add(block, result)
            progress.update(len(result.ok))
    quarantine = sorted(columns.quarantine, key=lambda row: (row.path, row.reason, row.detail))
    return Scan(columns.items(), output.squares, output.thumbs, quarantine)


def start_pool(scratch: Path, shape: Shape) -> Pool:
    """Start a process for every core, while the source is still being opened; see `scan`."""
    return Pool(cores(), _new_output(scratch, shape))


def _new_output(scratch: Path, shape: Shape) -> Output:
    """Open the files for squares and thumbnails, without what another scan left in them."""
    scratch.mkdir(parents=True, exist_ok=True)
    output = open_output(scratch, shape)
    for file in (output.squares, output.thumbs):
        os.truncate(file.path, 0)
    return output


def _read_all(
    source: Source, output: Output, workers: int | None, pool: Pool | None
) -> Iterator[tuple[Block, BlockResult]]:
    """Yield all blocks in order, with what was read of them."""
    blocks = source.blocks()
    start = 0
    if pool is not None:
        yield from _read_in_pool(blocks, start, pool)
        return
    if workers == 0 or (workers is None and source.count < _FEW):
        patience = None if workers == 0 else time.monotonic() + _PATIENCE
        for block in blocks:
            result = _read_here(block, start, output, patience)
            if result is None:
                blocks = itertools.chain([block], blocks)
                break
            yield block, result
            start += len(result.ok)
        else:
            return
    with Pool(workers or cores(), output) as processes:
        yield from _read_in_pool(blocks, start, processes)


def _read_here(block: Block, start: int, output: Output, patience: float | None) -> BlockResult | None:
    """Read a block in this process; None where that takes longer than until `patience`."""

    def watch(index: int, has_read: bool) -> None:
        if patience is not None and time.monotonic() > patience:
            raise _OutOfPatienceError

    with warnings.catch_warnings():
        # Pillow warns of what quarantine says better, and of metadata that no one reads.
        warnings.simplefilter("ignore")
        try:
            return read_block(block.payload, start, output, watch=watch)
        except _OutOfPatienceError:
            return None
        except OSError as error:
            raise WinnowError(cannot_write(output, error)) from None


def _read_in_pool(blocks: Iterator[Block], start: int, pool: Pool) -> Iterator[tuple[Block, BlockResult]]:
    """Read with a few pieces for every process on their way, so that what waits in memory is bounded.

    A piece takes a quarter of a second: large photographs go one by one, so that the last cores do
    not wait for the first, and the progress bar moves.
    """
    waiting: deque[tuple[Block, Job]] = deque()
    most = _FIRST_SIZE
    for block in blocks:
        begin = 0
        while begin == 0 or begin < len(block.names):
            piece = block.part(begin, min(begin + most, len(block.names)))
            waiting.append((piece, pool.submit(start, piece.payload)))
            begin += max(len(piece.names), 1)
            start += len(piece.names)
            while len(waiting) > 2 * pool.count or (waiting and waiting[0][1].future.done()):
                first, job = waiting.popleft()
                result = pool.result(job)
                most = _next_size(result, most)
                yield first, result
    for first, job in waiting:
        yield first, pool.result(job)


def _next_size(result: BlockResult, before: int) -> int:
    """Choose how many items the next pieces should have, seen from how long these took."""
    count = len(result.ok)
    if not count:
        return before
    return int(min(max(_PIECE_SECONDS * count / max(result.seconds, 1e-6), 1), 2 * before, BLOCK))


class _OutOfPatienceError(Exception):
    """Reading in the main process has taken too long."""


class _Columns:
    """Gathers the columns of `Items`, some 100 bytes an item."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.quarantine: list[Quarantined] = []
        self._labels, self._second_labels = _ClassCodes(classes), _ClassCodes()
        self._place = 0
        self._count = 0
        self._columns: dict[str, NDArray[Any]] = {
            name: np.empty(_PIECE, dtype) for name, dtype in _DTYPES.items()
        }
        self._names: list[str | None] = []  # None where there is no row
        self._packed_names: list[pa.Array] = []
        self._second: list[NDArray[np.int32]] = []

    def add(self, block: Block, result: BlockResult) -> None:
        """Add the items of a block."""
        self.quarantine += block.refused
        self.quarantine += [
            Quarantined(block.names[i], reason, detail) for i, reason, detail in result.refused
        ]
        ok = result.ok
        rows = np.flatnonzero(ok)
        splits = [NO_SPLIT if (split := block.splits[i]) is None else SPLIT_CODE[split] for i in rows]
        groups = [_group_number(block.groups[i]) for i in rows]
        given: dict[str, Any] = {
            "place": self._place + rows,
            "label": self._labels.code([block.labels[i] for i in rows]),
            "split": splits,
            "group": np.array(groups, np.uint64),
            "weight": np.array(block.weights)[ok],
        }
        self._make_room(self._count + len(rows))
        for name, column in self._columns.items():
            values = given[name] if name in given else getattr(result, name)[ok]
            column[self._count : self._count + len(rows)] = values
        self._count += len(rows)
        self._names += [name if is_ok else None for name, is_ok in zip(block.names, ok.tolist(), strict=True)]
        if block.second_labels is not None:
            second = [block.second_labels[i] for i in rows]
            self._second.append(np.array(self._second_labels.code(second), np.int32))
        if len(self._names) >= _PIECE:
            self._pack_names()
        self._place += len(ok)

    def items(self) -> Items:
        """Return the table, with the labels that turned up on the way sorted behind the known classes."""
        self._pack_names()
        columns: dict[str, Any] = self._columns
        for column in columns.values():
            column.resize(self._count, refcheck=False)
        classes, columns["label"] = self._labels.in_order(columns["label"])
        second_classes: list[str] = []
        if self._second:
            second_classes, columns["second"] = self._second_labels.in_order(np.concatenate(self._second))
        return Items(
            **columns,
            names=pa.chunked_array(self._packed_names, pa.string()),
            classes=classes,
            second_classes=second_classes,
        )

    def _make_room(self, count: int) -> None:
        capacity = len(self._columns["place"])
        if count > capacity:
            for column in self._columns.values():
                # In place, where the system moves the pages: there are never two copies of a column.
                column.resize(max(count, capacity * 5 // 4), refcheck=False)

    def _pack_names(self) -> None:
        self._packed_names.append(pa.array(self._names, pa.string()))
        self._names = []


class _ClassCodes:
    """Numbers class names as they turn up, and puts them in order at last: known ones, then others sorted."""

    def __init__(self, known: Sequence[str] = ()) -> None:
        self._known = list(known)
        self._codes = {name: code for code, name in enumerate(known)}

    def code(self, names: Sequence[str | None]) -> list[int]:
        codes = self._codes
        return [NO_LABEL if name is None else codes.setdefault(name, len(codes)) for name in names]

    def in_order(self, codes: NDArray[np.int32]) -> tuple[list[str], NDArray[np.int32]]:
        """Return the class names in their final order, and the codes by it."""
        classes = self._known + sorted(set(self._codes) - set(self._known))
        index = {name: number for number, name in enumerate(classes)}
        final = np.full(len(classes) + 1, NO_LABEL, np.int32)  # the last one is where NO_LABEL points to
        for name, code in self._codes.items():
            final[code] = index[name]
        return classes, final[codes]


def _group_number(name: str | None) -> int:
    """Hash a name to 64 bits of SHA-256; 0 for none."""
    if name is None:
        return 0
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") or 1
