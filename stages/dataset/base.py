"""Define the data contract as code: one immutable base, small tables and deltas laid over it.

Pixels are written once, by ``ingest``. What is decided later about a sample is a row in a table
(``ledger.parquet``), what is made later is a delta (``images.npy`` + ``samples.parquet``). The
training view is put together when it is read: base + ledger + any of the deltas.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.dataset.files import existing, read_array, read_table, write_json, write_table

# Ids and splits belong to the contract: they are names of this module too.
from stages.dataset.ids import Split
from stages.errors import WinnowError

# `label` is null where `split` is `unlabeled`. `group` (16 hex) is what must not be separated:
# near-duplicates, and what the source grouped; an image by itself has its own `sample_id`. `weight`
# is the sample's in the loss, as the source gave it.
SAMPLE_COLUMNS = ["sample_id", "row", "split", "label", "source", "width", "height", "group", "weight"]
DELTA_COLUMNS = [*SAMPLE_COLUMNS, "parent_id", "method"]
# A row for every file that claimed a label for an image which another file labels otherwise; `split`
# is the one that the image was frozen in, null where it was not.
CONFLICT_COLUMNS = ["sample_id", "label", "source", "split"]
LEDGER_COLUMNS = [
    "sample_id",
    "split",
    "given_label",
    "label",
    "action",
    "weight",
    "score",
    "reason",
    "decided_by",
]
TRUTH_COLUMNS = ["sample_id", "split", "true_label", "given_label", "removed"]

INGESTED = Path("data/ingested")
TRUTH = Path("data/truth.parquet")
NOISE = Path("data/noise")
CURATED = Path("data/curated")
AUGMENTED = Path("data/augmented")
SYNTHETIC = Path("data/synthetic")
MODELS = Path("models")
REPORTS = Path("reports")
REVIEWS = Path("data/reviews.csv")
FROZEN_SPLITS = Path("data/splits.csv")
OUTPUTS = (INGESTED, TRUTH, NOISE, CURATED, AUGMENTED, SYNTHETIC, MODELS, REPORTS)
_COPIES = ("augment", "random")  # methods that make copies of one image
_GATHERED = 4096  # images that are picked out of a file at once


@dataclass(frozen=True)
class Dataset:
    """The images and their table; the base where `classes` is the ingested one, else a delta.

    Attributes
    ----------
    images : uint8 array, N×H×W×C, memory-mapped where it was read from disk
    samples : one row an image, in the order of `images`; `SAMPLE_COLUMNS` or `DELTA_COLUMNS`
    classes : class names in index order
    """

    images: NDArray[np.uint8]
    samples: pd.DataFrame
    classes: list[str]

    def __post_init__(self) -> None:
        if len(self.images) != len(self.samples):
            raise ValueError(f"{len(self.images)} images but {len(self.samples)} rows in the table")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return height, width and channels."""
        _, height, width, channels = self.images.shape
        return height, width, channels


