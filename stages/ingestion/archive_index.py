"""What an archive holds, as columns: a million members are about a hundred megabytes.

The members of a tar, found out without unpacking it.

The members of a zip, from its central directory.

Python's zipfile keeps an object of half a kilobyte and more for each member. Offsets and fields:
APPNOTE.TXT, sections 4.3 and 4.5 (https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT).
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
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stages.errors import UnusableError, WinnowError
from stages.ingestion.payloads import DEFLATED, RAW, STORED, Member, unpack
from stages.ingestion.source import Quarantined, hidden, printable

Key = bytes  # a path as bytes with NUL between its parts: sorted, every folder lies together
_CHUNK = 1 << 16  # names

# Parts that are not empty, not hidden, and hold nothing that any system takes for a separator.
_PLAIN = re.compile(rb"(?:[^./\\:\0][^/\\:\0]*+/)*+[^./\\:\0][^/\\:\0]*+")

_CLUTTER = re.compile(rb"Thumbs\.db|desktop\.ini|__MACOSX")
_DRIVE = re.compile(rb"[A-Za-z]:")
_BLOCK = 512  # bytes; what a tar consists of
_TAR_END = bytes(_BLOCK)
_LONGEST_HEADER = 1 << 20  # bytes of a long name or of pax records; tarfile reads them as a whole
_ADLER_BASE = 65521
PLAUSIBLE_RATIO = 200  # unpacked to packed; images do not reach 2
UNSUSPECTED = 2**30  # bytes; archives that unpack to less are not asked for their ratio
_ZIP_END = struct.Struct("<4s4H2LH")
_END64_PLACE = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s2B3H4x3L5H2L")
_ENCRYPTED, _UTF8 = 0x1, 0x800  # flags
_FULL, _FULL16 = 0xFFFFFFFF, 0xFFFF  # the true value is in the zip64 record
_UNIX = 3  # of "version made by": the attributes hold a mode
_LONGEST_TARGET = 4096  # bytes of a link


class Members:
    """The regular files of an archive, sorted by path; N members.

    Of several with one name the last one counts, as in unpacking.
    """

    def __init__(self, keys: pa.LargeBinaryArray, columns: dict[str, NDArray[Any]]) -> None:
        self._keys = keys
        self._columns = columns
        self._hashes: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return len(self._keys)

    def below(self, folder: Key) -> tuple[int, int]:
        """The positions, from and to, of the members below a folder; b"" is the top."""
        if not folder:
            return 0, len(self)
        view: Any = _View(self._keys)
        return bisect.bisect_left(view, folder + b"\0"), bisect.bisect_left(view, folder + b"\1")

    def keys(self, start: int, stop: int) -> Iterator[Key]:
        """The paths at these positions."""
        for chunk in range(start, stop, _CHUNK):
            yield from self._keys[chunk : min(chunk + _CHUNK, stop)].to_pylist()

    def right_in(self, folder: Key) -> Iterator[tuple[Key, bool]]:
        """What lies right in a folder, sorted, and whether it is a folder; jumps over what is deeper."""
        place, stop = self.below(folder)
        depth = len(folder) + 1 if folder else 0
        view: Any = _View(self._keys)
        while place < stop:
            key = view[place]
            end = key.find(b"\0", depth)
            yield (key, False) if end < 0 else (key[:end], True)
            place = place + 1 if end < 0 else bisect.bisect_left(view, key[:end] + b"\1", place, stop)

    def find(self, keys: Sequence[Key]) -> NDArray[np.int64]:
        """The positions of these paths, -1 for one that is not there."""
        hashes, order = self._by_hash()
        wanted = np.fromiter(map(hash, keys), np.int64, len(keys))
        found = np.full(len(keys), -1, np.int64)
        open_, places = np.arange(len(keys)), np.searchsorted(hashes, wanted)
        while len(open_):  # again only for different names of one hash
            same = places < len(hashes)
            same[same] = hashes[places[same]] == wanted[open_[same]]
            open_, places = open_[same], places[same]
            names = self._keys.take(pa.array(order[places])).to_pylist()
            right = np.array([keys[i] == name for i, name in zip(open_.tolist(), names, strict=True)], bool)
            found[open_[right]] = order[places[right]]
            open_, places = open_[~right], places[~right] + 1
        return found

    def columns(self, positions: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """The fields of `payloads.Member` at these positions; no matter what at negative ones."""
        if not len(self):
            return {name: np.zeros(len(positions), np.int64) for name in Member._fields}
        taken = {name: column[np.maximum(positions, 0)] for name, column in self._columns.items()}
        if "packed" not in taken:
            zeros = np.zeros(len(positions), np.int8)
            taken |= {"packed": taken["size"], "crc": zeros, "method": zeros + RAW}
        return taken

    def member(self, position: int) -> Member:
        """Where one member is."""
        one = self.columns(np.array([position]))
        return Member(**{name: int(column[0]) for name, column in one.items()})

    def _by_hash(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self._hashes is None:
            hashes = np.fromiter(map(hash, self.keys(0, len(self))), np.int64, len(self))
            order = np.argsort(hashes, kind="stable")
            self._hashes = hashes[order], order
        return self._hashes


class Listing:
    """Collects members as they stand in an archive, and refuses those whose names are not safe."""

    def __init__(self) -> None:
        self.refused: list[Quarantined] = []
        self._chunks: list[pa.LargeBinaryArray] = []
        self._keys: list[Key] = []
        self._offset, self._size = array("q"), array("q")
        self._packed, self._crc, self._method = array("q"), array("q"), array("b")  # of a zip only
        self._links: list[tuple[bytes, Key]] = []

    def add(self, name: bytes, offset: int, size: int) -> bool:
        """A regular file; `name` is its path in the archive, UTF-8 where it is text. Whether it is taken."""
        try:
            key = key_of(name)
        except UnusableError as error:
            self.refuse(name, error)
            return False
        if key is None:
            return False
        self._keys.append(key)
        self._offset.append(offset)
        self._size.append(size)
        if len(self._keys) == _CHUNK:
            self._pack()
        return True

    def add_packed(self, name: bytes, member: Member) -> None:
        """A regular file of a zip; in one listing all members are packed, or none."""
        if self.add(name, member.offset, member.size):
            self._packed.append(member.packed)
            self._crc.append(member.crc)
            self._method.append(member.method)

    def add_link(self, name: bytes, target: bytes) -> None:
        """A hard link to another member: the same file under a second name."""
        try:
            key = key_of(target)
        except UnusableError:
            key = None
        if key is None:
            self.refuse(name, link_problem(b"", target))
        else:
            self._links.append((name, key))

    def refuse(self, name: bytes, problem: UnusableError) -> None:
        """Something that is no file to be read."""
        shown = printable(text_of(name))
        self.refused.append(Quarantined(shown, problem.reason, problem.detail))

    def members(self) -> Members:
        """What was collected; hard links are looked up now."""
        if self._links:
            known = self._sorted()
            links = zip(self._links, known.find([key for _, key in self._links]).tolist(), strict=True)
            for (name, _), place in links:
                if place < 0:
                    self.refuse(name, UnusableError("unreadable", "a hard link to a file that is not there"))
                else:
                    member = known.member(place)
                    self.add(name, member.offset, member.size)
            self._links = []
        members = self._sorted(last=self.refused)
        return members

    def _pack(self) -> None:
        self._chunks.append(pa.array(self._keys, pa.large_binary()))
        self._keys = []

    def _sorted(self, last: list[Quarantined] | None = None) -> Members:
        """Sorted by path, one of each; those that are replaced by a later one are told to `last`."""
        self._pack()
        keys = pa.concat_arrays(self._chunks)
        self._chunks = [keys]
        order = pc.array_sort_indices(keys)  # stable
        keys, order = keys.take(order), order.to_numpy()
        stays = np.ones(len(keys), bool)
        stays[:-1] = ~pc.equal(keys[1:], keys[:-1]).to_numpy(zero_copy_only=False)
        if last is not None:
            for place in np.flatnonzero(~stays).tolist():
                detail = "the archive holds this name again further on: that one is read"
                last.append(Quarantined(printable(name_of(keys[place].as_py())), "unreadable", detail))
        if not stays.all():
            keys, order = keys.filter(pa.array(stays)), order[stays]
        columns = {"offset": self._offset, "size": self._size}
        if self._packed:
            columns |= {"packed": self._packed, "crc": self._crc, "method": self._method}
        return Members(keys, {name: _numbers(column)[order] for name, column in columns.items()})


def _numbers(column: array[int]) -> NDArray[Any]:
    """The same memory as an array of NumPy."""
    return np.frombuffer(column, column.typecode) if column else np.empty(0, column.typecode)


class _View:
    """Keys as `bisect` wants them."""

    def __init__(self, keys: pa.LargeBinaryArray) -> None:
        self._keys = keys

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, place: int) -> Key:
        key: Key = self._keys[place].as_py()
        return key


def text_of(name: bytes) -> str:
    """A name as `os.fsdecode` gives those of a folder: bytes that are not UTF-8 are kept."""
    return name.decode("utf-8", "surrogateescape")


def name_of(key: Key) -> str:
    """A key as a path with `/`."""
    return text_of(key.replace(b"\0", b"/"))


def key_of(name: bytes) -> Key | None:
    """A member's path as a key, None where it is hidden.

    Raises
    ------
    UnusableError
        `outside_source` where it climbs, on whatever system it would be unpacked; `bad_name`.
    """
    if _PLAIN.fullmatch(name) and not _CLUTTER.search(name):
        return name.replace(b"/", b"\0")
    if b"\0" in name:
        raise UnusableError("bad_name", r"the name holds the control character \x00")
    everywhere = name.replace(b"\\", b"/")
    if everywhere.startswith(b"/") or _DRIVE.match(everywhere):
        raise UnusableError("outside_source", "an absolute path")
    if b".." in everywhere.split(b"/"):
        raise UnusableError("outside_source", "a path that climbs")
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if not parts or any(hidden(text_of(part)) for part in parts):
        return None
    return b"\0".join(parts)


def link_problem(name: bytes, target: bytes) -> UnusableError:
    """Why a link in an archive is not followed."""
    end = posixpath.normpath(posixpath.join(posixpath.dirname(name), target.replace(b"\\", b"/")))
    if end.startswith((b"/", b"..")) or _DRIVE.match(target):
        return UnusableError("outside_source", "a link that leaves the archive")
    return UnusableError("unreadable", "links in an archive are not followed")


def list_tar(path: Path, shown: str) -> tuple[Members, Listing]:
    """Every regular file of a plain tar; what else is in it is refused in the listing.

    Headers of ordinary files (POSIX.1-1988 ustar and GNU's, which differ little) are read here,
    which is several times as fast; all others by Python's tarfile.

    Raises
    ------
    WinnowError
        Where it is no tar, damaged or cut off. `shown` is what the message calls it.
    """
    listing = Listing()
    try:
        with path.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            with tarfile.TarFile(
                fileobj=io.BytesIO(_TAR_END * 2), tarinfo=_Header, encoding="utf-8"
            ) as reader:
                _list_tar(file, size, reader, listing)
    except (tarfile.TarError, ValueError, RecursionError, OverflowError, EOFError) as error:
        detail = " ".join(str(error).split()) or type(error).__name__
        raise WinnowError(f"{shown} is no sound tar archive ({detail}): bring it again") from error
    return listing.members(), listing


class _Header(tarfile.TarInfo):
    """A header that does not order tarfile to read gigabytes of further header."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str | None, errors: str) -> _Header:
        header = super().frombuf(buf, encoding or "utf-8", errors)
        if header.type in b"xgXLK" and not 0 <= header.size <= _LONGEST_HEADER:
            raise ValueError(f"a header of {header.size} bytes")
        return header


def _list_tar(file: BinaryIO, size: int, reader: tarfile.TarFile, listing: Listing) -> None:
    place = 0
    while True:
        file.seek(place)
        header = file.read(_BLOCK)
        if len(header) < _BLOCK:
            raise ValueError("it is cut off" if place else "it is empty")
        if header == _TAR_END:
            return
        plain = _ordinary_file(header)
        if plain is not None:
            name, length = plain
            listing.add(name, place + _BLOCK, length)
            end = place + _BLOCK + _whole_blocks(length)
        else:
            end = _any_member(file, place, reader, listing)
        if end > size:
            raise ValueError("it is cut off")
        if end <= place:
            raise ValueError("a member of negative size")
        place = end


def _ordinary_file(header: bytes) -> tuple[bytes, int] | None:
    """Name and size of a regular file from its header, None where it is anything else."""
    magic = header[257:265]
    if header[156:157] not in b"0\0" or magic not in (b"ustar\00000", b"ustar  \0"):
        return None
    name = header[:100].rstrip(b"\0")
    if magic == b"ustar\00000" and header[345]:
        name = header[345:500].rstrip(b"\0") + b"/" + name
    try:
        size = int(header[124:136].rstrip(b"\0 "), 8)
        stored = int(header[148:156].rstrip(b"\0 "), 8)
    except ValueError:
        return None
    # The checksum is the sum of all bytes, its own taken as blanks; Adler-32 is one plus the sum,
    # modulo a prime, in its lower half.
    total = stored + sum(header[148:156]) - 8 * ord(" ")
    if zlib.adler32(header) & 0xFFFF != (1 + total) % _ADLER_BASE:
        return None
    return None if not name or b"\0" in name or name.endswith(b"/") or size < 0 else (name, size)


def _any_member(file: BinaryIO, place: int, reader: tarfile.TarFile, listing: Listing) -> int:
    """Takes one member as tarfile reads it; gives the place of the next."""
    file.seek(place)
    reader.fileobj, reader.offset = file, place
    header = _Header.fromtarfile(reader)
    name = header.name.encode("utf-8", "surrogateescape")
    if header.issparse():
        listing.refuse(name, UnusableError("unreadable", "a sparse file"))
    elif header.isreg():
        listing.add(name, header.offset_data, header.size)
    elif header.islnk():
        listing.add_link(name, header.linkname.encode("utf-8", "surrogateescape"))
    elif header.issym():
        listing.refuse(name, link_problem(name, header.linkname.encode("utf-8", "surrogateescape")))
    elif not header.isdir():
        listing.refuse(name, UnusableError("unreadable", "not a regular file"))
    return reader.offset


def _whole_blocks(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def list_zip(path: Path, shown: str) -> tuple[Members, Listing]:
    """Every regular file of a zip; what else is in it is refused in the listing.

    Raises
    ------
    WinnowError
        Where it is no zip, damaged, cut off, or a bomb. `shown` is what the message calls it.
    """
    listing = Listing()
    try:
        with path.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            unpacked, packed = _list_zip(file, _directory(file, size), listing)
    except (struct.error, ValueError, OverflowError) as error:
        detail = "it is cut off" if isinstance(error, struct.error) else error
        raise WinnowError(f"{shown} is no sound zip archive ({detail}): bring it again") from error
    if packed > size:
        raise WinnowError(f"{shown} is a zip bomb: its members lie over one another")
    if unpacked > max(UNSUSPECTED, PLAUSIBLE_RATIO * size):
        raise WinnowError(f"{shown} is a zip bomb: {size} bytes that say to unpack to {unpacked}")
    return listing.members(), listing


class _Directory(NamedTuple):
    """Where the central directory is; `shift` is what stands before the archive proper."""

    start: int
    size: int
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
        end, count, length, offset = _directory64(file, end) or (end, count, length, offset)
    if disk not in (0, _FULL16) or first_disk not in (0, _FULL16):
        raise ValueError("one part of several")
    if end - length - offset < 0:
        raise ValueError("it is cut off")
    return _Directory(end - length, length, count, end - length - offset)


def _directory64(file: BinaryIO, end: int) -> tuple[int, int, int, int] | None:
    place = end - _END64_PLACE.size
    file.seek(max(place, 0))
    if place < _END64.size or not file.read(_END64_PLACE.size).startswith(b"PK\6\7"):
        return None
    place -= _END64.size
    file.seek(place)
    mark, _, _, _, _, _, _, count, length, offset = _END64.unpack(file.read(_END64.size))
    if mark != b"PK\6\6":
        raise ValueError("its zip64 directory is damaged")
    return place, count, length, offset


def _list_zip(file: BinaryIO, directory: _Directory, listing: Listing) -> tuple[int, int]:
    """Takes all entries; gives the bytes of all members, unpacked and packed."""
    unpacked = packed = count = 0
    file.seek(directory.start)
    place = directory.start
    links: list[tuple[bytes, Member]] = []
    while place < directory.start + directory.size:
        entry = _ENTRY.unpack(file.read(_ENTRY.size))
        if entry[0] != b"PK\1\2":
            raise ValueError("its directory is damaged")
        _, _, system, _, flags, method, crc, small, large, name_size, extra_size, note_size = entry[:12]
        _, _, attributes, offset = entry[12:]
        name, extra = file.read(name_size), file.read(extra_size)
        file.seek(note_size, io.SEEK_CUR)
        place += _ENTRY.size + name_size + extra_size + note_size
        count += 1
        if _FULL in (small, large, offset):
            large, small, offset = _zip64(extra, large, small, offset)
        unpacked, packed = unpacked + large, packed + small
        name = _utf8(name, flags)
        mode = attributes >> 16 if system == _UNIX else 0
        member = Member(offset + directory.shift, large, small, crc, method)
        if stat.S_ISLNK(mode):
            links.append((name, member))
        elif (problem := _problem(flags, mode, member, directory.start)) is not None:
            listing.refuse(name, problem)
        elif not name.endswith(b"/"):
            listing.add_packed(name, member)
    if count & _FULL16 != directory.entries & _FULL16:
        raise ValueError("its directory is damaged")
    for name, member in links:
        listing.refuse(name, _link(file, name, member))
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


def _link(file: BinaryIO, name: bytes, member: Member) -> UnusableError:
    try:
        if member.size > _LONGEST_TARGET or member.packed > _LONGEST_TARGET:
            raise UnusableError("damaged", "too long for a link")
        target = b"".join(unpack(cast(io.RawIOBase, file), member))
    except UnusableError:
        target = b""
    return link_problem(name, target)


def _zip64(extra: bytes, large: int, small: int, offset: int) -> tuple[int, int, int]:
    """Sizes and offset; those that are too large for the entry stand in its extra field 1, in this order."""
    place = 0
    while place + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, place)
        if kind == 1:
            wide = iter(struct.unpack_from(f"<{length // 8}Q", extra, place + 4))
            values = [next(wide, _FULL) if value == _FULL else value for value in (large, small, offset)]
            return values[0], values[1], values[2]
        place += 4 + length
    return large, small, offset


def _utf8(name: bytes, flags: int) -> bytes:
    """A name as UTF-8, with `/`: macOS writes UTF-8 without saying so, Windows sometimes `\\`."""
    if not name.isascii() and not flags & _UTF8:
        try:
            name.decode("utf-8")
        except UnicodeDecodeError:
            name = name.decode("cp437").encode("utf-8")
    return name.replace(b"\\", b"/")
