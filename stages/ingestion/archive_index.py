"""Index an archive: where each of its files is, found out without unpacking any.

A zip is listed by its central directory, a tar by its headers. What nearly all members look like is
read here: Python's zipfile and tarfile take twice and three times as long. Anything else in a tar is
left to tarfile. Anybody may have made the archive: names that climb out of it are refused, and so is
a zip that cannot be what it says.

Offsets and fields of a zip: APPNOTE.TXT, sections 4.3 and 4.5
(https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT).
"""

from __future__ import annotations

import bisect
import io
import posixpath
import re
import stat
import struct
import tarfile
import zlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.errors import UnusableError, WinnowError
from stages.ingestion.payloads import DEFLATED, RAW, STORED, Member, unpack
from stages.ingestion.source import CLUTTER, Quarantined, hidden, printable

PLAUSIBLE_RATIO = 200  # unpacked to packed; images do not reach 2
UNSUSPECTED = 2**30  # bytes; archives that unpack to less are not asked for their ratio

# Paths of plain parts, most by far: not empty, not hidden, and nothing that any system takes for a
# separator.
_PLAIN = re.compile(r"(?:[^./\\:\0][^/\\:\0]*+/)*+[^./\\:\0][^/\\:\0]*+")
_CLUTTER = re.compile("|".join(map(re.escape, sorted(CLUTTER))))
_DRIVE = re.compile(r"[A-Za-z]:")
_LONGEST_TARGET = 4096  # bytes of a link

_BLOCK = 512  # bytes; what a tar consists of
_TAR_END = bytes(_BLOCK)
_LONGEST_HEADER = 1 << 20  # bytes of a long name or of pax records; tarfile reads them as a whole
_ADLER_BASE = 65521

_ZIP_END = struct.Struct("<4s4H2LH")
_END64_PLACE = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s2B3H4x3L5H2L")
_ENCRYPTED, _UTF8 = 0x1, 0x800  # flags
_FULL, _FULL16 = 0xFFFFFFFF, 0xFFFF  # the true value is in the zip64 record
_UNIX = 3  # of "version made by": the attributes hold a mode


