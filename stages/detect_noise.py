"""Stage `detect_noise`: what is probably wrong with each sample, and how sure that is."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.dataset import (
    INGESTED,
    NOISE,
    REPORTS,
    Dataset,
    new_folder,
    read_dataset,
    split_view,
    write_json,
    write_table,
)
from stages.params import DetectNoise, Params
from stages.runtime import stage
from stages.tracking import StageRun

_GALLERY = 40


@stage("detect_noise")
def main(params: Params, run: StageRun, options: argparse.Namespace) -> None:
    """Find label errors, outliers and near-duplicates by cross-validation and cleanlab.

    Reads data/ingested; writes data/noise (issues.parquet, pred_probs.npy, embeddings.npy) and
    reports/detect_noise.
    """
    from stages.noise.issues import labels_can_be_judged
    from stages.reporting.figures import image_grid, shorten

    base = read_dataset(INGESTED)
    issues, pred_probs, embeddings, history = detect_noise(base, params.detect_noise, params)
    summary = summarise(issues)
    alone = classes_of_one_group(base)
    if alone:
        print(
            f"detect_noise: WARNING: no label of {shorten(', '.join(alone), 80)} is called wrong: all "
            "training images of the class are of one group, and no model learns it without them; bring "
            "images of another",
            file=sys.stderr,
        )
    if not labels_can_be_judged(base.samples, pred_probs, base.classes):
        print(
            "detect_noise: WARNING: in cross-validation the model is no better than guessing, so no label is "
            "called wrong; raise detect_noise.epochs, lower batch_size, or bring more images",
            file=sys.stderr,
        )
    with new_folder(NOISE) as folder:
        write_table(folder / "issues.parquet", issues)
        np.save(folder / "pred_probs.npy", pred_probs)
        np.save(folder / "embeddings.npy", embeddings)
    with new_folder(REPORTS / "detect_noise") as folder:
        write_json(folder / "summary.json", summary)
        pd.DataFrame(history).to_csv(folder / "folds.csv", index=False)
        worst = worst_label_issues(issues, _GALLERY)
        titles = [
            f"{row.given_label} → {row.suggested_label}? {row.label_score:.2f}" for row in worst.itertuples()
        ]
        image_grid(base.images[worst.index.to_numpy()], titles, folder / "label_errors.png", columns=8)
    run.log_metrics({f"issues.{split}.{k}": v for split, row in summary.items() for k, v in row.items()})
    run.log_history(history)
    run.log_artifacts(REPORTS / "detect_noise")
    for split, row in summary.items():
        errors = f"{row['label_errors']} label errors, " if "label_errors" in row else ""
        print(
            f"{split}: {errors}{row['outliers']} outliers, "
            f"{row['near_duplicates']} near-duplicates among {row['samples']}"
        )


def detect_noise(
    base: Dataset, choices: DetectNoise, params: Params
) -> tuple[pd.DataFrame, NDArray[np.float32], NDArray[np.float32], list[dict[str, float]]]:
    """Issues, probabilities (N×K), embeddings (N×D), and a row of figures a fold.

    Unlabelled samples have rows as all others: the models are asked about them, and learn nothing
    from them.
    """
    from stages.noise.folds import cross_validate
    from stages.noise.issues import build_issues

    train = split_view(base, "train")
    in_training = (base.samples["split"] == "train").to_numpy()
    history: list[dict[str, float]] = []
    result = cross_validate(
        train,
        np.asarray(base.images[base.samples.loc[~in_training, "row"].to_numpy()]),
        architecture=choices.model,
        folds=choices.folds,
        repeats=choices.repeats,
        epochs=choices.epochs,
        batch_size=choices.batch_size,
        learning_rate=choices.learning_rate,
        seed=params.seed,
        groups=base.samples.loc[in_training, "group"].to_numpy(object),
        device=params.device,
        on_fold=history.append,
    )
    pred_probs = _interleave(in_training, result.train_probs, result.other_probs)
    embeddings = _interleave(in_training, result.train_embeddings, result.other_embeddings)
    judged = np.ones(len(base.samples), bool)
    judged[in_training] = result.train_judged
    issues = build_issues(
        base.samples,
        pred_probs,
        embeddings,
        base.classes,
        rule=choices.rule,
        neighbors=choices.neighbors,
        judged=judged,
    )
    return issues, pred_probs, embeddings, history


def _interleave(
    first: NDArray[np.bool_], yes: NDArray[np.float32], no: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Rows of `yes` where `first` is true, of `no` elsewhere."""
    together = np.empty((len(first), yes.shape[1]), np.float32)
    together[first], together[~first] = yes, no
    return together


def classes_of_one_group(base: Dataset) -> list[str]:
    """Classes whose training images, more than one, are all of one group: no fold can judge them."""
    training = base.samples[base.samples["split"] == "train"]
    groups = training.groupby("label")["group"].agg(["size", "nunique"])
    alone = groups.index[(groups["size"] > 1) & (groups["nunique"] == 1)]
    return [name for name in base.classes if name in alone]


def worst_label_issues(issues: pd.DataFrame, most: int) -> pd.DataFrame:
    """The suspected label errors of the training split, the least plausible labels first."""
    suspects = issues[issues["is_label_issue"] & (issues["split"] == "train")]
    return suspects.sort_values(["label_score", "sample_id"]).head(most)


def summarise(issues: pd.DataFrame) -> dict[str, Any]:
    """Counts of each kind of issue, a row a split; the unlabelled have no label errors to count."""
    columns = {
        "label_errors": "is_label_issue",
        "outliers": "is_outlier_issue",
        "near_duplicates": "is_near_duplicate_issue",
    }
    summary: dict[str, Any] = {}
    for split, rows in issues.groupby("split", sort=True):
        counts = {name: int(rows[column].sum()) for name, column in columns.items()}
        if split == "unlabeled":
            del counts["label_errors"]
        summary[str(split)] = {"samples": len(rows), **counts}
    return summary


if __name__ == "__main__":
    main()
