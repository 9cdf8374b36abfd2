"""Draw how the models do on the test split, and how they were trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.reporting import figures
from stages.reporting.outputs import Outputs
from stages.reporting.reports import MODELS


def confusion(outputs: Outputs, path: Path) -> None:
    """Write the confusion matrix of each model, rows the true class."""
    figures.confusion_matrices(_confusions(outputs), outputs.base.classes, path)


def recall(outputs: Outputs, path: Path) -> None:
    """Write the recall of each class as bars, one a model; no bar where a class has no test image."""
    recalls = {}
    for title, matrix in _confusions(outputs).items():
        images = matrix.sum(1)
        recalls[title] = np.where(images > 0, np.diag(matrix) / np.maximum(images, 1), np.nan)
    figures.class_bars(recalls, outputs.base.classes, path, y_label="recall", top=1.0)


def reliability(outputs: Outputs, path: Path) -> None:
    """Write the reliability diagram of each model, from `evaluate/reliability.csv`."""
    table = outputs.table("evaluate/reliability.csv")
    bins = {
        title: (
            rows["confidence"].to_numpy(float),
            rows["accuracy"].to_numpy(float),
            rows["images"].to_numpy(np.int64),
        )
        for name, title in MODELS.items()
        if len(rows := table[table["model"] == name])
    }
    figures.reliability_diagrams(bins, path)


def training_curves(outputs: Outputs, path: Path) -> None:
    """Write loss and accuracy of the models by epoch."""
    histories = {title: outputs.table(f"{name}/history.csv") for name, title in MODELS.items()}
    panels = {
        "training loss": "train_loss",
        "validation loss": "val_loss",
        "validation accuracy": "val_accuracy",
    }
    lines = {
        panel: {
            title: (rows["epoch"].to_numpy(float), rows[column].to_numpy(float))
            for title, rows in histories.items()
            if {"epoch", column} <= set(rows.columns)
        }
        for panel, column in panels.items()
    }
    figures.curves({panel: by_model for panel, by_model in lines.items() if by_model}, path)


def gan_curves(outputs: Outputs, path: Path) -> None:
    """Write the losses of generator and critic by step; no file where no GAN was trained."""
    history = outputs.table("synthesize/gan_history.csv").select_dtypes("number")
    if len(history) and len(history.columns) > 1:
        steps, *losses = history.columns
        x = history[steps].to_numpy(float)
        values = {str(name): (x, history[name].to_numpy(float)) for name in losses}
        figures.curves({"generator and critic": values}, path, x_label=str(steps))


def _confusions(outputs: Outputs) -> dict[str, NDArray[np.int64]]:
    """Return the confusion matrix of each model by its title; int64, K×K, rows the true class."""
    classes = pd.Index(outputs.base.classes)
    table = outputs.table("evaluate/predictions.csv")
    true = classes.get_indexer(pd.Index(table["label"]))
    size = len(classes)
    return {
        title: np.bincount(
            true * size + classes.get_indexer(pd.Index(table[name])), minlength=size * size
        ).reshape(size, size)
        for name, title in MODELS.items()
        if name in table
    }
