"""One version of the dataset: every sample as it was ingested and as the ledger leaves it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.curation.policy import ACTIONS
from stages.errors import WinnowError

VERSION_COLUMNS = [
    "sample_id",
    "split",
    "given_label",
    "label",
    "action",
    "given_weight",
    "weight",
    "reason",
    "decided_by",
    "source",
]
_FROM_LEDGER = ["split", "label", "action", "reason", "decided_by"]


@dataclass(frozen=True)
class Version:
    """The samples of one version, and what had to be assumed about them.

    Attributes
    ----------
    name : as people call it
    samples : `VERSION_COLUMNS`, a row a sample; `sample_id` and `source` are text, the weights
        float64, the others categories. `given_label` and `given_weight` are the ingested ones;
        `weight` is what the sample weighs in training: times the ledger's, and 0 where it is dropped.
        Without a ledger `action`, `reason` and `decided_by` are null.
    curated : whether there is a ledger
    has_splits : whether it knows of splits at all
    made : images that augment, synthesize … made, by class, for each delta that is there
    notes : what a reader must know before comparing
    """

    name: str
    samples: pd.DataFrame
    curated: bool
    has_splits: bool = True
    made: Mapping[str, pd.Series] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def in_use(self) -> NDArray[np.bool_]:
        """Of each sample whether the ledger left it."""
        return (self.samples["action"] != "drop").to_numpy(bool)


def make_version(
    name: str,
    samples: pd.DataFrame,
    ledger: pd.DataFrame | None = None,
    made: Mapping[str, pd.Series] | None = None,
) -> Version:
    """Lay the ledger over the samples.

    Parameters
    ----------
    name : of the version, for people
    samples : `SAMPLE_COLUMNS` of the base, of which `sample_id` and `label` are needed; a missing
        `weight` is 1, and what else is missing (as older versions have it) is null
    ledger : `LEDGER_COLUMNS`, of which `sample_id`, `label` and `action` are needed; None for a
        version before curation. A sample that it does not name stays as ingested.
    made : the labels of each delta's images

    Raises
    ------
    WinnowError
        Where a column that is needed is missing or holds what it cannot mean, a sample has no id,
        or two have the same.
    """
    wrong = f"{name}: samples.parquet"
    _check(wrong, samples, ["sample_id", "label"])
    given = _text(samples, "label")
    weight = _weights(wrong, samples)
    table = {
        "sample_id": samples["sample_id"].astype("str").reset_index(drop=True),
        "split": _text(samples, "split"),
        "given_label": given,
        "label": given,
        "action": _nothing(len(samples)),
        "given_weight": weight,
        "weight": weight,
        "reason": _nothing(len(samples)),
        "decided_by": _nothing(len(samples)),
        "source": _column(samples, "source").astype("str"),
    }
    notes: list[str] = []
    if ledger is not None:
        wrong = f"{name}: ledger.parquet"
        _check(wrong, ledger, ["sample_id", "label", "action"])
        _check_actions(wrong, ledger["action"])
        row = positions(samples["sample_id"], ledger["sample_id"])
        for column in _FROM_LEDGER:
            if column in ledger:
                table[column] = _decided(_text(ledger, column), row, table[column])
        factor = np.append(_weights(wrong, ledger), 1.0)[row]
        table["weight"] = weight * np.where(table["action"] == "drop", 0.0, factor)
        strangers = int((row < 0).sum()), len(ledger) - int((row >= 0).sum())
        if any(strangers):
            notes.append(
                f"its ledger is of other data ({strangers[0]} samples are not in it, {strangers[1]} of its "
                "rows are of no sample): `dvc repro curate` there; what it does not name is as ingested"
            )
    else:
        notes.append("it has no ledger (nothing is curated yet): its samples are as ingested")
    if "split" not in samples:
        notes.append("it has no column `split`: moves between splits are not compared")
    counts = {delta: labels.astype("str").value_counts() for delta, labels in (made or {}).items()}
    frame = pd.DataFrame(table, columns=VERSION_COLUMNS)
    return Version(name, frame, ledger is not None, "split" in samples, counts, tuple(notes))


def positions(ids: pd.Series, among: pd.Series) -> NDArray[np.int64]:
    """The place of each id among others that are unique; -1 where it is not there."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = pc.index_in(pa.array(ids, pa.large_string()), value_set=pa.array(among, pa.large_string()))
    places: NDArray[np.int64] = found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return places


