"""MLflow in a folder of its own, quick: the database is migrated once and copied."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_repo import make_repo

from stages.workflow.store import Store, open_store


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def tracked(workspace: Path, migrated_database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A workspace with tracking on, its database in it."""
    for name in ("WINNOW_TRACKING", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WINNOW_EXECUTION", "WINNOW_PARENT_RUN", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    shutil.copy(migrated_database, workspace / "mlflow.db")
    yield workspace


@pytest.fixture
def store(tracked: Path) -> Store:
    return open_store()


@pytest.fixture
def repo(tracked: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny DVC repository as current folder, tracking on; nothing has run."""
    folder = tmp_path_factory.mktemp("repo")
    make_repo(folder, tracked=True)
    shutil.copy(tracked / "mlflow.db", folder / "mlflow.db")
    monkeypatch.chdir(folder)
    return folder
