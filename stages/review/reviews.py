"""Reading `data/reviews.csv`: the decisions that people made by hand."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from stages.errors import WinnowError

COLUMNS = ["sample_id", "decision", "label", "reviewer", "decided_at", "note"]
DECISIONS = ("keep", "drop", "relabel")


def read_reviews(path: Path, classes: Collection[str]) -> pd.DataFrame:
    """The last decision on each sample, as a table with `COLUMNS`.

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


def moment(decided_at: str) -> datetime:
    """An ISO 8601 time; in UTC where it names no zone. A ValueError for anything else."""
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