@dataclass(frozen=True)
class View:
    """The samples that a model is trained or scored on: pixels in memory, integer labels, weights.

    Attributes
    ----------
    images : uint8 array, N×H×W×C
    labels : int64 array, N; indices into `classes`
    weights : float32 array, N; the base's weight times the ledger's, or the delta's
    sample_ids : object array of str, N
    classes : class names in index order
    second_labels : int64 array, N; indices into `second_classes`, -1 where there is none. None where the
        source has no second column of labels
    second_classes : names of the second column's classes, sorted
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    weights: NDArray[np.float32]
    sample_ids: NDArray[np.object_]
    classes: list[str]
    second_labels: NDArray[np.int64] | None = None
    second_classes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> View:
        """Return the samples of these rows, in the order asked for."""
        second = self.second_labels
        return replace(
            self,
            images=self.images[rows],
            labels=self.labels[rows],
            weights=self.weights[rows],
            sample_ids=self.sample_ids[rows],
            second_labels=None if second is None else second[rows],
        )

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """Count the images of each class, in index order."""
        return np.bincount(self.labels, minlength=len(self.classes)).astype(np.int64)


def label_indices(labels: Sequence[str] | pd.Series, classes: list[str]) -> NDArray[np.int64]:
    """Return class names as indices; a name that is not in `classes` is a ValueError."""
    index = pd.Index(classes).get_indexer(pd.Index(labels))
    if (index < 0).any():
        unknown = sorted({str(name) for name, i in zip(labels, index, strict=True) if i < 0})
        raise ValueError(f"unknown class names: {', '.join(unknown[:5])}")
    return index.astype(np.int64)


# --- reading -----------------------------------------------------------------------------------


def read_dataset(folder: Path) -> Dataset:
    """Read the base, or a delta, from its folder; the images stay on disk, memory-mapped."""
    images = read_array(folder / "images.npy", mapped=True)
    samples = read_table(folder / "samples.parquet")
    classes = json.loads(existing(folder / "classes.json").read_text(encoding="utf-8"))
    return Dataset(images, samples, classes)


def read_ledger(folder: Path = CURATED) -> pd.DataFrame:
    """Read the ledger: for every sample what was decided, by whom, and why."""
    return read_table(folder / "ledger.parquet")


def read_conflicts(folder: Path = INGESTED) -> pd.DataFrame:
    """Read the labels that equal images stood under, `CONFLICT_COLUMNS`; no rows without the file."""
    path = folder / "conflicts.parquet"
    if path.is_file():
        return read_table(path)
    return pd.DataFrame({name: pd.Series(dtype="str") for name in CONFLICT_COLUMNS})


# --- views -------------------------------------------------------------------------------------


def second_classes(samples: pd.DataFrame) -> list[str]:
    """Return the classes of the column `second_label`, sorted; none where there is no such column."""
    if "second_label" not in samples:
        return []
    return sorted(set(samples["second_label"].dropna()))


def _second_labels(samples: pd.DataFrame, classes: list[str]) -> NDArray[np.int64] | None:
    if not classes:
        return None
    if "second_label" not in samples:
        return np.full(len(samples), -1, np.int64)
    return pd.Index(classes).get_indexer(pd.Index(samples["second_label"])).astype(np.int64)


def split_view(base: Dataset, split: Split, ledger: pd.DataFrame | None = None) -> View:
    """Return the labelled samples of one split of the base, as ledger and reviewers left them.

    Parameters
    ----------
    base : the ingested dataset
    split : `train`, `val` or `test`; nothing is left of `unlabeled`
    ledger : without one, splits, labels and weights are as ingested. With one the splits are its
        own: an unlabelled sample that a reviewer gave a label is in `train`. Weights multiply.
    """
    table = _split_table(base, split, ledger)
    return _view(base, table, np.asarray(base.images[table["row"].to_numpy()]))


def _split_table(base: Dataset, split: Split, ledger: pd.DataFrame | None) -> pd.DataFrame:
    """Return the rows of `split_view`, without their pixels."""
    table = base.samples if ledger is None else _decided(base.samples, ledger)
    return table[(table["split"] == split).to_numpy(bool) & table["label"].notna().to_numpy()]


def _view(base: Dataset, table: pd.DataFrame, images: NDArray[np.uint8]) -> View:
    """Make a view of images and the rows of their table."""
    second = second_classes(base.samples)
    return View(
        images=images,
        labels=label_indices(table["label"], base.classes),
        weights=table["weight"].to_numpy(np.float32),
        sample_ids=table["sample_id"].to_numpy(object),
        classes=base.classes,
        second_labels=_second_labels(table, second),
        second_classes=second,
    )


def _decided(samples: pd.DataFrame, ledger: pd.DataFrame) -> pd.DataFrame:
    """Return `samples` less the dropped ones, with the ledger's split and label, its weight multiplied in."""
    decisions = ledger.set_index("sample_id").loc[samples["sample_id"]]
    weights = samples["weight"].to_numpy(np.float64) * decisions["weight"].to_numpy(np.float64)
    table = samples.assign(
        split=decisions["split"].to_numpy(), label=decisions["label"].to_numpy(), weight=weights
    )
    return table[(decisions["action"] != "drop").to_numpy()]


