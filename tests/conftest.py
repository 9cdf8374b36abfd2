"""Fixtures that every test may use: parameters, a tiny dataset, a workspace of its own."""

from __future__ import annotations

import copy
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, settings
from ruamel.yaml import YAML

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny networks: threads would only wait for each other
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")

from stages.dataset.base import CONFLICT_COLUMNS, Dataset
from stages.dataset.ids import pixel_id
from stages.workflow.params import Params, parse_params

# How long an example takes, or is drawn, says how busy the machine is.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def search_path() -> Iterator[None]:
    """Restore `sys.path`: a model that MLflow loads leaves its own copy of `stages` in front of this one."""
    before = sys.path[:]
    yield
    sys.path[:] = before


@pytest.fixture
def params_dict() -> dict[str, Any]:
    """The shipped params.yaml as plain dictionaries, free to change."""
    return YAML(typ="safe").load((ROOT / "params.yaml").read_text("utf-8"))


@pytest.fixture
def make_params(params_dict: dict[str, Any]) -> Callable[..., Params]:
    """Parameters with some keys changed: `make_params({"train.epochs": 2})`."""

    def make(changes: dict[str, Any] | None = None) -> Params:
        raw = copy.deepcopy(params_dict)
        for key, value in (changes or {}).items():
            *sections, last = key.split(".")
            place = raw
            for section in sections:
                place = place[section]
            place[last] = value
        return parse_params(raw)

    return make


@pytest.fixture
def tiny_dataset() -> Dataset:
    """3 classes of 16×16 grey images that a model can tell apart: bars at three places.

    train 30/20/10, val 5 each, test 10 each; deterministic.
    """
    rng = np.random.default_rng(0)
    images, rows = [], []
    plan = {"train": (30, 20, 10), "val": (5, 5, 5), "test": (10, 10, 10)}
    for split, counts in plan.items():
        for label, count in enumerate(counts):
            for _ in range(count):
                image = rng.integers(0, 60, (16, 16, 1)).astype(np.uint8)
                image[:, 2 + 4 * label : 5 + 4 * label] += np.uint8(180)
                images.append(image)
                rows.append((split, "abc"[label]))
    ids = [pixel_id(image) for image in images]
    samples = pd.DataFrame(
        {
            "sample_id": ids,
            "row": range(len(images)),
            "split": [split for split, _ in rows],
            "label": [label for _, label in rows],
            "source": [f"{label}/{i}.png" for i, (_, label) in enumerate(rows)],
            "width": 16,
            "height": 16,
            "group": ids,
            "weight": 1.0,
        }
    )
    return Dataset(np.stack(images), samples, ["a", "b", "c"])


@pytest.fixture
def partly_labelled(tiny_dataset: Dataset) -> Dataset:
    """The tiny dataset with its first four samples, all of class a and in training, unlabelled."""
    samples = tiny_dataset.samples.copy()
    samples.loc[:3, "split"] = "unlabeled"
    samples.loc[:3, "label"] = None
    return Dataset(tiny_dataset.images, samples, tiny_dataset.classes)


@pytest.fixture
def conflicts(partly_labelled: Dataset) -> pd.DataFrame:
    """Three files of the same pixels as the first sample, under two labels."""
    sample_id = partly_labelled.samples.loc[0, "sample_id"]
    claims = [("c", "c/9.png"), ("a", "a/0.png"), ("c", "c/8.png")]
    rows = [(sample_id, *claim, None) for claim in claims]
    return pd.DataFrame(rows, columns=CONFLICT_COLUMNS).astype("str")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as the current one, with params.yaml and the hand-made tables in it.

    No DVC repository, and tracking is off: the stages' functions run here as by hand.
    """
    (tmp_path / "data").mkdir()
    for name in ("params.yaml", "dvc.yaml", "data/reviews.csv", "data/splits.csv"):
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WINNOW_TRACKING", "off")
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path
