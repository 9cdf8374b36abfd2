"""Read `data/reviews.csv`: the decisions that people made by hand, and which sample each is about."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from stages.dataset.base import REPORTS
from stages.errors import WinnowError

COLUMNS = ["sample_id", "decision", "label", "reviewer", "decided_at", "note"]
DECISIONS = ("keep", "drop", "relabel")
_COPY_COLUMNS = ["sample_id", "kept_id"]


def read_reviews(path: Path, classes: Collection[str]) -> pd.DataFrame:
    """Return the last decision on each sample, as a table with `COLUMNS`.

    Raises
    ------
    WinnowError
        For a file without the header, a malformed row or an unknown class, with its line number.
    """
    if not path.is_file():
        raise WinnowError(f"{path} is not there: it needs at least its header, {','.join(COLUMNS)}")
    try:
        # utf-8-sig: spreadsheet programs put a byte order mark before the header
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            if [name.strip() for name in header] != COLUMNS:
                raise WinnowError(
                    f"{path} line 1: the header must be {','.join(COLUMNS)}, not {','.join(header)!r}"
                )
            rows = [_parse(path, reader.line_num, row, classes) for row in reader if row]
    except csv.Error as error:
        raise WinnowError(f"{path} line {reader.line_num}: not CSV: {error}") from error
    except UnicodeDecodeError as error:
        raise WinnowError(f"{path} is not UTF-8 text: save it as CSV UTF-8") from error
    rows.sort(key=lambda row: moment(row["decided_at"]))
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.drop_duplicates("sample_id", keep="last").reset_index(drop=True)


def read_duplicates(folder: Path = REPORTS / "ingest") -> pd.DataFrame:
    """Read `sample_id` and `kept_id` of the copies that `ingest` collapsed; no rows before it has run."""
    path = folder / "duplicates.parquet"
    if path.is_file():
        return pd.read_parquet(path, columns=_COPY_COLUMNS)
    return pd.DataFrame({name: pd.Series(dtype="str") for name in _COPY_COLUMNS})


def follow_copies(reviews: pd.DataFrame, sample_ids: pd.Series, duplicates: pd.DataFrame) -> pd.DataFrame:
    """Let decisions on a copy count for the image that is kept in its place.

    When a file with the same pixels arrives, it may be the one that is kept: the sample then has
    another id, and what was decided about it would be lost.

    Parameters
    ----------
    reviews : as `read_reviews` gives them
    sample_ids : of the samples that are in the data
    duplicates : at least `sample_id` and `kept_id`, a row for each copy that gave way

    Returns
    -------
    The same columns, at most one row a sample: where several copies have a decision, the latest.
    """
    copies = duplicates[duplicates["sample_id"].isin(reviews["sample_id"])]
    if copies.empty:
        return reviews
    present = set(sample_ids[sample_ids.isin(copies["sample_id"]) | sample_ids.isin(copies["kept_id"])])
    pairs = zip(copies["sample_id"], copies["kept_id"], strict=True)
    replaced_by = {copy: name for copy, name in pairs if copy not in present and name in present}
    moved = reviews.assign(sample_id=[replaced_by.get(name, name) for name in reviews["sample_id"]])
    times = [moment(decided_at) for decided_at in moved["decided_at"]]
    moved = moved.iloc[sorted(range(len(times)), key=times.__getitem__)]
    return moved.drop_duplicates("sample_id", keep="last").reset_index(drop=True)


def moment(decided_at: str) -> datetime:
    """Parse an ISO 8601 time, in UTC where it names no zone; anything else is a ValueError."""
    when = datetime.fromisoformat(decided_at)
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def _parse(path: Path, line: int, row: list[str], classes: Collection[str]) -> dict[str, str]:
    def refuse(what: str) -> WinnowError:
        return WinnowError(f"{path} line {line}: {what}")

    if len(row) != len(COLUMNS):
        raise refuse(f"{len(row)} fields where there should be {len(COLUMNS)} ({','.join(COLUMNS)})")
    values = {name: value.strip() for name, value in zip(COLUMNS, row, strict=True)}
    if not re.fullmatch(r"[0-9a-f]{16}", values["sample_id"]):
        raise refuse(f"sample_id {values['sample_id']!r} is not 16 hexadecimal digits")
    if values["decision"] not in DECISIONS:
        raise refuse(f"decision {values['decision']!r} is not one of {', '.join(DECISIONS)}")
    if values["decision"] == "relabel" and not values["label"]:
        raise refuse("relabel needs the new label")
    if values["label"] and values["label"] not in classes:
        known = ", ".join(sorted(classes)[:10])
        raise refuse(f"unknown class {values['label']!r}; the classes are {known}")
    try:
        moment(values["decided_at"])
    except ValueError:
        raise refuse(f"decided_at {values['decided_at']!r} is not an ISO 8601 time") from None
    return values
