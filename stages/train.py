"""Train a classifier: the stages `train`, on the treated split, and `baseline`, on the untreated one."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.dataset.base import (
    AUGMENTED,
    INGESTED,
    MODELS,
    REPORTS,
    Dataset,
    View,
    label_indices,
    read_dataset,
    read_ledger,
    split_view,
    training_view,
)
from stages.dataset.base import SYNTHETIC as SYNTHETIC_DELTA
from stages.dataset.files import new_folder, write_json
from stages.errors import WinnowError
from stages.learning.calibration import Calibration, calibrate
from stages.learning.loop import Fit, fit
from stages.learning.losses import cap_made
from stages.learning.metrics import fold_means, scores_of
from stages.learning.models import Ensemble, build_model, member_seed, model_spec
from stages.learning.names import Device
from stages.learning.networks.layers import Layers, ModelSpec, Preprocessing
from stages.learning.parallel import joined
from stages.learning.prediction import predict
from stages.learning.recipe import Recipe, steps_per_epoch
from stages.learning.splitting import Share, fold_shares, mean_history
from stages.learning.store import save_model
from stages.workflow.params import Params
from stages.workflow.runs import StageRun
from stages.workflow.schema import Train as TrainParams
from stages.workflow.stage import stage

TRANSITION = REPORTS / "detect_noise" / "transition.csv"
# Outside the outs, which DVC deletes before each run; ignored by git and DVC.
CHECKPOINTS = Path(".winnow/train")


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--view",
        choices=("treated", "raw"),
        default="treated",
        help="raw: the untreated training split, by plain cross-entropy without class weights, with as many "
        "steps as train and finetune together; writes models/baseline (default: treated, which writes "
        "models/train)",
    )


@stage(
    "train",
    _arguments,
    named=lambda options: "baseline" if options.view == "raw" else "train",
    devices=lambda params: params.train.devices,
)
def main(params: Params, run: StageRun, options: argparse.Namespace) -> None:
    """Train a classifier on the training view: base, ledger and deltas.

    Reads data/ingested, data/curated, data/augmented and data/synthetic; writes models/train and
    reports/train. With --view raw it reads data/ingested alone and writes models/baseline.
    """
    base = read_dataset(INGESTED)
    section, epochs = params.train, params.train.epochs
    deltas: list[Dataset] = []
    scaled: dict[str, float] | None = None
    if options.view == "raw":
        name, data, val = "baseline", split_view(base, "train"), split_view(base, "val")
        # As many steps as the treated model gets altogether: treatments may not win by longer training.
        epochs += params.finetune.head_epochs + params.finetune.epochs
        section = _plain(section)
    else:
        ledger, deltas = read_ledger(), _deltas(section)
        name, val = "train", split_view(base, "val", ledger)
        data, scaled = _treated(base, ledger, deltas, section)
    shares = _shares(data, base, deltas, section, params.seed)
    transition = read_transition(TRANSITION, base.classes) if section.loss == "forward_correction" else None
    recipe = Recipe.from_values(section.model_dump(), epochs=epochs, steps_per_epoch=_epoch(base, section))
    spec = model_spec(
        section.model,
        data.images,
        data.classes,
        layers=Layers(**section.layers.model_dump()),
        preprocessing=Preprocessing(params.ingest.resize, params.ingest.color),
    )
    with joined(params.device) as here:
        fits = train(shares, val, spec, recipe, params, name=name, transition=transition)
    if not here.is_main:
        return
    model = fits[0].model if len(fits) == 1 else Ensemble([result.model for result in fits])
    calibration = calibrate(model, val, params.device)
    history = mean_history([result.history for result in fits])
    summary = training_summary(data, recipe, fits, calibration)
    if scaled is not None:
        summary["made_scaled"] = {label: round(factor, 4) for label, factor in scaled.items()}
    folds = cross_validation(fits, shares, params.device)
    if len(folds):
        summary["cross_validation"] = fold_means(folds)
    with new_folder(MODELS / name) as folder:
        save_model(folder, model)
    with new_folder(REPORTS / name) as folder:
        pd.DataFrame(history).to_csv(folder / "history.csv", index=False, float_format="%.6g")
        if len(folds):
            folds.round(6).to_csv(folder / "cross_validation.csv", index=False)
        write_json(folder / "summary.json", summary)
    shutil.rmtree(CHECKPOINTS / name, ignore_errors=True)
    run.log_history(history)
    run.log_metrics({"images": len(data), "temperature": calibration.temperature} | _figures(summary))
    run.log_artifacts(REPORTS / name)
    run.log_model(MODELS / name, base.images[:2])
    print(outcome(name, summary))


def train(
    shares: Sequence[Share],
    val: View,
    spec: ModelSpec,
    recipe: Recipe,
    params: Params,
    *,
    name: str,
    transition: NDArray[np.float64] | None = None,
) -> list[Fit]:
    """Train a fresh network on each share, with `val` choosing the epoch that is kept."""
    fits = []
    for number, share in enumerate(shares):
        seed = member_seed(params.seed, number)
        fits.append(
            fit(
                build_model(spec, seed=seed),
                share.inside,
                recipe,
                seed=seed,
                val=val,
                device=params.device,
                description=name if len(shares) == 1 else f"{name} {number + 1}/{len(shares)}",
                keep_in=CHECKPOINTS / name / f"member_{number}",
                transition=transition,
            )
        )
    return fits


def training_summary(
    data: View, recipe: Recipe, fits: Sequence[Fit], calibration: Calibration
) -> dict[str, Any]:
    """Summarise the training; of an ensemble `kept_epoch` is a list, and the steps are each member's."""
    return {
        "images": len(data),
        "images_by_class": dict(zip(data.classes, data.class_counts.tolist(), strict=True)),
        "epochs": recipe.epochs,
        "steps": recipe.epochs * recipe.steps_per_epoch,
        "kept_epoch": [result.best_epoch for result in fits] if len(fits) > 1 else fits[0].best_epoch,
        "precision": fits[0].precision,
        "device": fits[0].device,
        "temperature": calibration.temperature,
        "wrong_validation_labels": calibration.wrong_labels,
    }


