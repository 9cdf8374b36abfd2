"""The members of a tar, found out without unpacking it."""

from __future__ import annotations

import io
import tarfile
import zlib
from pathlib import Path
from typing import BinaryIO

from stages.errors import WinnowError
from stages.sources.base import UnusableError
from stages.sources.files.members import Listing, Members, link_problem

_BLOCK = 512  # bytes; what a tar consists of
_END = bytes(_BLOCK)
_LONGEST_HEADER = 1 << 20  # bytes of a long name or of pax records; tarfile reads them as a whole
_ADLER_BASE = 65521


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
            with tarfile.TarFile(fileobj=io.BytesIO(_END * 2), tarinfo=_Header, encoding="utf-8") as reader:
                _list(file, size, reader, listing)
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


def _list(file: BinaryIO, size: int, reader: tarfile.TarFile, listing: Listing) -> None:
    place = 0
    while True:
        file.seek(place)
        header = file.read(_BLOCK)
        if len(header) < _BLOCK:
            raise ValueError("it is cut off" if place else "it is empty")
        if header == _END:
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
