"""Keep finished parts of a long computation on disk, so that a killed run goes on with the next one."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from stages.dataset.files import new_file

Arrays = dict[str, NDArray[Any]]
T = TypeVar("T")
_DIGEST_BYTES = 32
_BLOCK = 1 << 20


class Checkpoints:
    """The parts of one computation in a folder of their own, each written beside and renamed.

    Parameters
    ----------
    folder : for the checkpoints of this computation whatever it computed from; None keeps nothing
    key : hexadecimal digest of all that the parts follow from. Parts of other keys are stale, and
        are removed.
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self._key = key
        self._folder = folder / key if folder is not None else None
        if folder is not None and folder.is_dir():
            for other in folder.iterdir():
                if other.name != key:
                    _remove(other)

    @property
    def keeps(self) -> bool:
        """Tell whether there is a folder to keep anything in."""
        return self._folder is not None

    def read(self, number: int) -> Arrays | None:
        """Return the arrays of a part; None where it is not there or damaged. Nothing is unpickled."""
        return self.read_with(number, _arrays)

    def write(self, number: int, part: Mapping[str, NDArray[Any]]) -> None:
        """Keep the arrays of a finished part; a WinnowError where the disk refuses."""
        self.write_with(number, lambda file: np.savez(file, allow_pickle=False, **part))

    def read_with(self, number: int, reader: Callable[[BinaryIO], T]) -> T | None:
        """Return what `reader` makes of a part's file, which stands at the part's beginning; else None."""
        if self._folder is None:
            return None
        try:
            with (self._folder / _name(number)).open("rb") as file:
                if file.read(_DIGEST_BYTES) != self._digest(number, file):
                    return None
                file.seek(_DIGEST_BYTES)
                return reader(file)
        except OSError:
            return None

    def write_with(self, number: int, writer: Callable[[BinaryIO], None]) -> None:
        """Keep what `writer` puts into the file; a WinnowError where the disk refuses."""
        if self._folder is None:
            return
        with new_file(self._folder / _name(number)) as path, path.open("w+b") as file:
            file.write(bytes(_DIGEST_BYTES))  # its place: in memory a part would take its size again
            writer(file)
            file.seek(_DIGEST_BYTES)
            digest = self._digest(number, file)
            file.seek(0)
            file.write(digest)

    def _digest(self, number: int, file: BinaryIO) -> bytes:
        """Hash the key, the number, and the file from where it stands to its end."""
        digest = hashlib.sha256(f"{self._key} {number}\n".encode())
        while block := file.read(_BLOCK):
            digest.update(block)
        return digest.digest()


def _arrays(file: BinaryIO) -> Arrays:
    with np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _name(number: int) -> str:
    return f"{number:04d}.part"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
