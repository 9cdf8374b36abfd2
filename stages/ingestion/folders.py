"""Read class folders, with or without train, val and test above them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import NamedTuple

from stages.dataset.ids import Split
from stages.errors import UnusableError, WinnowError
from stages.ingestion.source import (
    BLOCK,
    SPLIT_NAMES,
    UNLABELED,
    Block,
    Quarantined,
    class_name,
    label_problem,
    only_refused,
    printable,
)
from stages.ingestion.trees import Tree


class ClassFolders:
    """Reads `<class>/**/<file>`, or `<split>/<class>/**/<file>`; see `source.Source`.

    A folder `unlabeled` in place of a class holds images without a label. Several folders may mean
    one split (`val` and `valid`), or one class (accents composed and not).

    Raises
    ------
    WinnowError
        Where the layout is neither of the two.
    """

    notes: Sequence[str] = ()

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        top = [name for name in tree.folders() if name.lower() not in UNLABELED]
        self._splits = self._split_folders(top)
        self._folders = [_folder(name, None) for name in tree.folders() if name.lower() in UNLABELED]
        parents: Sequence[tuple[str, Split | None]] = self._splits or [("", None)]
        for parent, split in parents:
            self._folders += [_folder(name, split) for name in (tree.folders(parent) if parent else top)]
        self._folders.sort(key=lambda folder: folder.name)
        self.classes: Sequence[str] = sorted(
            {folder.label for folder in self._folders if folder.label is not None and not folder.problem}
        )

    @property
    def kind(self) -> str:
        """See `source.Source`."""
        shown = ", ".join(f"{printable(folder)}/" for folder, _ in self._splits)
        return f"class folders with {shown}" if shown else "class folders"

    @cached_property
    def count(self) -> int:
        """See `source.Source`."""
        return sum(self._tree.count(folder.name) for folder in self._folders)

    def blocks(self) -> Iterator[Block]:
        """See `source.Source`. Blocks do not end with a folder: there may be many small ones."""
        loose = list(self._loose_files())
        if loose:
            yield only_refused(loose)
        files = ((name, folder) for folder in self._folders for name in self._tree.walk(folder.name))
        while chunk := list(islice(files, BLOCK)):
            good = [(name, folder) for name, folder in chunk if not folder.problem]
            paths = [name for name, _ in good]
            yield Block(
                names=[printable(name) for name in paths],
                labels=[folder.label for _, folder in good],
                splits=[folder.split for _, folder in good],
                groups=[None] * len(good),
                weights=[1.0] * len(good),
                payload=self._tree.payload(paths),
                refused=[
                    Quarantined(printable(name), "bad_label", folder.problem)
                    for name, folder in chunk
                    if folder.problem
                ],
            )
        if self._tree.refused:  # complete only now: folders may have turned out to be closed
            yield only_refused(list(self._tree.refused))

    def _loose_files(self) -> Iterator[Quarantined]:
        """Yield what lies beside class folders; a link has its own reason, where there is one."""
        outside = UnusableError("no_class_folder", "files are read from class folders only")
        for parent in ["", *(folder for folder, _ in self._splits)]:
            for name in self._tree.files(parent):
                problem = self._tree.problem(name) or outside
                yield Quarantined(printable(name), problem.reason, problem.detail)

    def _split_folders(self, top: list[str]) -> list[tuple[str, Split]]:
        """Return the folders that are splits; none where all of them are classes."""
        source = f"ingest.source {self._tree.shown}"
        named = [folder for folder in top if folder.lower() in SPLIT_NAMES]
        nested = [folder for folder in named if self._tree.folders(folder)]
        if not nested and len(named) < len(top):
            return []  # `valid` beside `invalid` are two classes like any other
        if not nested and named:
            raise WinnowError(
                f"{source} holds {named[0]}/ without class folders in it: "
                "the folder that an image lies in says its class"
            )
        if nested and len(named) < len(top):
            class_folder = printable(next(folder for folder in top if folder not in named))
            raise WinnowError(
                f"{source} holds both a split ({nested[0]}/) and a class ({class_folder}/): "
                "put every class folder under train/, val/ or test/, or none"
            )
        splits = [(folder, SPLIT_NAMES[folder.lower()]) for folder in named]
        if splits and not any(split == "train" for _, split in splits):
            raise WinnowError(
                f"{source} brings {', '.join(sorted(named))} "
                "but no train/: add it, or take the split folders away to have the images dealt"
            )
        return splits


class _Folder(NamedTuple):
    """A folder of images; `label` is None for no label, `problem` what is wrong with it."""

    name: str
    label: str | None
    split: Split | None
    problem: str | None


def _folder(name: str, split: Split | None) -> _Folder:
    last = name.rpartition("/")[2]
    if last.lower() in UNLABELED:
        return _Folder(name, None, None, None)
    label = class_name(last)
    if any("\udc80" <= character <= "\udcff" for character in last):
        return _Folder(name, label, split, "the class folder's name is not UTF-8")
    return _Folder(name, label, split, label_problem(label))
