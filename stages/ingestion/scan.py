"""Reads every item of a source once: ids, sizes and squares, or the reason why not."""

from __future__ import annotations

import hashlib
import itertools
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm import tqdm

from stages.errors import WinnowError
from stages.images.decode import Color, Resize
from stages.ingestion.blocks import (
    NO_LABEL,
    NO_SPLIT,
    SPLIT_CODE,
    BlockResult,
    Found,
    RowFile,
    cannot_write,
    open_output,
    read_block,
)
from stages.ingestion.messages import Setup
from stages.ingestion.source import BLOCK, Block, Quarantined, Source
from stages.ingestion.workers import Pool, cores

_FEW = 1500  # items that are hardly worth the start of processes
_PATIENCE = 0.5  # seconds: unless they turn out to be large
_FIRST_SIZE = 16  # items of the first pieces that go to a process
_PIECE_SECONDS = 0.25  # that a piece is to take
_PIECE = 2**16  # rows that columns begin with, and names that are packed together

_DTYPES = {  # as in `Found`
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


class Shape(NamedTuple):
    """What images are brought to: see `decode.to_square`."""

    size: int
    color: Color
    resize: Resize = "crop"


@dataclass(frozen=True)
class Scan:
    """What a source holds.

    Attributes
    ----------
    found : a row for every item that could be read, in the order of the source
    squares : uint8 rows size×size×1 or size×size×3, by `found.place`
    thumbs : uint8 rows 16×16, grey, by `found.place`
    quarantine : all others, sorted by path and reason
    """

    found: Found
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
    setup = _setup(scratch, shape)
    if pool is None:
        for path in (setup.squares, setup.thumbs):
            path.unlink(missing_ok=True)
    columns = _Columns(source.classes)
    with tqdm(total=source.count, desc="ingest", unit="img", mininterval=0.5) as progress:
        for block, result in _read_all(source, setup, workers, pool):
            columns.add(block, result)
            progress.update(len(result.ok))
    output = open_output(setup.squares, setup.thumbs, *shape)
    quarantine = sorted(columns.quarantine, key=lambda row: (row.path, row.reason, row.detail))
    return Scan(columns.found(), output.squares, output.thumbs, quarantine)


def start_pool(scratch: Path, shape: Shape) -> Pool:
    """A process for every core, to start while the source is still being opened; see `scan`."""
    return Pool(cores(), _setup(scratch, shape))


def _setup(scratch: Path, shape: Shape) -> Setup:
    scratch.mkdir(parents=True, exist_ok=True)
    return Setup(scratch / "squares", scratch / "thumbs", *shape)


def _read_all(
    source: Source, setup: Setup, workers: int | None, pool: Pool | None
) -> Iterator[tuple[Block, BlockResult]]:
    """All blocks with what was found, in order."""
    blocks = source.blocks()
    start = 0
    if pool is not None:
        yield from _read_in_pool(blocks, start, pool)
        return
    if workers == 0 or (workers is None and source.count < _FEW):
        patience = None if workers == 0 else time.monotonic() + _PATIENCE
        for block in blocks:
            result = _read_here(block, start, setup, patience)
            if result is None:
                blocks = itertools.chain([block], blocks)
                break
            yield block, result
            start += len(result.ok)
        else:
            return
    with Pool(workers or cores(), setup) as processes:
        yield from _read_in_pool(blocks, start, processes)


def _read_here(block: Block, start: int, setup: Setup, patience: float | None) -> BlockResult | None:
    """Read a block in this process; None where that takes longer than until `patience`."""

    def watch(index: int, has_read: bool) -> None:
        if patience is not None and time.monotonic() > patience:
            raise _OutOfPatienceError

    output = open_output(setup.squares, setup.thumbs, setup.size, setup.color, setup.resize)
    with warnings.catch_warnings(), output.squares, output.thumbs:
        # Pillow warns of what quarantine says better, and of metadata that no one reads.
        warnings.simplefilter("ignore")
        try:
            return read_block(block.payload, start, output, watch=watch)
        except _OutOfPatienceError:
            return None
        except OSError as error:
            raise WinnowError(cannot_write(output, error)) from None


def _read_in_pool(blocks: Iterator[Block], start: int, pool: Pool) -> Iterator[tuple[Block, BlockResult]]:
    """A few pieces for every process are on their way: what waits in memory is bounded.

    A piece takes a quarter of a second: large photographs go one by one, so that the last cores do
    not wait for the first, and the progress bar moves.
    """
    waiting: deque[tuple[Block, Future[BlockResult]]] = deque()
    most = _FIRST_SIZE
    for block in blocks:
        begin = 0
        while begin == 0 or begin < len(block.names):
            piece = block.part(begin, min(begin + most, len(block.names)))
            waiting.append((piece, pool.submit(start, piece.payload)))
            begin += max(len(piece.names), 1)
            start += len(piece.names)
            while len(waiting) > 2 * pool.count or (waiting and waiting[0][1].done()):
                first, future = waiting.popleft()
                result = future.result()
                most = _next_size(result, most)
                yield first, result
    while waiting:
        first, future = waiting.popleft()
        yield first, future.result()


def _next_size(result: BlockResult, before: int) -> int:
    """How many items the next pieces should have, seen from how long these took."""
    count = len(result.ok)
    if not count:
        return before
    return int(min(max(_PIECE_SECONDS * count / max(result.seconds, 1e-6), 1), 2 * before, BLOCK))


class _OutOfPatienceError(Exception):
    """Reading in the main process takes too long."""


class _Columns:
    """Gathers what is found, some 100 bytes an item."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.quarantine: list[Quarantined] = []
        self._known = list(classes)
        self._codes = {name: code for code, name in enumerate(self._known)}
        self._place = 0
        self._count = 0
        self._columns: dict[str, NDArray[Any]] = {
            name: np.empty(_PIECE, dtype) for name, dtype in _DTYPES.items()
        }
        self._names: list[str] = []
        self._sources: list[pa.Array] = []
        self._second_codes: dict[str, int] = {}
        self._seconds: list[NDArray[np.int32]] = []

    def add(self, block: Block, result: BlockResult) -> None:
        """Take over what is known of a block."""
        self.quarantine += block.refused
        self.quarantine += [
            Quarantined(block.names[i], reason, detail) for i, reason, detail in result.refused
        ]
        ok = result.ok
        kept = np.flatnonzero(ok)
        labels = [self._code(block.labels[i]) for i in kept]
        splits = [NO_SPLIT if (split := block.splits[i]) is None else SPLIT_CODE[split] for i in kept]
        groups = [_group_number(block.groups[i]) for i in kept]
        given: dict[str, Any] = {
            "place": self._place + kept,
            "label": labels,
            "split": splits,
            "group": np.array(groups, np.uint64),
            "weight": np.array(block.weights)[ok],
        }
        self._make_room(self._count + len(kept))
        for name, column in self._columns.items():
            values = given[name] if name in given else getattr(result, name)[ok]
            column[self._count : self._count + len(kept)] = values
        self._count += len(kept)
        self._names += [block.names[i] for i in kept]
        if block.second_labels is not None:
            codes = self._second_codes
            second = [block.second_labels[i] for i in kept]
            coded = [NO_LABEL if name is None else codes.setdefault(name, len(codes)) for name in second]
            self._seconds.append(np.array(coded, np.int32))
        if len(self._names) >= _PIECE:
            self._pack_names()
        self._place += len(ok)

    def found(self) -> Found:
        """The columns, with the labels that turned up on the way sorted behind the known classes."""
        self._pack_names()
        later = sorted(set(self._codes) - set(self._known))
        classes = self._known + later
        final = {name: code for code, name in enumerate(classes)}
        codes = np.empty(len(classes) + 1, np.int32)  # the last one is where NO_LABEL points to
        codes[NO_LABEL] = NO_LABEL
        for name, code in self._codes.items():
            codes[code] = final[name]
        columns: dict[str, Any] = self._columns
        for column in columns.values():
            column.resize(self._count, refcheck=False)
        columns["label"] = codes[columns["label"]]
        return Found(
            **columns,
            source=pa.chunked_array(self._sources, pa.string()),
            classes=classes,
            second=self._second(),
            second_classes=sorted(self._second_codes),
        )

    def _second(self) -> NDArray[np.int32] | None:
        """The second labels, coded by their sorted names."""
        if not self._seconds:
            return None
        names = {name: code for code, name in enumerate(sorted(self._second_codes))}
        final = np.array([*(names[name] for name in self._second_codes), NO_LABEL], np.int32)
        return final[np.concatenate(self._seconds)]

    def _make_room(self, count: int) -> None:
        capacity = len(self._columns["place"])
        if count > capacity:
            for column in self._columns.values():
                # In place, where the system moves the pages: there are never two copies of a column.
                column.resize(max(count, capacity * 5 // 4), refcheck=False)

    def _code(self, label: str | None) -> int:
        return NO_LABEL if label is None else self._codes.setdefault(label, len(self._codes))

    def _pack_names(self) -> None:
        self._sources.append(pa.array(self._names, pa.string()))
        self._names = []


def _group_number(name: str | None) -> int:
    """64 bits of SHA-256; 0 for none."""
    if name is None:
        return 0
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") or 1
