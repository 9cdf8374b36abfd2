"""Archives as trees: nothing of them is ever unpacked under a name of its own.

A zip or a tar is read in place. A compressed tar cannot be: it is decompressed once, to one plain
tar in the scratch folder. Links are not followed, but a hard link to another member is that member.
Of several members with one name the last one counts. Archives in archives stay closed.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from stages.errors import UnusableError, WinnowError
from stages.ingestion.archive_index import (
    PLAUSIBLE_RATIO,
    UNSUSPECTED,
    Key,
    Listing,
    Members,
    list_tar,
    list_zip,
    name_of,
)
from stages.ingestion.payloads import RangePayload, path_problem, unpack
from stages.ingestion.source import Quarantined, printable

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_CHUNK = 1 << 20  # bytes
_XZ_MEMORY = 2**28  # bytes; `xz -9` needs a quarter of it
_LEFT_FREE = 2**28  # bytes of the disk
_LOOK_EVERY = 64  # pieces


def is_archive(path: Path) -> bool:
    """Whether a name is that of an archive that can be read."""
    return path.name.lower().endswith(ENDINGS)


def open_archive(path: Path, scratch: Path) -> ArchiveTree:
    """An archive as a tree.

    Parameters
    ----------
    path : one of `is_archive`
    scratch : an existing folder for what must be unpacked; its owner removes it, after all payloads
        have been read

    Raises
    ------
    WinnowError
        Where it cannot be read, is damaged, cut off, or unpacks to more than is plausible.
    """
    shown = f"ingest.source {path}"
    try:
        if path.name.lower().endswith(".zip"):
            return ArchiveTree(path.resolve(), *list_zip(path, shown), str(path), scratch)
        packed = _packed_by(path)
        tar = _unpack_tar(path, packed, scratch, shown) if packed else path.resolve()
        return ArchiveTree(tar, *list_tar(tar, shown), str(path), scratch)
    except OSError as error:
        raise WinnowError(f"{shown} cannot be read: {error.strerror or type(error).__name__}") from error


class ArchiveTree:
    """The files of an archive; see `open_archive`, and `trees.Tree` for what it does.

    Parameters
    ----------
    archive : a zip or a plain tar
    members, listing : as `list_zip` and `list_tar` give them
    shown : what to call it in messages
    scratch : a folder for files that are needed as such
    top : the folder of the archive that is the top of the tree
    """

    def __init__(
        self, archive: Path, members: Members, listing: Listing, shown: str, scratch: Path, top: Key = b""
    ) -> None:
        self._archive = archive
        self._members = members
        self._listing = listing
        self._shown = shown
        self._scratch = scratch
        self._top = top

    @property
    def shown(self) -> str:
        """See `Tree`."""
        return self._shown

    @property
    def refused(self) -> Sequence[Quarantined]:
        """See `Tree`; all there will be, as soon as the archive is open."""
        start = f"{printable(name_of(self._top))}/" if self._top else ""
        return [
            Quarantined(row.path.removeprefix(start), row.reason, row.detail) for row in self._listing.refused
        ]

    def under(self, folder: str) -> ArchiveTree:
        """See `Tree`."""
        shown = f"{self._shown}/{printable(folder)}"
        return ArchiveTree(
            self._archive, self._members, self._listing, shown, self._scratch, self._key(folder)
        )

    def folders(self, inside: str = "") -> list[str]:
        """See `Tree`; folders without files are not there."""
        return [self._name(key) for key, is_folder in self._members.right_in(self._key(inside)) if is_folder]

    def files(self, inside: str = "") -> list[str]:
        """See `Tree`."""
        return [
            self._name(key) for key, is_folder in self._members.right_in(self._key(inside)) if not is_folder
        ]

    def walk(self, inside: str = "") -> Iterator[str]:
        """See `Tree`."""
        return map(self._name, self._members.keys(*self._members.below(self._key(inside))))

    def count(self, inside: str = "") -> int:
        """See `Tree`."""
        start, stop = self._members.below(self._key(inside))
        return stop - start

    def problem(self, name: str) -> UnusableError | None:
        """See `Tree`."""
        return self.payload([name]).problems.get(0)

    def payload(self, names: Sequence[str]) -> RangePayload:
        """See `Tree`."""
        problems = {place: found for place, name in enumerate(names) if (found := path_problem(name))}
        keys = [b"" if place in problems else self._key(name) for place, name in enumerate(names)]
        positions = self._members.find(keys)
        for place in np.flatnonzero(positions < 0).tolist():
            problems.setdefault(place, UnusableError("unreadable", "not in the archive"))
        return RangePayload(str(self._archive), **self._members.columns(positions), problems=problems)

    def open(self, name: str) -> BinaryIO:
        """See `Tree`."""
        return cast(BinaryIO, io.BufferedReader(_Stream(self._pieces(name)), _CHUNK))

    def local(self, name: str) -> Path:
        """See `Tree`: a copy in the scratch folder, under a name that says nothing."""
        return _write(self._pieces(name), self._scratch, f"ingest.source {self._shown}")

    def _pieces(self, name: str) -> Iterator[bytes]:
        """The content of one file; what is wrong with it is said in terms of users."""
        if problem := self.problem(name):
            raise self._unusable(name, problem)
        return self._unpack(name)

    def _unpack(self, name: str) -> Iterator[bytes]:
        try:
            member = self._members.member(int(self._members.find([self._key(name)])[0]))
            with self._archive.open("rb") as archive:
                yield from unpack(cast(io.RawIOBase, archive), member)
        except UnusableError as error:
            raise self._unusable(name, error) from error

    def _unusable(self, name: str, error: UnusableError) -> WinnowError:
        return WinnowError(f"{printable(name)} in ingest.source {self._shown} cannot be read: {error.detail}")

    def _key(self, name: str) -> Key:
        try:
            key = name.encode("utf-8", "surrogateescape").replace(b"/", b"\0")
        except UnicodeEncodeError:  # half a surrogate pair
            key = b"\0"  # no member has it
        return self._top + b"\0" + key if self._top and key else key or self._top

    def _name(self, key: Key) -> str:
        return name_of(key[len(self._top) + 1 :] if self._top else key)


class _Stream(io.RawIOBase):
    """Pieces as a stream."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        super().__init__()
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def _packed_by(path: Path) -> str | None:
    """What a tar is packed by, as its first bytes say: many a `.tar.gz` is none."""
    with path.open("rb") as file:
        start = file.read(6)
    marks = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz"}
    return next((name for mark, name in marks.items() if start.startswith(mark)), None)


