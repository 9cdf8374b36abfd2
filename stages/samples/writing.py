"""The base on disk, a block of rows at a time: memory does not grow with the number of images."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.ids import SPLITS, hex_ids
from stages.reading.found import NO_LABEL
from stages.reading.rowfile import RowFile
from stages.samples.assemble import Samples

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
