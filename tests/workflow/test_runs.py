import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from tiny_repo import change_parameter, dvc, environment, ran

from stages.errors import WinnowError
from stages.workflow.params import Params
from stages.workflow.records import spool_folder
from stages.workflow.runs import StageRun, stage_run
from stages.workflow.send import main as send_main
from stages.workflow.send import send_spool
from stages.workflow.store import TAG, Store, open_store

PARENT = "mlflow.parentRunId"


def runs(store: Store, **tags: str) -> list[Run]:
    """All runs with these tags, oldest first."""
    query = " and ".join(f"tags.`{TAG}{name}` = '{value}'" for name, value in tags.items())
    found = store.client.search_runs(
        [store.experiment_id], query, order_by=["attributes.start_time ASC"], max_results=100
    )
    return list(found)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def report(folder: Path) -> Path:
    path = folder / "reports" / "train"
    path.mkdir(parents=True, exist_ok=True)
    (path / "table.csv").write_text("a\n1\n")
    return Path("reports/train")


def by_dvc(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("DVC_ROOT", str(Path.cwd()))
    monkeypatch.setenv("DVC_STAGE", address)


# --- one stage ---------------------------------------------------------------------------------


def test_by_hand_logs_everything_but_lineage(tracked: Path, make_params: Callable[..., Params]):
    with stage_run("train", make_params()) as run:
        run.log_metrics({"images": 3, "issues.a(b)": 0.5})
        run.log_history([{"epoch": 1, "train_loss": 2.0}, {"epoch": 2, "train_loss": 1.0}])
        run.log_artifacts(report(tracked))
    store = open_store()
    (found,) = runs(store, stage="train")
    assert found.info.status == "FINISHED"
    assert found.data.metrics == {"images": 3.0, "issues.a_b_": 0.5, "train_loss": 1.0}
    curve = store.client.get_metric_history(found.info.run_id, "train_loss")
    assert [(point.step, point.value) for point in curve] == [(1, 2.0), (2, 1.0)]
    assert found.data.params["train.epochs"] == "40"
    assert "augment.target" not in found.data.params
    assert found.data.tags[f"{TAG}lineage"].startswith("none")
    assert f"{TAG}key" not in found.data.tags
    assert PARENT not in found.data.tags
    files = store.client.list_artifacts(found.info.run_id, "reports/train")
    assert [file.path for file in files] == ["reports/train/table.csv"]
    assert (tracked / "mlartifacts").is_dir()
    assert not spool_folder().exists()


def test_under_dvc_logs_key_parameters_and_inputs(
    repo: Path, make_params: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
):
    (repo / "data/raw/used").write_text("x")
    by_dvc(monkeypatch, "first")
    monkeypatch.setenv("DVC_EXP_NAME", "long-tail")
    with stage_run("other-name", make_params()):
        pass
    (found,) = runs(open_store(), stage="first")
    tags = found.data.tags
    assert found.info.run_name == "first"
    assert len(tags[f"{TAG}key"]) == 32
    assert len(tags["mlflow.source.git.commit"]) == 40
    assert tags[f"{TAG}git_dirty"] == "false"
    assert tags["dvc_exp_name"] == "long-tail"
    assert found.data.params["ingest.image_size"] == "16"
    assert "train.epochs" not in found.data.params
    inputs = {item.dataset.name: item.dataset.digest for item in found.inputs.dataset_inputs}
    assert set(inputs) == {"stage.py", "data/raw/used"}
    assert inputs["data/raw/used"] == "9dd4e461268c8034f5c8564e155c67a6"  # the md5 of b"x"


def test_a_folder_that_is_still_written_is_logged_by_its_later_name(
    tracked: Path, make_params: Callable[..., Params]
):
    partial = tracked / "reports" / "train.partial"
    partial.mkdir(parents=True)
    (partial / "a.txt").write_text("a")
    with stage_run("train", make_params()) as run:
        run.log_artifacts(Path("reports/train.partial"))
    store = open_store()
    (found,) = runs(store, stage="train")
    assert store.client.list_artifacts(found.info.run_id, "reports/train")


def test_a_folder_that_is_not_there_is_a_warning_and_waits_for_nothing(
    tracked: Path, make_params: Callable[..., Params], capsys: pytest.CaptureFixture[str]
):
    with stage_run("train", make_params()) as run:
        run.log_artifacts(Path("reports/nowhere"))
    assert capsys.readouterr().err == "tracking: reports/nowhere is not logged: there is no such folder\n"
    assert not spool_folder().exists()


@pytest.mark.parametrize(
    ("error", "status"),
    [(WinnowError("no images"), "FAILED"), (RuntimeError(), "FAILED"), (KeyboardInterrupt(), "KILLED")],
)
def test_an_error_passes_and_marks_the_run(
    tracked: Path, make_params: Callable[..., Params], error: BaseException, status: str
):
    with pytest.raises(type(error)), stage_run("train", make_params()):
        raise error
    (found,) = runs(open_store(), stage="train")
    assert found.info.status == status
    assert found.data.tags[f"{TAG}error"] == (str(error) or type(error).__name__)


def test_a_run_left_open_is_marked_killed_when_the_stage_starts_again(
    tracked: Path, store: Store, make_params: Callable[..., Params]
):
    script = (
        "import os, signal; from stages.workflow.params import load_params\n"
        "from stages.workflow.runs import stage_run\n"
        "with stage_run('train', load_params()): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script], env=environment(), check=False, timeout=900)
    other = store.client.create_run(
        store.experiment_id, tags={f"{TAG}kind": "stage", f"{TAG}stage": "train", f"{TAG}workspace": "other"}
    )
    assert [run.info.status for run in runs(store, stage="train")] == ["RUNNING", "RUNNING"]
    with stage_run("curate", make_params()):
        pass
    assert "KILLED" not in [run.info.status for run in runs(store, stage="train")]
    with stage_run("train", make_params()):
        pass
    statuses = {run.info.run_id: run.info.status for run in runs(store, stage="train")}
    assert statuses.pop(other.info.run_id) == "RUNNING"  # another workspace's: not ours to judge
    assert sorted(statuses.values()) == ["FINISHED", "KILLED"]


def test_off_writes_nothing_and_imports_no_mlflow(workspace: Path):
    script = (
        "import sys; from stages.workflow.params import load_params\n"
        "from stages.workflow.runs import stage_run\n"
        "with stage_run('train', load_params()) as run: run.log_metrics({'a': 1}); run.adopt_stages()\n"
        "assert 'mlflow' not in sys.modules and 'dvc' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], env=environment(), check=True, timeout=900)
    assert not (workspace / "mlflow.db").exists()
    assert not (workspace / ".winnow").exists()


def test_starting_makes_no_noise(
    tracked: Path, make_params: Callable[..., Params], capfd: pytest.CaptureFixture[str]
):
    (tracked / "mlflow.db").unlink()  # so that it is migrated here
    with stage_run("train", make_params()) as run:
        run.log_metrics({"a": 1})
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert len(runs(open_store(), stage="train")) == 1


# --- the server does not answer ----------------------------------------------------------------


def log_something(run: StageRun, folder: Path) -> None:
    run.log_metrics({"images": 3})
    run.log_history([{"epoch": 1, "train_loss": 2.0}])
    run.log_artifacts(report(folder))


def longest_waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """For each request from now on, how many seconds a server that never answers could take; as they come.

    The clock would tell how busy this machine is as well.
    """
    from requests.adapters import HTTPAdapter

    seconds, send = [], HTTPAdapter.send

    def noted(self: HTTPAdapter, *given: Any, timeout: float, **others: Any) -> Any:
        seconds.append((1 + self.max_retries.total) * timeout)
        return send(self, *given, timeout=timeout, **others)

    monkeypatch.setattr(HTTPAdapter, "send", noted)
    return seconds


def test_no_server_is_one_warning_and_a_record(
    tracked: Path,
    make_params: Callable[..., Params],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{free_port()}")
    waits = longest_waits(monkeypatch)
    with stage_run("train", make_params()) as run:
        log_something(run, tracked)
    assert 0 < sum(waits) < 10
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "connection refused" in said[0]
    assert "python -m stages.workflow.send" in said[0]
    assert "secret" not in said[0]
    (tracked / "reports" / "train" / "table.csv").write_text("replaced by a later run")

    with pytest.raises(SystemExit) as still_down:
        send_main([])
    assert still_down.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "secret" not in said[0]
    assert len(list(spool_folder().iterdir())) == 1

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    send_main([])
    assert "1 sent" in capsys.readouterr().out
    assert list(spool_folder().iterdir()) == []
    store = open_store()
    (found,) = runs(store, stage="train")
    assert found.info.status == "FINISHED"
    assert found.data.metrics == {"images": 3.0, "train_loss": 2.0}
    assert found.data.params["train.epochs"] == "40"
    assert found.info.end_time - found.info.start_time < 10_000
    table = store.client.download_artifacts(found.info.run_id, "reports/train/table.csv")
    assert Path(table).read_text() == "a\n1\n"
    assert send_spool() == (0, 0)


def test_a_server_that_hangs_is_given_up_soon(
    tracked: Path,
    make_params: Callable[..., Params],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        waits = longest_waits(monkeypatch)
        with stage_run("train", make_params()) as run:
            run.log_metrics({"images": 3})
        assert 0 < sum(waits) < 15
    assert "timed out" in capsys.readouterr().err
    assert len(list(spool_folder().iterdir())) == 1


def test_a_server_that_goes_away_during_the_stage_loses_nothing(
    tracked: Path, make_params: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
):
    from mlflow import MlflowClient

    with stage_run("train", make_params()) as run:
        run.log_metrics({"before": 1})
        with monkeypatch.context() as broken:

            def refuse(*_args: Any, **_kwargs: Any) -> None:
                raise ConnectionError("gone")

            broken.setattr(MlflowClient, "log_batch", refuse)
            run.log_metrics({"during": 2})
        log_something(run, tracked)
    (found,) = runs(open_store(), stage="train")
    assert found.info.status == "RUNNING"
    assert found.data.metrics == {"before": 1.0}
    assert send_spool() == (1, 0)
    (found,) = runs(open_store(), stage="train")
    assert found.info.status == "FINISHED"
    assert found.data.metrics == {"before": 1.0, "during": 2.0, "images": 3.0, "train_loss": 2.0}


def test_a_record_that_cannot_be_sent_stays_and_the_others_go(
    tracked: Path, make_params: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    for name in ("train", "curate"):
        with stage_run(name, make_params()) as run:
            log_something(run, tracked)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    bad = next(path for path in spool_folder().iterdir() if path.name.endswith("train"))
    record = json.loads((bad / "record.json").read_text())
    (bad / "record.json").write_text(json.dumps({**record, "run_id": "0" * 32}))  # somebody deleted it
    assert send_spool() == (1, 1)
    assert list(spool_folder().iterdir()) == [bad]
    assert len(runs(open_store(), stage="curate")) == 1
    (bad / "record.json").write_text("{}")
    with pytest.raises(WinnowError, match="is not a record"):
        send_spool()


def test_a_database_that_is_none_does_not_fail_the_stage(
    tracked: Path, make_params: Callable[..., Params], capsys: pytest.CaptureFixture[str]
):
    (tracked / "mlflow.db").write_text("this is no database, " * 50)
    with stage_run("train", make_params()) as run:
        run.log_metrics({"a": 1})
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert len(list(spool_folder().iterdir())) == 1


# --- executions --------------------------------------------------------------------------------


def test_plain_dvc_repro_makes_one_parent_for_each_execution(repo: Path):
    result = dvc(repo, "repro")
    assert result.returncode == 0, result.stderr
    assert ran(repo) == ["first", "second", "evaluate"]
    os.environ.pop("DVC_STAGE", None)
    store = open_store()
    (parent,) = runs(store, kind="execution")
    children = [run for run in runs(store, kind="stage") if f"{TAG}restored" not in run.data.tags]
    assert parent.info.status == "FINISHED"
    assert {child.data.tags[PARENT] for child in children} == {parent.info.run_id}
    assert parent.info.start_time <= min(child.info.start_time for child in children)
    assert parent.data.metrics == {"models.finetune.macro_f1.value": 0.5}
    tags = parent.data.tags
    assert tags[f"{TAG}test_set_hash"] == "abc"
    assert len({child.data.tags[f"{TAG}execution"] for child in children}) == 1
    for child in children:
        stage = child.data.tags[f"{TAG}stage"]
        assert tags[f"{TAG}stage.{stage}"] == f"ran {child.info.run_id}"
        assert f"/runs/{child.info.run_id})" in tags["mlflow.note.content"]
    assert {file.path for file in store.client.list_artifacts(parent.info.run_id)} == {
        "dvc.lock",
        "stages.json",
    }

    assert dvc(repo, "repro").returncode == 0
    assert ran(repo) == []
    assert len(runs(store, kind="execution")) == 1  # nothing ran, nothing is recorded

    change_parameter(repo, "bootstrap: 2000", "bootstrap: 1999")
    assert dvc(repo, "repro").returncode == 0
    assert ran(repo) == ["evaluate"]
    first, second = runs(store, kind="execution")
    assert second.data.tags[f"{TAG}stage.first"] == tags[f"{TAG}stage.first"].replace("ran", "cached")
    assert second.data.tags[f"{TAG}stage.evaluate"].startswith("ran ")
    assert second.data.tags[f"{TAG}git_dirty"] == "true"
    owned = [run for run in runs(store, kind="stage") if run.data.tags[PARENT] == first.info.run_id]
    assert len(owned) == 4  # what was cached still belongs to the execution that ran it

    change_parameter(repo, "bootstrap: 1999", "bootstrap: 2000")
    assert dvc(repo, "repro").returncode == 0  # from the run cache: no stage of ours runs
    assert ran(repo) == []


def prepare(repo: Path) -> None:
    """As if DVC had brought everything up to `evaluate` back from a cache."""
    (repo / "data/raw/used").write_text("x")
    for name in ("first", "second", "evaluate"):
        folder = repo / "reports" / name
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text('{"size": 7, "test_set_hash": "abc"}')


def test_outputs_of_unknown_origin_get_a_stub_run(
    repo: Path,
    make_params: Callable[..., Params],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    prepare(repo)
    by_dvc(monkeypatch, "evaluate")
    with stage_run("evaluate", make_params()) as run:
        run.adopt_stages()
    assert "data/raw/dvc.yaml:used, first, second: recorded as restored" in capsys.readouterr().err
    store = open_store()
    (parent,) = runs(store, kind="execution")
    (stub,) = runs(store, stage="second")
    assert stub.data.tags[f"{TAG}restored"] == "true"
    assert stub.data.tags[PARENT] == parent.info.run_id
    assert stub.data.metrics == {"size": 7.0}
    assert stub.data.params["train.epochs"] == "40"
    assert parent.data.tags[f"{TAG}stage.second"] == f"restored {stub.info.run_id}"

    with stage_run("evaluate", make_params()) as run:
        run.adopt_stages()
    assert capsys.readouterr().err == ""  # the stub is known now
    assert len(runs(store, stage="second")) == 1

    by_dvc(monkeypatch, "second")
    with stage_run("second", make_params()):
        pass
    by_dvc(monkeypatch, "evaluate")
    with stage_run("evaluate", make_params()) as run:
        run.adopt_stages()
    true = runs(store, stage="second")[-1].info.run_id
    newest = max(runs(store, kind="execution"), key=lambda run: run.info.end_time)
    assert newest.data.tags[f"{TAG}stage.second"].endswith(true)  # a true run is better than a stub


def test_under_the_flow_a_stage_is_nested_and_makes_no_parent(
    repo: Path, make_params: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
):
    prepare(repo)
    by_dvc(monkeypatch, "evaluate")
    monkeypatch.setenv("WINNOW_EXECUTION", "e1")
    monkeypatch.setenv("WINNOW_PARENT_RUN", "p1")
    with stage_run("evaluate", make_params()) as run:
        run.adopt_stages()
    store = open_store()
    (found,) = runs(store, stage="evaluate")
    assert found.data.tags[PARENT] == "p1"
    assert found.data.tags[f"{TAG}execution"] == "e1"
    assert runs(store, kind="execution") == []


def test_a_failed_evaluation_makes_no_parent(
    repo: Path, make_params: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
):
    prepare(repo)
    by_dvc(monkeypatch, "evaluate")
    with pytest.raises(WinnowError), stage_run("evaluate", make_params()) as run:
        run.adopt_stages()
        raise WinnowError("no")
    assert runs(open_store(), kind="execution") == []


def test_an_execution_waits_in_the_spool_too(
    repo: Path, make_params: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
):
    prepare(repo)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    for name in ("first", "second", "evaluate"):
        by_dvc(monkeypatch, name)
        with stage_run(name, make_params()) as run:
            run.log_metrics({"size": 3})
            if name == "evaluate":
                run.adopt_stages()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert send_spool() == (3, 0)
    store = open_store()
    (parent,) = runs(store, kind="execution")
    assert parent.data.tags[f"{TAG}test_set_hash"] == "abc"
    for name in ("first", "second", "evaluate"):
        (child,) = runs(store, stage=name)
        assert child.data.tags[PARENT] == parent.info.run_id
        assert parent.data.tags[f"{TAG}stage.{name}"] == f"ran {child.info.run_id}"


def test_a_broken_graph_does_not_fail_the_stage(
    repo: Path,
    make_params: Callable[..., Params],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    by_dvc(monkeypatch, "nowhere")
    with stage_run("nowhere", make_params()) as run:
        run.adopt_stages()
    assert "what DVC knows of this stage is not recorded" in capsys.readouterr().err
    (found,) = runs(open_store(), stage="nowhere")
    assert found.info.status == "FINISHED"
