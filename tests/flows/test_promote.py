import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.promote import Candidate, find_candidate, judge, main, promote_model
from stages.errors import WinnowError
from stages.learning.models import build_model
from stages.learning.networks.layers import ModelSpec
from stages.learning.store import save_model
from stages.workflow.executions import Entry, Execution, record_execution
from stages.workflow.models import as_tracking_uri, log_model
from stages.workflow.records import Model, Record, now, send
from stages.workflow.store import TAG, Store, open_store

METRIC = "models.finetune.macro_f1"


@pytest.fixture(scope="module")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(tmp_path: Path, migrated_database: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    for name in ("WINNOW_TRACKING", "MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_STAGE"):
        monkeypatch.delenv(name, raising=False)
    shutil.copy(migrated_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").touch()
    return open_store()


class Pipeline:
    """Executions with a fine-tuned model and its figures, as the flow records them."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.count = 0

    def execute(
        self,
        macro_f1: float,
        test_set: str = "t1",
        *,
        model: bool = True,
        status: str = "FINISHED",
        **more: Any,
    ) -> str:
        self.count += 1
        key = f"key-{self.count}"
        stage = Record("finetune", now(), tags={f"{TAG}kind": "stage", f"{TAG}key": key}, status="FINISHED")
        send(stage, self.store)
        assert stage.run_id
        if model:
            logged = self.store.client.create_logged_model(
                self.store.experiment_id, "finetune", source_run_id=stage.run_id
            )
            from mlflow.entities import LoggedModelOutput

            self.store.client.log_outputs(stage.run_id, [LoggedModelOutput(logged.model_id, 0)])
        metrics = {
            f"{METRIC}.value": macro_f1,
            f"{METRIC}.low": macro_f1 - 0.1,
            f"{METRIC}.high": macro_f1 + 0.1,
        }
        metrics["models.finetune.balanced_accuracy.value"] = 1 - macro_f1
        execution = Execution(
            f"execution-{self.count}",
            now() + self.count,
            [Entry("finetune", "ran", key=key), Entry("evaluate", "ran")],
            status=status,
            metrics=metrics,
            labels={"test_set_hash": test_set},
        )
        record_execution(execution, self.store)
        assert execution.run_id
        return execution.run_id


def champion(store: Store) -> Any:
    return store.client.get_model_version_by_alias("winnow", "champion")


def test_first_becomes_champion_then_only_the_better(store: Store):
    pipeline = Pipeline(store)
    first = pipeline.execute(0.8)
    assert promote_model(store).promote
    assert champion(store).tags["execution"] == first
    assert champion(store).tags["test_set_hash"] == "t1"

    pipeline.execute(0.8)
    verdict = promote_model(store)  # an equal one is not better
    assert not verdict.promote
    assert "0.8000 [0.7000, 0.9000] is not better than the champion's 0.8000" in verdict.reason
    assert champion(store).tags["execution"] == first

    better = pipeline.execute(0.81)
    pipeline.execute(0.79)
    assert not promote_model(store).promote
    assert promote_model(store, better).promote
    assert champion(store).tags["execution"] == better
    versions = store.client.search_model_versions("name = 'winnow'")
    assert len(versions) == 4  # each is registered, one is champion

    again = promote_model(store, better)
    assert not again.promote
    assert "champion already" in again.reason
    assert len(store.client.search_model_versions("name = 'winnow'")) == 4


def test_the_metric_that_decides_can_be_chosen(store: Store):
    pipeline = Pipeline(store)
    pipeline.execute(0.8)
    promote_model(store)
    pipeline.execute(0.7)
    assert not promote_model(store, dry_run=True).promote
    assert promote_model(store, metric="balanced_accuracy", dry_run=True).promote
    with pytest.raises(WinnowError, match=r"no models\.finetune\.worst_class_recall"):
        promote_model(store, metric="worst_class_recall")


def test_another_test_set_is_not_compared(store: Store, capsys: pytest.CaptureFixture[str]):
    pipeline = Pipeline(store)
    first = pipeline.execute(0.8)
    main([])
    assert "champion moved" in capsys.readouterr().out
    pipeline.execute(0.99, "t2")
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "test set t1, this model on t2: not compared; --force" in said[0]
    assert champion(store).tags["execution"] == first
    assert len(store.client.search_model_versions("name = 'winnow'")) == 1
    main(["--force"])
    assert champion(store).tags["test_set_hash"] == "t2"


def test_dry_run_changes_nothing(store: Store, capsys: pytest.CaptureFixture[str]):
    Pipeline(store).execute(0.8)
    main(["--dry-run"])
    assert "the first champion; champion would move" in capsys.readouterr().out
    assert store.client.search_registered_models() == []


def test_newest_that_finished_is_the_default(store: Store):
    pipeline = Pipeline(store)
    pipeline.execute(0.8)
    newest = pipeline.execute(0.7)
    pipeline.execute(0.9, status="FAILED")
    assert find_candidate(store, None, "macro_f1").execution == newest


def test_what_cannot_be_promoted_is_one_line(store: Store, capsys: pytest.CaptureFixture[str]):
    def refused(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        assert ended.value.code == 2
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1
        return said[0]

    assert "no execution on" in refused()
    assert "there is no run 123" in refused("--run", "123")
    run = Pipeline(store).execute(0.8, model=False)
    assert "is not on" in refused("--run", run)
    stage = store.client.get_run(run).data.tags[f"{TAG}stage.finetune"].split()[1]
    assert "is a stage's" in refused("--run", stage)


def test_no_server_and_no_tracking_are_one_line(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(SystemExit) as down:
        main([])
    monkeypatch.setenv("WINNOW_TRACKING", "off")
    with pytest.raises(SystemExit) as off:
        main([])
    assert (down.value.code, off.value.code) == (2, 2)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "connection refused" in said[0]


def test_judge_on_plain_values():
    candidate = Candidate("e", "r", "m", "t1", 0.5)
    assert judge(candidate, None, "macro_f1").promote
    assert judge(candidate, ("t1", 0.4999, "other"), "macro_f1").promote
    assert not judge(candidate, ("t1", 0.5, "other"), "macro_f1").promote
    assert not judge(candidate, ("t1", 0.1, "m"), "macro_f1").promote
    with pytest.raises(WinnowError):
        judge(candidate, ("t2", 0.1, "other"), "macro_f1")
    assert judge(candidate, ("t2", 0.9, "other"), "macro_f1", force=True).promote


def test_the_champion_loads_and_predicts_and_the_flow_promotes_it(
    store: Store, tmp_path: Path, prefect_server: str
):
    import mlflow

    from flows.promote import promotion

    run = Pipeline(store).execute(0.8, model=False)
    stage = store.client.get_run(run).data.tags[f"{TAG}stage.finetune"].split()[1]
    (tmp_path / "model").mkdir()
    spec = ModelSpec("small_cnn", ["a", "b"], (16, 16, 1), [0.5], [0.3])
    save_model(tmp_path / "model", build_model(spec, seed=0))
    np.save(tmp_path / "example.npy", np.zeros((1, 16, 16, 1), np.uint8))
    log_model(store, stage, Model(str(tmp_path / "model"), str(tmp_path / "example.npy"), "finetune"))
    assert promotion(run=run)
    with as_tracking_uri(store.uri):
        model = mlflow.pyfunc.load_model("models:/winnow@champion")
    assert list(model.predict(np.zeros((3, 16, 16, 1), np.uint8)).columns) == ["label", "p_a", "p_b"]
