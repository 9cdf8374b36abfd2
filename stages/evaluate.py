"""Stage `evaluate`: score every model on the untouched test split."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.curation.treatments import sample_counts, treatments_by_class
from stages.dataset.base import (
    AUGMENTED,
    CURATED,
    INGESTED,
    MODELS,
    NOISE,
    REPORTS,
    SYNTHETIC,
    TRUTH,
    Dataset,
    View,
    read_dataset,
    read_ledger,
    split_hash,
    split_view,
)
from stages.dataset.files import new_folder, read_table, write_json
from stages.errors import WinnowError
from stages.learning.metrics import (
    Comparison,
    Probabilities,
    calibration_error,
    compare_models,
    detector_scores,
    per_class,
    reliability,
)
from stages.learning.names import Device, TestTime
from stages.workflow.params import Params
from stages.workflow.runs import StageRun
from stages.workflow.schema import Evaluate
from stages.workflow.stage import stage

_MODELS = ("baseline", "train", "finetune")
_BASELINE, _FINAL = "baseline", "finetune"


@stage("evaluate")
def main(params: Params, run: StageRun, options: argparse.Namespace) -> None:
    """Score baseline, trained and fine-tuned model on the test split, with intervals.

    Reads the data and the models; writes the tables of reports/evaluate, which the stage `page` draws.
    """
    base, ledger = read_dataset(INGESTED), read_ledger(CURATED)
    augmented, synthetic = read_dataset(AUGMENTED).samples, read_dataset(SYNTHETIC).samples
    test = scored_view(base, ledger)
    predicted = predict_all(test, params.device, params.evaluate.test_time)
    probabilities = {name: prediction.probabilities for name, prediction in predicted.items()}
    comparison = compare(test, probabilities, params.evaluate, params.seed)
    metrics = {
        "test_set_hash": split_hash(base, "test", ledger),
        "test_images": len(test),
        **comparison_content(comparison),
        "calibration": calibration_content(test.labels, predicted, params.evaluate.calibration_bins),
        "cross_validation": cross_validations(REPORTS),
        "noise": noise_scores(read_table(NOISE / "issues.parquet"), TRUTH),
        "samples": sample_counts(ledger, augmented, synthetic),
    }
    with new_folder(REPORTS / "evaluate") as folder:
        write_json(folder / "metrics.json", metrics)
        write_json(folder / "summary.json", settings(test, params.evaluate))
        _write_csv(folder / "treatments.csv", treatments_by_class(ledger, augmented, synthetic, base.classes))
        _write_csv(folder / "per_class.csv", class_table(test, probabilities))
        _write_csv(folder / "predictions.csv", prediction_table(test, probabilities))
        bins = params.evaluate.calibration_bins
        _write_csv(folder / "reliability.csv", reliability_table(test.labels, probabilities, bins))
    run.log_metrics(flat_metrics(metrics))
    run.log_artifacts(REPORTS / "evaluate")
    print(outcome(metrics))


def scored_view(base: Dataset, ledger: pd.DataFrame) -> View:
    """Return the test split as reviewers left it; an empty one is a WinnowError."""
    test = split_view(base, "test", ledger)
    if len(test) == 0:
        raise WinnowError("the test split has no images: raise ingest.test_share, or see data/reviews.csv")
    return test


@dataclass(frozen=True)
class Prediction:
    """A model's probabilities for the test images, with and without its temperature.

    Attributes
    ----------
    probabilities : float32, N×K
    temperature : what its logits were divided by; 1 in models from before there were temperatures
    uncalibrated : float32, N×K; the probabilities with a temperature of 1
    """

    probabilities: Probabilities
    temperature: float
    uncalibrated: Probabilities


def predict_all(test: View, device: Device, views: TestTime) -> dict[str, Prediction]:
    """Predict the test images by each model under `models/`, averaged over the same `views` for all.

    Raises
    ------
    WinnowError
        Where a model is not there, or was made for other images or classes than the test split's.
    """
    from stages.learning.prediction import predict
    from stages.learning.store import load_model

    predicted: dict[str, Prediction] = {}
    for name in _MODELS:
        folder = MODELS / name
        model = load_model(folder)
        if model.spec.classes != test.classes:
            raise WinnowError(f"{folder} knows other classes than {INGESTED} has: run `dvc repro`")
        if model.spec.image_shape != test.images.shape[1:]:
            raise WinnowError(f"{folder} takes images of another shape than {INGESTED} has: run `dvc repro`")
        probabilities, temperature = (
            predict(model, test.images, device, views=views)[0],
            model.spec.temperature,
        )
        uncalibrated = probabilities
        if temperature != 1:
            uncalibrated = predict(model, test.images, device, views=views, temperature=1.0)[0]
        predicted[name] = Prediction(probabilities, temperature, uncalibrated)
    return predicted


def compare(
    test: View, probabilities: Mapping[str, Probabilities], section: Evaluate, seed: int
) -> Comparison:
    """Score every model with intervals, and its paired difference to the baseline."""
    return compare_models(
        test.labels,
        probabilities,
        baseline=_BASELINE,
        bins=section.calibration_bins,
        resamples=section.bootstrap,
        confidence=section.confidence,
        seed=seed,
    )


def calibration_content(
    labels: NDArray[np.int64], predicted: Mapping[str, Prediction], bins: int
) -> dict[str, dict[str, float]]:
    """Return by model its `temperature`, and the calibration error without it (`error_before`)."""
    return {
        name: {
            "temperature": prediction.temperature,
            "error_before": round(calibration_error(labels, prediction.uncalibrated, bins), 6),
        }
        for name, prediction in predicted.items()
    }


def cross_validations(reports: Path) -> dict[str, Any]:
    """Read by model what its members scored on the folds that they left out; empty where none did."""
    scores = {}
    for name in _MODELS:
        path = reports / name / "summary.json"
        summary = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        if "cross_validation" in summary:
            scores[name] = summary["cross_validation"]
    return scores


def settings(test: View, section: Evaluate) -> dict[str, float | int | str]:
    """Return how the scores were made, for the page: not metrics, so not in metrics.json."""
    return {
        "classes": len(test.classes),
        "confidence": section.confidence,
        "resamples": section.bootstrap,
        "calibration_bins": section.calibration_bins,
        "test_time": section.test_time,
    }


def comparison_content(comparison: Comparison) -> dict[str, Any]:
    """Return `models` and `gain` as metrics.json holds them: rounded to six digits."""
    return {
        part: {
            name: {metric: interval.rounded() for metric, interval in intervals.items()}
            for name, intervals in content.items()
        }
        for part, content in (("models", comparison.models), ("gain", comparison.gain))
    }


def noise_scores(issues: pd.DataFrame, truth: Path) -> dict[str, float | int]:
    """Score the noise detector on the training split against what `simulate` planted.

    Parameters
    ----------
    issues : `sample_id`, `split`, `is_label_issue`, a row a sample
    truth : the table with `TRUTH_COLUMNS`; rows that were taken away do not count

    Returns
    -------
    See `detector_scores`; empty where nothing was planted.
    """
    if not truth.exists():
        return {}
    known = read_table(truth)
    known = known[(known["split"] == "train") & ~known["removed"].astype(bool)]
    wrong = known.loc[known["true_label"] != known["given_label"], "sample_id"]
    training = issues[issues["split"] == "train"]
    return detector_scores(
        training["is_label_issue"].to_numpy(bool), training["sample_id"].isin(wrong).to_numpy(bool)
    )


def class_table(test: View, probabilities: Mapping[str, Probabilities]) -> pd.DataFrame:
    """Return a row a model and class: `model`, `class`, `support`, `precision`, `recall`, `f1`."""
    tables = []
    for name, values in probabilities.items():
        table = per_class(test.labels, values.argmax(1), test.classes)
        table.insert(0, "model", name)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def prediction_table(test: View, probabilities: Mapping[str, Probabilities]) -> pd.DataFrame:
    """Return a row a test image: `sample_id`, `label`, the final model's answer, and each model's."""
    names = np.asarray(test.classes, dtype=object)
    final = probabilities[_FINAL]
    columns = {
        "sample_id": test.sample_ids,
        "label": names[test.labels],
        "predicted": names[final.argmax(1)],
        "confidence": final.max(1).astype(np.float64),
    }
    return pd.DataFrame(columns | {name: names[values.argmax(1)] for name, values in probabilities.items()})


def reliability_table(
    labels: NDArray[np.int64], probabilities: Mapping[str, Probabilities], bins: int
) -> pd.DataFrame:
    """Return a row a model and bin of confidence: `model`, `bin`, `confidence`, `accuracy`, `images`.

    Confidence and accuracy are means, 0 to 1, and null in a bin without images.
    """
    tables = []
    for name, values in probabilities.items():
        confidence, accuracy, images = reliability(labels, values, bins)
        columns = {"confidence": confidence, "accuracy": accuracy, "images": images}
        tables.append(pd.DataFrame({"model": name, "bin": np.arange(bins), **columns}))
    return pd.concat(tables, ignore_index=True)


def flat_metrics(content: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the numbers of metrics.json under names such as `finetune.macro_f1.low`."""
    flat: dict[str, float] = {}
    for key, value in content.items():
        # A score is `finetune.macro_f1`: `models` and `value` would only make every name longer.
        name = prefix.rstrip(".") if key == "value" else f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flat_metrics(value, "" if name == "models" else f"{name}.")
        elif isinstance(value, int | float):
            flat[name] = float(value)
    return flat


def outcome(metrics: Mapping[str, Any]) -> str:
    """Return what the stage prints at its end: the final model's scores."""
    scores = metrics["models"][_FINAL]
    names = ("macro_f1", "balanced_accuracy", "worst_class_recall")
    figures = ", ".join(f"{name} {scores[name]['value']:.3f}" for name in names)
    return f"fine-tuned on {metrics['test_images']} test images: {figures}"


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    table.round(6).to_csv(path, index=False, lineterminator="\n")


if __name__ == "__main__":
    main()
