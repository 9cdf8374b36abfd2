"""Rows of bytes in a plain file, written and read by place.

What a scan leaves on disk until it is known which images stay. No memory mapping: mapped pages
count as the process's own memory, and there are gigabytes of them.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


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
