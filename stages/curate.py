"""Stage `curate`: what is done about every sample, by whom, and why."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd

from stages.dataset import (
    CURATED,
    INGESTED,
    NOISE,
    REPORTS,
    REVIEWS,
    Dataset,
    new_folder,
    read_dataset,
    read_table,
    write_json,
    write_table,
)
from stages.errors import WinnowError
from stages.noise.policy import Policy, build_ledger, changes_by_class
from stages.params import Params
from stages.review.reviews import read_reviews
from stages.runtime import stage
from stages.tracking import StageRun

_GALLERY = 40


@stage("curate")
def main(params: Params, run: StageRun, options: argparse.Namespace) -> None:
    """Turn issues and data/reviews.csv into the ledger, by the policy in params.yaml.

    Reads data/ingested, data/noise and data/reviews.csv; writes data/curated/ledger.parquet and
    reports/curate.
    """
    base = read_dataset(INGESTED)
    issues = read_table(NOISE / "issues.parquet")
    reviews = read_reviews(REVIEWS, base.classes)
    ledger, unknown = build_ledger(base.samples, issues, Policy(**params.curate.model_dump()), reviews)
    check_classes_survive(ledger, base.classes)
    if unknown:
        print(
            f"curate: warning: {unknown} of {len(reviews)} reviews in {REVIEWS} are of samples that are "
            "not in the data; they were left out",
            file=sys.stderr,
        )
    changes = changes_by_class(ledger)
    actions = {name: int(changes[name].sum()) for name in ("keep", "relabel", "reweight", "drop")}
    summary = {"actions": actions, "reviews": len(reviews) - unknown, "reviews_of_unknown_samples": unknown}
    with new_folder(CURATED) as folder:
        write_table(folder / "ledger.parquet", ledger)
    with new_folder(REPORTS / "curate") as folder:
        write_json(folder / "summary.json", summary)
        changes.to_csv(folder / "changes.csv", index=False)
        queue = review_queue(base.samples, issues, ledger)
        queue.to_csv(folder / "review_queue.csv", index=False)
        _draw(base, ledger, folder)
    run.log_metrics({f"actions.{name}": count for name, count in actions.items()})
    run.log_artifacts(REPORTS / "curate")
    print("training split: " + ", ".join(f"{count} {name}" for name, count in actions.items()))
    print(
        f"{len(queue)} samples wait for review: {REPORTS / 'curate' / 'review_queue.csv'}, or `make review`"
    )


def check_classes_survive(ledger: pd.DataFrame, classes: list[str]) -> None:
    """Refuse a ledger that leaves a class without any training image."""
    kept = ledger[(ledger["split"] == "train") & (ledger["action"] != "drop")]
    lost = sorted(set(classes) - set(kept["label"]))
    if lost:
        raise WinnowError(
            f"curation leaves no training image of {', '.join(lost)}: raise curate.min_per_class, "
            "or decide about them in data/reviews.csv"
        )


def review_queue(samples: pd.DataFrame, issues: pd.DataFrame, ledger: pd.DataFrame) -> pd.DataFrame:
    """Suspected label errors of every split that nobody has looked at, the least plausible first."""
    open_ = (issues["is_label_issue"] & (ledger["decided_by"] != "reviewer")).to_numpy()
    columns = ["sample_id", "split", "given_label", "suggested_label", "suggested_score", "label_score"]
    queue = issues.loc[open_, columns].assign(
        action=ledger.loc[open_, "action"].to_numpy(), source=samples.loc[open_, "source"].to_numpy()
    )
    return queue.sort_values(["label_score", "sample_id"]).round(4)


def _draw(base: Dataset, ledger: pd.DataFrame, folder: Path) -> None:
    from stages.reporting.figures import image_grid

    changed = ledger[ledger["action"].isin(["drop", "relabel"]) & (ledger["split"] == "train")]
    changed = changed.sort_values(["score", "sample_id"]).head(_GALLERY)
    titles = [
        f"{row.given_label} → {row.label}" if row.action == "relabel" else f"{row.given_label} dropped"
        for row in changed.itertuples()
    ]
    rows = base.samples.loc[changed.index, "row"].to_numpy()
    image_grid(base.images[rows], titles, folder / "changes.png", columns=8)


if __name__ == "__main__":
    main()
