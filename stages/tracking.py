"""MLflow runs and DVC lineage: what a stage logs, and how its run is found again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.params import Params


class StageRun:
    """What a stage may log. Tracking never fails a stage: every method only warns.

    This class itself logs nothing; it is what `WINNOW_TRACKING=off` gives.
    """

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Log final figures by name."""

    def log_history(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Log curves: one row an epoch; `epoch` is the step, the other keys are metric names."""

    def log_artifacts(self, folder: Path) -> None:
        """Log pictures and tables: every file in `folder` (a stage's report)."""

    def log_model(self, folder: Path, example: NDArray[np.uint8]) -> None:
        """Log the model in `folder` (`store.save_model`), with an input example N×H×W×C."""


@contextmanager
def stage_run(name: str, params: Params) -> Iterator[StageRun]:
    """The MLflow run of a stage."""
    yield StageRun()
