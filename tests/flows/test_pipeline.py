import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tiny_repo import change_parameter, environment, ran

from flows.pipeline import format_table, main, pipeline, summary
from flows.processes import ProcessGroups
from flows.workspace import Outcome
from stages.workflow.store import TAG, open_store

USED = "data/raw/dvc.yaml:used"


def gone(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_runs_everything_then_nothing_then_what_changed(
    tiny: Path, prefect_server: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    main([])
    assert ran(tiny) == ["first", "second", "evaluate"]
    assert not (tiny / "data/raw/unused").exists()
    with monkeypatch.context() as patch:
        patch.setattr(ProcessGroups, "run", None)  # what is up to date starts no process
        main([])
    assert ran(tiny) == []
    change_parameter(tiny, "epochs: 40", "epochs: 41")
    main(["--jobs", "1"])
    assert ran(tiny) == ["second", "evaluate"]
    change_parameter(tiny, "bootstrap: 2000", "bootstrap: 1999")
    main(["second"])
    assert ran(tiny) == []  # evaluate was not asked for
    main(["--promote"])
    assert ran(tiny) == ["evaluate"]
    assert "not promoted: WINNOW_TRACKING=off" in caplog.text  # said, and no reason to fail
    assert "Traceback" not in caplog.text


def test_a_failing_stage_ends_the_flow_and_skips_what_needs_it(
    tiny: Path, prefect_server: str, capsys: pytest.CaptureFixture[str]
):
    (tiny / "trouble/second").write_text("mistake")
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 1
    assert ran(tiny) == ["first", "second"]  # a mistake is not tried again
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "flow: second failed (exit status 2): second: the input is wrong; skipped: evaluate"
    (tiny / "trouble/second").write_text("fail")
    with pytest.raises(SystemExit):
        main([])
    assert ran(tiny) == ["second", "second"]  # `retries: 1` of its hints
    (tiny / "trouble/second").write_text("fail once")
    main([])
    assert ran(tiny) == ["second", "second", "evaluate"]


def test_mistakes_are_one_line_before_anything_runs(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def refused(arguments: list[str]) -> str:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1
        return said[0]

    assert "no stage 'frist'" in refused(["frist"])
    change_parameter(tiny, "epochs: 40", "epoch: 40")
    assert "train.epoch: unknown key" in refused([])
    change_parameter(tiny, "epoch: 40", "epochs: 40")
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        assert "the Prefect server at http://127.0.0.1:9/api does not answer" in refused([])
    assert ran(tiny) == []


def test_the_scheduled_flow_refuses_wrong_parameters_without_a_traceback(
    tiny: Path, prefect_server: str, caplog: pytest.LogCaptureFixture
):
    change_parameter(tiny, "epochs: 40", "epochs: many")
    state = pipeline(return_state=True)
    assert state.name == "Refused"
    assert "train.epochs" in str(state.message)
    assert "Traceback" not in caplog.text
    assert ran(tiny) == []


def test_the_gpu_limit_is_made_and_one_that_is_there_is_kept(tiny: Path, prefect_server: str):
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate

    from flows.pipeline import ensure_limit

    ensure_limit("gpu", 1)
    with get_client(sync_client=True) as client:
        assert client.read_global_concurrency_limit_by_name("gpu").limit == 1
        client.update_global_concurrency_limit("gpu", GlobalConcurrencyLimitUpdate(limit=3))
        ensure_limit("gpu", 1)
        limit = client.read_global_concurrency_limit_by_name("gpu")
        assert limit.limit == 3
        client.update_global_concurrency_limit("gpu", GlobalConcurrencyLimitUpdate(limit=1))


def test_one_parent_in_mlflow_with_the_stages_that_ran_below_it(
    tiny: Path, prefect_server: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("WINNOW_TRACKING")
    graph = (tiny / "dvc.yaml").read_text()
    for name in ("first", "second", "evaluate"):
        graph = graph.replace(f"stage.py {name}\n", f"stage.py {name} tracked\n")
    (tiny / "dvc.yaml").write_text(graph)
    main([])
    change_parameter(tiny, "bootstrap: 2000", "bootstrap: 1999")
    (tiny / "trouble/evaluate").write_text("fail")
    with pytest.raises(SystemExit):
        main([])
    assert ran(tiny) == ["first", "second", "evaluate", "evaluate"]
    store = open_store()

    def found(kind: str) -> list:
        query = f"tags.`{TAG}kind` = '{kind}'"
        return store.client.search_runs([store.experiment_id], query, order_by=["attributes.start_time ASC"])

    good, bad = found("execution")
    stages = {run.info.run_id: run for run in found("stage")}
    assert (good.info.status, bad.info.status) == ("FINISHED", "FAILED")
    assert good.data.metrics == {"models.finetune.macro_f1.value": 0.5}
    assert bad.data.metrics == {}  # what lies in reports/ is not this execution's
    assert good.data.params["train.epochs"] == "40"
    for name, results in {
        "first": ("ran", "cached"),
        "second": ("ran", "cached"),
        "evaluate": ("ran", "failed"),
    }.items():
        for parent, expected in zip((good, bad), results, strict=True):
            result, _, run_id = parent.data.tags[f"{TAG}stage.{name}"].partition(" ")
            assert result == expected
            owner = bad if expected == "failed" else good
            assert stages[run_id].data.tags["mlflow.parentRunId"] == owner.info.run_id
    assert len([run for run in stages.values() if f"{TAG}restored" not in run.data.tags]) == 4


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, -15), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_no_stage_outlives_a_flow_that_ends(tiny: Path, prefect_server: str, number: int, status: int):
    (tiny / "trouble/first").write_text("sleep")
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.pipeline"],
        cwd=tiny,
        env={**environment(), "PREFECT_API_URL": prefect_server},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 600
        while not (tiny / "pid").exists() or not (tiny / "pid").read_text():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        stage = int((tiny / "pid").read_text())
        os.kill(process.pid, number)
        _, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == status, err
    assert gone(stage, 300)
    assert number != signal.SIGTERM or "Traceback" not in err
    assert ran(tiny) == ["first"]
    if number != signal.SIGKILL:
        # What was cancelled is not in the way of the next run.
        (tiny / "trouble/first").unlink()
        main(["first"])
        assert ran(tiny) == ["first"]


def test_table_and_summary():
    rows = [
        Outcome("a", "ran", 12.34),
        Outcome("detect_noise", "cached", 0.04),
        Outcome("b", "cached", 0),
    ]
    table = format_table(rows).splitlines()
    assert table[0].split() == ["stage", "result", "seconds"]
    assert table[1].split() == ["a", "ran", "12.3"]
    assert (
        len(
            {
                line.index(word)
                for line, word in zip(table, ["result", "ran", "cached", "cached"], strict=True)
            }
        )
        == 1
    )
    assert summary(rows) == "1 ran, 2 cached"
