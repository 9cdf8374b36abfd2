"""Class folders, with or without train, val and test above them."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from stages.dataset import Split, bytes_id, pixel_id
from stages.errors import WinnowError
from stages.sources.base import Item, Picture, Quarantined, Reason, UnusableError
from stages.sources.decode import MAX_BYTES, decode

SPLIT_FOLDERS: dict[str, Split] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
UNLABELED = "unlabeled"
_CLUTTER = {"Thumbs.db", "desktop.ini", "__MACOSX"}  # what file managers leave behind

Stores = Callable[[], Sequence[Path]]


def no_stores() -> Sequence[Path]:
    """No folder outside the source that its links may point into."""
    return ()


class ClassFolders:
    """Reads `<class>/**/<file>`, or `<split>/<class>/**/<file>`.

    Hidden files are passed over. A link is followed where it stays in the source, or ends in one
    of `stores`: a version control's cache links the files that it checks out.

    Parameters
    ----------
    root : the folder
    stores : gives folders outside the source that links to files may point into; asked only once
        such a link is met

    Raises
    ------
    WinnowError
        Where the folder cannot be listed or its layout is neither of the two.
    """

    def __init__(self, root: Path, stores: Stores = no_stores) -> None:
        self._given = root
        self._root = root.resolve()
        self._stores = stores
        self._allowed: list[Path] | None = None
        self.refused: list[Quarantined] = []
        self.unlabeled = 0
        try:
            found = sorted(self._walk_source(), key=lambda pair: pair[1].source)
        except OSError as error:
            raise WinnowError(f"ingest.source {root} cannot be listed: {error}") from error
        self._paths = [path for path, _ in found]
        self.items = [item for _, item in found]
        self.refused.sort(key=lambda row: (row.source, row.reason))

    def read(self, index: int) -> Picture:
        """Read and decode one file; see `base.Source.read`."""
        path = self._paths[index]
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait for ever
                raise UnusableError("unreadable", "not a regular file")
            if status.st_size > MAX_BYTES:
                raise UnusableError("too_large", f"{status.st_size} bytes; at most {MAX_BYTES}")
            encoded = path.read_bytes()
        except OSError as error:
            raise UnusableError("unreadable", error.strerror or type(error).__name__) from error
        image = decode(encoded)
        # As RGB, so that a grey copy of a grey RGB image counts as the same pixels.
        return Picture(bytes_id(encoded), pixel_id(np.asarray(image.convert("RGB"))), image)

    def _walk_source(self) -> Iterator[tuple[Path, Item]]:
        top = self._folders(self._root)
        for folder in [folder for folder in top if folder.name.lower() == UNLABELED]:
            top.remove(folder)
            self.unlabeled += sum(1 for _ in self._files(folder))
        splits = self._split_folders(top)
        classes: list[tuple[Path, Split | None]] = [(folder, None) for folder in top]
        if splits:
            classes = [(inner, split) for folder, split in splits for inner in self._folders(folder)]
        self._refuse_loose_files([self._root, *(folder for folder, _ in splits)])
        self.classes = sorted({_class_name(folder) for folder, _ in classes})
        for folder, split in classes:
            for path in self._files(folder):
                yield path, Item(self._name(path), _class_name(folder), split)

    def _split_folders(self, top: list[Path]) -> list[tuple[Path, Split]]:
        """The folders that are splits; none where all of them are classes."""
        named = [folder for folder in top if folder.name.lower() in SPLIT_FOLDERS]
        nested = [folder for folder in named if self._folders(folder)]
        if not nested and len(named) < len(top):
            return []  # `valid` beside `invalid` are two classes like any other
        if not nested and named:
            raise WinnowError(
                f"ingest.source {self._given} holds {named[0].name}/ without class folders in it: "
                "the folder that an image lies in says its class"
            )
        if nested and len(named) < len(top):
            other = next(folder.name for folder in top if folder not in named)
            raise WinnowError(
                f"ingest.source {self._given} holds both a split ({nested[0].name}/) and a class ({other}/): "
                "put every class folder under train/, val/ or test/, or none"
            )
        splits = [(folder, SPLIT_FOLDERS[folder.name.lower()]) for folder in named]
        if splits and not any(split == "train" for _, split in splits):
            raise WinnowError(
                f"ingest.source {self._given} brings {', '.join(sorted(f.name for f in named))} "
                "but no train/: add it, or take the split folders away to have the images dealt"
            )
        return splits

    def _folders(self, parent: Path) -> list[Path]:
        """The folders in `parent` that are no links, sorted by name."""
        with os.scandir(parent) as entries:
            names = [e.name for e in entries if e.is_dir(follow_symlinks=False) and not _hidden(e.name)]
        return [parent / name for name in sorted(names)]

    def _refuse_loose_files(self, parents: list[Path]) -> None:
        for parent in parents:
            for path in sorted(parent.iterdir()):
                if _hidden(path.name) or (path.is_dir() and not path.is_symlink()):
                    continue
                if not path.is_symlink() or self._follow(path):
                    self._refuse(path, "no_class_folder", "files are read from class folders only")

    def _files(self, folder: Path) -> Iterator[Path]:
        """Every file below `folder` that may be read."""
        try:
            with os.scandir(folder) as entries:
                listed = [entry for entry in entries if not _hidden(entry.name)]
        except OSError as error:
            self._refuse(folder, "unreadable", error.strerror or type(error).__name__)
            return
        for entry in sorted(listed, key=lambda entry: entry.name):
            path = folder / entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from self._files(path)
            elif not entry.is_symlink() or self._follow(path):
                yield path

    def _follow(self, link: Path) -> bool:
        """Whether a link may be followed; one that may not is refused."""
        try:
            target = link.resolve()
        except (OSError, RuntimeError):
            self._refuse(link, "unreadable", "a link that goes round in circles")
            return False
        if not target.is_relative_to(self._root):
            if self._allowed is None:
                self._allowed = [store.resolve() for store in self._stores()]
            if not any(target.is_relative_to(store) for store in self._allowed):
                self._refuse(link, "outside_source", "a link that leaves the source's folder")
                return False
        if target.is_dir():
            self._refuse(link, "linked_folder", "links to folders are not followed")
            return False
        return True

    def _refuse(self, path: Path, reason: Reason, detail: str) -> None:
        self.refused.append(Quarantined(self._name(path), reason, detail))

    def _name(self, path: Path) -> str:
        return _printable(path.relative_to(self._root).as_posix())


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in _CLUTTER


def _class_name(folder: Path) -> str:
    # The same letter may be one code point or two: macOS and Linux write file names differently.
    return unicodedata.normalize("NFC", _printable(folder.name))


def _printable(name: str) -> str:
    """A file name that is not valid UTF-8 in a form that a table can hold."""
    return os.fsencode(name).decode("utf-8", "replace")