class ArchiveIndex:
    """The regular files of an archive by path. Of several with one path the last counts, as in unpacking.

    A key is a path with NUL between its parts: sorted, all that is below a folder lies together.

    Attributes
    ----------
    refused : what is in the archive and can be no file of it
    """

    def __init__(self) -> None:
        self.refused: list[Quarantined] = []
        self._rows: dict[str, int] = {}  # of each key, in the table of members
        self._fields = array("q", Member(0, 0, 0, 0, RAW))  # row 0 is for what is not there
        self._links: list[tuple[str, str]] = []
        self._keys: list[str] = []

    def add(self, name: str, member: Member) -> None:
        """Take a regular file; hidden ones are passed over, and unsafe names refused."""
        try:
            key = key_of(name)
        except UnusableError as error:
            self.refuse(name, error)
            return
        if key is None:
            return
        if key in self._rows:
            detail = "the archive holds this name again further on: that one is read"
            self.refused.append(Quarantined(printable(path_of(key)), "unreadable", detail))
        self._rows[key] = len(self._fields) // len(member)
        self._fields.extend(member)

    def add_link(self, name: str, target: str) -> None:
        """Take a hard link to another member: the same file under a second name."""
        self._links.append((name, target))

    def refuse(self, name: str, problem: UnusableError) -> None:
        """Take something that is no file to be read."""
        self.refused.append(Quarantined(printable(name), problem.reason, problem.detail))

    def finish(self) -> ArchiveIndex:
        """Look up the hard links and sort; nothing can be added afterwards."""
        size = len(Member._fields)
        targets = dict(self._rows)
        for name, target in self._links:
            try:
                key = key_of(target)
            except UnusableError:
                key = None
            if key is None:
                self.refuse(name, link_problem("", target))
            elif (row := targets.get(key)) is None:
                self.refuse(name, UnusableError("unreadable", "a hard link to a file that is not there"))
            else:
                self.add(name, Member(*self._fields[row * size : (row + 1) * size]))
        self._keys = sorted(self._rows)
        return self

    def below(self, folder: str) -> Sequence[str]:
        """Return the keys of all files below a folder, sorted; "" is the top."""
        start, stop = self._range(folder)
        return self._keys[start:stop]

    def count(self, folder: str) -> int:
        """Count the files that `below` returns."""
        start, stop = self._range(folder)
        return stop - start

    def entries(self, folder: str) -> Iterator[tuple[str, bool]]:
        """Yield the keys right in a folder, sorted, and whether each is a folder."""
        place, stop = self._range(folder)
        depth = len(folder) + 1 if folder else 0
        while place < stop:
            key = self._keys[place]
            end = key.find("\0", depth)
            yield (key, False) if end < 0 else (key[:end], True)
            place = place + 1 if end < 0 else bisect.bisect_left(self._keys, key[:end] + "\1", place, stop)

    def find(self, keys: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the fields of `Member` for each key (N×5), and whether there is such a file."""
        rows = np.array([self._rows.get(key, 0) for key in keys], np.int64)
        table = np.frombuffer(self._fields, np.int64).reshape(-1, len(Member._fields))
        return table[rows], rows > 0

    def _range(self, folder: str) -> tuple[int, int]:
        if not folder:
            return 0, len(self._keys)
        return bisect.bisect_left(self._keys, folder + "\0"), bisect.bisect_left(self._keys, folder + "\1")


def path_of(key: str) -> str:
    """Convert a key to a path with `/`."""
    return key.replace("\0", "/")


def key_of(name: str) -> str | None:
    """Convert a member's path to a key, None where it is hidden.

    Raises
    ------
    UnusableError
        `outside_source` where it climbs, on whatever system it would be unpacked; `bad_name`.
    """
    if _PLAIN.fullmatch(name) and not _CLUTTER.search(name):
        return name.replace("/", "\0")
    if "\0" in name:
        raise UnusableError("bad_name", r"the name holds the control character \x00")
    everywhere = name.replace("\\", "/")
    if everywhere.startswith("/") or _DRIVE.match(everywhere):
        raise UnusableError("outside_source", "an absolute path")
    if ".." in everywhere and ".." in everywhere.split("/"):
        raise UnusableError("outside_source", "a path that climbs")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return None if not parts or any(map(hidden, parts)) else "\0".join(parts)


def link_problem(name: str, target: str) -> UnusableError:
    """Say why a link in an archive is not followed."""
    end = posixpath.normpath(posixpath.join(posixpath.dirname(name), target.replace("\\", "/")))
    if end.startswith(("/", "..")) or _DRIVE.match(target):
        return UnusableError("outside_source", "a link that leaves the archive")
    return UnusableError("unreadable", "links in an archive are not followed")


class _Header(tarfile.TarInfo):
    """A header that cannot order tarfile to read gigabytes of further header."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str | None, errors: str) -> _Header:
        header = super().frombuf(buf, encoding or "utf-8", errors)
        if header.type in b"xgXLK" and not 0 <= header.size <= _LONGEST_HEADER:
            raise ValueError(f"a header of {header.size} bytes")
        return header


def list_tar(path: Path, shown: str) -> ArchiveIndex:
    """Index every regular file of a plain tar; what else is in it is refused.

    Raises
    ------
    WinnowError
        Where it is no tar, damaged or cut off. `shown` is what the message calls it.
    """
    index = ArchiveIndex()
    reader = tarfile.TarFile(fileobj=io.BytesIO(_TAR_END * 2), tarinfo=_Header, encoding="utf-8")
    try:
        with path.open("rb") as file:
            _list_tar(file, reader, index)
    except (tarfile.TarError, ValueError, RecursionError, OverflowError, EOFError) as error:
        detail = " ".join(str(error).split()) or type(error).__name__
        raise WinnowError(f"{shown} is no sound tar archive ({detail}): bring it again") from error
    return index.finish()


def _list_tar(file: BinaryIO, reader: tarfile.TarFile, index: ArchiveIndex) -> None:
    size, place = file.seek(0, io.SEEK_END), 0
    while True:
        file.seek(place)
        header = file.read(_BLOCK)
        if len(header) < _BLOCK:
            raise ValueError("it is cut off" if place else "it is empty")
        if header == _TAR_END:
            return
        if (ordinary := _ordinary_file(header)) is not None:
            name, length = ordinary
            index.add(name, Member(place + _BLOCK, length, length, 0, RAW))
            end = place + _BLOCK - (-length // _BLOCK * _BLOCK)
        else:
            file.seek(place)
            reader.fileobj, reader.offset = file, place
            _add_of_tar(index, _Header.fromtarfile(reader))
            end = reader.offset
        if end > size:
            raise ValueError("it is cut off")
        if end <= place:
            raise ValueError("a member of negative size")
        place = end


def _ordinary_file(header: bytes) -> tuple[str, int] | None:
    """Return name and size of a regular file, None where tarfile has to look.

    These are headers as POSIX.1-1988 (ustar) and GNU tar write them, which differ little.
    """
    magic = header[257:265]
    if header[156:157] not in b"0\0" or magic not in (b"ustar\00000", b"ustar  \0"):
        return None
    name = header[:100].rstrip(b"\0")
    if magic == b"ustar\00000" and header[345]:
        name = header[345:500].rstrip(b"\0") + b"/" + name
    try:
        size = int(header[124:136].rstrip(b"\0 "), 8)
        checksum = int(header[148:156].rstrip(b"\0 "), 8)
    except ValueError:
        return None
    # The checksum is the sum of all bytes, its own taken as blanks; Adler-32 is one plus the sum,
    # modulo a prime, in its lower half.
    total = checksum + sum(header[148:156]) - 8 * ord(" ")
    if zlib.adler32(header) & 0xFFFF != (1 + total) % _ADLER_BASE:
        return None
    if not name or b"\0" in name or name.endswith(b"/") or size < 0:
        return None
    return name.decode("utf-8", "surrogateescape"), size


def _add_of_tar(index: ArchiveIndex, header: tarfile.TarInfo) -> None:
    if header.issparse():
        index.refuse(header.name, UnusableError("unreadable", "a sparse file"))
    elif header.isreg():
        index.add(header.name, Member(header.offset_data, header.size, header.size, 0, RAW))
    elif header.islnk():
        index.add_link(header.name, header.linkname)
    elif header.issym():
        index.refuse(header.name, link_problem(header.name, header.linkname))
    elif not header.isdir():
        index.refuse(header.name, UnusableError("unreadable", "not a regular file"))


def list_zip(path: Path, shown: str) -> ArchiveIndex:
    """Index every regular file of a zip; what else is in it is refused.

    Raises
    ------
    WinnowError
        Where it is no zip, damaged, cut off, or a bomb. `shown` is what the message calls it.
    """
    index = ArchiveIndex()
    try:
        with path.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            unpacked, packed = _list_zip(file, _directory(file, size), index)
    except (struct.error, ValueError, OverflowError) as error:
        detail = "it is cut off" if isinstance(error, struct.error) else error
        raise WinnowError(f"{shown} is no sound zip archive ({detail}): bring it again") from error
    if packed > size:
        raise WinnowError(f"{shown} is a zip bomb: its members lie over one another")
    if unpacked > max(UNSUSPECTED, PLAUSIBLE_RATIO * size):
        raise WinnowError(f"{shown} is a zip bomb: {size} bytes that say to unpack to {unpacked}")
    return index.finish()


class _Directory(NamedTuple):
    """Where the central directory is; `shift` is what stands before the archive proper."""

    start: int
    end: int
    entries: int
    shift: int


def _directory(file: BinaryIO, size: int) -> _Directory:
    start = max(size - _ZIP_END.size - _FULL16, 0)
    file.seek(start)
    tail = file.read()
    place = tail.rfind(b"PK\5\6")
    if place < 0:
        raise ValueError("it is cut off, or no zip")
    _, disk, first_disk, _, count, length, offset, _ = _ZIP_END.unpack_from(tail, place)
    end = start + place
    if _FULL in (length, offset) or count == _FULL16:
        file.seek(max(end - _END64_PLACE.size, 0))
        if file.read(4) == b"PK\6\7" and end >= _END64_PLACE.size + _END64.size:
            end -= _END64_PLACE.size + _END64.size
            file.seek(end)
            mark, *_, count, length, offset = _END64.unpack(file.read(_END64.size))
            if mark != b"PK\6\6":
                raise ValueError("its zip64 directory is damaged")
    if disk not in (0, _FULL16) or first_disk not in (0, _FULL16):
        raise ValueError("one part of several")
    if end - length - offset < 0:
        raise ValueError("it is cut off")
    return _Directory(end - length, end, count, end - length - offset)


def _list_zip(file: BinaryIO, directory: _Directory, index: ArchiveIndex) -> tuple[int, int]:
    """Take all entries; return the bytes of all members, unpacked and packed."""
    unpacked = packed = count = 0
    place = directory.start
    links: list[tuple[str, Member]] = []
    file.seek(place)
    while place < directory.end:
        entry = _ENTRY.unpack(file.read(_ENTRY.size))
        if entry[0] != b"PK\1\2":
            raise ValueError("its directory is damaged")
        _, _, system, _, flags, method, crc, small, large, name_size, extra_size, note_size = entry[:12]
        _, _, attributes, offset = entry[12:]
        name, extra = _text(file.read(name_size), flags), file.read(extra_size)
        file.seek(note_size, io.SEEK_CUR)
        place += _ENTRY.size + name_size + extra_size + note_size
        count += 1
        if _FULL in (small, large, offset):
            large, small, offset = _zip64(extra, large, small, offset)
        unpacked, packed = unpacked + large, packed + small
        mode = attributes >> 16 if system == _UNIX else 0
        member = Member(offset + directory.shift, large, small, crc, method)
        if stat.S_ISLNK(mode):
            links.append((name, member))
        elif (problem := _problem(flags, mode, member, directory.start)) is not None:
            index.refuse(name, problem)
        elif not name.endswith("/"):
            index.add(name, member)
    if count & _FULL16 != directory.entries & _FULL16:
        raise ValueError("its directory is damaged")
    for name, member in links:
        index.refuse(name, link_problem(name, _link_target(file, member)))
    return unpacked, packed


def _problem(flags: int, mode: int, member: Member, end: int) -> UnusableError | None:
    if flags & _ENCRYPTED:
        return UnusableError("unreadable", "encrypted")
    if member.method not in (STORED, DEFLATED):
        return UnusableError("unreadable", f"packed by method {member.method}; deflate is read")
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return UnusableError("unreadable", "not a regular file")
    if member.offset + member.packed > end:
        return UnusableError("damaged", "lies outside the archive")
    return None


def _link_target(file: BinaryIO, member: Member) -> str:
    """Return what a link in a zip points to, "" where that cannot be read."""
    if max(member.size, member.packed) > _LONGEST_TARGET:
        return ""
    try:
        return b"".join(unpack(file, member)).decode("utf-8", "surrogateescape")
    except UnusableError:
        return ""


def _zip64(extra: bytes, large: int, small: int, offset: int) -> tuple[int, int, int]:
    """Return sizes and offset; those too large for the entry stand in its extra field 1, in this order."""
    place = 0
    while place + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, place)
        if kind == 1:
            wide = iter(struct.unpack_from(f"<{length // 8}Q", extra, place + 4))
            large, small, offset = (next(wide, _FULL) if n == _FULL else n for n in (large, small, offset))
            break
        place += 4 + length
    return large, small, offset


def _text(name: bytes, flags: int) -> str:
    """Decode a name of a zip: macOS writes UTF-8 without saying so, some programs of Windows `\\`."""
    if name.isascii() or flags & _UTF8:
        text = name.decode("utf-8", "surrogateescape")
    else:
        try:
            text = name.decode("utf-8")
        except UnicodeDecodeError:
            text = name.decode("cp437")
    return text.replace("\\", "/")
