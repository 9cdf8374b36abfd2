import numpy as np

from stages import detect_noise
from stages.dataset import Dataset, new_folder, read_array, read_table, write_dataset
from stages.noise.issues import ISSUE_COLUMNS


def test_the_stage_writes_a_row_a_sample_and_the_same_bytes_twice(
    tiny_dataset: Dataset, workspace, make_params, monkeypatch
):
    with new_folder(workspace / "data/ingested") as folder:
        write_dataset(folder, tiny_dataset)
    params = make_params(
        {
            "detect_noise.folds": 2,
            "detect_noise.repeats": 1,
            "detect_noise.epochs": 2,
            "detect_noise.batch_size": 16,
        }
    )
    monkeypatch.setattr("stages.runtime.load_params", lambda: params)
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
