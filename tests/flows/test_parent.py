from pathlib import Path

import pytest

from flows.parent import Parent
from flows.workspace import Outcome
from stages.workflow.records import spool_folder
from stages.workflow.send import send_spool
from stages.workflow.store import TAG, open_store

OUTCOMES = [
    Outcome("first", "failed", 1.0, "first failed"),
    Outcome("second", "skipped", 0.0),
    Outcome("evaluate", "skipped", 0.0),
]


@pytest.fixture
def tracked(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("WINNOW_TRACKING")
    return tiny


def test_tracking_off_leaves_only_the_name_of_the_execution(tiny: Path):
    parent = Parent(pytest.fail)
    parent.complete(OUTCOMES, "FAILED")
    assert set(parent.environment) == {"WINNOW_EXECUTION"}  # so that `evaluate` makes no parent either
    assert not (tiny / "mlflow.db").exists()
    assert not spool_folder().exists()


def test_without_a_server_the_execution_waits_and_is_sent(tracked: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    warnings: list[str] = []
    parent = Parent(warnings.append)
    assert len(warnings) == 1
    assert "connection refused" in warnings[0]
    assert "WINNOW_PARENT_RUN" not in parent.environment
    parent.complete(OUTCOMES, "FAILED")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert send_spool() == (1, 0)
    store = open_store()
    (run,) = store.client.search_runs([store.experiment_id])
    assert run.info.status == "FAILED"
    assert run.data.tags[f"{TAG}kind"] == "execution"
    assert run.data.tags[f"{TAG}stage.second"] == "skipped"
    assert list(spool_folder().iterdir()) == []


def test_a_parent_left_open_by_a_killed_flow_is_marked(tracked: Path):
    Parent(pytest.fail)  # and never completed
    second = Parent(pytest.fail)
    store = open_store()
    second.complete(OUTCOMES, "FAILED")
    runs = store.client.search_runs([store.experiment_id], order_by=["attributes.start_time ASC"])
    assert [run.info.status for run in runs] == ["KILLED", "FAILED"]


def test_stages_of_a_cancelled_flow_are_marked_too(tracked: Path):
    parent = Parent(pytest.fail)
    store = open_store()
    tags = {f"{TAG}kind": "stage", f"{TAG}stage": "first", f"{TAG}execution": parent.execution.id}
    stage = store.client.create_run(store.experiment_id, tags=tags)
    parent.complete([Outcome("first", "skipped", 0.0)], "KILLED")
    assert store.client.get_run(stage.info.run_id).info.status == "KILLED"
    assert store.client.get_run(str(parent.execution.run_id)).info.status == "KILLED"
