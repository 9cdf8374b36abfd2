"""Stage `detect_noise`: what is probably wrong with each sample, and how sure that is."""

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

_TELLING = 0.05  # p-value
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
    alone = classes_of_one_group(base)
    if alone:
        print(
            f"detect_noise: WARNING: no label of {shorten(', '.join(alone), 80)} is called wrong: all "
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
    off = [f"{kind} ({said})" for kind, said in summary["checks"].items() if said != "on"]
    if off:
        print(f"not looked for: {', '.join(off)}")
    if summary["non_iid"] is not None and summary["non_iid"] < _TELLING:
        print(f"the order of the files tells something of the images (p = {summary['non_iid']:.3g})")


def detect_noise(
    base: Dataset, choices: DetectNoise, params: Params
) -> tuple[Findings, NDArray[np.float32], NDArray[np.float32], list[dict[str, float]]]:
    """Findings, probabilities (N×K), embeddings (N×D), and a row of figures a fold.

    Unlabelled samples have rows as all others: the models are asked about them, and learn nothing
    from them.
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
            models=tuple(choices.models),
            folds=choices.folds,
            repeats=choices.repeats,
            epochs=choices.epochs,
            batch_size=choices.batch_size,
            learning_rate=choices.learning_rate,
            shift=choices.shift,
            flip=choices.flip,
            downweight_suspects=choices.downweight_suspects,
            pretrained=choices.pretrained,
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
        rule=choices.rule,
        neighbors=choices.neighbors,
        judged=judged,
        agreement=votes,
        images=base.images if in_order else np.asarray(base.images[rows]),
        checks=choices.image_checks,
        seed=params.seed,
    )
    return findings, pred_probs, embeddings, history


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


def summarise(findings: Findings) -> dict[str, Any]:
    """Counts of each kind of issue by split, what was not looked for, and whether the order tells.

    The unlabelled have no label errors to count.
    """
    splits: dict[str, Any] = {}
    for split, rows in findings.issues.groupby("split", sort=True):
        counts = {"samples": len(rows)}
        for kind, said in findings.checks.items():
            if said == "on" and not (kind == "label_error" and split == "unlabeled"):
                counts[kind] = int(rows[flag_column(kind)].sum())
        splits[str(split)] = counts
    order = None if findings.non_iid is None else round(findings.non_iid, 4)
    return {"splits": splits, "checks": findings.checks, "non_iid": order}


if __name__ == "__main__":
    main()
