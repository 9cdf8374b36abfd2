"""Which reader a source needs: as asked for, or seen from what lies there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from stages.errors import WinnowError
from stages.ingestion import arrays, folders, huggingface, idx, manifest
from stages.ingestion.archives import ENDINGS, is_archive, open_archive
from stages.ingestion.cells import AUTO
from stages.ingestion.source import Block, Columns, Source, hidden, only_refused, split_of
from stages.ingestion.trees import FolderTree, Stores, Tree, no_stores

Format = Literal["auto", "folders", "manifest", "huggingface", "arrays", "idx"]
_Reader = Callable[[Tree, Columns, Path], "Source | None"]
_TABLES = (".csv", ".tsv", ".parquet")
_REMOTE = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # a path has lost one of the slashes
_MEND = "or set ingest.format: folders, if the folders' names are the classes"
_DEEPEST = 8  # folders that hold nothing but one folder


def open_source(
    path: Path,
    scratch: Path,
    *,
    format: Format = "auto",
    columns: Columns = Columns(),  # noqa: B008 — frozen
    stores: Stores = no_stores,
) -> Source:
    """The reader for a source.

    An archive, or a folder that holds nothing but one, is looked into as if it were a folder; so is
    a folder that holds nothing but one other. What lies at the top then decides, the most telling
    first: Parquet in the Hugging Face layout, a manifest, IDX files, arrays, class folders.

    Parameters
    ----------
    path : `ingest.source`
    scratch : an existing folder for what must be unpacked; needed until everything is read
    format : the reader, or `auto`
    columns : of a manifest or Parquet files
    stores : folders outside the source that links may end in; see `trees.FolderTree`

    Raises
    ------
    WinnowError
        Where there is nothing, or nothing that the reader takes.
    """
    if _REMOTE.match(str(path)):
        raise WinnowError(
            f"ingest.source {path} is an address: bring it with `dvc import-url`, and name the folder"
        )
    if not path.exists():
        raise WinnowError(
            f"ingest.source {path} is not there: put images in it, or name another in params.yaml"
        )
    if path.is_file() and not is_archive(path):
        one = _open_file(path, scratch, format, columns)
        _refuse_second_label(one, columns, path)
        return one
    chain = _chain(_tree(path, scratch, stores))
    readers: dict[str, _Reader] = dict(_READERS) if format == "auto" else {format: _READERS[format]}
    if format == "manifest":
        readers = {"manifest": _asked_manifest}
    for depth in reversed(range(len(chain))):
        for name, read in readers.items():
            if format == "auto" and name == "folders":
                _refuse_unread_tables(chain[depth], columns)
            source = read(chain[depth], columns, scratch)
            if source is not None:
                _refuse_second_label(source, columns, path)
                return _Whole(source, chain[: depth + 1])
    raise WinnowError(_nothing(path, format))


def _refuse_unread_tables(tree: Tree, columns: Columns) -> None:
    """Class folders beside a table that no reader took are not read: its labels may be the true ones.

    Else the folders that somebody sorted files into, `images_1` and `images_2`, would become classes.
    """
    tables = _tables(tree)
    if tables and tree.folders():
        _manifest_or_ask(tree, tables[0], columns)
    elif columns.path != AUTO and tree.folders():
        raise WinnowError(
            f"ingest.columns.path = {columns.path!r}, but ingest.source {tree.shown} has no table at its "
            f"top: put it there, {_MEND}"
        )


def _refuse_second_label(source: Source, columns: Columns, path: Path) -> None:
    """A second column of labels that is named has to be in a table."""
    tables = (manifest.Manifest, huggingface.HuggingFace)
    if columns.second_label not in (None, AUTO) and not isinstance(source, tables):
        raise WinnowError(
            f"ingest.columns.second_label = {columns.second_label!r}, but ingest.source {path} has no table "
            "with such a column: bring a manifest, or set it to null"
        )


def _manifest_or_ask(tree: Tree, name: str, columns: Columns) -> Source:
    """A manifest; one that cannot be read may be no manifest at all, where there are folders beside it."""
    try:
        return manifest.Manifest(tree, name, columns)
    except WinnowError as error:
        if not tree.folders():
            raise
        raise WinnowError(f"{error}; {_MEND}") from error


def _tables(tree: Tree) -> list[str]:
    return [name for name in tree.files() if name.lower().endswith(_TABLES)]


class _Whole:
    """A source with what the trees refused that it was found in: every file ends in some table."""

    def __init__(self, source: Source, chain: Sequence[Tree]) -> None:
        self._source = source
        self._chain = chain
        self.kind = source.kind
        self.classes = source.classes
        self.count = source.count
        self.notes = source.notes

    def blocks(self) -> Iterator[Block]:
        """See `base.Source`."""
        yield from self._source.blocks()
        # An archive's tree knows of the whole archive, and class folders tell their own.
        trees: list[Tree] = [tree for tree in self._chain[:-1] if isinstance(tree, FolderTree)]
        if not isinstance(self._source, folders.ClassFolders):
            trees.append(self._chain[-1])
        refused = [row for tree in trees for row in tree.refused]
        if refused:
            yield only_refused(refused)


def _tree(path: Path, scratch: Path, stores: Stores) -> Tree:
    if path.is_file():
        return open_archive(path, scratch)
    inside = [entry for entry in sorted(path.iterdir()) if not hidden(entry.name)]
    if len(inside) == 1 and inside[0].is_file() and is_archive(inside[0]):
        return open_archive(inside[0], scratch)
    return FolderTree(path, stores)


def _chain(tree: Tree) -> list[Tree]:
    """The tree, and those below it as long as there is one folder and nothing else.

    What only wraps is no dataset, so the innermost is the first to look at. A class folder, and one
    with the name of a split, is no wrapping.
    """
    chain: list[Tree] = [tree]
    while len(chain) <= _DEEPEST:
        folders_there = chain[-1].folders()
        if len(folders_there) != 1 or chain[-1].files() or split_of(folders_there[0]):
            break
        inner = chain[-1].under(folders_there[0])
        if not inner.folders() and not _recognised(inner):
            break  # a class folder, the only one
        chain.append(inner)
    return chain


def _recognised(tree: Tree) -> bool:
    """Whether there is more than images at the top."""
    names = [name.lower() for name in tree.files()]
    return any(name.endswith((*_TABLES, ".npz", ".npy")) or "-ubyte" in name for name in names)


def _open_file(path: Path, scratch: Path, format: Format, columns: Columns) -> Source:
    """A source that is one file and no archive."""
    tree, suffix = FolderTree(path.parent), path.suffix.lower()
    if suffix == ".npz" and format in ("auto", "arrays"):
        return arrays.Arrays(tree, [path.name], scratch)
    if suffix == ".parquet" and format in ("auto", "huggingface") and path.name in huggingface.find(tree):
        return huggingface.HuggingFace(tree, [path.name], columns)
    if suffix in (*_TABLES, ".npy") or "-ubyte" in path.name:
        raise WinnowError(
            f"ingest.source {path} is one file of several that belong together: name its folder "
            f"({path.parent}), so that DVC watches all of them"
        )
    raise WinnowError(
        f"ingest.source {path} is a file that no reader takes: a folder, an archive "
        f"({', '.join(ENDINGS)}), an .npz or a Parquet file with images is needed"
    )


def _nothing(path: Path, format: Format) -> str:
    needed = {
        "auto": "a folder for each class with its images, a manifest, or arrays",
        "folders": "a folder for each class with its images",
        "manifest": "a .csv, .tsv or .parquet with a column of paths at its top",
        "huggingface": "Parquet files with a column of images (bytes and path)",
        "arrays": "an .npz, or .npy files of images and labels",
        "idx": "pairs of …-images-idx3-ubyte and …-labels-idx1-ubyte",
    }[format]
    return (
        f"ingest.source {path} holds no images that ingest.format = {format!r} can read: {needed} is needed"
    )


# --- the readers, the most telling first -------------------------------------------------------


def _huggingface(tree: Tree, columns: Columns, scratch: Path) -> Source | None:
    names = huggingface.find(tree)
    return huggingface.HuggingFace(tree, names, columns) if names else None


def _manifest(tree: Tree, columns: Columns, scratch: Path) -> Source | None:
    name = manifest.find(tree, columns)
    return _manifest_or_ask(tree, name, columns) if name else None


def _asked_manifest(tree: Tree, columns: Columns, scratch: Path) -> Source | None:
    """Where there is one table, it is the manifest, or says itself what it lacks."""
    tables = _tables(tree)
    name = tables[0] if len(tables) == 1 else manifest.find(tree, columns)
    return manifest.Manifest(tree, name, columns) if name else None


def _idx(tree: Tree, columns: Columns, scratch: Path) -> Source | None:
    names = idx.find(tree)
    return idx.Idx(tree, names, scratch) if names else None


def _arrays(tree: Tree, columns: Columns, scratch: Path) -> Source | None:
    names = arrays.find(tree)
    return arrays.Arrays(tree, names, scratch) if names else None


def _folders(tree: Tree, columns: Columns, scratch: Path) -> Source | None:
    return folders.ClassFolders(tree) if folders.find(tree) else None


_READERS: dict[str, _Reader] = {
    "huggingface": _huggingface,
    "manifest": _manifest,
    "idx": _idx,
    "arrays": _arrays,
    "folders": _folders,
}
