"""What is done with the items of a block, in a worker process or in the main one.

What a scan finds, as columns: a million images are a hundred megabytes, not gigabytes.

Rows of bytes in a plain file, written and read by place.

What a scan leaves on disk until it is known which images stay. No memory mapping: mapped pages
count as the process's own memory, and there are gigabytes of them.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.dataset.ids import SPLITS, bytes_id, pixel_id
from stages.errors import Reason, UnusableError
from stages.images.decode import Color, Resize, decode, one_line, to_square
from stages.images.perceptual import perceptual_hashes
from stages.ingestion.source import Payload

NO_LABEL = -1
NO_SPLIT = -1
SPLIT_CODE = {name: code for code, name in enumerate(SPLITS)}
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
THUMB = 16  # pixels of a thumbnail's side
_BUFFER = 2**25  # bytes of squares that wait to be written
_AT_ONCE = 2**20  # pixels of a grey image that are made RGB together
_CRASHED = "the decoder crashed on it"
_CRASHED_READING = "the process crashed as it read this item, or one shortly before it"
Item = bytes | NDArray[np.uint8] | UnusableError
Watch = Callable[[int, bool], None]


@dataclass(frozen=True)
class Found:
    """A row for every item that could be read, in the order of the source; N rows.

    Attributes
    ----------
    place : int64, ascending; the row of its square and its thumbnail in the scratch files
    sample_id : uint64 (`ids.hex_ids`); equal for equal encoded bytes
    pixel_key : uint64; equal exactly where the decoded pixels are equal
    perceptual : uint64; `perceptual.perceptual_hashes`
    flat : bool; too little contrast for the perceptual hash to mean anything
    label : int32, index into `classes`; `NO_LABEL` where there is none
    split : int8, index into `ids.SPLITS` as the source says it; `NO_SPLIT` where it does not
    group : uint64, a hash of the group's name; 0 for none
    weight : float32
    width, height : int32, native size in pixels, upright
    source : string; where it came from, for tables
    classes : class names in index order
    second : int32, index into `second_classes`, `NO_LABEL` where there is none; None where the source has
        no second column of labels
    second_classes : its class names, sorted
    """

    place: NDArray[np.int64]
    sample_id: NDArray[np.uint64]
    pixel_key: NDArray[np.uint64]
    perceptual: NDArray[np.uint64]
    flat: NDArray[np.bool_]
    label: NDArray[np.int32]
    split: NDArray[np.int8]
    group: NDArray[np.uint64]
    weight: NDArray[np.float32]
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    source: pa.ChunkedArray
    classes: list[str]
    second: NDArray[np.int32] | None = None
    second_classes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.place)


class RowFile:
    """An array of N rows in a file; several processes may write it at once, each its own rows.

    Parameters
    ----------
    path : made where it is missing, else opened with what it holds
    row_shape : of one row; uint8
    """

    def __init__(self, path: Path, row_shape: tuple[int, ...]) -> None:
        self.path = path
        self.row_shape = row_shape
        self._row_bytes = int(np.prod(row_shape))
        self._file = os.open(path, _FLAGS, 0o644)
        self._lock = threading.Lock()  # where there is no reading by position

    def __len__(self) -> int:
        """How many rows there are; those that nobody wrote are black."""
        return os.fstat(self._file).st_size // self._row_bytes

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; it stays."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def write(self, start: int, rows: NDArray[np.uint8]) -> None:
        """Write consecutive rows from place `start` on.

        Raises
        ------
        OSError
            Where the disk is full.
        """
        if rows.shape[1:] != self.row_shape or rows.dtype != np.uint8:
            raise ValueError(f"rows of {rows.shape[1:]} {rows.dtype} in a file of {self.row_shape} uint8")
        data = np.ascontiguousarray(rows).reshape(-1).data
        at = start * self._row_bytes
        while data:
            written = self._write_at(data, at)
            data, at = data[written:], at + written

    def take(self, places: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The rows at `places`, in that order; consecutive ones are read at once.

        Raises
        ------
        IndexError
            Where there is no such row.
        """
        if len(places) and (places.min() < 0 or places.max() >= len(self)):
            raise IndexError(f"row {int(places.min())} or {int(places.max())} of {len(self)}")
        rows = np.empty((len(places), *self.row_shape), np.uint8)
        data = rows.reshape(-1).data
        size = self._row_bytes
        breaks = np.flatnonzero(np.diff(places) != 1) + 1
        starts, stops = np.append(0, breaks).tolist(), np.append(breaks, len(places)).tolist()
        for start, stop in zip(starts, stops, strict=True):
            if start < stop:
                self._read_at(data[start * size : stop * size], int(places[start]) * size)
        return rows

    def _read_at(self, target: memoryview, at: int) -> None:
        while target:
            if hasattr(os, "preadv"):
                count = os.preadv(self._file, [target], at)
            else:
                with self._lock:
                    os.lseek(self._file, at, os.SEEK_SET)
                    piece = os.read(self._file, len(target))
                count = len(piece)
                target[:count] = piece
            if not count:
                raise IndexError(f"the file ends before byte {at}")
            target, at = target[count:], at + count

    def _write_at(self, data: memoryview, at: int) -> int:
        if hasattr(os, "pwrite"):
            return os.pwrite(self._file, data, at)
        with self._lock:
            os.lseek(self._file, at, os.SEEK_SET)
            return os.write(self._file, data)


