"""The members of a zip, from its central directory.

Python's zipfile keeps an object of half a kilobyte and more for each member. Offsets and fields:
APPNOTE.TXT, sections 4.3 and 4.5 (https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT).
"""

from __future__ import annotations

import io
import stat
import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from stages.errors import WinnowError
from stages.sources.base import UnusableError
from stages.sources.files.members import Listing, Members, link_problem
from stages.sources.files.payloads import DEFLATED, STORED, Member, unpack

PLAUSIBLE_RATIO = 200  # unpacked to packed; images do not reach 2
UNSUSPECTED = 2**30  # bytes; archives that unpack to less are not asked for their ratio
_END = struct.Struct("<4s4H2LH")
_END64_PLACE = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s2B3H4x3L5H2L")
_ENCRYPTED, _UTF8 = 0x1, 0x800  # flags
_FULL, _FULL16 = 0xFFFFFFFF, 0xFFFF  # the true value is in the zip64 record
_UNIX = 3  # of "version made by": the attributes hold a mode
_LONGEST_TARGET = 4096  # bytes of a link


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
            unpacked, packed = _list(file, _directory(file, size), listing)
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
    start = max(size - _END.size - _FULL16, 0)
    file.seek(start)
    tail = file.read()
    place = tail.rfind(b"PK\5\6")
    if place < 0:
        raise ValueError("it is cut off, or no zip")
    _, disk, first_disk, _, count, length, offset, _ = _END.unpack_from(tail, place)
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


def _list(file: BinaryIO, directory: _Directory, listing: Listing) -> tuple[int, int]:
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
