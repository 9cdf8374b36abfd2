"""Fine-tune a backbone on the real curated images, with balanced classes: the stage `finetune`."""

from __future__ import annotations

import argparse
import hashlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.dataset.base import (
    INGESTED,
    MODELS,
    REPORTS,
    Dataset,
    View,
    read_dataset,
    read_ledger,
    split_view,
)
from stages.dataset.files import new_folder, write_json
from stages.errors import WinnowError
from stages.learning.adapting import Phase, adapt_batch_norm, phases, second_scores, transfer
from stages.learning.calibration import calibrate
from stages.learning.loop import Fit, history_rows
from stages.learning.models import Classifier, member_seed, members_of, model_spec
from stages.learning.names import LOSSES
from stages.learning.networks.layers import Layers, ModelSpec, Preprocessing
from stages.learning.networks.zoo import stages_of
from stages.learning.pretrained import backbone_from, pretrained_backbone
from stages.learning.recipe import Recipe, steps_per_epoch
from stages.learning.splitting import mean_history
from stages.learning.store import WEIGHTS, save_model
from stages.workflow.models import SCHEME, download_model
from stages.workflow.params import Params
from stages.workflow.runs import StageRun
from stages.workflow.stage import stage

CHECKPOINTS = Path(".winnow/finetune")


@stage("finetune")
def main(params: Params, run: StageRun, options: argparse.Namespace) -> None:
    """Carry a backbone over to the real curated images, in the phases of finetune.mode.

    The backbone comes from finetune.backbone (a model's folder or a file of weights), or is
    finetune.pretrained from torchvision, timm or MLflow's registry. Reads data/ingested and
    data/curated; writes models/finetune and reports/finetune.
    """
    base = read_dataset(INGESTED)
    ledger = read_ledger()
    data, val = split_view(base, "train", ledger), split_view(base, "val", ledger)
    model, origin = starting_model(params, _spec(params, data))
    epoch = steps_per_epoch(int((base.samples["split"] == "train").sum()), params.train.batch_size)
    rows = _unlabeled(base, ledger)
    adapted = params.finetune.adapt_batch_norm or params.finetune.coral > 0
    unlabeled = np.asarray(base.images[rows if adapted else rows[:0]])
    plan, results = finetune(model, data, val, params, epoch, unlabeled=unlabeled)
    calibration = calibrate(model, val, params.device)
    history = mean_history([history_rows(member) for member in results])
    summary = {
        **origin,
        "mode": params.finetune.mode,
        "images": len(data),
        "unlabeled_images": len(rows),
        "steps": len(history) * epoch,
        "phases": _described(plan, results),
        "kept_epochs": [result.best_epoch for member in results for result in member],
        "temperature": calibration.temperature,
        "wrong_validation_labels": calibration.wrong_labels,
        "precision": results[-1][-1].precision,
        "device": results[-1][-1].device,
    }
    if model.spec.second_classes:
        summary["second_head"] = second_scores(model, val, params.device)
    with new_folder(MODELS / "finetune") as folder:
        save_model(folder, model)
    with new_folder(REPORTS / "finetune") as folder:
        pd.DataFrame(history).to_csv(folder / "history.csv", index=False, float_format="%.6g")
        write_json(folder / "summary.json", summary)
    shutil.rmtree(CHECKPOINTS, ignore_errors=True)
    run.log_history(history)
    run.log_metrics({"images": len(data), "temperature": calibration.temperature})
    run.log_artifacts(REPORTS / "finetune")
    run.log_model(MODELS / "finetune", base.images[:2])
    print(
        f"finetune: {origin['backbone']}, {params.finetune.mode} on {len(data)} real images, "
        f"{summary['steps']} steps, classes balanced"
    )


def starting_model(params: Params, spec: ModelSpec) -> tuple[Classifier, dict[str, Any]]:
    """Build the model to adapt; also return, for the summary, where its backbone came from."""
    choices, seed = params.finetune, params.seed
    key = "backbone" if choices.pretrained is None else "pretrained"
    try:
        if choices.pretrained is None:
            source = Path(choices.backbone)
            model, origin = backbone_from(source, spec, architecture=choices.architecture, seed=seed)
        elif choices.pretrained.startswith(SCHEME):
            return _registered(choices.pretrained, spec, seed)
        else:
            model, origin = pretrained_backbone(choices.pretrained, spec, seed=seed)
    except WinnowError as error:
        raise WinnowError(f"finetune.{key}: {error}") from error
    return model, {"backbone": origin}


