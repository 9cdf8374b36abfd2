"""Draw what `augment` and `synthesize` made: copies, transforms, synthetic and refused images, the GAN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from stages.reporting.figures import Line, save_montage
from stages.reporting.outputs import Outputs
from stages.reporting.synthesis import REFUSED

_ORIGINALS, _COPIES = 4, 10  # shown of each class
_SHOWN = 8  # images of each class and kind


def copies_preview(outputs: Outputs, path: Path) -> None:
    """Write a line a class: original images, and augmented copies of the same ones."""
    delta = outputs.augmented
    lines = []
    for name, rows in delta.samples.groupby("label", sort=False)["row"]:
        copies = delta.samples.loc[rows.index]
        originals = list(dict.fromkeys(copies["parent_id"]))[:_ORIGINALS]
        # In turn, so that every original shown has copies next to it.
        copies = copies[copies["parent_id"].isin(originals)]
        copies = copies.assign(turn=copies.groupby("parent_id").cumcount()).sort_values("turn", kind="stable")
        shown = delta.images[copies["row"].to_numpy()[:_COPIES]]
        lines.append(Line(str(name), [outputs.images_of(originals), shown]))
    title = "Originals, and copies of them" if lines else "Nothing was augmented"
    save_montage(path, title, lines, [_ORIGINALS, _COPIES], ["originals", "copies"])


def transforms_preview(outputs: Outputs, path: Path) -> None:
    """Write a line a transform, also for those left out: original images, and what it alone makes of them."""
    table = outputs.table("augment/transformed.parquet")
    lines = []
    if not table.empty:
        images = outputs.array("augment/transformed.npy")
        for (name, decision), rows in _groups(table, ["transform", "decision"]):
            left_out = " (left out)" if decision == "left_out" else ""
            blocks = [outputs.images_of(rows["sample_id"].tolist()), images[rows["row"].to_numpy()]]
            lines.append(Line(f"{name}{left_out}", blocks))
    columns = [len(lines[0].blocks[0])] * 2 if lines else [1, 1]
    title = "What each transform does by itself" if lines else "There is no transform"
    save_montage(path, title, lines, columns, ["originals", "transformed"])


def synthetic_preview(outputs: Outputs, path: Path) -> None:
    """Write a line a class that gained images: real, synthetic, and the nearest real image of each."""
    delta = outputs.synthetic
    real = _examples(outputs, "real")
    lines = []
    for name, quality in outputs.content("synthesize/quality.json").get("classes", {}).items():
        added = delta.samples[delta.samples["label"] == name].head(_SHOWN)
        if len(added):
            blocks = [
                outputs.images_of(real.loc[real["class"] == name, "sample_id"].tolist()),
                delta.images[added["row"].to_numpy()],
                outputs.images_of(added["parent_id"].tolist()),
            ]
            lines.append(Line(f"{name} ({quality['method']})", blocks))
    title = "Real and synthetic images" if lines else "Nothing was synthesised"
    save_montage(path, title, lines, [_SHOWN] * 3, ["real", "synthetic", "nearest real"])


def refused_preview(outputs: Outputs, path: Path) -> None:
    """Write a line a class and check of the gate that refused images: real, refused, and nearest real ones.

    No file is written where nothing was refused.
    """
    refused, real = _examples(outputs, "refused"), _examples(outputs, "real")
    lines = []
    for (name, check), rows in _groups(refused, ["class", "check"]):
        blocks = [
            outputs.images_of(real.loc[real["class"] == name, "sample_id"].tolist()),
            outputs.array("synthesize/examples.npy")[rows["row"].to_numpy()],
            outputs.images_of(rows["sample_id"].tolist()),
        ]
        lines.append(Line(f"{name}: {REFUSED.get(check, check)}", blocks))
    if lines:
        title = "Generated images that the gate refused, by class and reason"
        save_montage(path, title, lines, [_SHOWN] * 3, ["real", "refused", "nearest real"])


def gan_progress(outputs: Outputs, folder: Path) -> None:
    """Write `step_000800.png` for each step that the GAN was looked at: a line a class, the same latents.

    No folder is made where no GAN was trained.
    """
    progress = _examples(outputs, "progress")
    if progress.empty:
        return
    folder.mkdir()
    images = outputs.array("synthesize/examples.npy")
    asked = outputs.content("synthesize/quality.json")["gan"]["steps_asked"]
    for (step,), of_step in _groups(progress, ["step"]):
        lines = [
            Line(str(name), [images[rows["row"].to_numpy()]]) for (name,), rows in _groups(of_step, ["class"])
        ]
        title = f"The generator after {step} of {asked} steps"
        save_montage(folder / f"step_{step:06d}.png", title, lines, [len(lines[0].blocks[0])], [""])


def _examples(outputs: Outputs, kind: str) -> pd.DataFrame:
    """Return the rows of one kind of `synthesize/examples.parquet`."""
    table = outputs.table("synthesize/examples.parquet")
    return table[table["kind"] == kind]


def _groups(table: pd.DataFrame, columns: list[str]) -> list[tuple[tuple[Any, ...], pd.DataFrame]]:
    """Return the groups of rows in the order of the table, each with its values of `columns`."""
    return list(table.groupby(columns, sort=False)) if len(table) else []
