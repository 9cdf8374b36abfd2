"""Read archives as trees; nothing of them is ever unpacked under a name that they chose.

A zip or a tar is read in place. A compressed tar cannot be: it is decompressed once, to one plain
tar in the scratch folder. Links are not followed, but a hard link to another member is that member.
Of several members with one name the last one counts. Archives in archives stay closed.
"""

from __future__ import annotations

import bz2
import copy
import gzip
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from stages.errors import UnusableError, WinnowError
from stages.ingestion.archive_index import (
    PLAUSIBLE_RATIO,
    UNSUSPECTED,
    ArchiveIndex,
    list_tar,
    list_zip,
    path_of,
)
from stages.ingestion.payloads import Member, RangePayload, path_problem, unpack
from stages.ingestion.source import Quarantined, printable

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_CHUNK = 1 << 20  # bytes
_XZ_MEMORY = 2**28  # bytes; `xz -9` needs a quarter of it
_LEFT_FREE = 2**28  # bytes of the disk
_LOOK_EVERY = 64  # pieces


def is_archive(path: Path) -> bool:
    """Return whether a name is that of an archive that can be read."""
    return path.name.lower().endswith(ENDINGS)


def open_archive(path: Path, scratch: Path) -> ArchiveTree:
    """Open an archive as a tree.

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
            return ArchiveTree(path.resolve(), list_zip(path, shown), str(path), scratch)
        packed = _packed_by(path)
        tar = _unpack_tar(path, packed, scratch, shown) if packed else path.resolve()
        return ArchiveTree(tar, list_tar(tar, shown), str(path), scratch)
    except OSError as error:
        raise WinnowError(f"{shown} cannot be read: {error.strerror or type(error).__name__}") from error


class ArchiveTree:
    """The files of an archive; see `open_archive`, and `trees.Tree` for what it does.

    Parameters
    ----------
    archive : a zip or a plain tar
    index : as `list_zip` and `list_tar` give it
    shown : what to call it in messages
    scratch : a folder for files that are needed as such
    """

    def __init__(self, archive: Path, index: ArchiveIndex, shown: str, scratch: Path) -> None:
        self.shown = shown
        self._archive = archive
        self._index = index
        self._scratch = scratch
        self._top = ""  # key of the folder that is the top of the tree
        self._copies: dict[str, Path] = {}  # by key, what `local` has unpacked

    @property
    def refused(self) -> Sequence[Quarantined]:
        """See `Tree`; all there will be, as soon as the archive is open."""
        start = f"{printable(path_of(self._top))}/" if self._top else ""
        return [replace(row, path=row.path.removeprefix(start)) for row in self._index.refused]

    def under(self, folder: str) -> ArchiveTree:
        """See `Tree`."""
        tree = copy.copy(self)
        tree.shown = f"{self.shown}/{printable(folder)}"
        tree._top = self._key(folder)
        return tree

    def folders(self, inside: str = "") -> list[str]:
        """See `Tree`; folders without files are not there."""
        return [self._name(key) for key, is_folder in self._index.entries(self._key(inside)) if is_folder]

    def files(self, inside: str = "") -> list[str]:
        """See `Tree`."""
        return [self._name(key) for key, is_folder in self._index.entries(self._key(inside)) if not is_folder]

    def walk(self, inside: str = "") -> Iterator[str]:
        """See `Tree`."""
        return map(self._name, self._index.below(self._key(inside)))

    def count(self, inside: str = "") -> int:
        """See `Tree`."""
        return self._index.count(self._key(inside))

    def problem(self, name: str) -> UnusableError | None:
        """See `Tree`."""
        return self.payload([name]).problems.get(0)

    def payload(self, names: Sequence[str]) -> RangePayload:
        """See `Tree`."""
        problems = {place: problem for place, name in enumerate(names) if (problem := path_problem(name))}
        members, is_file = self._index.find([self._key(name) for name in names])
        for place in np.flatnonzero(~is_file).tolist():
            problems.setdefault(place, UnusableError("unreadable", "not in the archive"))
        return RangePayload(str(self._archive), members, problems)

    def open(self, name: str) -> BinaryIO:
        """See `Tree`."""
        return self.local(name).open("rb")

    def local(self, name: str) -> Path:
        """See `Tree`: a copy in the scratch folder, under a name that says nothing."""
        key, shown = self._key(name), f"ingest.source {self.shown}"
        if key not in self._copies:
            try:
                if problem := self.problem(name):
                    raise problem
                member = Member(*self._index.find([key])[0][0].tolist())
                with self._archive.open("rb") as archive:
                    self._copies[key] = _write(unpack(archive, member), self._scratch, shown)
            except UnusableError as error:
                raise WinnowError(f"{printable(name)} in {shown} cannot be read: {error.detail}") from error
        return self._copies[key]

    def _key(self, name: str) -> str:
        key = name.replace("/", "\0")
        return f"{self._top}\0{key}" if self._top and key else key or self._top

    def _name(self, key: str) -> str:
        return path_of(key[len(self._top) + 1 :] if self._top else key)


def _packed_by(path: Path) -> str | None:
    """Return what a tar is packed by, as its first bytes say: many a `.tar.gz` is not packed."""
    with path.open("rb") as file:
        start = file.read(6)
    marks = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz"}
    return next((name for mark, name in marks.items() if start.startswith(mark)), None)


def _unpack_tar(path: Path, packed: str, scratch: Path, shown: str) -> Path:
    """Write a plain tar to the scratch folder; give up as soon as it grows beyond what is plausible."""
    bound = max(UNSUSPECTED, PLAUSIBLE_RATIO * path.stat().st_size)

    def plausible() -> Iterator[bytes]:
        unpacked = 0
        with path.open("rb") as file:
            for piece in _decompress(file, packed):
                unpacked += len(piece)
                if unpacked > bound:
                    raise WinnowError(f"{shown} is a bomb: it unpacks to more than {bound} bytes")
                yield piece

    try:
        return _write(plausible(), scratch, shown)
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        detail = "it is cut off" if isinstance(error, EOFError) else f"its {packed} data is damaged"
        raise WinnowError(f"{shown} is no sound archive ({detail}): bring it again") from error


def _decompress(file: BinaryIO, packed: str) -> Iterator[bytes]:
    if packed == "xz":
        yield from _unxz(file)
        return
    with gzip.GzipFile(fileobj=file) if packed == "gzip" else bz2.BZ2File(file) as stream:
        while piece := stream.read(_CHUNK):
            yield piece


def _unxz(file: BinaryIO) -> Iterator[bytes]:
    """Decompress in bounded memory: `lzma.open` takes whatever the file asks for."""
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
    """Write a file to the scratch folder, under a name that says nothing."""
    with tempfile.NamedTemporaryFile(dir=scratch, delete=False) as file:
        for number, piece in enumerate(pieces):
            if number % _LOOK_EVERY == 0 and shutil.disk_usage(scratch).free < _LEFT_FREE:
                raise WinnowError(f"{shown} cannot be unpacked: the disk is full; make room and run again")
            file.write(piece)
    return Path(file.name)
