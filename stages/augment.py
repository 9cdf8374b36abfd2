"""Stage `augment`: make transformed copies for the rare classes, by albumentations' transforms."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.augmentation.copying import METHOD, augment_copies, transformed
from stages.augmentation.presets import choose_policy, refuse_unfit
from stages.augmentation.survival import PolicyVerdict, check_survival, unchecked
from stages.augmentation.transforms import Policy, parts, validate_policy
from stages.dataset import base as dataset
from stages.dataset.base import Dataset, View
from stages.dataset.delta import ClassTarget, build_delta, quotas, target_sizes
from stages.dataset.files import new_folder, write_json, write_table
from stages.dataset.ids import derived_id
from stages.errors import WinnowError
from stages.workflow.params import Params
from stages.workflow.runs import StageRun
from stages.workflow.schema import Augment
from stages.workflow.stage import stage

REPORT = dataset.REPORTS / "augment"
_TRANSFORMED = 8  # originals that each transform is shown on
_FOLDS = 2  # models that are asked whether labels survive


def augment(
    base: Dataset,
    ledger: pd.DataFrame,
    policy: Policy,
    quota: NDArray[np.int64],
    *,
    weight: float,
    seed: int,
    description: str = "",
) -> Dataset:
    """Make the delta of transformed copies; an empty one where the policy is empty or no class needs any.

    A copy weighs `weight` times what source and ledger give its parent.

    Parameters
    ----------
    base, ledger : the real images, and what was decided about them
    policy : (albumentations' name, arguments) of each transform
    quota : int64, K; copies of each class
    weight, seed : of the copies
    description : stands before the progress bar; empty for none

    Raises
    ------
    WinnowError
        For a policy that is not one of albumentations', or does not fit the images.
    """
    real = dataset.split_view(base, "train", ledger)
    if not policy or not quota.any():
        return dataset.empty_delta(base)
    ids = [str(name) for name in real.sample_ids]
    copies, parents, copy_ids = augment_copies(
        real.images, real.labels, ids, quota, policy, seed, description=description
    )
    return build_delta(
        base,
        copies,
        real.labels[parents],
        [ids[parent] for parent in parents],
        [METHOD] * len(copies),
        weight * real.weights[parents].astype(np.float64),
        copy_ids,
    )


def examine(
    real: View, quota: NDArray[np.int64], params: Params, groups: NDArray[np.object_] | None = None
) -> PolicyVerdict:
    """Check the policy, and whether a model still recognises the images after it.

    Parameters
    ----------
    real : the curated real training images
    quota : int64, K; copies wanted of each class
    params : the whole of `params.yaml`
    groups : N names; images of one name stay together in the cross-fitting of the judge

    Raises
    ------
    WinnowError
        For a policy that does not fit the images or the preset, or, where `augment.destroying` is
        `stop`, one that labels do not survive or that could not be checked; as `judge.train_judge`.
    """
    section = params.augment
    policy, key = policy_of(section)
    height, width, channels = (int(side) for side in real.images.shape[1:])
    validate_policy(policy, (height, width, channels), key)
    refuse_unfit(section.preset, policy, min(height, width), key)
    if not policy or not quota.any() or section.min_recognised == 0.0:
        return unchecked(policy)
    if np.count_nonzero(real.class_counts) < 2:
        return unchecked(policy, "of a single class no model can be asked", section.destroying)
    units = len(real) if groups is None else len(np.unique(groups))
    if units < _FOLDS:
        kind = "images" if groups is None else "groups of images"
        why = f"of {units} real training {kind} none can be kept from a model that is asked about it"
        return unchecked(policy, why, section.destroying)
    from stages.learning.judge import train_judge

    judge = train_judge(
        real,
        folds=_FOLDS,
        groups=groups,
        seed=params.seed,
        device=params.device,
        description="augment: judge",
    )
    verdict = check_survival(
        real,
        policy,
        judge,
        copied=quota > 0,
        min_recognised=section.min_recognised,
        destroying=section.destroying,
        seed=params.seed,
        key=key,
    )
    if not verdict.policy:
        verdict.warnings.append(
            f"no transform is left; {quota.sum()} copies that were asked for are not made"
        )
    return verdict


def policy_of(section: Augment) -> tuple[Policy, str]:
    """Return the policy of `params.yaml`, or of its preset, and its key there."""
    policy = None
    if section.policy is not None:
        policy = [(transform.name, transform.args) for transform in section.policy]
    return choose_policy(section.preset, policy)


def class_table(real: View, delta: Dataset, targets: NDArray[np.int64]) -> pd.DataFrame:
    """Count the images of each class: `class`, `real`, `target` and `augmented`."""
    copies = delta.samples["label"].value_counts().reindex(real.classes, fill_value=0)
    return pd.DataFrame(
        {
            "class": real.classes,
            "real": real.class_counts,
            "target": targets,
            "augmented": copies.to_numpy(np.int64),
        }
    )


def transformed_examples(
    real: View, section: Augment, verdict: PolicyVerdict, seed: int
) -> tuple[pd.DataFrame, NDArray[np.uint8]]:
    """Apply each transform by itself to some images, also those that were left out.

    Returns
    -------
    A row an image (`row`, `transform`, `decision`, and `sample_id` of the original), and the images,
    uint8 M×H×W×C.
    """
    decided = dict(zip(verdict.table["key"], verdict.table["decision"], strict=True))
    # The first images of as many classes as there is room for, of all where they are fewer.
    turn = pd.Series(real.labels).groupby(real.labels).cumcount().to_numpy()
    originals = np.lexsort((real.labels, turn))[:_TRANSFORMED]
    ids = [str(name) for name in real.sample_ids[originals]]
    rows, images = [], [real.images[:0]]
    for part in parts(*policy_of(section)) if ids else []:
        names = [derived_id(original, part.key, 0) for original in ids]
        images.append(transformed(real.images, originals, names, part.alone, seed, processes=1))
        rows += [(part.name, decided.get(part.key, "kept"), original) for original in ids]
    table = pd.DataFrame(rows, columns=["transform", "decision", "sample_id"]).astype("str")
    table.insert(0, "row", np.arange(len(rows)))
    return table, np.concatenate(images)


def _summary(table: pd.DataFrame, section: Augment, verdict: PolicyVerdict) -> Mapping[str, Any]:
    """Return the content of `summary.json`."""
    return {
        "preset": section.preset,
        "real": int(table["real"].sum()),
        "augmented": int(table["augmented"].sum()),
        "weight": section.weight,
        "transforms": [part.name for part in parts(verdict.policy)],
        "left_out": verdict.table.loc[verdict.table["decision"] == "left_out", "transform"].tolist(),
        "survival": verdict.share,
        "notes": verdict.warnings + verdict.notes,
    }


@stage("augment")
def main(params: Params, run: StageRun, options: argparse.Namespace) -> None:
    """Make transformed copies of the curated training images of the rare classes.

    Reads data/ingested and data/curated; writes data/augmented and reports/augment.
    """
    base = dataset.read_dataset(dataset.INGESTED)
    ledger = dataset.read_ledger()
    section = params.augment
    real = dataset.split_view(base, "train", ledger)
    default = ClassTarget(section.to, section.max_factor)
    per_class = {
        name: ClassTarget(target.to, target.max_factor) for name, target in section.per_class.items()
    }
    try:
        targets = target_sizes(real.class_counts, default, real.classes, per_class)
    except WinnowError as error:
        raise WinnowError(f"augment.{error}") from error
    quota = quotas(real.class_counts, default, real.classes, per_class)
    groups = base.samples.set_index("sample_id").loc[real.sample_ids, "group"].to_numpy(object)
    verdict = examine(real, quota, params, groups)
    for line in [f"WARNING: {warning}" for warning in verdict.warnings] + verdict.notes:
        print(f"augment: {line}", file=sys.stderr)
    delta = augment(
        base, ledger, verdict.policy, quota, weight=section.weight, seed=params.seed, description="augment"
    )
    table = class_table(real, delta, targets)
    summary = _summary(table, section, verdict)
    with new_folder(REPORT) as folder:
        table.to_csv(folder / "counts.csv", index=False)
        verdict.table.to_csv(folder / "survival.csv", index=False)
        write_json(folder / "summary.json", summary)
        examples, images = transformed_examples(real, section, verdict, params.seed)
        write_table(folder / "transformed.parquet", examples)
        np.save(folder / "transformed.npy", images)
    with new_folder(dataset.AUGMENTED) as folder:
        dataset.write_dataset(folder, delta)
    print(f"augment: {summary['augmented']} copies beside {summary['real']} real images")
    metrics = {"augmented": float(summary["augmented"]), "real": float(summary["real"])}
    run.log_metrics(metrics | ({} if verdict.share is None else {"survival": verdict.share}))
    run.log_artifacts(REPORT)


if __name__ == "__main__":
    main()
