"""Stage `finetune`: a backbone is carried over to the real curated images, classes balanced."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pandas as pd

from stages.dataset import (
    INGESTED,
    MODELS,
    REPORTS,
    View,
    new_folder,
    read_dataset,
    read_ledger,
    split_view,
    write_json,
)
from stages.learning.loading.statistics import pixel_statistics
from stages.learning.loop import Fit, fit, history_rows
from stages.learning.models import Classifier, ModelSpec
from stages.learning.recipe import Recipe, steps_per_epoch
from stages.learning.store import save_model
from stages.learning.transfer.sources import backbone_from, pretrained_from_torchvision
from stages.params import Params
from stages.runtime import stage
from stages.tracking import StageRun


@stage("finetune")
def main(params: Params, run: StageRun, options: argparse.Namespace) -> None:
    """Fine-tune a backbone on the real curated images: head first, then all at a lower rate.

    The backbone comes from finetune.backbone (a model's folder or a file of weights), or is
    finetune.pretrained from torchvision. Reads data/ingested and data/curated; writes
    models/finetune and reports/finetune.
    """
    base = read_dataset(INGESTED)
    ledger = read_ledger()
    data, val = split_view(base, "train", ledger), split_view(base, "val", ledger)
    mean, std = pixel_statistics(data.images)
    spec = ModelSpec(params.train.model, base.classes, base.image_shape, mean, std)
    if params.finetune.pretrained is not None:
        model, origin = pretrained_from_torchvision(params.finetune.pretrained, spec, seed=params.seed)
    else:
        source = Path(params.finetune.backbone)
        model, origin = backbone_from(
            source, spec, architecture=params.finetune.architecture, seed=params.seed
        )
    epoch = steps_per_epoch(int((base.samples["split"] == "train").sum()), params.train.batch_size)
    phases = finetune(model, data, val, params, epoch)
    history = history_rows(phases)
    with new_folder(MODELS / "finetune") as folder:
        save_model(folder, phases[-1].model)
    summary = {
        "backbone": origin,
        "images": len(data),
        "steps": len(history) * epoch,
        "kept_epochs": [phase.best_epoch for phase in phases],
        "precision": phases[-1].precision,
        "device": phases[-1].device,
    }
    with new_folder(REPORTS / "finetune") as folder:
        pd.DataFrame(history).to_csv(folder / "history.csv", index=False, float_format="%.6g")
        write_json(folder / "summary.json", summary)
    run.log_history(history)
    run.log_metrics({"images": len(data)})
    run.log_artifacts(REPORTS / "finetune")
    run.log_model(MODELS / "finetune", base.images[:2])
    print(f"finetune: {origin}, {len(data)} real images, {summary['steps']} steps, classes balanced")


def finetune(model: Classifier, data: View, val: View, params: Params, epoch: int) -> list[Fit]:
    """The head alone with the backbone frozen, then both with the backbone at its lower rate.

    `epoch` is in steps. Linear probing first keeps a fresh head's gradients from spoiling the
    features (Kumar et al., arXiv 2202.10054).
    """
    choices = params.finetune
    head = Recipe(
        epochs=choices.head_epochs,
        steps_per_epoch=epoch,
        batch_size=params.train.batch_size,
        learning_rate=choices.learning_rate,
        weight_decay=params.train.weight_decay,
        label_smoothing=params.train.label_smoothing,
        backbone_lr_factor=0.0,
        sampling="balanced",
        shift=params.train.shift,
        flip=params.train.flip,
        precision=params.train.precision,
        early_stopping=params.train.early_stopping,
    )
    both = replace(head, epochs=choices.epochs, backbone_lr_factor=choices.backbone_lr_factor)
    phases: list[Fit] = []
    for name, recipe in (("head", head), ("head and backbone", both)):
        if recipe.epochs:
            seed = (params.seed + len(phases) + 1) % 2**32
            phases.append(
                fit(model, data, recipe, seed=seed, val=val, device=params.device, description=name)
            )
    return phases


if __name__ == "__main__":
    main()
