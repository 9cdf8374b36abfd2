"""Name and open the files of a source, in a folder or an archive; nothing outside it can be reached.

Readers never touch the file system themselves: they ask a tree for names, streams and payloads,
and so work on an archive as they do on a folder.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from stages.errors import UnusableError, WinnowError
from stages.ingestion.payloads import FilePayload, Opener, path_problem
from stages.ingestion.source import Payload, Quarantined, hidden, printable

Stores = Callable[[], Sequence[Path]]


class Tree(Protocol):
    """Files by name: the path relative to the top of the tree, with `/`.

    Names are as the file system or the archive has them; `source.printable` makes them presentable.
    Hidden files and what file managers leave behind are not there (`source.hidden`, for each part).
    """

    @property
    def shown(self) -> str:
        """Return what messages call it: `ingest.source` as the user wrote it."""

    @property
    def refused(self) -> Sequence[Quarantined]:
        """List what can be no file of the tree, met so far: names that climb, folders without access.

        What becomes of a name that was given out is for its payload to say.
        """

    def under(self, folder: str) -> Tree:
        """Return the tree whose top is `folder`; names and what may be reached are relative to it."""

    def folders(self, inside: str = "") -> list[str]:
        """Return the names of the folders right in `inside`, from the top of the tree, sorted; no links."""

    def files(self, inside: str = "") -> list[str]:
        """Return the names of the files right in `inside`, from the top, sorted; links are files here."""

    def walk(self, inside: str = "") -> Iterator[str]:
        """Yield the names of all files below `inside`, from the top of the tree, sorted in each folder."""

    def count(self, inside: str = "") -> int:
        """Count the names that `walk` will yield; cheap."""

    def problem(self, name: str) -> UnusableError | None:
        """Say why `payload` will not read this file, without reading it; None where it will."""

    def payload(self, names: Sequence[str]) -> Payload:
        """Return a way for a worker to read these files.

        Names may come from a table that anybody wrote: one that is not there, climbs out, or is no
        regular file is read as the reason why not. `source.name_problem` is a reason too.
        """

    def open(self, name: str) -> BinaryIO:
        """Open one file as a stream from its beginning.

        Raises
        ------
        WinnowError
            Where it is not there or cannot be read.
        """

    def local(self, name: str) -> Path:
        """Return a file on disk with the content of one file: itself, or unpacked to the scratch folder.

        Raises
        ------
        WinnowError
            As `open`, and where it unpacks to more than is plausible.
        """


def no_stores() -> Sequence[Path]:
    """Return no folder: links of the source may not point out of it."""
    return ()


class FolderTree:
    """A folder. A link to a file is followed where it stays in the folder, or ends in a store.

    A version control's cache is such a store: it may link the files that it checks out. Links to
    folders are not followed: they could go round in circles.

    Parameters
    ----------
    root : the folder; may be a link itself
    stores : gives folders outside that links to files may end in; asked at most once, and only
        where there is a link that leaves the folder

    Raises
    ------
    WinnowError
        Where the folder cannot be listed.
    """

    def __init__(self, root: Path, stores: Stores = no_stores) -> None:
        self.shown = str(root)
        self._stores = stores
        self._searched: set[str] = set()  # folders whose links have been looked at
        self._refused: dict[str, Quarantined] = {}
        try:
            self._root = str(root.resolve(strict=True))
            os.scandir(self._root).close()
        except (OSError, RuntimeError, ValueError) as error:
            raise WinnowError(f"ingest.source {root} cannot be listed: {_cause(error)}") from error
        self._allowed: tuple[str, ...] | None = () if stores is no_stores else None
        self._opener = Opener(self._root)

    @property
    def refused(self) -> Sequence[Quarantined]:
        """See `Tree`."""
        return [self._refused[folder] for folder in sorted(self._refused)]

    def under(self, folder: str) -> FolderTree:
        """See `Tree`; what lies beside the folder cannot be reached from it."""
        self._enter(folder)
        tree = FolderTree(Path(self._path(folder)), self._stores)
        tree.shown = f"{self.shown}/{folder}"
        return tree

    def folders(self, inside: str = "") -> list[str]:
        """See `Tree`."""
        self._enter(inside)
        listed, folders = self._list(inside)
        return [_joined(inside, name) for name in listed if name in folders]

    def files(self, inside: str = "") -> list[str]:
        """See `Tree`."""
        self._enter(inside)
        listed, folders = self._list(inside)
        return [_joined(inside, name) for name in listed if name not in folders]

    def walk(self, inside: str = "") -> Iterator[str]:
        """See `Tree`. The names in one folder, and in those above it, are in memory at a time."""
        self._enter(inside)
        lists = [(inside, *self._list(inside))]
        while lists:
            folder, listed, folders = lists[-1]
            for name in listed:
                if name in folders:
                    inner = _joined(folder, name)
                    lists.append((inner, *self._list(inner)))
                    break
                yield _joined(folder, name)
            else:
                lists.pop()

    def count(self, inside: str = "") -> int:
        """See `Tree`."""
        self._enter(inside)
        files, waiting = 0, [self._path(inside)]
        while waiting:
            with contextlib.suppress(OSError, ValueError), os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if hidden(entry.name):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        files += 1
        return files

    def problem(self, name: str) -> UnusableError | None:
        """See `Tree`."""
        self._look_for_links([name])
        return self._opener.problem(name)

    def payload(self, names: Sequence[str]) -> FilePayload:
        """See `Tree`."""
        self._look_for_links(names)
        return FilePayload(self._root, list(names), self._allowed or ())

    def open(self, name: str) -> BinaryIO:
        """See `Tree`."""
        self._look_for_links([name])
        try:
            return os.fdopen(self._opener.open(name)[0], "rb")
        except UnusableError as error:
            raise self._unusable(name, error.detail) from error

    def local(self, name: str) -> Path:
        """See `Tree`: the file itself."""
        if problem := self.problem(name):
            raise self._unusable(name, problem.detail)
        return Path(self._path(name)).resolve()

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _unusable(self, name: str, detail: str) -> WinnowError:
        return WinnowError(f"{printable(name)} in ingest.source {self.shown} cannot be read: {detail}")

    def _enter(self, folder: str) -> None:
        """Refuse to list a folder whose name climbs or leads through a link."""
        if folder and (problem := path_problem(folder)) and (problem.reason != "bad_name" or "\0" in folder):
            raise self._unusable(folder, problem.detail)
        if folder and not self._opener.no_links(self._root, f"{folder}/"):
            raise self._unusable(folder, "links to folders are not followed")

    def _list(self, folder: str) -> tuple[Iterator[str], set[str]]:
        """Return what is visible right in a folder, sorted, and which of it are folders."""
        listed, folders, links = [], set(), []
        try:
            with os.scandir(self._path(folder)) as entries:
                for entry in entries:
                    if hidden(entry.name):
                        continue
                    listed.append(entry.name)
                    if entry.is_dir(follow_symlinks=False):
                        folders.add(entry.name)
                    elif self._allowed is None and entry.is_symlink():
                        links.append(entry.path)
        except (OSError, ValueError) as error:
            shown = printable(folder)
            detail = f"a folder that cannot be listed: {_cause(error)}"
            self._refused[shown] = Quarantined(shown, "unreadable", detail)
        self._ask_stores(folder, links)
        return iter(sorted(listed)), folders

    def _look_for_links(self, names: Sequence[str]) -> None:
        """Ask for the stores if any file beside these is a link that leaves the folder.

        To look at folders as a whole costs less than a question to the file system for every file.
        """
        for name in names:
            folder = name.rpartition("/")[0]
            if self._allowed is not None or folder in self._searched:
                continue
            if path_problem(name) or not self._opener.no_links(self._root, name):
                continue  # it will not be read
            with contextlib.suppress(OSError), os.scandir(self._path(folder)) as entries:
                self._ask_stores(folder, (entry.path for entry in entries if entry.is_symlink()))

    def _ask_stores(self, folder: str, links: Iterable[str]) -> None:
        if self._allowed is not None:
            return
        self._searched.add(folder)
        if any(self._leaves(link) for link in links):
            self._allowed = tuple(str(store.resolve()) for store in self._stores())
            self._opener = Opener(self._root, self._allowed)

    def _leaves(self, link: str) -> bool:
        try:
            return self._opener.target(link) is None
        except OSError:  # gone by now
            return False


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _cause(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