def _unpack_tar(path: Path, packed: str, scratch: Path, shown: str) -> Path:
    """A plain tar in the scratch folder; given up as soon as it grows beyond what is plausible."""
    bound = max(UNSUSPECTED, PLAUSIBLE_RATIO * path.stat().st_size)

    def plausible() -> Iterator[bytes]:
        done = 0
        with path.open("rb") as file:
            for piece in _decompress(file, packed, shown):
                done += len(piece)
                if done > bound:
                    raise WinnowError(f"{shown} is a bomb: it unpacks to more than {bound} bytes")
                yield piece

    return _write(plausible(), scratch, shown)


def _decompress(file: BinaryIO, packed: str, shown: str) -> Iterator[bytes]:
    openers: dict[str, Callable[[], BinaryIO]] = {
        "gzip": lambda: cast(BinaryIO, gzip.GzipFile(fileobj=file)),
        "bzip2": lambda: cast(BinaryIO, bz2.BZ2File(file)),
        "xz": lambda: cast(BinaryIO, io.BufferedReader(_Stream(_unxz(file)), _CHUNK)),
    }
    try:
        with openers[packed]() as stream:
            while piece := stream.read(_CHUNK):
                yield piece
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        detail = "it is cut off" if isinstance(error, EOFError) else f"its {packed} data is damaged"
        raise WinnowError(f"{shown} is no sound archive ({detail}): bring it again") from error


def _unxz(file: BinaryIO) -> Iterator[bytes]:
    """As `lzma.open`, which takes whatever memory the file asks for."""
    inflater, begun = lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY), False
    rest = b""
    while rest or (rest := file.read(_CHUNK)):
        if inflater.eof:
            inflater, begun = lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY), False
            rest = rest.lstrip(b"\0")  # padding between streams
            continue
        begun = True
        yield inflater.decompress(rest, _CHUNK)
        while not inflater.needs_input and not inflater.eof:
            yield inflater.decompress(b"", _CHUNK)
        rest = inflater.unused_data
    if begun and not inflater.eof:
        raise EOFError


def _write(pieces: Iterator[bytes], scratch: Path, shown: str) -> Path:
    """A file in the scratch folder, under a name that says nothing."""
    with tempfile.NamedTemporaryFile(dir=scratch, delete=False) as file:
        for number, piece in enumerate(pieces):
            if number % _LOOK_EVERY == 0 and shutil.disk_usage(scratch).free < _LEFT_FREE:
                raise WinnowError(f"{shown} cannot be unpacked: the disk is full; make room and run again")
            file.write(piece)
    return Path(file.name)
