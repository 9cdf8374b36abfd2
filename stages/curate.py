"""Stage `curate`: what is done about every sample, by whom, and why."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.dataset import (
    CURATED,
    INGESTED,
    NOISE,
    REPORTS,
    REVIEWS,
    Dataset,
    new_folder,
    read_array,
    read_conflicts,
    read_dataset,
    read_table,
    write_json,
    write_table,
)
from stages.errors import WinnowError
from stages.noise.policy import Policy, build_ledger, changes_by_class, count_unlabeled, suggest_claimed
from stages.params import Params
from stages.review.reviews import follow_copies, read_duplicates, read_reviews
from stages.runtime import stage
from stages.tracking import StageRun

_GALLERY = 40
_MOST_NAMED = 3  # of unknown samples, in a warning


@stage("curate")
def main(params: Params, run: StageRun, options: argparse.Namespace) -> None:
    """Turn issues and data/reviews.csv into the ledger, by the policy in params.yaml.

    Reads data/ingested, data/noise, data/reviews.csv and reports/ingest/duplicates.parquet; writes
    data/curated/ledger.parquet and reports/curate.
    """
    base = read_dataset(INGESTED)
    issues, pred_probs = read_noise(base)
    conflicts = read_conflicts(INGESTED)
    reviews = read_reviews(REVIEWS, base.classes)
    reviews = follow_copies(reviews, base.samples["sample_id"], read_duplicates())
    policy = Policy(**params.curate.model_dump())
    ledger, unknown = build_ledger(base.samples, issues, policy, reviews, conflicts)
    check_classes_survive(ledger, base.classes)
    if unknown:
        more = f" and {len(unknown) - _MOST_NAMED} more" if len(unknown) > _MOST_NAMED else ""
        print(
            f"curate: warning: {len(unknown)} of {len(reviews)} reviews in {REVIEWS} are of samples that "
            f"are not in the data ({', '.join(unknown[:_MOST_NAMED])}{more}); they were left out",
            file=sys.stderr,
        )
    changes = changes_by_class(ledger)
    actions = {name: int(changes[name].sum()) for name in ("keep", "relabel", "reweight", "drop")}
    unlabeled = count_unlabeled(base.samples, ledger)
    summary = {
        "actions": actions,
        **({"unlabeled": unlabeled} if unlabeled else {}),
        "conflicting_labels": int(conflicts["sample_id"].nunique()),
        "reviews": len(reviews) - len(unknown),
        "reviews_of_unknown_samples": len(unknown),
    }
    with new_folder(CURATED) as folder:
        write_table(folder / "ledger.parquet", ledger)
    with new_folder(REPORTS / "curate") as folder:
        write_json(folder / "summary.json", summary)
        changes.to_csv(folder / "changes.csv", index=False)
        suggested = suggest_claimed(issues, conflicts, pred_probs, base.classes)
        queue = review_queue(base.samples, suggested, ledger, conflicts)
        queue.to_csv(folder / "review_queue.csv", index=False)
        _draw(base, ledger, folder)
    run.log_metrics({f"actions.{name}": count for name, count in actions.items()})
    run.log_artifacts(REPORTS / "curate")
    print("training split: " + ", ".join(f"{count} {name}" for name, count in actions.items()))
    if unlabeled:
        print(
            f"unlabeled: {unlabeled['unlabeled']} samples, of which reviewers gave {unlabeled['labelled']} a "
            f"label and dropped {unlabeled['dropped']}; the others are not trained on"
        )
    print(
        f"{len(queue)} samples wait for review: {REPORTS / 'curate' / 'review_queue.csv'}, or `make review`"
    )


def read_noise(base: Dataset) -> tuple[pd.DataFrame, NDArray[np.floating] | None]:
    """The issues, and the probabilities (N×K) where they are there, of the samples of `base`.

    Raises
    ------
    WinnowError
        Where they are of other samples, or of the same ones in another order.
    """
    issues = read_table(NOISE / "issues.parquet")
    path = NOISE / "pred_probs.npy"
    pred_probs = read_array(path, mapped=True) if path.is_file() else None
    shape = (len(base.samples), len(base.classes))
    same = np.array_equal(issues["sample_id"], base.samples["sample_id"])
    if not same or (pred_probs is not None and pred_probs.shape != shape):
        raise WinnowError("data/noise is of other data than data/ingested: run `dvc repro`")
    return issues, pred_probs


def check_classes_survive(ledger: pd.DataFrame, classes: list[str]) -> None:
    """Refuse a ledger that leaves a class without any training image."""
    kept = ledger[(ledger["split"] == "train") & (ledger["action"] != "drop")]
    lost = sorted(set(classes) - set(kept["label"]))
    if lost:
        raise WinnowError(
            f"curation leaves no training image of {', '.join(lost)}: raise curate.min_per_class, "
            "or decide about them in data/reviews.csv"
        )


def review_queue(
    samples: pd.DataFrame, issues: pd.DataFrame, ledger: pd.DataFrame, conflicts: pd.DataFrame
) -> pd.DataFrame:
    """What nobody has looked at: conflicting labels, then suspected label errors of every split.

    All tables but `conflicts` are in the same order. The least plausible labels come first; of
    conflicts one label at least is wrong.
    """
    conflicting = issues["sample_id"].isin(conflicts["sample_id"]).to_numpy()
    suspected = conflicting | issues["is_label_issue"].to_numpy(bool)
    open_ = suspected & (ledger["decided_by"] != "reviewer").to_numpy()
    columns = ["sample_id", "split", "given_label", "suggested_label", "suggested_score", "label_score"]
    queue = issues.loc[open_, columns].assign(
        action=ledger.loc[open_, "action"].to_numpy(),
        reason=ledger.loc[open_, "reason"].to_numpy(),
        source=samples.loc[open_, "source"].to_numpy(),
        first=~conflicting[open_],
    )
    queue = queue.sort_values(["first", "label_score", "sample_id"])
    return queue.drop(columns="first").round(4)


def _draw(base: Dataset, ledger: pd.DataFrame, folder: Path) -> None:
    from stages.reporting.figures import image_grid

    changed = ledger[ledger["action"].isin(["drop", "relabel"]) & (ledger["split"] == "train")]
    changed = changed.sort_values(["score", "sample_id"]).head(_GALLERY)
    changed = changed.assign(given_label=changed["given_label"].fillna("no label"))
    titles = [
        f"{row.given_label} → {row.label}" if row.action == "relabel" else f"{row.given_label} dropped"
        for row in changed.itertuples()
    ]
    rows = base.samples.loc[changed.index, "row"].to_numpy()
    image_grid(base.images[rows], titles, folder / "changes.png", columns=8)


if __name__ == "__main__":
    main()
