"""Transformed copies for the rare classes, by a policy of albumentations' transforms."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages import dataset
from stages.dataset import Dataset, View
from stages.params import Params
from stages.runtime import stage
from stages.synthesis.augmentation import METHOD, Policy, augment_copies
from stages.synthesis.delta import build_delta
from stages.synthesis.figures import Line, save_montage
from stages.synthesis.targets import Target, quotas, target_size
from stages.tracking import StageRun

REPORT = dataset.REPORTS / "augment"
_ORIGINALS, _COPIES = 4, 10  # shown of each class


def augment(
    base: Dataset,
    ledger: pd.DataFrame,
    policy: Policy,
    *,
    target: Target,
    max_factor: float,
    weight: float,
    seed: int,
) -> Dataset:
    """The delta of transformed copies; empty where the policy is, or no class needs any.

    A copy weighs `weight` times what source and ledger give its parent.

    Raises
    ------
    WinnowError
        For a policy that is not one of albumentations', or does not fit the images.
    """
    real = dataset.split_view(base, "train", ledger)
    quota = quotas(real.class_counts, target, max_factor)
    if not policy or not quota.any():
        return dataset.empty_delta(base)
    ids = [str(name) for name in real.sample_ids]
    copies, parents, copy_ids = augment_copies(real.images, real.labels, ids, quota, policy, seed)
    return build_delta(
        base,
        copies,
        real.labels[parents],
        [ids[parent] for parent in parents],
        [METHOD] * len(copies),
        weight * real.weights[parents].astype(np.float64),
        copy_ids,
    )


def class_table(real: View, delta: Dataset, column: str) -> pd.DataFrame:
    """Images of each class: `class`, `real`, and the delta's under `column`."""
    made = delta.samples["label"].value_counts().reindex(real.classes, fill_value=0)
    return pd.DataFrame({"class": real.classes, "real": real.class_counts, column: made.to_numpy(np.int64)})


def save_preview(path: Path, real: View, delta: Dataset) -> None:
    """A line a class: originals, and copies of the same originals."""
    ids = {str(name): index for index, name in enumerate(real.sample_ids)}
    lines = []
    for name, rows in delta.samples.groupby("label", sort=False)["row"]:
        own = delta.samples.loc[rows.index]
        shown = list(dict.fromkeys(own["parent_id"]))[:_ORIGINALS]
        # in turn, so that every original shown has copies beside it
        own = own[own["parent_id"].isin(shown)]
        own = own.assign(turn=own.groupby("parent_id").cumcount()).sort_values("turn", kind="stable")
        originals = real.images[[ids[parent] for parent in shown]]
        lines.append(Line(str(name), [originals, delta.images[own["row"].to_numpy()[:_COPIES]]]))
    title = "Originals, and copies of them" if lines else "Nothing was augmented"
    save_montage(path, title, lines, [_ORIGINALS, _COPIES], ["originals", "copies"])


def _summary(table: pd.DataFrame, params: Params, target: int) -> Mapping[str, Any]:
    return {
        "target": target,
        "real": int(table["real"].sum()),
        "augmented": int(table["augmented"].sum()),
        "weight": params.augment.weight,
        "transforms": [transform.name for transform in params.augment.policy],
    }


@stage("augment")
def main(params: Params, run: StageRun, options: argparse.Namespace) -> None:
    """Make transformed copies of the curated training images of the rare classes."""
    base = dataset.read_dataset(dataset.INGESTED)
    ledger = dataset.read_ledger()
    section = params.augment
    delta = augment(
        base,
        ledger,
        [(transform.name, transform.args) for transform in section.policy],
        target=section.target,
        max_factor=section.max_factor,
        weight=section.weight,
        seed=params.seed,
    )
    real = dataset.split_view(base, "train", ledger)
    table = class_table(real, delta, "augmented")
    summary = _summary(table, params, target_size(real.class_counts, section.target))
    with dataset.new_folder(REPORT) as folder:
        table.to_csv(folder / "counts.csv", index=False)
        dataset.write_json(folder / "summary.json", summary)
        save_preview(folder / "preview.png", real, delta)
    with dataset.new_folder(dataset.AUGMENTED) as folder:
        dataset.write_dataset(folder, delta)
    print(f"augment: {summary['augmented']} copies beside {summary['real']} real images")
    run.log_metrics({"augmented": float(summary["augmented"]), "real": float(summary["real"])})
    run.log_artifacts(REPORT)


if __name__ == "__main__":
    main()
