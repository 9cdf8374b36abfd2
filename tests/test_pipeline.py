"""The whole pipeline through DVC, in a clone with a tiny configuration."""

import json
from pathlib import Path

import pytest
from clones import clone, lock_of, ran, run, set_params

STAGES = ["check", "ingest", "detect_noise", "curate", "augment", "synthesize", "baseline", "train",
          "finetune", "evaluate"]  # fmt: skip
DRAWN = ["report@ingest", "report@detect_noise", "report@curate", "report@augment", "report@synthesize"]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, str]:
    place = clone(tmp_path_factory.mktemp("clone"))
    result = run(place, "dvc", "repro")
    assert result.returncode == 0, result.stdout + result.stderr
    return place, result.stdout


def test_every_stage_runs_and_the_report_is_there(built):
    place, output = built
    assert set(ran(output)) == {*STAGES, *DRAWN, "page", "digits"}
    metrics = json.loads((place / "reports/evaluate/metrics.json").read_text())
    assert set(metrics["models"]) == {"baseline", "train", "finetune"}
    assert metrics["noise"]["planted"] > 10
    page = (place / "reports/pages/evaluate/index.html").read_text()
    assert 'src="http' not in page
    assert page.count("data:image/png") >= 5


def test_the_summary_shows_what_was_measured(built):
    place, _ = built
    shown = run(place, "python", "-m", "stages.reporting.summary")
    assert shown.returncode == 0, shown.stderr
    metrics = json.loads((place / "reports/evaluate/metrics.json").read_text())
    for name in ("baseline", "train", "finetune"):
        assert f"{metrics['models'][name]['balanced_accuracy']['value']:.3f}" in shown.stdout
    assert f"{metrics['noise']['f1']:.3f}" in shown.stdout


def test_mlflow_has_one_parent_with_a_child_for_each_stage(built, monkeypatch):
    place, _ = built
    mlflow = pytest.importorskip("mlflow")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{place / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("winnow")
    runs = client.search_runs([experiment.experiment_id])
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId")]
    parents = [r for r in runs if r not in children]
    assert len(parents) == 1
    assert {r.data.tags["mlflow.parentRunId"] for r in children} == {parents[0].info.run_id}
    assert {r.info.run_name for r in children} == {*STAGES, "page", "digits"}
    assert not any(r.data.tags.get("winnow.restored") for r in runs)
    assert all(r.info.status == "FINISHED" for r in runs)
    assert parents[0].data.metrics
    (page,) = (run for run in children if run.info.run_name == "page")
    link = f"#/experiments/{experiment.experiment_id}/runs/{page.info.run_id}/artifacts"
    assert link in parents[0].data.tags["mlflow.note.content"]
    pages = client.list_artifacts(page.info.run_id, "reports/pages")
    assert {Path(item.path).name for item in pages} == {*(name.split("@")[1] for name in DRAWN), "evaluate"}


def test_a_second_repro_runs_nothing(built):
    place, _ = built
    again = run(place, "dvc", "repro")
    assert ran(again.stdout) == []
    assert "up to date" in again.stdout


def test_nothing_that_git_should_not_see_is_left(built):
    place, _ = built
    status = run(place, "git", "status", "--porcelain").stdout.split("\n")
    assert {line[3:] for line in status if line} <= {"dvc.lock", "data/raw/dvc.lock"}


def test_metrics_plots_and_graph_are_dvcs_own_to_show(built):
    place, _ = built
    assert "macro_f1" in run(place, "dvc", "metrics", "show").stdout
    plots = run(place, "dvc", "plots", "show", "-o", "plots_out")
    assert plots.returncode == 0, plots.stderr
    page = (place / "plots_out/index.html").read_text()
    assert "train_loss" in page
    import shutil

    shutil.rmtree(place / "plots_out")
    assert "evaluate" in run(place, "dvc", "dag").stdout


def test_a_mistake_in_params_ends_in_one_line_and_deletes_nothing(built):
    place, _ = built
    before = lock_of(place)
    try:
        set_params(place, {"train.epochs": "many"})
        failed = run(place, "dvc", "repro")
        assert failed.returncode != 0
        lines = [line for line in failed.stderr.splitlines() if "train.epochs" in line]
        assert len(lines) == 1
        assert "'many'" in lines[0]
        assert "Traceback" not in failed.stderr + failed.stdout
        assert ran(failed.stdout) == ["check"]
        assert (place / "models/train/model.safetensors").is_file()
        assert (place / "reports/pages/evaluate/index.html").is_file()
    finally:
        set_params(place, {"train.epochs": 3})
    assert run(place, "dvc", "repro").returncode == 0
    assert lock_of(place) == before


def test_one_changed_parameter_runs_its_stage_and_those_downstream(built):
    place, _ = built
    set_params(place, {"finetune.learning_rate": 0.001})
    changed = run(place, "dvc", "repro", WINNOW_TRACKING="off")
    assert changed.returncode == 0, changed.stderr
    assert ran(changed.stdout) == ["check", "finetune", "evaluate", "page"]


def test_an_edit_of_a_picture_draws_and_trains_nothing(built):
    place, _ = built
    pictures = place / "stages/reporting/pictures.py"
    text = pictures.read_text("utf-8")
    try:
        pictures.write_text(text.replace('"Augmented copies"', '"Copies"'), "utf-8")
        result = run(place, "dvc", "repro", WINNOW_TRACKING="off")
        assert result.returncode == 0, result.stderr
        assert set(ran(result.stdout)) == {*DRAWN, "page"}
        assert ">Copies" in (place / "reports/pages/evaluate/index.html").read_text("utf-8")
    finally:
        pictures.write_text(text, "utf-8")


def test_a_tracking_server_that_does_not_answer_is_only_a_warning(built):
    place, _ = built
    set_params(place, {"evaluate.bootstrap": 201})
    result = run(place, "dvc", "repro", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert result.returncode == 0, result.stderr
    assert ran(result.stdout) == ["check", "evaluate", "page"]
    assert "python -m stages.workflow.send" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_two_clones_end_with_equal_lock_files(tmp_path):
    locks = []
    for name in ("one", "two"):
        place = clone(tmp_path / name)
        assert run(place, "dvc", "repro", WINNOW_TRACKING="off").returncode == 0
        locks.append(lock_of(place))
    assert locks[0] == locks[1]
