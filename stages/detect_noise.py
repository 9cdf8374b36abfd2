"""Stage `detect_noise`: find what is probably wrong with each sample, and how sure that is."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.dataset.base import INGESTED, NOISE, REPORTS, Dataset, read_dataset, split_view
from stages.dataset.files import new_folder, write_json, write_table
from stages.dataset.issue_kinds import flag_column
from stages.errors import shorten
from stages.noise.transition import estimated_transition, transition_table
from stages.workflow.params import Params
from stages.workflow.runs import StageRun
from stages.workflow.schema import DetectNoise
from stages.workflow.stage import stage

if TYPE_CHECKING:
    from stages.noise.issues import Findings

_SIGNIFICANT = 0.05  # p-value under which the order of the files is reported
# Outside the outs, which DVC deletes before each run; ignored by git and DVC.
CHECKPOINTS = Path(".winnow/detect_noise")


@stage("detect_noise")
def main(params: Params, run: StageRun, options: argparse.Namespace) -> None:
    """Find label errors, outliers and near-duplicates by cross-validation and cleanlab.

    Reads data/ingested; writes data/noise (issues.parquet, pred_probs.npy, embeddings.npy) and
    reports/detect_noise.
    """
    base = read_dataset(INGESTED)
    findings, pred_probs, embeddings, history = detect_noise(base, params.detect_noise, params)
    issues, summary = findings.issues, summarise(findings)
    unjudged = classes_of_one_group(base)
    if unjudged:
        print(
            f"detect_noise: WARNING: no label of {shorten(', '.join(unjudged), 80)} is called wrong: all "
            "training images of the class are of one group, and no model learns it without them; bring "
            "images of another",
            file=sys.stderr,
        )
    if findings.checks["label_error"] != "on":
        print(
            f"detect_noise: WARNING: no label is called wrong: {findings.checks['label_error']}; "
            "raise detect_noise.epochs, lower batch_size, or bring more images",
            file=sys.stderr,
        )
    with new_folder(NOISE) as folder:
        write_table(folder / "issues.parquet", issues)
        np.save(folder / "pred_probs.npy", pred_probs)
        np.save(folder / "embeddings.npy", embeddings)
    with new_folder(REPORTS / "detect_noise") as folder:
        write_json(folder / "summary.json", summary)
        pd.DataFrame(history).to_csv(folder / "folds.csv", index=False)
        matrix = estimated_transition(issues, base.classes)
        transition_table(matrix, base.classes).to_csv(folder / "transition.csv", index=False)
    shutil.rmtree(CHECKPOINTS, ignore_errors=True)
    splits = summary["splits"]
    run.log_metrics({f"issues.{split}.{k}": v for split, row in splits.items() for k, v in row.items()})
    run.log_history(history)
    run.log_artifacts(REPORTS / "detect_noise")
    for split, row in splits.items():
        found = ", ".join(f"{count} {name}" for name, count in row.items() if name != "samples" and count)
        print(f"{split}: {found or 'nothing'} among {row['samples']}")
    skipped = [f"{kind} ({reason})" for kind, reason in summary["checks"].items() if reason != "on"]
    if skipped:
        print(f"not looked for: {', '.join(skipped)}")
    if summary["non_iid"] is not None and summary["non_iid"] < _SIGNIFICANT:
        print(f"the order of the files tells something of the images (p = {summary['non_iid']:.3g})")


def detect_noise(
    base: Dataset, section: DetectNoise, params: Params
) -> tuple[Findings, NDArray[np.float32], NDArray[np.float32], list[dict[str, float]]]:
    """Return findings, probabilities (N×K), embeddings (N×D), and a row of metrics a fold.

    Unlabelled samples have rows like all others: the models predict them, and learn nothing from them.
    """
    from stages.noise.folds import CrossValidation, cross_validate
    from stages.noise.issues import find_issues

    train = split_view(base, "train")
    in_training = (base.samples["split"] == "train").to_numpy()
    history: list[dict[str, float]] = []
    result = cross_validate(
        train,
        np.asarray(base.images[base.samples.loc[~in_training, "row"].to_numpy()]),
        CrossValidation(
            models=tuple(section.models),
            folds=section.folds,
            repeats=section.repeats,
            epochs=section.epochs,
            batch_size=section.batch_size,
            learning_rate=section.learning_rate,
            shift=section.shift,
            flip=section.flip,
            downweight_suspects=section.downweight_suspects,
            pretrained=section.pretrained,
        ),
        seed=params.seed,
        groups=base.samples.loc[in_training, "group"].to_numpy(object),
        device=params.device,
        keep_in=CHECKPOINTS,
        on_fold=history.append,
    )
    pred_probs = _interleave(in_training, result.train_probs, result.other_probs)
    embeddings = _interleave(in_training, result.train_embeddings, result.other_embeddings)
    votes = _interleave(in_training, result.train_votes, result.other_votes)
    judged = np.ones(len(base.samples), bool)
    judged[in_training] = result.train_judged
    rows = base.samples["row"].to_numpy()
    in_order = np.array_equal(rows, np.arange(len(base.images)))
    findings = find_issues(
        base.samples,
        pred_probs,
        embeddings,
        base.classes,
        rule=section.rule,
        neighbors=section.neighbors,
        judged=judged,
        agreement=votes,
        images=base.images if in_order else np.asarray(base.images[rows]),
        checks=section.image_checks,
        seed=params.seed,
    )
    return findings, pred_probs, embeddings, history


def _interleave(
    in_training: NDArray[np.bool_], training: NDArray[np.float32], other: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Put the rows of the training samples and of the others into the order of the base."""
    rows = np.empty((len(in_training), training.shape[1]), np.float32)
    rows[in_training], rows[~in_training] = training, other
    return rows


def classes_of_one_group(base: Dataset) -> list[str]:
    """Return the classes whose training images, more than one, are all of one group: no fold judges them."""
    training = base.samples[base.samples["split"] == "train"]
    groups = training.groupby("label")["group"].agg(["size", "nunique"])
    names = groups.index[(groups["size"] > 1) & (groups["nunique"] == 1)]
    return [name for name in base.classes if name in names]


def summarise(findings: Findings) -> dict[str, Any]:
    """Return the content of `summary.json`: issues by split and kind, checks, and the order's p-value.

    The unlabelled have no label errors to count.
    """
    splits: dict[str, Any] = {}
    for split, rows in findings.issues.groupby("split", sort=True):
        counts = {"samples": len(rows)}
        for kind, state in findings.checks.items():
            if state == "on" and not (kind == "label_error" and split == "unlabeled"):
                counts[kind] = int(rows[flag_column(kind)].sum())
        splits[str(split)] = counts
    order = None if findings.non_iid is None else round(findings.non_iid, 4)
    return {"splits": splits, "checks": findings.checks, "non_iid": order}


if __name__ == "__main__":
    main()
