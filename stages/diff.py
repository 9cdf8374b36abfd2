"""`python -m stages.diff A B`: which samples differ between two versions of the dataset, and why."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pandas as pd

from stages.dataset import AUGMENTED, CURATED, INGESTED, OUTPUTS, REPORTS, SYNTHETIC, new_file
from stages.errors import WinnowError
from stages.runtime import clean_exit
from stages.versions.version import Version, make_version, read_labels, read_ledger, read_samples

if TYPE_CHECKING:
    from stages.versions.comparison import Comparison

_SAMPLES = INGESTED / "samples.parquet"
_LEDGER = CURATED / "ledger.parquet"
_DELTAS = {folder.name: folder / "samples.parquet" for folder in (AUGMENTED, SYNTHETIC)}

Source = AbstractContextManager[Path | BinaryIO]
# Opens one of the paths above, or gives None where the version has it not.
Opener = Callable[[Path], Source | None]


def main(argv: list[str] | None = None) -> None:
    """Show which samples differ between two versions of the dataset, by class and by reason.

    A version is a git revision (its data are read from DVC's cache, nothing is checked out), or a
    folder: the root of a checkout, or its data folder. "." is the workspace. A name that could be
    both is taken as the revision; ./name is the folder.
    """
    parser = argparse.ArgumentParser(
        prog="python -m stages.diff",
        description=main.__doc__,
        epilog="Exit status: 0, with --exit-code 1 where samples differ; 2 where a version cannot be read.",
    )
    parser.add_argument("a", metavar="A", nargs="?", default="HEAD", help="before (default: %(default)s)")
    parser.add_argument("b", metavar="B", nargs="?", default=".", help="after (default: the workspace)")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write every changed sample to a Parquet file"
    )
    parser.add_argument("--exit-code", action="store_true", help="end with status 1 where samples differ")
    options = parser.parse_args(argv)
    with clean_exit("diff"):
        if options.out is not None:
            check_out(options.out)
        from stages.versions.comparison import compare
        from stages.versions.text import describe

        comparison = compare(read_version(options.a), read_version(options.b))
        if options.out is not None:
            write_changes(options.out, comparison)
    if hasattr(sys.stdout, "reconfigure"):
        # A class name that the terminal cannot show must not take the table with it.
        sys.stdout.reconfigure(errors="replace")
    print(describe(comparison, str(options.out) if options.out else None))
    if options.exit_code and len(comparison.changes):
        raise SystemExit(1)


def read_version(name: str) -> Version:
    """A version by what the user calls it.

    Raises
    ------
    WinnowError
        Where it is neither a revision nor a folder, holds no dataset, or DVC does not have its data.
    """
    folder = Path(name)
    if not _is_path(name):
        commit = find_commit(name) if name else None
        if commit is not None:
            if _data_folder(folder) is not None:
                print(f"diff: {name} is taken as the revision; ./{name} is the folder", file=sys.stderr)
            return read_revision(name, *commit)
        if not name or not folder.exists():
            raise WinnowError(
                f"{name!r} is neither a git revision of a DVC repository here nor a folder: name a branch, "
                "tag or commit, or the folder of a checkout"
            )
    return read_folder(folder)


def read_folder(folder: Path) -> Version:
    """The version in a folder: the root of a checkout, or its data folder."""
    data = _data_folder(folder)
    if data is None:
        raise WinnowError(
            f"{folder} holds no version of the dataset, there is no {_SAMPLES.as_posix()} in it: name the "
            "root of a checkout or its data folder, and run `dvc repro` or `dvc checkout` there before"
        )

    def opener(path: Path) -> Source | None:
        place = data / path.relative_to("data")
        return nullcontext(place) if place.is_file() else None

    return _read("the workspace" if folder.resolve() == Path.cwd() else str(folder), opener)


def find_commit(name: str) -> tuple[Path, str] | None:
    """The root of the repository here and the commit that a name stands for; None where for none.

    Names are those that git and DVC take: a branch, a tag, a commit, HEAD~1, an experiment.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import NoSCM, resolve_rev
    from scmrepo.exceptions import SCMError

    try:
        with Repo() as repo:
            if isinstance(repo.scm, NoSCM):
                return None
            commit = resolve_rev(repo.scm, name)
            return Path(repo.root_dir), str(repo.scm.resolve_commit(commit).hexsha)
    except (DvcException, SCMError, ValueError, AttributeError):
        return None  # the last two: no name that git allows, or one of a tree or file, such as HEAD:data


def read_revision(name: str, root: Path, commit: str) -> Version:
    """The version of a commit, from DVC's cache, or its remote where the cache has it not."""
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    title = name if commit.startswith(name) else f"{name} ({commit[:7]})"
    with Repo(str(root), rev=commit, uninitialized=True) as repo:
        files = DVCFileSystem(repo=repo)

        def opener(path: Path) -> Source | None:
            place = "/" + path.as_posix()
            try:
                return files.open(place)
            except DvcException as error:
                raise WinnowError(f"{title}: DVC cannot read its pipeline: {error}") from error
            except Exception as error:  # each kind of remote has errors of its own
                if isinstance(error, FileNotFoundError) and not files.exists(place):
                    return None
                raise WinnowError(
                    f"{title}: {path.parent.as_posix()} is not in DVC's cache: `dvc fetch --all-commits "
                    f"{INGESTED.as_posix()} {CURATED.as_posix()}` brings it where a remote has it; else `git "
                    f"checkout {commit[:7]}` and `dvc repro` make it again"
                ) from error

        return _read(title, opener)


def check_out(path: Path) -> None:
    """Refuse to write over a folder or a file of another kind, or into what the pipeline writes itself."""
    place = path.resolve()
    if place.is_dir():
        raise WinnowError(f"--out {path}: that is a folder; name a file, such as changes.parquet")
    if place.exists() and place.suffix != ".parquet":
        raise WinnowError(
            f"--out {path}: there is such a file, and it is not a .parquet; choose another name"
        )
    for output in OUTPUTS:
        own = output.resolve()
        if own in (place, *place.parents) and place.parent != REPORTS.resolve():
            raise WinnowError(f"--out {path}: the pipeline writes {output} itself; choose another place")


def write_changes(path: Path, comparison: Comparison) -> None:
    """Write `comparison.changes` as Parquet: text and float64 columns, null where a version has nothing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {}
    for name, column in comparison.changes.items():
        text = not pd.api.types.is_float_dtype(column.dtype)
        columns[str(name)] = pa.array(column, from_pandas=True).cast(pa.string() if text else pa.float64())
    with new_file(path) as partial:
        pq.write_table(pa.table(columns), partial)


def _read(name: str, opener: Opener) -> Version:
    def table(path: Path, read: Callable[[Path | BinaryIO, str], pd.DataFrame]) -> pd.DataFrame | None:
        source = opener(path)
        if source is None:
            return None
        with source as file:
            return read(file, f"{name}: {path.as_posix()}")

    samples = table(_SAMPLES, read_samples)
    if samples is None:
        raise WinnowError(f"{name} has no {INGESTED.as_posix()}: the pipeline had not run by then")
    made = {}
    for delta, path in _DELTAS.items():
        with suppress(WinnowError):  # without its data a delta is not counted: no reason to stop
            labels = table(path, read_labels)
            if labels is not None and "label" in labels:
                made[delta] = labels["label"]
    return make_version(name, samples, table(_LEDGER, read_ledger), made)


def _data_folder(folder: Path) -> Path | None:
    """Where a folder has its data; None where it has no dataset."""
    for data in (folder / "data", folder):
        if (data / _SAMPLES.relative_to("data")).is_file():
            return data
    return None


def _is_path(name: str) -> bool:
    """Whether a name can be no revision: git's begin with neither a dot nor a slash."""
    return name.startswith((".", "/")) or name.endswith("/") or Path(name).is_absolute()


if __name__ == "__main__":
    main()