def cross_validation(fits: Sequence[Fit], shares: Sequence[Share], device: Device) -> pd.DataFrame:
    """Score each member on the fold that it left out: `fold`, `images`, and `FOLD_METRICS`."""
    rows = []
    for number, (result, share) in enumerate(zip(fits, shares, strict=True), start=1):
        if (outside := share.outside) is not None:
            probabilities, _ = predict(result.model, outside.images, device)
            rows.append({"fold": number, "images": len(outside)} | scores_of(outside.labels, probabilities))
    return pd.DataFrame(rows)


def read_transition(path: Path, classes: list[str]) -> NDArray[np.float64]:
    """Read how labels go wrong, as detect_noise estimated it: float64 K×K, rows the true class, sums of 1.

    Parameters
    ----------
    path : table of `true_label`, `given_label` and `probability`; what is not in it is 0, and a class
        without a row is taken to be given rightly
    classes : K names in index order

    Raises
    ------
    WinnowError
        Where the table is missing or empty, or knows other classes.
    """
    if not path.is_file():
        raise WinnowError(f"{path} is not there, and the loss forward_correction needs it: run `dvc repro`")
    table = pd.read_csv(path, dtype={"true_label": str, "given_label": str}, keep_default_na=False)
    if table.empty:
        raise WinnowError(
            f"{path} is empty: detect_noise could not say how labels go wrong, which the loss "
            "forward_correction needs; choose another train.loss, such as generalised_cross_entropy"
        )
    try:
        true, given = (label_indices(table[name], classes) for name in ("true_label", "given_label"))
    except ValueError as error:
        raise WinnowError(f"{path} knows other classes than {INGESTED} has: run `dvc repro`") from error
    matrix = np.zeros((len(classes), len(classes)))
    matrix[true, given] = table["probability"].to_numpy(np.float64)
    unknown = np.flatnonzero(matrix.sum(1) == 0)
    matrix[unknown, unknown] = 1.0
    return matrix / matrix.sum(1, keepdims=True)


def outcome(name: str, summary: Mapping[str, Any]) -> str:
    """Return the line that the stage prints at its end."""
    best = summary["kept_epoch"]
    members = f"{len(best)} networks, " if isinstance(best, list) else ""
    epochs = ", ".join(map(str, best)) if isinstance(best, list) else best
    line = (
        f"{name}: {summary['images']} images, {members}{summary['steps']} steps on {summary['device']} in "
        f"{summary['precision']}; kept epoch {epochs} of {summary['epochs']}"
    )
    if "cross_validation" in summary:
        score = summary["cross_validation"]["balanced_accuracy"]["value"]
        line += f"; balanced accuracy {score:.3f} over the folds that were left out"
    return line


def _figures(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of `summary` as MLflow takes them."""
    figures = {"kept_epoch": float(np.mean(summary["kept_epoch"]))}
    for metric, interval in summary.get("cross_validation", {}).items():
        figures |= {
            f"cross_validation.{metric}" + ("" if end == "value" else f".{end}"): value
            for end, value in interval.items()
        }
    return figures


def _shares(
    data: View, base: Dataset, deltas: Sequence[Dataset], section: TrainParams, seed: int
) -> list[Share]:
    """Return what each member trains on: all of `data`, or all but its fold."""
    members = section.ensemble.members
    if section.ensemble.over == "seeds":
        return [Share(data)] * members
    tables = [base.samples, *(delta.samples for delta in deltas)]
    groups = pd.concat([table.set_index("sample_id")["group"] for table in tables])
    return fold_shares(
        data,
        groups.loc[data.sample_ids].to_numpy(object),
        _from_deltas(data, deltas),
        members,
        seed,
        named="train.ensemble.members",
    )


def _deltas(section: TrainParams) -> list[Dataset]:
    folders = [(section.use_augmented, AUGMENTED), (section.use_synthetic, SYNTHETIC_DELTA)]
    return [read_dataset(folder) for used, folder in folders if used]


def _from_deltas(data: View, deltas: Sequence[Dataset]) -> NDArray[np.bool_]:
    """Mark the samples of deltas in the training view: they stand behind the real ones."""
    return np.arange(len(data)) >= len(data) - sum(len(delta.samples) for delta in deltas)


def _treated(
    base: Dataset, ledger: pd.DataFrame, deltas: Sequence[Dataset], section: TrainParams
) -> tuple[View, dict[str, float]]:
    """Return the training view with its deltas, and by class what `max_made` scaled their weights by."""
    data = training_view(base, ledger, deltas)
    data, scaled = cap_made(data, _from_deltas(data, deltas), section.max_made)
    for label, factor in scaled.items():
        print(
            f"train: made samples of {label} scaled by {factor:.3g}: together they would weigh more than "
            f"max_made = {section.max_made:g} times the real ones"
        )
    return data, scaled


def _plain(section: TrainParams) -> TrainParams:
    """Take from the section what treats wrong labels and skewed classes: those are treatments too.

    Network, optimiser and what keeps any network from overfitting (mixing, averages, ensembles) are the same.
    """
    return section.model_copy(
        update={"loss": "cross_entropy", "class_weighting": "none", "deferred": 0.0, "sampling": "shuffle"}
    )


def _epoch(base: Dataset, section: TrainParams) -> int:
    return steps_per_epoch(int((base.samples["split"] == "train").sum()), section.batch_size)


if __name__ == "__main__":
    main()
