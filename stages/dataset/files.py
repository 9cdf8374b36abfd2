"""Read and write files that are there whole or not at all: tables, arrays, JSON, and folders of them.

Written beside, then renamed. What cannot be read or written is one line that says what to do.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.errors import WinnowError

_DISK = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
}


def existing(path: Path) -> Path:
    """Return `path`, or raise a WinnowError that says how to get the missing file."""
    if not path.exists():
        raise WinnowError(
            f"{path} is not there: run `dvc repro`, or `dvc checkout dvc.yaml` for the last good run's"
        )
    return path


def read_array(path: Path, *, mapped: bool = False) -> NDArray[Any]:
    """Read an array that a stage wrote; nothing is ever unpickled."""
    array: NDArray[Any] = np.load(existing(path), mmap_mode="r" if mapped else None, allow_pickle=False)
    return array


def read_table(path: Path) -> pd.DataFrame:
    """Read a Parquet table that a stage wrote."""
    try:
        return pd.read_parquet(existing(path))
    except (OSError, ValueError) as error:
        raise WinnowError(
            f"{path} is damaged ({str(error).splitlines()[0]}): `dvc checkout dvc.yaml` brings it back"
        ) from error


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turn errors of the disk into a WinnowError of one line."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK:
            raise
        raise WinnowError(f"{path} cannot be written: {error.strerror}") from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Write a folder beside, then rename it into place.

    Yields the folder to write into. On success it takes the place of `path` (for a moment between
    the two neither is there), on an error it is removed and what stood at `path` stays.
    """
    partial = path.with_name(path.name + ".partial")
    with _disk_errors(path):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        if path.exists():
            shutil.rmtree(path)
        partial.rename(path)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Write a file beside, then rename it into place: it is there whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a Parquet table without its index."""
    table.reset_index(drop=True).to_parquet(path, index=False)


def write_json(path: Path, content: object) -> None:
    """Write JSON as a person would want to read it; the same content gives the same bytes."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
