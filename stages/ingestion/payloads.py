"""Read files and members of archives in a worker process; nothing heavy is imported here."""

# Paths are plain strings here: what is done for every file must cost little.
# ruff: noqa: PTH114, PTH115, PTH118, PTH120, PTH123

from __future__ import annotations

import errno
import itertools
import os
import stat
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.errors import MAX_BYTES, UnusableError
from stages.ingestion.source import name_problem

RAW, STORED, DEFLATED = -1, 0, 8  # how a member is packed: RAW has no header of its own before it
_LOCAL_HEADER = struct.Struct("<4s22x2H")  # of a zip member: signature, lengths of name and extra field
_CHUNK = 1 << 20  # bytes
_LONGEST_PATH = 4096  # characters; Linux takes no longer ones
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)  # not on Windows
# Opening a named pipe would wait for a writer but for O_NONBLOCK.
_FLAGS = os.O_RDONLY | _NOFOLLOW | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def path_problem(name: str) -> UnusableError | None:
    """Say what forbids a relative path before anything is looked at, None where nothing does."""
    if problem := name_problem(name):
        return UnusableError("bad_name", problem)
    if not name:
        return UnusableError("unreadable", "no file name")
    if len(name) > _LONGEST_PATH:
        return UnusableError("unreadable", f"a path of {len(name)} characters; at most {_LONGEST_PATH}")
    if name[0] == "/" or (os.name == "nt" and ("\\" in name or ":" in name)):
        return UnusableError("outside_source", "an absolute path")
    if ".." in name and ".." in name.split("/"):
        return UnusableError("outside_source", "a path that climbs")
    return None


class Opener:
    """Opens files below a folder, and nothing else.

    Parameters
    ----------
    root : the folder, without links in its path
    stores : further folders that links to files may end in, without links in their paths
    """

    def __init__(self, root: str, stores: Sequence[str] = ()) -> None:
        self._root = root
        self._bases = [root, *stores]
        self._plain: dict[str, bool] = {}  # folders that have been looked at: is no link on the way?

    def open(self, name: str) -> tuple[int, os.stat_result]:
        """Open a regular file; returns its descriptor and status.

        Raises
        ------
        UnusableError
            `unreadable`, `outside_source`, `linked_folder` or `bad_name`.
        """
        descriptor, linked = self._descriptor(name)
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode):
            return descriptor, status
        os.close(descriptor)
        if linked and stat.S_ISDIR(status.st_mode):
            raise UnusableError("linked_folder", "links to folders are not followed")
        raise UnusableError("unreadable", "not a regular file")

    def problem(self, name: str) -> UnusableError | None:
        """Say why `open` would fail, None where it would not."""
        try:
            os.close(self.open(name)[0])
        except UnusableError as error:
            return error
        return None

    def target(self, path: str) -> str | None:
        """Return where a link ends, without links in its path; None outside the root and the stores."""
        target = os.path.join(os.path.dirname(path), os.readlink(path))
        for base in self._bases:
            # A checkout may be all links into one store: this saves looking at every part of the path.
            rest = target[len(base) + 1 :]
            if target.startswith(base + "/") and ".." not in rest.split("/") and self.no_links(base, rest):
                if not os.path.islink(target):
                    return target
                break
        target = os.path.realpath(path)
        return target if any(_inside(target, base) for base in self._bases) else None

    def _descriptor(self, name: str) -> tuple[int, bool]:
        """Open whatever has this name; returns its descriptor, and whether a link led to it."""
        if problem := path_problem(name):
            raise problem
        path = f"{self._root}/{name}"
        try:
            if not self.no_links(self._root, name):
                return self._through_folders(path)
            if not _NOFOLLOW and os.path.islink(path):
                return self._follow(path), True
            try:
                return os.open(path, _FLAGS), False
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.EMLINK):
                    raise
                return self._follow(path), True
        except OSError as error:
            raise _unreadable(error) from error
        except ValueError as error:  # half a surrogate pair
            raise UnusableError("bad_name", "the name is no text") from error

    def _follow(self, path: str) -> int:
        target = self.target(path)
        if target is None:
            raise UnusableError("outside_source", "a link that leaves the source's folder")
        try:
            return os.open(target, _FLAGS)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EMLINK):
                raise UnusableError("unreadable", "a link that goes round in circles") from error
            raise

    def _through_folders(self, path: str) -> tuple[int, bool]:
        if _inside(os.path.realpath(path), self._root):
            raise UnusableError("linked_folder", "links to folders are not followed")
        raise UnusableError("outside_source", "a path through a link that leaves the source's folder")

    def no_links(self, base: str, name: str) -> bool:
        """Return whether the folders that `name` names below `base` are folders, not links to some."""
        folder = name.rpartition("/")[0]
        if not folder:
            return True
        whole = f"{base}/{folder}"
        if whole not in self._plain:
            ends = [len(base) + 1 + i for i, c in enumerate(folder) if c == "/"] + [len(whole)]
            self._plain[whole] = not any(os.path.islink(whole[:end]) for end in ends)
        return self._plain[whole]


