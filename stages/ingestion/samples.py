"""The rows of the dataset: which classes are usable, in which order samples stand, what is planted.

What the report counts, and how near-duplicates are found among what a scan found.

The base on disk, a block of rows at a time: memory does not grow with the number of images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.dataset.ids import SPLITS, hex_ids
from stages.errors import WinnowError
from stages.images.near_duplicates import Pairs, near_pairs
from stages.ingestion.blocks import NO_LABEL, SPLIT_CODE, Found, RowFile
from stages.ingestion.resolve import Resolved
from stages.ingestion.scan import Scan
from stages.ingestion.simulate import Planted, no_truth
from stages.ingestion.source import LEFT_OUT, Quarantined

_NAMED = 3  # classes that a warning names before it counts
_BLOCK_BYTES = 2**24  # of images copied at once
_TABLE_ROWS = 2**16  # of a row group of the table

_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("row", pa.int64()),
        ("split", pa.string()),
        ("label", pa.string()),
        ("source", pa.string()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("group", pa.string()),
        ("weight", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Samples:
    """A row for every sample of the dataset, in the order of its images; M rows.

    Attributes
    ----------
    position : int64, index into the columns of `found`
    label : int32, index into `classes`, `found.NO_LABEL` for none
    split : int8, index into `ids.SPLITS`
    group : uint64, smallest id of what must not be separated
    classes : class names in index order, each with a training image
    found : what the scan found
    """

    position: NDArray[np.int64]
    label: NDArray[np.int32]
    split: NDArray[np.int8]
    group: NDArray[np.uint64]
    classes: list[str]
    found: Found

    def __len__(self) -> int:
        return len(self.position)

    @property
    def sample_id(self) -> NDArray[np.uint64]:
        """Ids as numbers."""
        return self.found.sample_id[self.position]

    def at(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Samples:
        """Some of the rows, in the order asked for."""
        return replace(
            self,
            position=self.position[rows],
            label=self.label[rows],
            split=self.split[rows],
            group=self.group[rows],
        )

    def counts(self) -> pd.DataFrame:
        """Samples of each class and split: `class`, `split`, `count`; unlabeled ones not among them."""
        splits = SPLITS[:3]
        table = np.zeros((len(self.classes), len(splits)), np.int64)
        labelled = self.label != NO_LABEL
        np.add.at(table, (self.label[labelled], self.split[labelled]), 1)
        return pd.DataFrame(
            {
                "class": np.repeat(np.asarray(self.classes, dtype=object), len(splits)),
                "split": list(splits) * len(self.classes),
                "count": table.ravel(),
            }
        )


def refuse_too_many(
    quarantine: Sequence[Quarantined], files: int, most: float, source: str, hint: str = ""
) -> None:
    """Raise a WinnowError where more than a share `most` of the files is unusable.

    Sound files that are left out for the company they keep (`base.LEFT_OUT`) do not count. `hint` is
    what to look at where files cannot be found.
    """
    bad = [row for row in quarantine if row.reason not in LEFT_OUT]
    if not bad or (len(bad) < files and len(bad) <= most * files):
        return
    reasons = Counter(row.reason for row in bad)
    commonest, count = min(reasons.items(), key=lambda item: (-item[1], item[0]))
    first = min((row for row in bad if row.reason == commonest), key=lambda row: row.path)
    example = f"most often {commonest} ({count}), such as {first.path}: {first.detail}"
    example += hint if commonest == "unreadable" else ""
    if len(bad) == files:
        raise WinnowError(f"ingest.source {source}: none of its {files} files can be used; {example}")
    raise WinnowError(
        f"ingest.source {source}: {len(bad)} of {files} files cannot be used, {example}; "
        f"repair or remove them, or raise ingest.max_quarantine above {most:g}"
    )


def assemble(
    found: Found,
    resolved: Resolved,
    plant: Callable[[pd.DataFrame, Sequence[str]], Planted] | None,
    source: str,
) -> tuple[Samples, pd.DataFrame, list[str]]:
    """Settle classes, plant problems where that is asked for, and put the rows in order.

    Parameters
    ----------
    found : what the scan found
    resolved : which of it becomes samples, see `resolve.resolve`
    plant : takes `sample_id`, `split` and `label` of the labelled samples, and the class names; see
        `simulate.plant`. None plants nothing
    source : named in errors

    Returns
    -------
    The samples, the truth about what was planted (`dataset.TRUTH_COLUMNS`; no rows where nothing
    was), and warnings, a line each.

    Raises
    ------
    WinnowError
        Where fewer than two classes are left, one has no training image, or nothing is left to test.
    """
    samples = Samples(
        resolved.position, resolved.label, resolved.split, resolved.group, list(found.classes), found
    )
    samples, warnings = _usable_classes(samples, source)
    truth = no_truth()
    if plant is not None:
        samples, truth = _planted(samples, plant)
    return samples.at(_order(samples)), truth, warnings


def _order(samples: Samples) -> NDArray[np.int64]:
    """Rows by class, then id, so that neither names nor order of files move a pixel.

    It is the given label's class: in the order of the true ones a planted error would stick out.
    Unlabeled samples come last.
    """
    rank = np.where(samples.label == NO_LABEL, np.int32(len(samples.classes)), samples.label)
    return np.lexsort((samples.sample_id, rank))


def _usable_classes(samples: Samples, source: str) -> tuple[Samples, list[str]]:
    """The classes that have images, and warnings of those that have none or one."""
    labelled = samples.label[samples.label != NO_LABEL]
    images = np.bincount(labelled, minlength=len(samples.classes))
    left = np.flatnonzero(images)
    names = samples.classes
    if len(left) < 2:
        what = f"images of one class only ({names[left[0]]})" if len(left) else "no labelled image"
        raise WinnowError(
            f"ingest.source {source} has {what}: a classifier needs two classes; give each a folder "
            "of its own, or a label in the manifest"
        )
    training = samples.split == SPLIT_CODE["train"]
    trained = np.bincount(samples.label[training], minlength=len(names))
    untrained = left[trained[left] == 0]
    if len(untrained):
        first = untrained[0]
        others = f" (and {len(untrained) - 1} more classes)" if len(untrained) > 1 else ""
        raise WinnowError(
            f"class {names[first]!r} has {images[first]} images in {source}, but none of them in "
            f"training{others}: add one, or move one there (train in the source, or data/splits.csv)"
        )
    if not (samples.split == SPLIT_CODE["test"]).any():
        raise WinnowError(
            f"ingest.source {source}: no image is left for the test split, since no class has two images "
            "or groups that could be apart; add images, look at the group column, or bring a test split"
        )
    weighs = np.bincount(
        samples.label[training], samples.found.weight[samples.position[training]], minlength=len(names)
    )
    if not weighs.any():
        raise WinnowError(
            f"ingest.source {source}: every training image has weight 0; look at the column of weights, or "
            "set ingest.columns.weight to null"
        )
    codes = np.full(len(names) + 1, NO_LABEL, np.int32)
    codes[left] = np.arange(len(left))  # the last entry stays NO_LABEL, which is index -1
    warnings = [
        f"{_classes([names[i] for i in np.flatnonzero(images == 0)])} no usable image: left out",
        f"{_classes([names[i] for i in np.flatnonzero(images == 1)])} one image: trained on, never tested",
    ]
    weightless = [names[i] for i in left[weighs[left] == 0]]
    told = [line for line, count in zip(warnings, (0, 1), strict=True) if (images == count).any()]
    if weightless:
        told.append(f"{_classes(weightless)} weight 0 in training: nothing is learnt of it")
    if not (samples.split == SPLIT_CODE["val"]).any():
        told.append("no image is left for the validation split: nothing can be tuned or stopped early on it")
    kept = replace(samples, label=codes[samples.label], classes=[names[i] for i in left])
    return kept, told


def _classes(names: Sequence[str]) -> str:
    """`class 'a' has`, or `12 classes ('a', 'b', 'c', …) have`."""
    if len(names) == 1:
        return f"class {names[0]!r} has"
    shown = ", ".join(repr(name) for name in names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
    return f"{len(names)} classes ({shown}) have"


def _planted(
    samples: Samples, plant: Callable[[pd.DataFrame, Sequence[str]], Planted]
) -> tuple[Samples, pd.DataFrame]:
    """Problems planted among the labelled samples; the others stay as they are."""
    labelled = np.flatnonzero(samples.label != NO_LABEL)
    names = np.asarray(samples.classes, dtype=object)
    table = pd.DataFrame(
        {
            "sample_id": hex_ids(samples.sample_id[labelled]),
            "split": np.asarray(SPLITS, dtype=object)[samples.split[labelled]],
            "label": names[samples.label[labelled]],
        },
        index=labelled,
    )
    planted = plant(table, samples.classes)
    rows = planted.samples.index.to_numpy()
    label = samples.label.copy()
    label[rows] = pd.Index(samples.classes).get_indexer(planted.samples["label"])
    keep = np.sort(np.concatenate([rows, np.flatnonzero(samples.label == NO_LABEL)]))
    return replace(samples, label=label).at(keep), planted.truth


def pair_finder(scanned: Scan, similarity: float | None) -> Callable[[NDArray[np.int64]], Pairs] | None:
    """Finds near-duplicates among rows of what was found; None where they are not looked for."""
    if similarity is None:
        return None
    found = scanned.found

    def find(rows: NDArray[np.int64]) -> Pairs:
        def thumbnails(index: NDArray[np.int64]) -> NDArray[np.uint8]:
            return scanned.thumbs.take(found.place[rows[index]])

        return near_pairs(found.perceptual[rows], found.flat[rows], thumbnails, similarity)

    return find


def summarise(
    samples: Samples, resolved: Resolved, refused: Sequence[Quarantined], files: int, truth: pd.DataFrame
) -> dict[str, Any]:
    """Counts of everything, as plain JSON values.

    Parameters
    ----------
    samples, truth : of `assemble.assemble`
    resolved : what became of the rest
    refused : all of the quarantine
    files : met in the source
    """
    return {
        "files": files,
        "images": len(samples),
        "splits": {name: int((samples.split == code).sum()) for name, code in SPLIT_CODE.items()},
        "classes": _by_class(samples),
        "splits_brought_by_source": sorted(resolved.brought),
        **resolved.facts,
        "quarantine": dict(sorted(Counter(row.reason for row in refused).items())),
        "planted": _planted_counts(truth),
    }


def quarantine_table(rows: Sequence[Quarantined]) -> pd.DataFrame:
    """The quarantine as a table, sorted by path."""
    ordered = sorted(rows, key=lambda row: (row.path, row.reason, row.detail))
    columns = {name: [getattr(row, name) for row in ordered] for name in ("path", "reason", "detail")}
    return pd.DataFrame(columns).astype("str")


def counts_of_all(samples: Samples) -> pd.DataFrame:
    """The counts of each class and split, and a row of those without a label."""
    unlabeled = int((samples.split == SPLIT_CODE["unlabeled"]).sum())
    row = pd.DataFrame({"class": [None], "split": ["unlabeled"], "count": [unlabeled]})
    return pd.concat([samples.counts(), row], ignore_index=True) if unlabeled else samples.counts()


def native_sizes(samples: Samples) -> pd.DataFrame:
    """`width`, `height` (pixels) and `count` of each native size."""
    found, at = samples.found, samples.position
    sides = found.width[at].astype(np.int64) << 32 | found.height[at].astype(np.int64)
    sizes, counts = np.unique(sides, return_counts=True)
    return pd.DataFrame({"width": sizes >> 32, "height": sizes & 0xFFFFFFFF, "count": counts})


def _by_class(samples: Samples) -> dict[str, dict[str, int]]:
    counts = samples.counts()
    table = counts.pivot(index="class", columns="split", values="count")
    return {
        name: {split: int(table.at[name, split]) for split in ("train", "val", "test")}
        for name in samples.classes
    }


def _planted_counts(truth: pd.DataFrame) -> dict[str, dict[str, int]] | None:
    if truth.empty:
        return None
    wrong = ~truth["removed"] & (truth["true_label"] != truth["given_label"])
    return {
        split: {
            "removed": int((truth["removed"] & (truth["split"] == split)).sum()),
            "wrong_labels": int((wrong & (truth["split"] == split)).sum()),
        }
        for split in ("train", "val")
    }


def write_images(path: Path, samples: Samples, squares: RowFile) -> pd.DataFrame:
    """Write `images.npy`, and measure it on the way.

    Parameters
    ----------
    path : the file to write
    samples : whose images, in their order
    squares : uint8 rows S×S×C by `found.place`

    Returns
    -------
    `split`, `channel`, `mean` and `std` (0 to 255), of all pixels of a split.
    """
    channels = _Channels(squares.row_shape[-1])
    with path.open("wb") as file:
        header = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)),
            "fortran_order": False,
            "shape": (len(samples), *squares.row_shape),
        }
        np.lib.format.write_array_header_1_0(file, header)
        rows = max(1, _BLOCK_BYTES // int(np.prod(squares.row_shape)))
        # One thread writes what the other has read: the system copies without Python's lock.
        with ThreadPoolExecutor(1) as writer:
            written = writer.submit(int)
            for start in range(0, len(samples), rows):
                position = samples.position[start : start + rows]
                images = squares.take(samples.found.place[position])
                channels.add(images, samples.split[start : start + rows])
                written.result()
                written = writer.submit(file.write, images.data)
            written.result()
    return channels.table()


def write_samples(path: Path, samples: Samples) -> None:
    """Write `samples.parquet` (`dataset.SAMPLE_COLUMNS`), rows in the order of the images.

    Where the source has a second column of labels there is `second_label` behind them.
    """
    with pq.ParquetWriter(path, _schema(samples)) as writer:
        for table in _tables(samples):
            writer.write_table(table)


def _schema(samples: Samples) -> pa.Schema:
    return _SCHEMA if samples.found.second is None else _SCHEMA.append(pa.field("second_label", pa.string()))


def _tables(samples: Samples) -> Iterator[pa.Table]:
    found, schema = samples.found, _schema(samples)
    second_classes = pa.array(found.second_classes, pa.string())
    classes, splits = pa.array(samples.classes, pa.string()), pa.array(SPLITS, pa.string())
    for start in range(0, max(len(samples), 1), _TABLE_ROWS):
        part = samples.at(np.arange(start, min(start + _TABLE_ROWS, len(samples))))
        at = part.position
        columns = {
            "sample_id": hex_ids(part.sample_id),
            "row": np.arange(start, start + len(part)),
            "split": splits.take(pa.array(part.split)),
            "label": classes.take(pa.array(part.label, mask=part.label == NO_LABEL)),
            "source": found.source.take(pa.array(at)),
            "width": found.width[at],
            "height": found.height[at],
            "group": hex_ids(part.group),
            "weight": found.weight[at],
        }
        if found.second is not None:
            second = found.second[at]
            columns["second_label"] = second_classes.take(pa.array(second, mask=second == NO_LABEL))
        yield pa.table({name: _column(values, schema.field(name).type) for name, values in columns.items()})


def _column(values: object, kind: pa.DataType) -> pa.ChunkedArray:
    array = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values)
    return (array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array])).cast(kind)


class _Channels:
    """Mean and standard deviation of every channel in every split, over blocks."""

    def __init__(self, channels: int) -> None:
        self._names = ["grey"] if channels == 1 else ["red", "green", "blue"]
        self._count = np.zeros(len(SPLITS))
        self._sums = np.zeros((2, len(SPLITS), channels))

    def add(self, images: NDArray[np.uint8], split: NDArray[np.int8]) -> None:
        import cv2

        channels = images.shape[-1]
        for code in np.unique(split):
            there = images[split == code]
            mean, std = cv2.meanStdDev(there.reshape(len(there), -1, channels))
            self._count[code] += len(there)
            self._sums[0, code] += len(there) * mean[:, 0]
            self._sums[1, code] += len(there) * (std[:, 0] ** 2 + mean[:, 0] ** 2)

    def table(self) -> pd.DataFrame:
        rows = []
        for code in np.flatnonzero(self._count):
            mean, squares = self._sums[:, code] / self._count[code]
            std = np.sqrt(np.maximum(squares - mean**2, 0.0))
            rows += [(SPLITS[code], *row) for row in zip(self._names, mean, std, strict=True)]
        return pd.DataFrame(rows, columns=["split", "channel", "mean", "std"])
