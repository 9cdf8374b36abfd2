from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stages import evaluate, report
from stages.dataset.base import DELTA_COLUMNS, TRUTH_COLUMNS, Dataset, empty_delta, split_view, write_dataset
from stages.dataset.files import read_table, write_json, write_table
from stages.dataset.ids import derived_id
from stages.learning.loop import fit
from stages.learning.models import build_model, pixel_statistics
from stages.learning.networks.layers import ModelSpec
from stages.learning.recipe import Recipe
from stages.learning.store import save_model
from stages.workflow.runs import StageRun

MODELS = ("baseline", "train", "finetune")


def make_ledger(samples: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "sample_id": samples["sample_id"],
            "split": samples["split"],
            "given_label": samples["label"],
            "label": samples["label"],
            "action": "keep",
            "weight": 1.0,
            "score": 0.9,
            "reason": "",
            "decided_by": "policy",
        }
    )


def save(name: str, dataset: Dataset, epochs: int, classes: list[str] | None = None) -> None:
    view = split_view(dataset, "train")
    mean, std = pixel_statistics(view.images)
    spec = ModelSpec("small_cnn", classes or dataset.classes, dataset.image_shape, mean, std)
    model = build_model(spec, seed=0)
    if epochs:
        fit(model, view, Recipe(epochs, 4, 32, 0.01, precision="fp32"), seed=0, device="cpu", description="")
    folder = Path("models", name)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder, model)


_trained: dict[str, Path] = {}


@pytest.fixture
def models(tiny_dataset, tmp_path_factory) -> Path:
    """The three models, trained once for all tests here: an untrained baseline, and two trained."""
    if not _trained:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path_factory.mktemp("trained"))
            for name, epochs in zip(MODELS, (0, 4, 6), strict=True):
                save(name, tiny_dataset, epochs)
            _trained["models"] = Path("models").absolute()
    return _trained["models"]


@pytest.fixture
def finished(workspace, tiny_dataset, models) -> Path:
    """A workspace in which every stage but evaluate has run."""
    parameters = Path("params.yaml")
    parameters.write_text(parameters.read_text("utf-8").replace("threads: 2", "threads: 1"), "utf-8")
    shutil.copytree(models, "models")
    samples = tiny_dataset.samples
    for name in ("ingested", "augmented", "synthetic", "noise", "curated"):
        Path("data", name).mkdir()
    write_dataset(Path("data/ingested"), tiny_dataset)
    write_dataset(Path("data/augmented"), empty_delta(tiny_dataset))
    parent = samples["sample_id"][55]
    made = (derived_id(parent, "gan", 0), 0, "train", "c", "", 16, 16, parent, 0.3, parent, "gan")
    one = Dataset(tiny_dataset.images[55:56], pd.DataFrame([made], columns=DELTA_COLUMNS), ["a", "b", "c"])
    write_dataset(Path("data/synthetic"), one)
    ledger = make_ledger(samples)
    ledger.loc[0, ["label", "action"]] = ["b", "relabel"]
    write_table(Path("data/curated/ledger.parquet"), ledger)
    flagged = np.zeros(len(samples), bool)
    flagged[[0, 1, 2, 70, 90]] = True  # two of them are not in the training split
    issues = samples[["sample_id", "split"]].assign(is_label_issue=flagged)
    write_table(Path("data/noise/issues.parquet"), issues)
    truth = samples.loc[samples["split"] != "test", ["sample_id", "split"]].copy()
    truth["given_label"] = truth["true_label"] = samples["label"]
    truth.loc[[0, 1, 5, 61], "true_label"] = "c"
    truth["removed"] = False
    gone = {"sample_id": "f" * 16, "split": "train", "true_label": "a", "given_label": "b", "removed": True}
    truth = pd.concat([truth, pd.DataFrame([gone])])[TRUTH_COLUMNS]
    write_table(Path("data/truth.parquet"), truth)
    for name in MODELS:
        Path("reports", name).mkdir(parents=True)
        rows = pd.DataFrame({"epoch": [1.0, 2.0], "train_loss": [1.0, 0.5], "val_accuracy": [0.5, 0.6]})
        rows.to_csv(f"reports/{name}/history.csv", index=False)
    Path("reports/synthesize").mkdir()
    Path("reports/synthesize/gan_history.csv").write_text("step,generator_loss\n", "utf-8")  # no GAN
    return workspace