def read_columns(file: Path | BinaryIO, what: str, wanted: Iterable[str]) -> pd.DataFrame:
    """Those of the wanted columns that a Parquet file has; nothing else of it is read.

    Raises
    ------
    WinnowError
        Where it is no Parquet, or one of the columns holds lists or the like; `what` names it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parquet:
            schema = parquet.schema_arrow
            names = [name for name in wanted if name in schema.names]
            for name in names:
                if pa.types.is_nested(schema.field(name).type):
                    raise _odd(what, name, f"holds no single values ({schema.field(name).type})")
            return parquet.read(columns=names).to_pandas(ignore_metadata=True)
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WinnowError(f"{what} cannot be read as Parquet: {reason}") from error


def read_samples(file: Path | BinaryIO, what: str) -> pd.DataFrame:
    """What a comparison needs of samples.parquet."""
    return read_columns(file, what, ["sample_id", "split", "label", "weight", "source"])


def read_ledger(file: Path | BinaryIO, what: str) -> pd.DataFrame:
    """What a comparison needs of ledger.parquet."""
    return read_columns(file, what, ["sample_id", "weight", *_FROM_LEDGER])


def read_labels(file: Path | BinaryIO, what: str) -> pd.DataFrame:
    """What a comparison needs of a delta's samples.parquet."""
    return read_columns(file, what, ["label"])


def _check(file: str, table: pd.DataFrame, needed: Iterable[str]) -> None:
    """That a table has the columns needed, and names every sample once; `file` is for messages."""
    missing = [column for column in needed if column not in table]
    if missing:
        raise WinnowError(f"{file} has no column {missing[0]!r}; it is not one that this pipeline wrote")
    ids = table["sample_id"]
    if ids.isna().any():
        raise WinnowError(f"{file} has {int(ids.isna().sum())} rows without a sample_id")
    if not _is_text(ids):
        raise _odd(file, "sample_id", f"is not text ({ids.dtype})")
    if not ids.is_unique:
        twice = ids[ids.duplicated()].iloc[0]
        raise WinnowError(f"{file} names sample {twice} twice")


def _check_actions(file: str, actions: pd.Series) -> None:
    """That every decision is known: any other would be read as "nothing dropped"."""
    if actions.isna().any():
        raise _odd(file, "action", f"is empty in {int(actions.isna().sum())} rows")
    if not _is_text(actions):
        raise _odd(file, "action", f"is not text ({actions.dtype})")
    strange = actions[~actions.isin(ACTIONS)]
    if len(strange):
        raise _odd(file, "action", f"says {strange.iloc[0]!r}, which is none of {', '.join(ACTIONS)}")


def _odd(file: str, column: str, what: str) -> WinnowError:
    return WinnowError(f"{file}: column {column!r} {what}; it is not one that this pipeline wrote")


def _is_text(column: pd.Series) -> bool:
    """Whether a column's values are text, whatever they are kept as; so it is where there are none."""
    values = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else column
    return pd.api.types.infer_dtype(values, skipna=True) in ("string", "empty")


def _column(table: pd.DataFrame, name: str) -> pd.Series:
    """A column of a table, or nulls."""
    if name in table:
        return table[name].reset_index(drop=True)
    return pd.Series(np.full(len(table), None), dtype="str")


def _text(table: pd.DataFrame, name: str) -> pd.Categorical:
    """A column as categories of text: a million labels are a million small numbers."""
    column = _column(table, name)
    if not isinstance(column.dtype, pd.StringDtype):
        column = column.astype("str").where(column.notna())
    return column.astype("category").array


def _weights(file: str, table: pd.DataFrame) -> NDArray[np.float64]:
    """A table's weights; 1 where it has none."""
    if "weight" not in table or table["weight"].isna().all():
        return np.ones(len(table))
    column = table["weight"]
    if not pd.api.types.is_numeric_dtype(column.dtype):
        raise _odd(file, "weight", f"holds no numbers ({column.dtype})")
    weights: NDArray[np.float64] = column.fillna(1.0).to_numpy(np.float64)
    if np.isinf(weights).any():
        raise _odd(file, "weight", f"is infinite in {int(np.isinf(weights).sum())} rows")
    return weights


def _nothing(length: int) -> pd.Categorical:
    return pd.Categorical.from_codes(np.full(length, -1, np.int8), pd.Index([], dtype="str"))


def _decided(column: pd.Categorical, row: NDArray[np.int64], otherwise: pd.Categorical) -> pd.Categorical:
    """The ledger's values in the order of the samples; for those that it does not name others."""
    both = pd.api.types.union_categoricals([column, otherwise])
    codes = np.append(both.codes[: len(column)], -1)[row]
    codes = np.where(row < 0, both.codes[len(column) :], codes)
    return pd.Categorical.from_codes(codes, both.categories)
