"""What is done with the items of a block, in a worker process or in the main one."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from stages.ids import bytes_id, pixel_id
from stages.reading.decode import Color, Resize, decode, one_line, to_square
from stages.reading.perceptual import perceptual_hashes
from stages.reading.rowfile import RowFile
from stages.sources.base import Payload, Reason, UnusableError

THUMB = 16  # pixels of a thumbnail's side
_BUFFER = 2**25  # bytes of squares that wait to be written
_AT_ONCE = 2**20  # pixels of a grey image that are made RGB together
_CRASHED = "the decoder crashed on it"
_CRASHED_READING = "the process crashed as it read this item, or one shortly before it"

Item = bytes | NDArray[np.uint8] | UnusableError
Watch = Callable[[int, bool], None]


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