def _registered(uri: str, spec: ModelSpec, seed: int) -> tuple[Classifier, dict[str, Any]]:
    """Build the model around a registered one; DVC cannot watch a registry, so its version is noted."""
    with tempfile.TemporaryDirectory(prefix="winnow-finetune-") as folder:
        download = download_model(uri, Path(folder) / "model")
        model, origin = backbone_from(download.folder, spec, architecture=None, seed=seed)
        digest = hashlib.sha256((download.folder / WEIGHTS).read_bytes()).hexdigest()
    version = {"name": download.name, "version": download.version, "sha256": digest}
    with_head = " with its head" if origin.endswith(" with its head") else ""
    return model, {
        "backbone": f"{SCHEME}{download.name}/{download.version}{with_head}",
        "registered": version,
    }


def finetune(
    model: Classifier,
    data: View,
    val: View,
    params: Params,
    epoch: int,
    *,
    unlabeled: NDArray[np.uint8],
) -> tuple[list[Phase], list[list[Fit]]]:
    """Adapt `model` in place; return the phases, and for each member of an ensemble a result of each.

    Parameters
    ----------
    epoch : in steps
    unlabeled : uint8, M×H×W×C; images of the base without a label, for the adaptation to the domain; none
        where there is no such adaptation
    """
    choices, members = params.finetune, members_of(model)
    plan = phases(
        choices.mode,
        _recipe(params, epoch),
        head_epochs=choices.head_epochs,
        backbone_lr_factor=choices.backbone_lr_factor,
        layer_decay=choices.layer_decay,
        stages=len(stages_of(members[0].backbone)),
    )
    results = []
    domain = np.concatenate([data.images, unlabeled]) if len(unlabeled) else data.images
    for number, member in enumerate(members):
        if choices.adapt_batch_norm:
            adapt_batch_norm(member, domain, seed=params.seed, device=params.device)
        fits = transfer(
            member,
            data,
            plan,
            seed=member_seed(params.seed, number),
            val=val,
            device=params.device,
            description=f"member {number + 1}: " if len(members) > 1 else "",
            keep_in=CHECKPOINTS / f"member_{number}",
            unlabeled=unlabeled,
        )
        results.append(fits)
    return plan, results


def _recipe(params: Params, epoch: int) -> Recipe:
    """Take the recipe of `train`, with the section's changes and classes drawn equally often."""
    train, choices = params.train, params.finetune
    return Recipe.from_values(
        train.model_dump(),
        epochs=choices.epochs,
        steps_per_epoch=epoch,
        learning_rate=choices.learning_rate,
        # For skewed classes there is the sampling.
        loss=train.loss if LOSSES[train.loss].transfers else "cross_entropy",
        class_weighting="none",
        deferred=0.0,
        sampling="balanced",
        coral=choices.coral,
        second_weight=choices.second_weight,
    )


def _spec(params: Params, data: View) -> ModelSpec:
    return model_spec(
        params.train.model,
        data.images,
        data.classes,
        layers=Layers(**params.train.layers.model_dump()),
        members=params.train.ensemble.members,
        second_classes=data.second_classes if data.second_labels is not None else [],
        preprocessing=Preprocessing(params.ingest.resize, params.ingest.color),
    )


def _unlabeled(base: Dataset, ledger: pd.DataFrame) -> NDArray[np.int64]:
    """Return the rows of the base's images without a label that nobody dropped."""
    remaining = ledger[(ledger["split"] == "unlabeled") & (ledger["action"] != "drop")]
    chosen = base.samples["sample_id"].isin(remaining["sample_id"]).to_numpy(bool)
    return base.samples["row"].to_numpy(np.int64)[chosen]


def _described(plan: Sequence[Phase], results: Sequence[Sequence[Fit]]) -> list[Mapping[str, Any]]:
    return [
        {
            "phase": phase.name,
            "epochs": phase.recipe.epochs,
            "kept_epochs": [member[number].best_epoch for member in results],
            "features_computed_once": phase.on_features,
        }
        for number, phase in enumerate(plan)
    ]


if __name__ == "__main__":
    main()