PAGES = Path("reports/pages/evaluate")


def evaluate_and_draw() -> None:
    evaluate.main([])
    report.main(["evaluate"])


def page() -> str:
    return (PAGES / "index.html").read_text("utf-8")


def content() -> dict:
    return json.loads(Path("reports/evaluate/metrics.json").read_text("utf-8"))


def test_writes_the_metrics_that_others_rely_on(finished, tiny_dataset):
    evaluate.main([])
    metrics = content()
    assert metrics["test_images"] == 30
    assert len(metrics["test_set_hash"]) == 16
    assert list(metrics["models"]) == list(MODELS)
    assert list(metrics["gain"]) == ["train", "finetune"]
    names = {"macro_f1", "balanced_accuracy", "worst_class_recall", "expected_calibration_error", "accuracy"}
    for figures in (*metrics["models"].values(), *metrics["gain"].values()):
        assert set(figures) == names
        for figure in figures.values():
            assert set(figure) == {"value", "low", "high"}
            assert figure["low"] <= figure["high"]
            assert all(value == round(value, 6) for value in figure.values())
    for name in ("train", "finetune"):
        for metric in names:
            difference = (
                metrics["models"][name][metric]["value"] - metrics["models"]["baseline"][metric]["value"]
            )
            assert metrics["gain"][name][metric]["value"] == pytest.approx(difference, abs=2e-6)
    assert metrics["models"]["finetune"]["accuracy"]["value"] > 0.9
    assert metrics["gain"]["finetune"]["accuracy"]["low"] > 0
    assert metrics["samples"]["relabelled"] == 1
    assert metrics["samples"]["synthesised_by"] == {"gan": 1}


def test_noise_detector_is_scored_on_what_is_left_of_the_training_split(finished):
    evaluate.main([])
    # flagged 0, 1, 2; wrong 0, 1, 5
    assert content()["noise"] == {
        "precision": 0.666667,
        "recall": 0.666667,
        "f1": 0.666667,
        "planted": 3,
        "flagged": 3,
    }


@pytest.mark.parametrize("planted", ["no file", "empty table", "only removed"])
def test_noise_is_empty_where_nothing_was_planted(finished, planted):
    truth = Path("data/truth.parquet")
    if planted == "no file":
        truth.unlink()
    else:
        table = read_table(truth)
        write_table(truth, table.iloc[:0] if planted == "empty table" else table.assign(removed=True))
    issues = read_table(Path("data/noise/issues.parquet"))
    assert evaluate.noise_scores(issues, truth) == {}


