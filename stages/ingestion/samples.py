"""Bring samples into the order of their images, count them, and write them as the base on disk.

The base is written a block of rows at a time: memory does not grow with the number of images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.dataset.ids import SPLITS, hex_ids
from stages.errors import WinnowError
from stages.ingestion.blocks import RowFile
from stages.ingestion.items import NO_LABEL, SPLIT_CODE, TEST, TRAIN, VAL, Items, text_table
from stages.ingestion.resolve import Resolved
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
    samples: Items,
    plant: Callable[[pd.DataFrame, Sequence[str]], Planted] | None,
    source: str,
) -> tuple[Items, pd.DataFrame, list[str]]:
    """Settle classes, plant problems where that is asked for, and put the rows in order.

    Parameters
    ----------
    samples : of `resolve.resolve`
    plant : takes `sample_id`, `split` and `label` of the labelled samples, and the class names; see
        `simulate.plant`. None plants nothing
    source : named in errors

    Returns
    -------
    The samples in the order of their images, `classes` being those with a training image; the truth
    about what was planted (`dataset.TRUTH_COLUMNS`; no rows where nothing was); and warnings, a line each.

    Raises
    ------
    WinnowError
        Where fewer than two classes are left, one has no training image, or nothing is left to test.
    """
    samples, warnings = _usable_classes(samples, source)
    truth = no_truth()
    if plant is not None:
        samples, truth = _planted(samples, plant)
    # By class, then id, so that neither names nor order of files move a pixel; unlabeled samples come last.
    # It is the given label's class: in the order of the true ones a planted error would stick out.
    rank = np.where(samples.label == NO_LABEL, np.int32(len(samples.classes)), samples.label)
    return samples.at(np.lexsort((samples.sample_id, rank))), truth, warnings


def _usable_classes(samples: Items, source: str) -> tuple[Items, list[str]]:
    """Drop the classes without images, and warn of those that have none or one."""
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
    training = samples.split == TRAIN
    trained = np.bincount(samples.label[training], minlength=len(names))
    untrained = left[trained[left] == 0]
    if len(untrained):
        first = untrained[0]
        more = f" (and {len(untrained) - 1} more classes)" if len(untrained) > 1 else ""
        raise WinnowError(
            f"class {names[first]!r} has {images[first]} images in {source}, but none of them in "
            f"training{more}: add one, or move one there (train in the source, or data/splits.csv)"
        )
    if not (samples.split == TEST).any():
        raise WinnowError(
            f"ingest.source {source}: no image is left for the test split, since no class has two images "
            "or groups that could be apart; add images, look at the group column, or bring a test split"
        )
    weighs = np.bincount(samples.label[training], samples.weight[training], minlength=len(names))
    if not weighs.any():
        raise WinnowError(
            f"ingest.source {source}: every training image has weight 0; look at the column of weights, or "
            "set ingest.columns.weight to null"
        )
    codes = np.full(len(names) + 1, NO_LABEL, np.int32)
    codes[left] = np.arange(len(left))  # the last entry stays NO_LABEL, which is index -1
    remarks = (
        (np.flatnonzero(images == 0), "no usable image: left out"),
        (np.flatnonzero(images == 1), "one image: trained on, never tested"),
        (left[weighs[left] == 0], "weight 0 in training: nothing is learnt of it"),
    )
    warnings = [
        f"{_classes([names[i] for i in classes])} {remark}" for classes, remark in remarks if len(classes)
    ]
    if not (samples.split == VAL).any():
        warnings.append(
            "no image is left for the validation split: nothing can be tuned or stopped early on it"
        )
    return replace(samples, label=codes[samples.label], classes=[names[i] for i in left]), warnings


def _classes(names: Sequence[str]) -> str:
    """Name classes: `class 'a' has`, or `12 classes ('a', 'b', 'c', …) have`."""
    if len(names) == 1:
        return f"class {names[0]!r} has"
    shown = ", ".join(repr(name) for name in names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
    return f"{len(names)} classes ({shown}) have"


def _planted(
    samples: Items, plant: Callable[[pd.DataFrame, Sequence[str]], Planted]
) -> tuple[Items, pd.DataFrame]:
    """Plant problems among the labelled samples; the others stay as they are."""
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


def summarise(
    samples: Items, resolved: Resolved, refused: Sequence[Quarantined], files: int, truth: pd.DataFrame
) -> dict[str, Any]:
    """Count everything, as plain JSON values.

    Parameters
    ----------
    samples, truth : of `assemble`
    resolved : what became of the rest
    refused : all of the quarantine
    files : met in the source
    """
    by_class: dict[str, dict[str, int]] = {name: {} for name in samples.classes}
    for name, split, count in samples.counts().itertuples(index=False, name=None):
        by_class[name][split] = count
    return {
        "files": files,
        "images": len(samples),
        "splits": {name: int((samples.split == code).sum()) for name, code in SPLIT_CODE.items()},
        "classes": by_class,
        "splits_brought_by_source": sorted(resolved.brought),
        **resolved.facts,
        "quarantine": dict(sorted(Counter(row.reason for row in refused).items())),
        "planted": _planted_counts(truth),
    }


def quarantine_table(rows: Sequence[Quarantined]) -> pd.DataFrame:
    """Return the quarantine as a table, sorted by path."""
    ordered = sorted(rows, key=lambda row: (row.path, row.reason, row.detail))
    names = ("path", "reason", "detail")
    return text_table({name: [getattr(row, name) for row in ordered] for name in names}, names)


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


def write_images(path: Path, samples: Items, squares: RowFile) -> pd.DataFrame:
    """Write `images.npy`, and measure it on the way.

    Parameters
    ----------
    path : the file to write
    samples : whose images, in their order
    squares : uint8 rows S×S×C by `samples.place`

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
                images = squares.take(samples.place[start : start + rows])
                channels.add(images, samples.split[start : start + rows])
                written.result()
                written = writer.submit(file.write, images.data)
            written.result()
    return channels.table()


