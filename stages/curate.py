"""Stage `curate`: decide what is done about every sample, by whom, and why."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.curation.ledger import (
    FOR_REVIEW,
    build_ledger,
    changes_by_class,
    changes_by_reason,
    count_unlabeled,
    explain,
    suggest_claimed,
    summarise,
)
from stages.curation.policy import KindPolicy, Policy, check_kinds, rare_classes
from stages.curation.reviews import follow_copies, read_duplicates, read_reviews
from stages.dataset.base import (
    CURATED,
    INGESTED,
    NOISE,
    REPORTS,
    REVIEWS,
    Dataset,
    read_conflicts,
    read_dataset,
)
from stages.dataset.files import new_folder, read_array, read_table, write_json, write_table
from stages.dataset.issue_kinds import KINDS, PROTECTIONS
from stages.errors import WinnowError
from stages.workflow.params import Params
from stages.workflow.runs import StageRun
from stages.workflow.schema import Curate
from stages.workflow.stage import stage

_MAX_NAMED = 3  # of unknown samples, in a warning


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
    policy = read_policy(params.curate)
    ledger, unknown = build_ledger(base.samples, issues, policy, reviews, conflicts)
    check_classes_survive(ledger, base.classes)
    _warn_of_unknown(unknown, len(reviews))
    changes, reasons = changes_by_class(ledger), changes_by_reason(ledger)
    actions = {name: int(changes[name].sum()) for name in ("keep", "relabel", "reweight", "drop")}
    totals = summarise(reasons)
    unlabeled = count_unlabeled(base.samples, ledger)
    summary = {
        "actions": actions,
        **totals,
        "rare_classes": rare_classes(issues, policy.rare_below),
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
        reasons.to_csv(folder / "reasons.csv", index=False)
        suggested = suggest_claimed(issues, conflicts, pred_probs, base.classes)
        queue = review_queue(base.samples, suggested, ledger, conflicts)
        queue.to_csv(folder / "review_queue.csv", index=False)
    run.log_metrics({f"actions.{name}": count for name, count in actions.items()})
    run.log_metrics({f"protection.{name}": count for name, count in totals["protection"].items()})
    run.log_artifacts(REPORTS / "curate")
    print("training split: " + ", ".join(f"{count} {name}" for name, count in actions.items()))
    _print_review(totals["protection"], unlabeled, len(queue))


def _warn_of_unknown(unknown: list[str], reviews: int) -> None:
    """Warn of reviews of samples that are not in the data."""
    if unknown:
        more = f" and {len(unknown) - _MAX_NAMED} more" if len(unknown) > _MAX_NAMED else ""
        print(
            f"curate: warning: {len(unknown)} of {reviews} reviews in {REVIEWS} are of samples that "
            f"are not in the data ({', '.join(unknown[:_MAX_NAMED])}{more}); they were left out",
            file=sys.stderr,
        )


def _print_review(protection: Mapping[str, int], unlabeled: Mapping[str, int], waiting: int) -> None:
    """Print what is left for reviewers, and why."""
    for name, count in protection.items():
        if count:
            print(f"kept for review: {count}, because {PROTECTIONS[name]}")
    if unlabeled:
        print(
            f"unlabeled: {unlabeled['unlabeled']} samples, of which reviewers gave {unlabeled['labelled']} a "
            f"label and dropped {unlabeled['dropped']}; the others are not trained on"
        )
    print(f"{waiting} samples wait for review: {REPORTS / 'curate' / 'review_queue.csv'}, or `make review`")


def read_policy(section: Curate) -> Policy:
    """Turn the section `curate` of params.yaml into a policy."""
    settings = section.model_dump()
    return Policy(kinds={kind: KindPolicy(**settings.pop(kind)) for kind in KINDS}, **settings)


def read_noise(base: Dataset) -> tuple[pd.DataFrame, NDArray[np.floating]]:
    """Read the issues, and the probabilities (N×K), of the samples of `base`.

    Raises
    ------
    WinnowError
        Where they are of other samples, or of the same ones in another order, or where an older
        version wrote them.
    """
    issues = read_table(NOISE / "issues.parquet")
    pred_probs = read_array(NOISE / "pred_probs.npy", mapped=True)
    same = np.array_equal(issues["sample_id"], base.samples["sample_id"])
    if not same or pred_probs.shape != (len(base.samples), len(base.classes)):
        raise WinnowError("data/noise is of other data than data/ingested: run `dvc repro`")
    check_kinds(issues)
    return issues, pred_probs


def check_classes_survive(ledger: pd.DataFrame, classes: list[str]) -> None:
    """Refuse a ledger that leaves a class without any training image."""
    kept = ledger[(ledger["split"] == "train") & (ledger["action"] != "drop")]
    lost = sorted(set(classes) - set(kept["label"]))
    if lost:
        raise WinnowError(
            f"curation leaves no training image of {', '.join(lost)}: raise curate.min_per_class, "
            "or let decisions in data/reviews.csv keep some"
        )


def review_queue(
    samples: pd.DataFrame, issues: pd.DataFrame, ledger: pd.DataFrame, conflicts: pd.DataFrame
) -> pd.DataFrame:
    """List the suspects that nobody has looked at, the most pressing first.

    First what only a protection of its class kept from the policy, then conflicting labels, of which
    one at least is wrong, then suspected label errors of every split; of each the least plausible
    labels first. All tables but `conflicts` are in the same order.
    """
    conflicting = issues["sample_id"].isin(conflicts["sample_id"]).to_numpy()
    for_review = ledger["reason"].str.endswith(FOR_REVIEW).to_numpy(bool)
    suspected = conflicting | for_review | issues["is_label_issue"].to_numpy(bool)
    waiting = suspected & (ledger["decided_by"] != "reviewer").to_numpy()
    protected = (explain(ledger)["protection"] != "").to_numpy()
    columns = ["sample_id", "split", "given_label", "suggested_label", "suggested_score", "label_score"]
    queue = issues.loc[waiting, columns].assign(
        action=ledger.loc[waiting, "action"].to_numpy(),
        reason=ledger.loc[waiting, "reason"].to_numpy(),
        source=samples.loc[waiting, "source"].to_numpy(),
        turn=np.select([protected, conflicting], [0, 1], 2)[waiting],
    )
    queue = queue.sort_values(["turn", "label_score", "sample_id"])
    return queue.drop(columns="turn").round(4)


if __name__ == "__main__":
    main()
