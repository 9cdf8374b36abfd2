import json

import numpy as np
import pytest

from stages import detect_noise
from stages.dataset import Dataset, new_folder, read_array, read_table, write_dataset
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
    monkeypatch.setattr("stages.runtime.load_params", lambda: params)


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
    assert {"issues.parquet", "pred_probs.npy", "embeddings.npy", "label_errors.png", "summary.json"} <= set(
        written[0]
    )
    issues = read_table(workspace / "data/noise/issues.parquet")
    assert list(issues.columns) == ISSUE_COLUMNS
    assert issues["sample_id"].tolist() == tiny_dataset.samples["sample_id"].tolist()
    probs = read_array(workspace / "data/noise/pred_probs.npy")
    truth = tiny_dataset.samples["label"].map({"a": 0, "b": 1, "c": 2}).to_numpy()
    assert probs.shape == (len(truth), 3)
    assert (probs.argmax(1) == truth)[: np.sum(tiny_dataset.samples["split"] == "train")].mean() > 0.8


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
    assert summary["unlabeled"]["samples"] == 4
    assert "label_errors" not in summary["unlabeled"]
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("unlabeled:")]
    assert len(said) == 1
    assert "among 4" in said[0]
    assert "label errors" not in said[0]


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