def training_view(base: Dataset, ledger: pd.DataFrame | None = None, deltas: Sequence[Dataset] = ()) -> View:
    """Return the training split of the base, decided by the ledger, with the deltas behind it.

    A sample's weight is the product of what source and ledger say, a made one's is its delta's;
    class weighting comes on top, in the training loop.
    """
    if any(delta.classes != base.classes for delta in deltas):
        raise ValueError("a delta was made for other classes than the base has")
    if not any(len(delta.images) for delta in deltas):
        return split_view(base, "train", ledger)
    table = _split_table(base, "train", ledger)
    images = _together(base.images, table["row"].to_numpy(), [delta.images for delta in deltas])
    views = [_view(base, table, images[: len(table)])]
    for delta in deltas:
        views.append(_view(base, _with_parents_second(delta.samples, base.samples), delta.images))
    return replace(
        views[0],
        images=images,
        labels=np.concatenate([view.labels for view in views]),
        weights=np.concatenate([view.weights for view in views]),
        sample_ids=np.concatenate([view.sample_ids for view in views]),
        second_labels=np.concatenate([view.second_labels for view in views if view.second_labels is not None])
        if views[0].second_classes
        else None,
    )


def _together(
    images: NDArray[np.uint8], rows: NDArray[np.int64], deltas: Sequence[NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    """Copy rows of the base's images, with those of deltas behind them, once each."""
    together = np.empty((len(rows) + sum(map(len, deltas)), *images.shape[1:]), np.uint8)
    for start in range(0, len(rows), _GATHERED):
        part = rows[start : start + _GATHERED]
        together[start : start + len(part)] = images[part]
    np.concatenate(deltas, out=together[len(rows) :])
    return together


def _with_parents_second(made: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """Give made samples the `second_label` of their parents in `samples`, where those have one.

    Copies alone have their parent's: what is mixed of several images or generated is known by its class.
    """
    if "second_label" not in samples:
        return made
    labels = samples.set_index("sample_id")["second_label"].reindex(made["parent_id"])
    copies = made["method"].isin(_COPIES).to_numpy()
    return made.assign(second_label=labels.where(copies, None).to_numpy())


def split_hash(base: Dataset, split: Split, ledger: pd.DataFrame | None = None) -> str:
    """Return 16 hex that name a split's samples and labels: models are compared only on equal ones."""
    table = _split_table(base, split, ledger)
    label_indices(table["label"], base.classes)  # refuses unknown names
    rows = sorted(
        f"{sample_id} {name}" for sample_id, name in zip(table["sample_id"], table["label"], strict=True)
    )
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]


# --- writing -----------------------------------------------------------------------------------


def refuse_own_output(source: Path) -> None:
    """Raise a WinnowError where a source is, holds, or lies in what the pipeline writes itself."""
    place = source.resolve()
    for output in OUTPUTS:
        target = output.resolve()
        if place == target or place in target.parents or target in place.parents:
            raise WinnowError(
                f"ingest.source = {str(source)!r}: the pipeline writes {output} and would replace it; put "
                "the images into a folder of their own, such as data/raw/mine"
            )


def write_dataset(folder: Path, dataset: Dataset) -> None:
    """Write a base or a delta into `folder` (one from `new_folder`)."""
    np.save(folder / "images.npy", dataset.images, allow_pickle=False)
    write_table(folder / "samples.parquet", dataset.samples)
    write_json(folder / "classes.json", dataset.classes)


def empty_delta(base: Dataset) -> Dataset:
    """Return a delta for `base` with nothing in it."""
    samples = pd.DataFrame({name: pd.Series(dtype=dtype) for name, dtype in _DELTA_DTYPES.items()})
    return Dataset(np.zeros((0, *base.image_shape), np.uint8), samples, base.classes)


_DELTA_DTYPES = {
    "sample_id": "str",
    "row": "int64",
    "split": "str",
    "label": "str",
    "source": "str",
    "width": "int64",
    "height": "int64",
    "group": "str",
    "weight": "float64",
    "parent_id": "str",
    "method": "str",
}
