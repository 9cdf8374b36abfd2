"""Arrays by name in `.npy` files and `.npz` archives: their headers, and how they get to disk."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from stages.errors import WinnowError
from stages.sources.arrayfiles.stored import Stored, check_size, one_line, unpack
from stages.sources.files.trees import Tree
from stages.sources.names import printable

_HEADER = 4096  # bytes of an .npy header; numpy writes 128
_MOST_READ = 2**20  # bytes that are read from a zip at once; its list of files has to fit in
_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others unpack without a bound


@dataclass(frozen=True)
class Member:
    """An array that is there by a name.

    Attributes
    ----------
    name : without `.npy`
    shown : what to call it in messages
    item : what to call it in the names of items, relative to the source
    """

    name: str
    shown: str
    item: str
    _header: Callable[[], Stored]
    _store: Callable[[Stored], Stored]

    def header(self) -> Stored:
        """Its type and shape; the path is empty where it is still to be unpacked.

        Raises
        ------
        WinnowError
            Where it is no array of plain values in C order, or damaged.
        """
        return self._header()

    def store(self) -> Stored:
        """The same on disk.

        Raises
        ------
        WinnowError
            Where it is damaged, or does not hold what its header says.
        """
        return self._store(self._header())


@contextmanager
def open_members(tree: Tree, names: Sequence[str], scratch: Path) -> Iterator[list[Member]]:
    """The arrays of one `.npz`, or of `.npy` files, in the order of the names.

    Parameters
    ----------
    tree : where the files are
    names : one `.npz`, or some `.npy`
    scratch : folder that arrays of an `.npz` unpack to

    Raises
    ------
    WinnowError
        Where an `.npz` is none.
    """
    if not is_npz(names):
        yield [_file(tree, name) for name in names]
        return
    shown = f"{tree.shown}/{printable(names[0])}"
    with _Sparing(tree.local(names[0])) as file:
        try:
            archive = zipfile.ZipFile(file)
        except Exception as error:  # zipfile raises what it likes on bytes that are none
            raise WinnowError(f"{shown} is not an .npz, or damaged: {one_line(error)}") from error
        entries = [entry for entry in archive.infolist() if entry.filename.endswith(".npy")]
        yield [
            _zipped(archive, entry, printable(names[0]), shown, scratch / f"array-{at}.npy")
            for at, entry in enumerate(entries)
        ]


def is_npz(names: Sequence[str]) -> bool:
    """Whether these names are of one `.npz`, not of `.npy` files."""
    return names[0].lower().endswith(".npz")


def read_header(stream: BinaryIO, shown: str, path: str = "") -> Stored:
    """Type and shape of an `.npy`, read by numpy itself, from a bounded number of bytes.

    Raises
    ------
    WinnowError
        Where it is no array of plain values in C order; objects are pickles, and never opened.
    """
    beginning = io.BytesIO(stream.read(_HEADER))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a hostile header is also odd Python
            version = np.lib.format.read_magic(beginning)
            if version not in _READERS:
                raise ValueError(f"version {version[0]}.{version[1]}")
            shape, fortran, dtype = _READERS[version](beginning, max_header_size=_HEADER)
    except Exception as error:  # the header is a literal, and numpy makes a type of whatever it holds
        raise WinnowError(f"{shown} is no .npy array, or damaged: {one_line(error)}") from error
    if dtype.hasobject:
        raise WinnowError(f"{shown} holds Python objects (a pickle), which are not opened; save plain arrays")
    if dtype.kind not in "biufcSUmM" or not all(0 <= axis < 2**62 for axis in shape) or len(shape) > 64:
        raise WinnowError(f"{shown} holds no plain values: save numbers or text")
    if not shape:
        raise WinnowError(f"{shown} holds a single value, no array")
    if fortran and len(shape) > 1:
        raise WinnowError(f"{shown} is saved in Fortran order: save numpy.ascontiguousarray(…) of it")
    return Stored(path, beginning.tell(), dtype.str, tuple(int(axis) for axis in shape))


def _file(tree: Tree, name: str) -> Member:
    shown = f"{tree.shown}/{printable(name)}"

    def header() -> Stored:
        path = tree.local(name)
        with path.open("rb") as stream:
            array = read_header(stream, shown, str(path))
        check_size(array, shown)
        return array

    return Member(name[:-4], shown, printable(name), header, lambda array: array)


def _zipped(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, file: str, shown: str, target: Path) -> Member:
    name = entry.filename[:-4]
    shown = f"{shown}/{printable(name)}"

    @contextmanager
    def opened() -> Iterator[BinaryIO]:
        if entry.compress_type not in _METHODS:
            raise WinnowError(f"{shown} is packed in a way that numpy does not use: save it with numpy.savez")
        try:
            with archive.open(entry) as stream:
                yield stream  # type: ignore[misc]
        except WinnowError:
            raise
        except Exception as error:  # encrypted, cut off, a bad checksum, ...
            raise WinnowError(f"{shown} cannot be unpacked: {one_line(error)}") from error

    def header() -> Stored:
        with opened() as stream:
            return read_header(stream, shown)

    def store(array: Stored) -> Stored:
        size = array.offset + array.size
        with opened() as stream:
            unpack(stream, target, size, shown)
        return Stored(str(target), array.offset, array.dtype, array.shape)

    # The catalogue's sets keep the short names that they have always had.
    item = file if name == "images" else f"{file}/{printable(name)}"
    return Member(name, shown, item, header, store)


class _Sparing(io.FileIO):
    """A file that gives no more at once than an honest `.npz` asks for, whatever its fields claim."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MOST_READ:
            raise zipfile.BadZipFile(f"{size} bytes to be read at once")
        return super().read(_MOST_READ if size is None or size < 0 else size) or b""