def test_tables_and_pictures(finished, tiny_dataset):
    evaluate_and_draw()
    folder = Path("reports/evaluate")
    text = dict.fromkeys(("label", "predicted", *MODELS), str)
    predictions = pd.read_csv(folder / "predictions.csv", dtype=text)
    test = tiny_dataset.samples[tiny_dataset.samples["split"] == "test"]
    assert predictions["sample_id"].tolist() == test["sample_id"].tolist()
    assert predictions["label"].tolist() == test["label"].tolist()
    assert (predictions["predicted"] == predictions["finetune"]).all()
    accuracy = (predictions["predicted"] == predictions["label"]).mean()
    assert accuracy == pytest.approx(content()["models"]["finetune"]["accuracy"]["value"], abs=1e-6)
    per_class = pd.read_csv(folder / "per_class.csv")
    assert list(per_class) == ["model", "class", "support", "precision", "recall", "f1"]
    assert len(per_class) == 9
    recalls = per_class[per_class["model"] == "finetune"]["recall"]
    assert recalls.mean() == pytest.approx(
        content()["models"]["finetune"]["balanced_accuracy"]["value"], abs=1e-5
    )
    bins = pd.read_csv(folder / "reliability.csv")
    assert bins["model"].unique().tolist() == list(MODELS)
    assert bins.groupby("model")["images"].sum().tolist() == [30, 30, 30]
    for name in ("confusion", "reliability", "recall", "curves"):
        assert (PAGES / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert page().count("data:image/png;base64,") == 4
    assert "points of balanced accuracy" in page()


def test_two_runs_write_the_same_bytes(finished):
    written = []
    for _ in range(2):
        evaluate_and_draw()
        files = [*Path("reports/evaluate").iterdir(), *PAGES.iterdir()]
        written.append({path: path.read_bytes() for path in files})
    assert written[0] == written[1]
    assert not list(Path("reports").glob("*.partial"))


def test_a_gan_gets_its_curves(finished):
    Path("reports/synthesize/gan_history.csv").write_text(
        "step,d_loss,g_loss\n0,1.0,2.0\n50,0.5,1.5\n", "utf-8"
    )
    evaluate_and_draw()
    assert (PAGES / "gan_curves.png").exists()


def test_a_corrected_test_split_is_another_one(finished, tiny_dataset):
    evaluate.main([])
    before = content()
    ledger = read_table(Path("data/curated/ledger.parquet"))
    rows = ledger.index[ledger["split"] == "test"]
    ledger.loc[rows[0], ["label", "action", "decided_by"]] = ["c", "relabel", "reviewer"]
    ledger.loc[rows[1], ["action", "decided_by"]] = ["drop", "reviewer"]
    write_table(Path("data/curated/ledger.parquet"), ledger)
    evaluate.main([])
    after = content()
    assert after["test_images"] == before["test_images"] - 1
    assert after["test_set_hash"] != before["test_set_hash"]
    labels = pd.read_csv("reports/evaluate/predictions.csv")["label"]
    assert labels.value_counts().to_dict() == {"a": 8, "b": 10, "c": 11}


def test_logs_figures_and_report_and_adopts_the_stages(finished, monkeypatch):
    seen: dict[str, object] = {}
    monkeypatch.setattr(StageRun, "log_metrics", lambda self, values: seen.update(values))
    monkeypatch.setattr(StageRun, "log_artifacts", lambda self, folder: seen.update(folder=folder))
    monkeypatch.setattr(StageRun, "adopt_stages", lambda self: seen.update(adopted=True))
    evaluate.main([])
    metrics = content()
    assert seen["finetune.macro_f1"] == metrics["models"]["finetune"]["macro_f1"]["value"]
    assert seen["gain.finetune.macro_f1.low"] == metrics["gain"]["finetune"]["macro_f1"]["low"]
    assert seen["noise.f1"] == metrics["noise"]["f1"]
    assert seen["samples.synthesised_by.gan"] == 1
    assert seen["folder"] == Path("reports/evaluate")
    assert "adopted" not in seen
    # The page is the last stage: its run has all pictures, and it makes the parent of all runs.
    report.main(["evaluate"])
    assert seen["folder"] == Path("reports/pages")
    assert seen["adopted"]


def fails(capsys) -> str:
    """The one line that evaluate ends with."""
    with pytest.raises(SystemExit) as stopped:
        evaluate.main([])
    assert stopped.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


def test_mistakes_end_in_one_line_and_leave_the_last_report(finished, tiny_dataset, capsys):
    evaluate.main([])
    before = Path("reports/evaluate/metrics.json").read_bytes()
    capsys.readouterr()

    save("train", tiny_dataset, 0, classes=["a", "b", "d"])
    assert "models/train knows other classes than data/ingested" in fails(capsys)

    wide = Dataset(np.repeat(tiny_dataset.images, 2, axis=2), tiny_dataset.samples, tiny_dataset.classes)
    save("train", wide, 0)
    assert "models/train takes images of another shape" in fails(capsys)

    Path("models/train/model.safetensors").write_bytes(b"not weights")
    save_spec = json.loads(Path("models/baseline/model.json").read_text("utf-8"))
    write_json(Path("models/train/model.json"), save_spec)
    assert "models/train/model.safetensors is not a weights file" in fails(capsys)

    Path("models/train/model.json").unlink()
    assert "models/train" in fails(capsys)

    ledger = read_table(Path("data/curated/ledger.parquet"))
    ledger.loc[ledger["split"] == "test", "action"] = "drop"
    write_table(Path("data/curated/ledger.parquet"), ledger)
    assert "the test split has no images" in fails(capsys)

    assert Path("reports/evaluate/metrics.json").read_bytes() == before


def test_unlabelled_samples_are_counted_and_change_no_score(finished, partly_labelled):
    evaluate.main([])
    before = content()
    write_dataset(Path("data/ingested"), partly_labelled)
    ledger = make_ledger(partly_labelled.samples)
    ledger.loc[1, ["split", "label", "action"]] = ["train", "b", "relabel"]
    write_table(Path("data/curated/ledger.parquet"), ledger)
    issues = partly_labelled.samples[["sample_id", "split"]].assign(is_label_issue=False)
    issues.loc[[4, 5], "is_label_issue"] = True
    write_table(Path("data/noise/issues.parquet"), issues)
    truth = read_table(Path("data/truth.parquet"))
    truth = truth[~truth["sample_id"].isin(partly_labelled.samples["sample_id"][:4])]
    write_table(Path("data/truth.parquet"), truth)
    evaluate.main([])
    after = content()
    assert after["models"] == before["models"]
    assert after["test_set_hash"] == before["test_set_hash"]
    # planted wrong in training: 5, which is flagged; 0 and 1 have no label any more
    assert (after["noise"]["planted"], after["noise"]["flagged"]) == (1, 2)
    assert (after["noise"]["recall"], after["noise"]["precision"]) == (1.0, 0.5)
    counts = after["samples"]
    assert (counts["ingested"], counts["kept"], counts["relabelled"]) == (56, 56, 0)
    assert (counts["unlabeled"], counts["labelled"]) == (3, 1)
    assert "unlabeled" not in before["samples"]
    report.main(["evaluate"])
    assert "unlabelled, not trained on" in page()
    assert "labelled by reviewers" in page()


def set_temperature(name: str, temperature: float) -> None:
    path = Path("models", name, "model.json")
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"temperature": temperature}), "utf-8")


