"""Stages `train` and `baseline`: the same training on the treated and on the untreated split."""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd

from stages.choices import model_spec, training_recipe
from stages.dataset import (
    AUGMENTED,
    INGESTED,
    MODELS,
    REPORTS,
    Dataset,
    View,
    new_folder,
    read_dataset,
    read_ledger,
    split_view,
    training_view,
    write_json,
)
from stages.dataset import SYNTHETIC as SYNTHETIC_DELTA
from stages.learning.loop import Fit, fit
from stages.learning.models import build_model
from stages.learning.recipe import steps_per_epoch
from stages.learning.store import save_model
from stages.learning.weighting import cap_made
from stages.params import Params
from stages.params import Train as TrainParams
from stages.runtime import stage
from stages.tracking import StageRun


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--view",
        choices=("treated", "raw"),
        default="treated",
        help="raw: the untreated training split, by plain cross-entropy without class weights, with as many "
        "steps as train and finetune together; writes models/baseline (default: treated, which writes "
        "models/train)",
    )


@stage("train", _arguments, named=lambda options: "baseline" if options.view == "raw" else "train")
def main(params: Params, run: StageRun, options: argparse.Namespace) -> None:
    """Train a classifier on the training view: base, ledger and deltas.

    Reads data/ingested, data/curated, data/augmented and data/synthetic; writes models/train and
    reports/train. With --view raw it reads data/ingested alone and writes models/baseline.
    """
    base = read_dataset(INGESTED)
    choices, epochs = params.train, params.train.epochs
    scaled: dict[str, float] | None = None
    if options.view == "raw":
        name, data, val = "baseline", split_view(base, "train"), split_view(base, "val")
        # As many steps as the treated model gets altogether: treatments may not win by longer training.
        epochs += params.finetune.head_epochs + params.finetune.epochs
        choices = _plain(choices)
    else:
        ledger = read_ledger()
        name, val = "train", split_view(base, "val", ledger)
        data, scaled = _treated(base, ledger, choices)
    result = train(data, val, base, choices, params, epochs=epochs, name=name)
    summary: dict[str, object] = {
        "images": len(data),
        "images_by_class": dict(zip(base.classes, data.class_counts.tolist(), strict=True)),
        "epochs": epochs,
        "steps": epochs * _epoch(base, choices),
        "kept_epoch": result.best_epoch,
        "precision": result.precision,
        "device": result.device,
    }
    if scaled is not None:
        summary["made_scaled"] = {label: round(factor, 4) for label, factor in scaled.items()}
    with new_folder(MODELS / name) as folder:
        save_model(folder, result.model)
    with new_folder(REPORTS / name) as folder:
        pd.DataFrame(result.history).to_csv(folder / "history.csv", index=False, float_format="%.6g")
        write_json(folder / "summary.json", summary)
    run.log_history(result.history)
    run.log_metrics({"kept_epoch": result.best_epoch, "images": len(data)})
    run.log_artifacts(REPORTS / name)
    run.log_model(MODELS / name, base.images[:2])
    print(
        f"{name}: {len(data)} images, {summary['steps']} steps on {result.device} in {result.precision}; "
        f"kept epoch {result.best_epoch} of {epochs}"
    )


def train(
    data: View,
    val: View,
    base: Dataset,
    choices: TrainParams,
    params: Params,
    *,
    epochs: int,
    name: str,
) -> Fit:
    """Train a fresh model on `data`, with `val` choosing the epoch that is kept."""
    model = build_model(model_spec(params, data.images, data.classes), seed=params.seed)
    recipe = training_recipe(choices, epochs=epochs, steps_per_epoch=_epoch(base, choices))
    return fit(model, data, recipe, seed=params.seed, val=val, device=params.device, description=name)


def _treated(base: Dataset, ledger: pd.DataFrame, choices: TrainParams) -> tuple[View, dict[str, float]]:
    """The training view with its deltas, and by class what `max_made` scaled made samples by."""
    deltas = []
    if choices.use_augmented:
        deltas.append(read_dataset(AUGMENTED))
    if choices.use_synthetic:
        deltas.append(read_dataset(SYNTHETIC_DELTA))
    data = training_view(base, ledger, deltas)
    made = np.arange(len(data)) >= len(data) - sum(len(delta.samples) for delta in deltas)
    data, scaled = cap_made(data, made, choices.max_made)
    for label, factor in scaled.items():
        print(
            f"train: made samples of {label} scaled by {factor:.3g}: together they would weigh more than "
            f"max_made = {choices.max_made:g} times the real ones"
        )
    return data, scaled


def _plain(choices: TrainParams) -> TrainParams:
    """The section without what treats wrong labels and skewed classes: those are treatments too."""
    return choices.model_copy(
        update={"loss": "cross_entropy", "class_weighting": "none", "deferred": 0.0, "sampling": "shuffle"}
    )


def _epoch(base: Dataset, choices: TrainParams) -> int:
    return steps_per_epoch(int((base.samples["split"] == "train").sum()), choices.batch_size)


if __name__ == "__main__":
    main()
