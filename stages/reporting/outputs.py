"""Open what the stages wrote when a picture first asks for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.dataset import base as dataset
from stages.dataset.base import Dataset
from stages.dataset.files import existing, read_array, read_table
from stages.errors import WinnowError
from stages.reporting import reports


class Outputs:
    """The tables, arrays and images of the stages in the current folder, each read once.

    Every property and method raises a WinnowError where the file is not there or cannot be read.
    """

    @cached_property
    def base(self) -> Dataset:
        """The ingested images, memory-mapped, and their table."""
        return dataset.read_dataset(dataset.INGESTED)

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Where in `base.images` the image of each row of the tables of all samples is; int64, N."""
        return self.base.samples["row"].to_numpy(np.int64)

    @cached_property
    def issues(self) -> pd.DataFrame:
        """The table of `detect_noise`, a row a sample."""
        return read_table(dataset.NOISE / "issues.parquet")

    @cached_property
    def ledger(self) -> pd.DataFrame:
        """The table of `curate`, a row a sample."""
        return dataset.read_ledger(dataset.CURATED)

    @cached_property
    def augmented(self) -> Dataset:
        """The delta of `augment`."""
        return dataset.read_dataset(dataset.AUGMENTED)

    @cached_property
    def synthetic(self) -> Dataset:
        """The delta of `synthesize`."""
        return dataset.read_dataset(dataset.SYNTHETIC)

    def table(self, name: str) -> pd.DataFrame:
        """Return a Parquet or CSV table under `reports/`, with class names as text."""
        path = dataset.REPORTS / name
        if path.suffix == ".parquet":
            return read_table(path)
        try:
            return reports.read_csv(existing(path))
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from error

    def array(self, name: str) -> NDArray[np.uint8]:
        """Return an array under `reports/`, memory-mapped."""
        return read_array(dataset.REPORTS / name, mapped=True)

    def content(self, name: str) -> dict[str, Any]:
        """Return the content of a JSON file under `reports/`."""
        path = dataset.REPORTS / name
        try:
            return dict(json.loads(existing(path).read_text("utf-8")))
        except (OSError, TypeError, ValueError) as error:
            raise _damaged(path, error) from error

    def images_of(self, sample_ids: Sequence[str]) -> NDArray[np.uint8]:
        """Return the ingested images of these samples, uint8 n×H×W×C, in their order.

        Raises
        ------
        KeyError
            Where a sample is not in the base.
        """
        at = self._places.get_indexer(pd.Index(sample_ids, dtype=object))
        if (at < 0).any():
            raise KeyError(sample_ids[int(np.argmax(at < 0))])
        return np.asarray(self.base.images[self.rows[at]])

    @cached_property
    def _places(self) -> pd.Index:
        return pd.Index(self.base.samples["sample_id"].to_numpy(object))


def _damaged(path: Path, error: Exception) -> WinnowError:
    return WinnowError(
        f"{path} is damaged ({str(error).splitlines()[0]}): `dvc checkout dvc.yaml` brings it back"
    )