@dataclass(frozen=True)
class FilePayload:
    """Files below the folder `root`; links may end in it or in one of `stores`. See `Opener`."""

    root: str
    names: list[str]
    stores: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def read(self) -> Iterator[bytes | NDArray[np.uint8] | UnusableError]:
        """Read every file; see `source.Payload`."""
        opener = Opener(self.root, self.stores)
        for name in self.names:
            try:
                encoded: bytes | UnusableError = _read_file(opener, name)
            except UnusableError as error:
                encoded = error
            yield encoded

    def part(self, start: int, stop: int) -> FilePayload:
        """See `source.Payload`."""
        return FilePayload(self.root, self.names[start:stop], self.stores)


class Member(NamedTuple):
    """Where an archive holds a file: `RAW` at `offset`, otherwise behind a zip's local header there."""

    offset: int
    size: int  # bytes, unpacked
    packed: int  # bytes
    crc: int
    method: int  # RAW, STORED or DEFLATED


@dataclass(frozen=True)
class RangePayload:
    """Members of an archive; what is in `problems` (by position) is given as it stands.

    Attributes
    ----------
    path : the archive, a plain tar or a zip
    members : the fields of each `Member`, N×5; anything where there is a problem
    """

    path: str
    members: NDArray[np.int64]
    problems: dict[int, UnusableError] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.members)

    def read(self) -> Iterator[bytes | NDArray[np.uint8] | UnusableError]:
        """Read every member; see `source.Payload`."""
        try:
            archive = open(self.path, "rb", buffering=0)  # noqa: SIM115
        except OSError as error:
            yield from [self.problems.get(index, _unreadable(error)) for index in range(len(self))]
            return
        with archive:
            for index, fields in enumerate(self.members.tolist()):
                yield self.problems.get(index) or _read_member(archive, Member(*fields))

    def part(self, start: int, stop: int) -> RangePayload:
        """See `source.Payload`."""
        problems = {place - start: why for place, why in self.problems.items() if start <= place < stop}
        return RangePayload(self.path, self.members[start:stop], problems)


def unpack(archive: BinaryIO, member: Member) -> Iterator[bytes]:
    """Yield the content of a member in pieces, never more than its `size`.

    Raises
    ------
    UnusableError
        `damaged`, where the archive is cut off there or holds another content than it says;
        `unreadable`, where the file system does not give it.
    """
    done = crc = 0
    start = member.offset
    if member.method != RAW:
        header = b"".join(_pieces(archive, start, _LOCAL_HEADER.size))
        if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
            raise UnusableError("damaged", "nothing where the archive's directory says")
        _, name, extra = _LOCAL_HEADER.unpack(header)
        start += _LOCAL_HEADER.size + int(name) + int(extra)
    pieces = _pieces(archive, start, member.packed)
    for piece in pieces if member.method != DEFLATED else _inflate(pieces, member.size):
        done += len(piece)
        crc = zlib.crc32(piece, crc) if member.method != RAW else 0
        if done > member.size:
            raise UnusableError("damaged", "holds more than the archive's directory says")
        yield piece
    if done != member.size:
        raise UnusableError("damaged", f"{done} bytes of {member.size}")
    if crc != member.crc and member.method != RAW:
        raise UnusableError("damaged", "the checksum (CRC-32) is another")


def _pieces(archive: BinaryIO, start: int, size: int) -> Iterator[bytes]:
    try:
        archive.seek(start)
        while size > 0 and (piece := archive.read(min(size, _CHUNK))):
            size -= len(piece)
            yield piece
    except OSError as error:
        raise _unreadable(error) from error


def _inflate(pieces: Iterator[bytes], size: int) -> Iterator[bytes]:
    """Yield at most one byte more than `size`, so that too much can be told from enough."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for piece in itertools.chain(pieces, [b""]):
            rest, full = piece, True
            while full and not inflater.eof:
                limit = min(_CHUNK, size + 1)
                inflated = inflater.decompress(rest, limit)
                yield inflated
                size -= len(inflated)
                if size < 0:
                    return
                rest, full = inflater.unconsumed_tail, len(inflated) == limit
    except zlib.error as error:
        raise UnusableError("damaged", "cannot be inflated") from error
    if not inflater.eof:
        raise UnusableError("damaged", "cut off")


def _read_member(archive: BinaryIO, member: Member) -> bytes | UnusableError:
    largest = max(member.size, member.packed)
    if largest > MAX_BYTES:
        return UnusableError("too_large", f"{largest} bytes; at most {MAX_BYTES}")
    try:
        if member.method == RAW:  # in one go
            archive.seek(member.offset)
            encoded = archive.read(member.size)
            if encoded is not None and len(encoded) == member.size:
                return encoded
        return b"".join(unpack(archive, member))
    except UnusableError as error:
        return error
    except OSError as error:
        return _unreadable(error)


def _read_file(opener: Opener, name: str) -> bytes:
    descriptor, status = opener.open(name)
    try:
        size = status.st_size
        if size > MAX_BYTES:
            raise UnusableError("too_large", f"{size} bytes; at most {MAX_BYTES}")
        encoded = os.read(descriptor, size)
        while len(encoded) < size and (more := os.read(descriptor, size - len(encoded))):
            encoded += more
        return encoded
    except OSError as error:
        raise _unreadable(error) from error
    finally:
        os.close(descriptor)


def _inside(path: str, base: str) -> bool:
    return path == base or path.startswith(base.rstrip(os.sep) + os.sep)


def _unreadable(error: OSError) -> UnusableError:
    return UnusableError("unreadable", error.strerror or type(error).__name__)
