"""A Prefect server for the tests, and the tiny DVC repository to run on it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Before Prefect is imported: nothing of the tests goes into the user's own profile or database.
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="winnow-prefect-")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.pop("PREFECT_API_URL", None)

import pytest
from tiny_repo import environment, make_repo


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[str]:
    """The address of the test server; flows of this process run against it."""
    from prefect.settings import get_current_settings
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=600):
        url = get_current_settings().api.url
        assert url
        yield url


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny repository as current folder, without tracking; nothing has run."""
    for name in ("DVC_STAGE", "DVC_ROOT", "MLFLOW_TRACKING_URI", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WINNOW_TRACKING", "off")
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    monkeypatch.chdir(tmp_path)
    return make_repo(tmp_path)