def write_samples(path: Path, samples: Items) -> None:
    """Write `samples.parquet` (`dataset.SAMPLE_COLUMNS`), rows in the order of the images.

    Where the source has a second column of labels there is `second_label` behind them.
    """
    schema = _SCHEMA if samples.second is None else _SCHEMA.append(pa.field("second_label", pa.string()))
    with pq.ParquetWriter(path, schema) as writer:
        for table in _tables(samples, schema):
            writer.write_table(table)


def _tables(samples: Items, schema: pa.Schema) -> Iterator[pa.Table]:
    second_classes = pa.array(samples.second_classes, pa.string())
    classes, splits = pa.array(samples.classes, pa.string()), pa.array(SPLITS, pa.string())
    for start in range(0, max(len(samples), 1), _TABLE_ROWS):
        part = samples.at(np.arange(start, min(start + _TABLE_ROWS, len(samples))))
        columns = {
            "sample_id": hex_ids(part.sample_id),
            "row": np.arange(start, start + len(part)),
            "split": splits.take(pa.array(part.split)),
            "label": classes.take(pa.array(part.label, mask=part.label == NO_LABEL)),
            "source": samples.names.take(pa.array(part.place)),
            "width": part.width,
            "height": part.height,
            "group": hex_ids(part.group),
            "weight": part.weight,
        }
        if part.second is not None:
            columns["second_label"] = second_classes.take(pa.array(part.second, mask=part.second == NO_LABEL))
        yield pa.table(columns, schema=schema)


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
            chosen = images[split == code]
            mean, std = cv2.meanStdDev(chosen.reshape(len(chosen), -1, channels))
            self._count[code] += len(chosen)
            self._sums[0, code] += len(chosen) * mean[:, 0]
            self._sums[1, code] += len(chosen) * (std[:, 0] ** 2 + mean[:, 0] ** 2)

    def table(self) -> pd.DataFrame:
        rows = []
        for code in np.flatnonzero(self._count):
            mean, squares = self._sums[:, code] / self._count[code]
            std = np.sqrt(np.maximum(squares - mean**2, 0.0))
            rows += [(SPLITS[code], *row) for row in zip(self._names, mean, std, strict=True)]
        return pd.DataFrame(rows, columns=["split", "channel", "mean", "std"])
