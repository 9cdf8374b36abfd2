"""Read, decode and hash the items of a block, in a worker process or in the main one.

Squares and thumbnails go to plain files by place, where they stay until it is known which images are
samples. The files are not mapped: mapped pages count as the process's own memory, and there are gigabytes
of them.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from stages.dataset.ids import bytes_id, pixel_id
from stages.errors import Reason, UnusableError
from stages.images.decode import Color, Resize, decode, one_line, to_square
from stages.images.perceptual import perceptual_hashes
from stages.ingestion.source import Payload

_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
THUMB = 16  # pixels of a thumbnail's side
_BUFFER = 2**25  # bytes of squares that wait to be written
_AT_ONCE = 2**20  # pixels of a grey image that are made RGB together
_CRASHED = "the decoder crashed on it"
_CRASHED_READING = "the process crashed as it read this item, or one shortly before it"
Item = bytes | NDArray[np.uint8] | UnusableError
Watch = Callable[[int, bool], None]


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

    def __reduce__(self) -> tuple[type[RowFile], tuple[Path, tuple[int, ...]]]:
        """Another process opens the file for itself."""
        return RowFile, (self.path, self.row_shape)

    def __len__(self) -> int:
        """Count the rows; those that nobody wrote are black."""
        return os.fstat(self._file).st_size // self._row_bytes

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; it stays on disk."""
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
        """Return the rows at `places`, in that order; consecutive ones are read at once.

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


class Shape(NamedTuple):
    """What images are brought to: see `decode.to_square`."""

    size: int
    color: Color
    resize: Resize = "crop"


class Output(NamedTuple):
    """The files that squares and thumbnails go to, and what the squares are to be."""

    squares: RowFile
    thumbs: RowFile
    shape: Shape


def open_output(folder: Path, shape: Shape) -> Output:
    """Open the two files in a folder, or make them."""
    row_shape = (shape.size, shape.size, 1 if shape.color == "grey" else 3)
    return Output(RowFile(folder / "squares", row_shape), RowFile(folder / "thumbs", (THUMB, THUMB)), shape)


@dataclass(frozen=True)
class BlockResult:
    """Columns of a block's n items; rows where `ok` is False hold nothing.

    Attributes
    ----------
    ok : bool; whether it is an image
    sample_id : as in `Items`: `ids.bytes_id` of an encoded file, `ids.pixel_id` of an array's row
    pixel_key, perceptual, flat, width, height : as in `Items`
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
            if isinstance(item, UnusableError):
                raise item
            if isinstance(item, np.ndarray):
                pixels, sample_id = item, pixel_id(item)
            else:
                pixels, sample_id = decode(item), bytes_id(item)
            thumbs[index] = thumbnail(pixels)
            keys[8 * index : 8 * index + 8] = pixel_key(pixels)
            square = to_square(pixels, *output.shape)
            height[index], width[index] = pixels.shape[:2]
        except UnusableError as error:
            refused.append((index, error.reason, error.detail))
        except MemoryError:
            refused.append((index, "too_large", "more memory is needed than there is"))
        except Exception as error:  # whatever a file brings about, it is one item's matter
            refused.append((index, "damaged", one_line(error)))
        else:  # a disk that is full is no item's matter
            squares.put(index, square)
            ok[index] = True
            ids[8 * index : 8 * index + 8] = bytes.fromhex(sample_id)
    squares.finish()
    thumbs[~ok] = 0
    output.thumbs.write(start, thumbs)
    perceptual, flat = perceptual_hashes(thumbs)
    seconds = time.perf_counter() - began
    sample_ids, pixel_keys = (np.frombuffer(digits, ">u8").astype(np.uint64) for digits in (ids, keys))
    return BlockResult(ok, sample_ids, pixel_keys, perceptual, flat, width, height, refused, seconds)


def cannot_write(output: Output, error: OSError) -> str:
    """Return the message for the user where squares or thumbnails cannot be written."""
    return f"decoded images cannot be written to {output.squares.path.parent}: {error.strerror or error}"


def thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Scale the whole image to 16×16 grey, antialiased; it depends on nothing that the user chooses.

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
    """Return 8 bytes of the SHA-256 over the size and the RGB values: equal where the pixels are.

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


def _items(payload: Payload, limit: int | None, watch: Watch | None) -> Iterator[Item]:
    """Yield as many items as the payload promised, whatever it gives."""
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
        while self._first < self._count:
            self._flush(min(len(self._rows), self._count - self._first))

    def _flush(self, count: int) -> None:
        self._file.write(self._start + self._first, self._rows[:count])
        self._rows[:] = 0
        self._first += count
