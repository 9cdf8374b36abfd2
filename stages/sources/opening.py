"""Which reader a source needs, seen from what lies there."""

from __future__ import annotations

from pathlib import Path

from stages.errors import WinnowError
from stages.sources.arrays import NpzArrays
from stages.sources.base import Source
from stages.sources.folders import ClassFolders, Stores, no_stores


def open_source(path: Path, stores: Stores = no_stores) -> Source:
    """The reader for a source: an `.npz`, a folder with one `.npz`, or class folders.

    Parameters
    ----------
    path : `ingest.source`
    stores : see `folders.ClassFolders`

    Raises
    ------
    WinnowError
        Where there is nothing, or nothing that any reader takes.
    """
    if not path.exists():
        raise WinnowError(
            f"ingest.source {path} is not there: put images in it, or name another in params.yaml"
        )
    if path.is_file():
        if path.suffix != ".npz":
            raise WinnowError(
                f"ingest.source {path} is a file: a folder of class folders or an .npz is needed"
            )
        return NpzArrays(path)
    visible = [entry for entry in sorted(path.iterdir()) if not entry.name.startswith(".")]
    archives = [entry for entry in visible if entry.suffix == ".npz" and entry.is_file()]
    if not archives or any(entry.is_dir() for entry in visible):
        return ClassFolders(path, stores)
    if len(archives) > 1:
        raise WinnowError(
            f"ingest.source {path} holds {len(archives)} .npz files: leave one, or name one of them"
        )
    return NpzArrays(archives[0])
