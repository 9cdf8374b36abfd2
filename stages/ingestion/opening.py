"""Open a source with the reader that its format needs: the one asked for, or the first that takes it.

`FORMATS` is the only list of formats: the schema of `ingest.format` and all messages read it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.errors import WinnowError
from stages.ingestion import arrays, folders, huggingface, idx, manifest
from stages.ingestion.archives import ENDINGS, is_archive, open_archive
from stages.ingestion.cells import AUTO
from stages.ingestion.source import Block, Columns, Source, hidden, only_refused, split_of
from stages.ingestion.trees import FolderTree, Stores, Tree, no_stores

_TABLES = (".csv", ".tsv", ".parquet")
_REMOTE = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # a path has lost one of the slashes
_FOLDERS_HINT = "or set ingest.format: folders, if the folders' names are the classes"
_DEEPEST = 8  # folders that hold nothing but one folder


@dataclass(frozen=True)
class SourceFormat:
    """A layout of images and labels, one value of `ingest.format`.

    Attributes
    ----------
    name : in `params.yaml`
    needs : what a source in this format holds, for messages
    read : opens a tree, given columns and a scratch folder; None where the tree is in another format
    read_named : the same where the format was asked for by name, if that makes a difference
    read_file : opens one file that is a source by itself; None where it is none
    marks : found in the lower-case name of a file that makes its folder more than a class of images
    has_columns : whether `ingest.columns` says what its columns hold
    """

    name: str
    needs: str
    read: Callable[[Tree, Columns, Path], Source | None]
    read_named: Callable[[Tree, Columns, Path], Source | None] | None = None
    read_file: Callable[[Tree, str, Columns, Path], Source | None] | None = None
    marks: str | None = None
    has_columns: bool = False


def open_source(
    path: Path,
    scratch: Path,
    *,
    format: str = AUTO,
    columns: Columns = Columns(),  # noqa: B008 — frozen
    stores: Stores = no_stores,
) -> Source:
    """Open a source with the reader for its format.

    An archive, or a folder that holds nothing but one, is looked into as if it were a folder; so is
    a folder that holds nothing but one other. What lies at the top then decides, in the order of
    `FORMATS`.

    Parameters
    ----------
    path : `ingest.source`
    scratch : an existing folder for what must be unpacked; needed until everything is read
    format : one of `FORMAT_NAMES`
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
    candidates = [candidate for candidate in FORMATS if format in (AUTO, candidate.name)]
    if path.is_file() and not is_archive(path):
        return _open_file(path, scratch, candidates, columns)
    chain = _chain(_tree(path, scratch, stores))
    for depth in reversed(range(len(chain))):
        for candidate in candidates:
            read = candidate.read if format == AUTO else candidate.read_named or candidate.read
            source = read(chain[depth], columns, scratch)
            if source is not None:
                _refuse_second_label(candidate, columns, path)
                return _WithRefusals(source, chain[: depth + 1])
    needs = (
        "a folder for each class with its images, a manifest, or arrays"
        if format == AUTO
        else candidates[0].needs
    )
    raise WinnowError(
        f"ingest.source {path} holds no images that ingest.format = {format!r} can read: {needs} is needed"
    )


def _open_file(path: Path, scratch: Path, candidates: Sequence[SourceFormat], columns: Columns) -> Source:
    """Open a source that is one file and no archive."""
    tree, name = FolderTree(path.parent), path.name.lower()
    for candidate in candidates:
        read = candidate.read_file
        source = read(tree, path.name, columns, scratch) if read else None
        if source is not None:
            _refuse_second_label(candidate, columns, path)
            return source
    if _is_marked([name]) and not arrays.is_npz([name]):
        raise WinnowError(
            f"ingest.source {path} is one file of several that belong together: name its folder "
            f"({path.parent}), so that DVC watches all of them"
        )
    raise WinnowError(
        f"ingest.source {path} is a file that no reader takes: a folder, an archive "
        f"({', '.join(ENDINGS)}), an .npz or a Parquet file with images is needed"
    )


def _refuse_second_label(format: SourceFormat, columns: Columns, path: Path) -> None:
    if columns.second_label not in (None, AUTO) and not format.has_columns:
        raise WinnowError(
            f"ingest.columns.second_label = {columns.second_label!r}, but ingest.source {path} has no table "
            "with such a column: bring a manifest, or set it to null"
        )


