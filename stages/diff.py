"""`python -m stages.diff A B`: which samples differ between two versions of the dataset, and why."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pandas as pd

from stages.dataset.base import AUGMENTED, CURATED, INGESTED, OUTPUTS, REPORTS, SYNTHETIC
from stages.dataset.files import new_file
from stages.errors import WinnowError
from stages.versions.version import Version, make_version, read_labels, read_ledger, read_samples
from stages.workflow.stage import clean_exit

if TYPE_CHECKING:
    from stages.versions.comparison import Comparison

_SAMPLES = INGESTED / "samples.parquet"
_LEDGER = CURATED / "ledger.parquet"
_RAW = Path("data/raw")
_TOOLS = {".git", ".dvc"}
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
        from stages.versions.summary import describe

        comparison = compare(read_version(options.a), read_version(options.b))
        if options.out is not None:
            write_changes(options.out, comparison)
        show(describe(comparison, str(options.out) if options.out else None))
    if options.exit_code and len(comparison.changes):
        raise SystemExit(1)


def read_version(name: str) -> Version:
    """A version by what the user calls it.

    Raises
    ------
    WinnowError
        Where it is neither a revision nor a folder, holds no dataset, or DVC does not have its data.
    """
    folder, path = Path(name), _is_path(name)
    commit = find_commit(name) if name and not path else None
    if commit is not None:
        with suppress(OSError):  # a folder that cannot be looked into is nobody's second meaning
            if _data_folder(folder) is not None:
                print(f"diff: {name} is taken as the revision; ./{name} is the folder", file=sys.stderr)
        return read_revision(name, *commit)
    try:
        if path or (name and folder.exists()):
            return read_folder(folder)
    except OSError as error:  # its name is too long, or it may not be entered
        raise WinnowError(f"{name} cannot be read: {error.strerror}") from error
    raise WinnowError(
        f"{name!r} is neither a git revision of a DVC repository here nor a folder: name a branch, "
        "tag or commit, or the folder of a checkout"
    )


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
    """Refuse all but a new .parquet or an earlier comparison's, in a place that is no one else's.

    Raises
    ------
    WinnowError
        Where it is a folder, a file of another kind, or lies among the source's images, in what the
        pipeline writes itself, or in the folders of git and DVC.
    """
    try:
        if path.is_dir():
            raise WinnowError(f"--out {path}: that is a folder; name a file, such as changes.parquet")
        if path.suffix != ".parquet":
            raise WinnowError(f"--out {path}: that is not a .parquet; name one, such as changes.parquet")
        # A link is replaced by the file: neither it nor what it points to may be another's.
        for place in (path.parent.resolve() / path.name, path.resolve()):
            _check_place(path, place)
        if path.exists() and not _is_comparison(path):
            raise WinnowError(
                f"--out {path}: there is such a file, and it is no comparison that this command wrote; "
                "choose another name, or remove it"
            )
    except (OSError, RuntimeError) as error:  # too long a name, a folder not to be entered, links in a circle
        reason = getattr(error, "strerror", None) or error
        raise WinnowError(f"--out {path} cannot be written: {reason}") from error


def write_changes(path: Path, comparison: Comparison) -> None:
    """Write `comparison.changes` as Parquet: text and float64 columns, null where a version has nothing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {}
    for name, column in comparison.changes.items():
        text = not pd.api.types.is_float_dtype(column.dtype)
        columns[str(name)] = pa.array(column, from_pandas=True).cast(pa.string() if text else pa.float64())
    try:
        with new_file(path) as partial:
            pq.write_table(pa.table(columns), partial)
    except FileNotFoundError as error:  # where no file can be made, as in /proc
        raise WinnowError(f"--out {path} cannot be written: no file can be made there") from error


def show(text: str) -> None:
    """Print to the end, or as far as is read: who looks at `| head` is not told of a broken pipe.

    The exit status stays what it would have been. Any other trouble is a WinnowError.
    """
    if hasattr(sys.stdout, "reconfigure"):
        # A class name that the terminal cannot show must not take the table with it.
        sys.stdout.reconfigure(errors="replace")
    try:
        print(text, flush=True)
    except OSError as error:
        # Python flushes once more when it ends, and would complain then ("Note on SIGPIPE" in its
        # documentation of `signal`).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise WinnowError(f"the comparison cannot be printed: {error.strerror}") from error


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


def _check_place(path: Path, place: Path) -> None:
    """Raise a WinnowError where a place belongs to the source, the pipeline, git or DVC."""
    here = Path.cwd()
    checkouts = [folder for folder in (*here.parents, *place.parents) if (folder / "dvc.yaml").is_file()]
    for root in (here, *checkouts):
        if (root / _RAW).resolve() in place.parents:
            raise WinnowError(f"--out {path}: {_RAW} is for the source's images; choose another place")
        for output in OUTPUTS:
            own = (root / output).resolve()
            if own in (place, *place.parents) and place.parent != (root / REPORTS).resolve():
                raise WinnowError(f"--out {path}: the pipeline writes {output} itself; choose another place")
    if _TOOLS & set(place.parts):
        raise WinnowError(f"--out {path}: git and DVC keep their own files there; choose another place")


def _is_comparison(path: Path) -> bool:
    """Whether a file is one of `write_changes`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from stages.versions.comparison import CHANGE_COLUMNS

    try:
        return path.is_file() and pq.read_schema(path).names == CHANGE_COLUMNS
    except (pa.ArrowException, OSError):
        return False


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
