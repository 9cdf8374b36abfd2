import json
import re
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest

from stages import detect_noise
from stages.dataset.base import Dataset, write_dataset
from stages.dataset.files import new_folder, read_array, read_table
from stages.noise.issues import ISSUE_COLUMNS


@pytest.fixture
def quick(make_params, monkeypatch) -> None:
    params = make_params(
        {
            "detect_noise.folds": 2,
            "detect_noise.repeats": 1,
            "detect_noise.epochs": 2,
            "detect_noise.batch_size": 16,
        }
    )
    monkeypatch.setattr("stages.workflow.stage.load_params", lambda: params)


def test_the_stage_writes_a_row_a_sample_and_the_same_bytes_twice(tiny_dataset: Dataset, workspace, quick):
    with new_folder(workspace / "data/ingested") as folder:
        write_dataset(folder, tiny_dataset)
    written = []
    for _ in range(2):
        detect_noise.main([])
        files = sorted((workspace / "data/noise").iterdir()) + sorted(
            (workspace / "reports/detect_noise").iterdir()
        )
        written.append({file.name: file.read_bytes() for file in files})
    assert written[0] == written[1]
    assert {"issues.parquet", "pred_probs.npy", "embeddings.npy", "transition.csv", "summary.json"} <= set(
        written[0]
    )
    assert not (workspace / ".winnow/detect_noise").exists()
    issues = read_table(workspace / "data/noise/issues.parquet")
    assert list(issues.columns) == ISSUE_COLUMNS
    assert issues["sample_id"].tolist() == tiny_dataset.samples["sample_id"].tolist()
    probs = read_array(workspace / "data/noise/pred_probs.npy")
    truth = tiny_dataset.samples["label"].map({"a": 0, "b": 1, "c": 2}).to_numpy()
    assert probs.shape == (len(truth), 3)
    assert (probs.argmax(1) == truth)[: np.sum(tiny_dataset.samples["split"] == "train")].mean() > 0.8


def test_the_page_says_how_to_try_another_rule(tiny_dataset: Dataset, workspace, quick):
    with new_folder(workspace / "data/ingested") as folder:
        write_dataset(folder, tiny_dataset)
    detect_noise.main([])
    page = (Path(__file__).resolve().parent.parent / "docs/noise.md").read_text("utf-8")
    (block,) = (
        text for text in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "pred_probs.npy" in text
    )
    assert 'rule="both"' in block
    (workspace / "page.py").write_text(block.replace('rule="both"', 'rule="auto"'), "utf-8")
    found = runpy.run_path("page.py")["wrong"]
    issues = read_table(workspace / "data/noise/issues.parquet").query("split == 'train'")
    assert found.tolist() == issues["is_label_issue"].tolist()


def test_unlabelled_samples_have_rows_but_no_label_errors(partly_labelled: Dataset, workspace, quick, capsys):
    with new_folder(workspace / "data/ingested") as folder:
        write_dataset(folder, partly_labelled)
    detect_noise.main([])
    issues = read_table(workspace / "data/noise/issues.parquet")
    assert issues["sample_id"].tolist() == partly_labelled.samples["sample_id"].tolist()
    rows = issues[issues["split"] == "unlabeled"]
    assert len(rows) == 4
    assert rows["given_label"].isna().all()
    assert rows["label_score"].isna().all()
    assert not rows["is_label_issue"].any()
    assert rows["outlier_score"].notna().all()
    probs = read_array(workspace / "data/noise/pred_probs.npy")
    np.testing.assert_allclose(probs.sum(1), 1, atol=1e-5)
    best = np.asarray(partly_labelled.classes)[probs[:4].argmax(1)]
    assert rows["suggested_label"].tolist() == best.tolist()
    assert np.isfinite(read_array(workspace / "data/noise/embeddings.npy")).all()
    summary = json.loads((workspace / "reports/detect_noise/summary.json").read_text())
    assert summary["splits"]["unlabeled"]["samples"] == 4
    assert "label_error" not in summary["splits"]["unlabeled"]
    assert "label_error" in summary["splits"]["train"]
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("unlabeled:")]
    assert len(said) == 1
    assert "among 4" in said[0]
    assert "label_error" not in said[0]


def test_a_class_that_is_one_group_is_warned_of_and_keeps_its_labels(
    tiny_dataset: Dataset, workspace, quick, capsys
):
    training = (tiny_dataset.samples["split"] == "train") & (tiny_dataset.samples["label"] == "c")
    tiny_dataset.samples.loc[training, "group"] = "0" * 16
    with new_folder(workspace / "data/ingested") as folder:
        write_dataset(folder, tiny_dataset)
    detect_noise.main([])
    issues = read_table(workspace / "data/noise/issues.parquet")
    assert not issues.loc[training, "is_label_issue"].any()
    assert (issues.loc[training, "label_score"] < 0.5).all()  # no model that was asked had seen a c
    warnings = capsys.readouterr().err
    assert "WARNING: no label of c is called wrong" in warnings
    assert "are of one group" in warnings


def test_a_killed_stage_goes_on_with_the_next_fold(tiny_dataset: Dataset, workspace, quick, monkeypatch):
    from stages.noise import folds

    with new_folder(workspace / "data/ingested") as folder:
        write_dataset(folder, tiny_dataset)

    def outputs() -> dict[str, bytes]:
        return {
            name: (workspace / "data/noise" / name).read_bytes()
            for name in ("pred_probs.npy", "issues.parquet")
        }

    detect_noise.main([])
    whole, original, trained = outputs(), folds.fit, []

    def dies_in_the_second(*args, **kwargs):
        trained.append(1)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(folds, "fit", dies_in_the_second)
    with pytest.raises(SystemExit):
        detect_noise.main([])
    shutil.rmtree(workspace / "data/noise")  # as DVC does before a run
    detect_noise.main([])
    assert len(trained) == 3
    assert outputs() == whole
    assert not (workspace / ".winnow/detect_noise").exists()


def test_the_summary_counts_what_was_looked_for_and_says_why_not_the_rest(
    tiny_dataset: Dataset, workspace, make_params, monkeypatch
):
    params = make_params(
        {"detect_noise.folds": 2, "detect_noise.repeats": 1, "detect_noise.image_checks": ["dark"]}
    )
    monkeypatch.setattr("stages.workflow.stage.load_params", lambda: params)
    images = tiny_dataset.images.copy()
    images[3] = 0
    with new_folder(workspace / "data/ingested") as folder:
        write_dataset(folder, Dataset(images, tiny_dataset.samples, tiny_dataset.classes))
    detect_noise.main([])
    summary = json.loads((workspace / "reports/detect_noise/summary.json").read_text())
    assert list(summary) == ["splits", "checks", "non_iid"]
    assert summary["splits"]["train"]["samples"] == 60
    assert summary["splits"]["train"]["dark"] >= 1
    assert "light" not in summary["splits"]["train"]
    assert summary["checks"]["light"] == "not asked for"
    issues = read_table(workspace / "data/noise/issues.parquet")
    assert issues["is_dark_issue"][3]
    assert issues["light_score"].isna().all()
    assert issues["suggested_agreement"].isin([0, 1]).all()
