"""What an archive holds, as columns: a million members are about a hundred megabytes."""

from __future__ import annotations

import bisect
import posixpath
import re
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stages.sources.base import Quarantined, UnusableError
from stages.sources.files.payloads import RAW, Member
from stages.sources.names import hidden, printable

Key = bytes  # a path as bytes with NUL between its parts: sorted, every folder lies together

_CHUNK = 1 << 16  # names
# Parts that are not empty, not hidden, and hold nothing that any system takes for a separator.
_PLAIN = re.compile(rb"(?:[^./\\:\0][^/\\:\0]*+/)*+[^./\\:\0][^/\\:\0]*+")
_CLUTTER = re.compile(rb"Thumbs\.db|desktop\.ini|__MACOSX")
_DRIVE = re.compile(rb"[A-Za-z]:")


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