def test_a_temperature_moves_the_calibration_error_and_no_other_score(finished):
    evaluate.main([])
    before = content()
    set_temperature("finetune", 0.5)
    evaluate.main([])
    after = content()
    assert after["calibration"]["finetune"]["temperature"] == 0.5
    assert after["calibration"]["baseline"]["temperature"] == 1.0  # a model from before there were any
    scores = {metric: figures["value"] for metric, figures in before["models"]["finetune"].items()}
    for metric, figures in after["models"]["finetune"].items():
        if metric != "expected_calibration_error":
            assert figures["value"] == scores[metric]
    old = scores["expected_calibration_error"]
    assert after["calibration"]["finetune"]["error_before"] == pytest.approx(old, abs=1e-6)
    assert after["models"]["finetune"]["expected_calibration_error"]["value"] != old
    report.main(["evaluate"])
    assert "Probabilities are calibrated on validation: fine-tuned by temperature 0.500" in page()
    assert evaluate.flat_metrics(after)["calibration.finetune.temperature"] == 0.5


def test_all_models_are_asked_about_the_same_views(finished, make_params, monkeypatch):
    from stages.learning import prediction

    seen = []
    original = prediction.predict

    def spy(model, images, *args, **kwargs):
        seen.append(kwargs["views"])
        return original(model, images, *args, **kwargs)

    monkeypatch.setattr(prediction, "predict", spy)
    params = make_params({"evaluate.test_time": "flip_shift", "evaluate.bootstrap": 100})
    monkeypatch.setattr("stages.workflow.stage.load_params", lambda: params)
    evaluate.main([])
    assert seen == ["flip_shift"] * 3
    report.main(["evaluate"])
    assert "means over changed copies" in page()


def test_what_the_folds_scored_is_told(finished):
    evaluate.main([])
    assert content()["cross_validation"] == {}
    report.main(["evaluate"])
    assert "Cross-validation" not in page()
    interval = {"value": 0.8125, "low": 0.75, "high": 0.875}
    write_json(Path("reports/train/summary.json"), {"cross_validation": {"balanced_accuracy": interval}})
    evaluate.main([])
    assert content()["cross_validation"] == {"train": {"balanced_accuracy": interval}}
    assert evaluate.flat_metrics(content())["cross_validation.train.balanced_accuracy"] == 0.8125
    report.main(["evaluate"])
    assert "Cross-validation" in page()
    assert "0.750 to 0.875" in page()