class _WithRefusals:
    """A source and what the trees refused that it was found in: every file ends in some table."""

    def __init__(self, source: Source, chain: Sequence[Tree]) -> None:
        self._source = source
        self._chain = chain
        self.kind = source.kind
        self.classes = source.classes
        self.count = source.count
        self.notes = source.notes

    def blocks(self) -> Iterator[Block]:
        """See `source.Source`."""
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
    """Return the tree, and those below it as long as there is one folder and nothing else.

    What only wraps is no dataset, so the innermost is the first to look at. A class folder, and one
    with the name of a split, is no wrapping.
    """
    chain: list[Tree] = [tree]
    while len(chain) <= _DEEPEST:
        names = chain[-1].folders()
        if len(names) != 1 or chain[-1].files() or split_of(names[0]):
            break
        inner = chain[-1].under(names[0])
        if not inner.folders() and not _is_marked([name.lower() for name in inner.files()]):
            break  # a class folder, the only one
        chain.append(inner)
    return chain


def _is_marked(names: Sequence[str]) -> bool:
    """Return whether any of these files is more than an image."""
    marks = re.compile("|".join(format.marks for format in FORMATS if format.marks))
    return any(marks.search(name) for name in names)


# --- the formats -------------------------------------------------------------------------------


def _huggingface(tree: Tree, columns: Columns, scratch: Path) -> Source | None:
    names = huggingface.find(tree)
    return huggingface.HuggingFace(tree, names, columns) if names else None


def _huggingface_file(tree: Tree, name: str, columns: Columns, scratch: Path) -> Source | None:
    if not name.lower().endswith(".parquet") or name not in huggingface.find(tree):
        return None
    return huggingface.HuggingFace(tree, [name], columns)


def _manifest(tree: Tree, columns: Columns, scratch: Path) -> Source | None:
    name = manifest.find(tree, columns)
    return _manifest_or_hint(tree, name, columns) if name else None


def _named_manifest(tree: Tree, columns: Columns, scratch: Path) -> Source | None:
    """Open the only table there is, which says itself what it lacks, or else the only manifest."""
    tables = _tables(tree)
    name = tables[0] if len(tables) == 1 else manifest.find(tree, columns)
    return manifest.Manifest(tree, name, columns) if name else None


def _manifest_or_hint(tree: Tree, name: str, columns: Columns) -> Source:
    """Open a manifest; one that cannot be read may be none, where there are folders beside it."""
    try:
        return manifest.Manifest(tree, name, columns)
    except WinnowError as error:
        if not tree.folders():
            raise
        raise WinnowError(f"{error}; {_FOLDERS_HINT}") from error


def _tables(tree: Tree) -> list[str]:
    return [name for name in tree.files() if name.lower().endswith(_TABLES)]


def _idx(tree: Tree, columns: Columns, scratch: Path) -> Source | None:
    names = idx.find(tree)
    return idx.Idx(tree, names, scratch) if names else None


def _arrays(tree: Tree, columns: Columns, scratch: Path) -> Source | None:
    names = arrays.find(tree)
    return arrays.Arrays(tree, names, scratch) if names else None


def _arrays_file(tree: Tree, name: str, columns: Columns, scratch: Path) -> Source | None:
    return arrays.Arrays(tree, [name], scratch) if arrays.is_npz([name]) else None


def _folders(tree: Tree, columns: Columns, scratch: Path) -> Source | None:
    """Open class folders, but not beside a table that no reader took: its labels may be the true ones.

    Else the folders that somebody sorted files into, `images_1` and `images_2`, would become classes.
    """
    tables = _tables(tree)
    if tables and tree.folders():
        _manifest_or_hint(tree, tables[0], columns)
    elif columns.path != AUTO and tree.folders():
        raise WinnowError(
            f"ingest.columns.path = {columns.path!r}, but ingest.source {tree.shown} has no table at its "
            f"top: put it there, {_FOLDERS_HINT}"
        )
    return _named_folders(tree, columns, scratch)


def _named_folders(tree: Tree, columns: Columns, scratch: Path) -> Source | None:
    return folders.ClassFolders(tree) if tree.folders() else None


# The most telling first: `auto` takes the first that reads the source.
FORMATS = (
    SourceFormat(
        "huggingface",
        "Parquet files with a column of images (bytes and path)",
        _huggingface,
        read_file=_huggingface_file,
        marks=r"\.parquet$",
        has_columns=True,
    ),
    SourceFormat(
        "manifest",
        "a .csv, .tsv or .parquet with a column of paths at its top",
        _manifest,
        read_named=_named_manifest,
        marks=r"\.(csv|tsv|parquet)$",
        has_columns=True,
    ),
    SourceFormat("idx", "pairs of …-images-idx3-ubyte and …-labels-idx1-ubyte", _idx, marks="-ubyte"),
    SourceFormat(
        "arrays",
        "an .npz, or .npy files of images and labels",
        _arrays,
        read_file=_arrays_file,
        marks=r"\.np[yz]$",
    ),
    SourceFormat("folders", "a folder for each class with its images", _folders, read_named=_named_folders),
)
FORMAT_NAMES = (AUTO, *(format.name for format in FORMATS))
