"""Reads every item of a source once: ids, sizes and squares, or the reason why not."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from stages.sources.base import Quarantined, Source, UnusableError
from stages.sources.decode import to_square

_BATCH = 256  # items that are read ahead: bounds what waits in memory

FOUND_DTYPES = {
    "place": "int64",
    "sample_id": "str",
    "pixel_key": "str",
    "label": "str",
    "split": "object",
    "source": "str",
    "width": "int64",
    "height": "int64",
}


@dataclass(frozen=True)
class Scan:
    """What a source holds.

    Attributes
    ----------
    found : a row for every readable item: `place` (the row of its square), `sample_id`,
        `pixel_key`, `label`, `split` (as the source brings it, else None), `source`, and the
        native `width` and `height` in pixels, upright
    quarantine : what could not be read
    """

    found: pd.DataFrame
    quarantine: list[Quarantined]


@dataclass(frozen=True)
class _Read:
    sample_id: str
    pixel_key: str
    width: int
    height: int


def scan(source: Source, squares: NDArray[np.uint8], color: str) -> Scan:
    """Read all items of `source` and write their squares.

    Parameters
    ----------
    source : what to read
    squares : uint8 array, N×S×S×C with a row for every item; written here, usually memory-mapped
    color : `grey` or `rgb`

    Returns
    -------
    Scan. It does not depend on how many threads there are.
    """
    rows, quarantine = [], list(source.refused)
    for place, result in enumerate(_read_all(source, squares, color)):
        item = source.items[place]
        if isinstance(result, UnusableError):
            quarantine.append(Quarantined(item.source, result.reason, result.detail))
        else:
            ids = (place, result.sample_id, result.pixel_key)
            rows.append((*ids, item.label, item.split, item.source, result.width, result.height))
    found = pd.DataFrame(rows, columns=list(FOUND_DTYPES)).astype(FOUND_DTYPES)
    return Scan(found, sorted(quarantine, key=lambda row: (row.source, row.reason)))


def _read_all(source: Source, squares: NDArray[np.uint8], color: str) -> Iterator[_Read | UnusableError]:
    """Read in threads (Pillow and hashing let go of the interpreter's lock), give back in order."""

    def read(place: int) -> _Read | UnusableError:
        try:
            picture = source.read(place)
        except UnusableError as error:
            return error
        squares[place] = to_square(picture.image, squares.shape[1], color)
        return _Read(picture.sample_id, picture.pixel_key, *picture.image.size)

    count = len(source.items)
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=count, desc="ingest", unit="img", mininterval=0.5) as progress,
    ):
        # Pillow warns of what quarantine says better, and of metadata that no one reads.
        warnings.filterwarnings("ignore", module="PIL")
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        for start in range(0, count, _BATCH):
            for result in pool.map(read, range(start, min(start + _BATCH, count))):
                yield result
                progress.update()
