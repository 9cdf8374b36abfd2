"""Who is in which split: as the source says, as people froze it, else dealt by hash."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pandas as pd

from stages.dataset import Split
from stages.errors import WinnowError

HEADER = ["sample_id", "split"]
_DEALT = ("train", "val", "test")
_ID = re.compile(r"[0-9a-f]{16}")


def hash_order(ids: Iterable[str], purpose: str) -> list[str]:
    """Ids in an order that looks random, and that neither their order nor other ids change."""
    return sorted(ids, key=lambda sample_id: hashlib.sha256(f"{purpose}/{sample_id}".encode()).digest())


def read_frozen(path: Path) -> dict[str, Split]:
    """Splits by `sample_id` from a CSV of the columns `sample_id,split`.

    Raises
    ------
    WinnowError
        With the number of the line that is malformed.
    """
    if not path.is_file():
        raise WinnowError(f"{path} is not there: make it with the line {','.join(HEADER)}")
    frozen: dict[str, Split] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            if next(reader, None) != HEADER:
                raise WinnowError(f"{path}, line 1: the header must be {','.join(HEADER)}")
            for row in reader:
                if row:
                    sample_id, split = _checked(row, f"{path}, line {reader.line_num}")
                    if frozen.setdefault(sample_id, split) != split:
                        raise WinnowError(
                            f"{path}, line {reader.line_num}: {sample_id} is in {split}, "
                            f"and in {frozen[sample_id]} further up"
                        )
    except (UnicodeDecodeError, csv.Error) as error:
        raise WinnowError(f"{path} is not a CSV file in UTF-8: {error}") from error
    return frozen


def _checked(row: list[str], where: str) -> tuple[str, Split]:
    if len(row) != len(HEADER):
        raise WinnowError(f"{where}: {len(row)} columns instead of {','.join(HEADER)}")
    sample_id, split = (cell.strip() for cell in row)
    if not _ID.fullmatch(sample_id):
        raise WinnowError(f"{where}: sample_id {sample_id!r} is not 16 lower-case hexadecimal digits")
    if split not in _DEALT:
        raise WinnowError(f"{where}: split {split!r} is none of {', '.join(_DEALT)}")
    return sample_id, cast(Split, split)


def write_frozen(path: Path, splits: Mapping[str, str]) -> None:
    """Write the splits as CSV, sorted by `sample_id`."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        writer.writerows(sorted(splits.items()))


@dataclass(frozen=True)
class Assigned:
    """What is known of the splits before any is dealt.

    Attributes
    ----------
    splits : object array as a column: the split, or None where it is to be dealt
    brought : the splits that the source itself brings
    frozen : rows of the frozen splits that decided something
    overruled : rows of the frozen splits that name another split than the source brings
    absent : rows of the frozen splits for samples that are not there
    """

    splits: pd.Series
    brought: frozenset[str]
    frozen: int
    overruled: int
    absent: int


def assign(found: pd.DataFrame, frozen: Mapping[str, Split]) -> Assigned:
    """Put together what the source brings and what people froze.

    What the source calls training stays open where it brings no validation or no test split:
    those have to come from somewhere.
    """
    brought = frozenset(found["split"].dropna())
    complete = {"val", "test"} <= brought
    given = found["split"].where((found["split"] != "train") | complete, None)
    wanted = found["sample_id"].map(frozen).astype(object)
    splits = given.where(given.notna(), wanted)
    splits = splits.where(splits.notna(), None)
    return Assigned(
        splits=splits,
        brought=brought,
        frozen=int((given.isna() & wanted.notna()).sum()),
        overruled=int((given.notna() & wanted.notna() & (given != wanted)).sum()),
        absent=len(frozen.keys() - set(found["sample_id"])),
    )


def deal(
    samples: pd.DataFrame, brought: Iterable[str], val_share: float, test_share: float
) -> dict[str, Split]:
    """Deal the samples without a split, class by class, by rank of a hash of their ids.

    A split that the source brings is not added to. Shares count from what a class has to deal,
    rounded, but each split gets an image where the class has one to spare; a class with one image
    has it in training.

    Parameters
    ----------
    samples : `sample_id`, `label`, and `split`, None where it is to be dealt
    brought : the splits that the source brings
    val_share, test_share : 0 to 1

    Returns
    -------
    The split of every sample, by `sample_id`.
    """
    brought = set(brought)
    shares: dict[Split, float] = {
        "test": 0.0 if "test" in brought else test_share,
        "val": 0.0 if "val" in brought else val_share,
    }
    splits: dict[str, Split] = {}
    for _, rows in samples.groupby("label", sort=True):
        fixed = rows[rows["split"].notna()]
        splits.update(zip(fixed["sample_id"], fixed["split"], strict=True))
        open_ids = hash_order(rows.loc[rows["split"].isna(), "sample_id"], "split")
        present = set(fixed["split"])
        spare = len(open_ids) - (0 if "train" in present else 1)
        start = 0
        for split, share in shares.items():
            least = 1 if share > 0 and split not in present else 0
            count = max(0, min(max(round(share * len(open_ids)), least), spare - start))
            splits.update(dict.fromkeys(open_ids[start : start + count], split))
            start += count
        splits.update(dict.fromkeys(open_ids[start:], "train"))
    return splits