class Output(NamedTuple):
    """What the squares are to be, and where squares and thumbnails go."""

    squares: RowFile
    thumbs: RowFile
    size: int
    color: Color
    resize: Resize


def open_output(squares: Path, thumbs: Path, size: int, color: Color, resize: Resize) -> Output:
    """Open the two files, or make them."""
    channels = 1 if color == "grey" else 3
    return Output(
        RowFile(squares, (size, size, channels)), RowFile(thumbs, (THUMB, THUMB)), size, color, resize
    )


@dataclass(frozen=True)
class BlockResult:
    """What is known of a block's n items; rows where `ok` is False hold nothing.

    Attributes
    ----------
    ok : bool; whether it is an image
    sample_id : uint64; `ids.bytes_id` of an encoded file, `ids.pixel_id` of an array's row
    pixel_key : uint64; `pixel_key`
    perceptual, flat : uint64 and bool; `perceptual.perceptual_hashes`
    width, height : int32, native size in pixels, upright
    refused : position in the block, reason and detail of those that are no image
    seconds : that it took
    """

    ok: NDArray[np.bool_]
    sample_id: NDArray[np.uint64]
    pixel_key: NDArray[np.uint64]
    perceptual: NDArray[np.uint64]
    flat: NDArray[np.bool_]
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    refused: list[tuple[int, Reason, str]]
    seconds: float


def read_block(
    payload: Payload,
    start: int,
    output: Output,
    *,
    crashed: Set[int] = frozenset(),
    limit: int | None = None,
    watch: Watch | None = None,
) -> BlockResult:
    """Read, decode and hash a block's items; write their squares and thumbnails.

    Parameters
    ----------
    payload : the items
    start : the place of the first
    output : where row `start` + i of squares and thumbnails is written; black for what is refused
    crashed : positions that must not be decoded again
    limit : the first position that must not be read again; what follows cannot be read without it
    watch : called with a position and whether it has been read: before it is read, and before it is
        decoded

    Raises
    ------
    OSError
        Where squares or thumbnails cannot be written.
    """
    began, count = time.perf_counter(), len(payload)
    ok, width, height = np.zeros(count, np.bool_), np.zeros(count, np.int32), np.zeros(count, np.int32)
    ids, keys = bytearray(8 * count), bytearray(8 * count)
    thumbs = np.zeros((count, THUMB, THUMB), np.uint8)
    refused: list[tuple[int, Reason, str]] = []
    squares = _Squares(output, start, count)
    for index, item in enumerate(_items(payload, limit, watch)):
        try:
            if index in crashed:
                raise UnusableError("damaged", _CRASHED)
            pixels, sample_id = _pixels_and_id(item)
            thumbs[index] = thumbnail(pixels)
            keys[8 * index : 8 * index + 8] = pixel_key(pixels)
            squares.put(index, to_square(pixels, output.size, output.color, output.resize))
            height[index], width[index] = pixels.shape[:2]
        except UnusableError as error:
            refused.append((index, error.reason, error.detail))
        except _WriteError as error:
            raise error.error from None
        except MemoryError:
            refused.append((index, "too_large", "more memory is needed than there is"))
        except Exception as error:  # whatever a file brings about, it is one item's matter
            refused.append((index, "damaged", one_line(error)))
        else:
            ok[index] = True
            ids[8 * index : 8 * index + 8] = bytes.fromhex(sample_id)
    squares.finish()
    thumbs[~ok] = 0
    output.thumbs.write(start, thumbs)
    perceptual, flat = perceptual_hashes(thumbs)
    seconds = time.perf_counter() - began
    return BlockResult(ok, _numbers(ids), _numbers(keys), perceptual, flat, width, height, refused, seconds)


def cannot_write(output: Output, error: OSError) -> str:
    """What to tell the user where squares or thumbnails cannot be written."""
    return f"decoded images cannot be written to {output.squares.path.parent}: {error.strerror or error}"


def thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The whole image as 16×16 grey, antialiased; it depends on nothing that the user chooses.

    Parameters
    ----------
    pixels : uint8 array, H×W×1 or H×W×3
    """
    grey = pixels[..., 0] if pixels.shape[2] == 1 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    # Averaging over areas where there are more pixels than wanted, each side for itself.
    smaller = min(width, THUMB), min(height, THUMB)
    if smaller != (width, height):
        grey = cv2.resize(grey, smaller, interpolation=cv2.INTER_AREA)
    if smaller != (THUMB, THUMB):
        grey = cv2.resize(grey, (THUMB, THUMB), interpolation=cv2.INTER_LINEAR)
    return grey


def pixel_key(pixels: NDArray[np.uint8]) -> bytes:
    """8 bytes that are equal where the pixels are: of SHA-256 over the size and the RGB values.

    A grey image has the key of the same image stored as RGB.
    """
    height, width, channels = pixels.shape
    digest = hashlib.sha256(f"{width}x{height}".encode())
    if channels == 3:
        digest.update(np.ascontiguousarray(pixels).data)
    else:
        rows = max(1, _AT_ONCE // width)
        for top in range(0, height, rows):
            digest.update(np.repeat(pixels[top : top + rows], 3, axis=2).data)
    return digest.digest()[:8]


def _numbers(digits: bytearray) -> NDArray[np.uint64]:
    return np.frombuffer(digits, ">u8").astype(np.uint64)


def _pixels_and_id(item: Item) -> tuple[NDArray[np.uint8], str]:
    if isinstance(item, UnusableError):
        raise item
    if isinstance(item, np.ndarray):
        return item, pixel_id(item)
    return decode(item), bytes_id(item)


def _items(payload: Payload, limit: int | None, watch: Watch | None) -> Iterator[Item]:
    """As many items as the payload promised, whatever it gives."""
    items = iter(payload.read())
    for index in range(len(payload)):
        if limit is not None and index >= limit:
            yield UnusableError("unreadable", _CRASHED_READING)
            continue
        if watch is not None:
            watch(index, False)
        try:
            item: Item = next(items)
        except StopIteration:
            item = UnusableError("unreadable", "the source ends before it")
        except Exception as error:
            item, items = UnusableError("unreadable", one_line(error)), iter(())
        if watch is not None:
            watch(index, True)
        yield item


class _WriteError(Exception):
    """Tells a full disk from a damaged image."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


class _Squares:
    """Squares on their way to the file, so many at a time as memory allows at any image size."""

    def __init__(self, output: Output, start: int, count: int) -> None:
        shape = output.squares.row_shape
        self._file = output.squares
        self._rows = np.zeros((max(1, min(count, _BUFFER // int(np.prod(shape)))), *shape), np.uint8)
        self._start, self._count = start, count
        self._first = 0  # position in the block of the first row that waits

    def put(self, index: int, square: NDArray[np.uint8]) -> None:
        while index >= self._first + len(self._rows):
            self._flush(len(self._rows))
        self._rows[index - self._first] = square

    def finish(self) -> None:
        try:
            while self._first < self._count:
                self._flush(min(len(self._rows), self._count - self._first))
        except _WriteError as error:
            raise error.error from None

    def _flush(self, count: int) -> None:
        try:
            self._file.write(self._start + self._first, self._rows[:count])
        except OSError as error:
            raise _WriteError(error) from None
        self._rows[:] = 0
        self._first += count
