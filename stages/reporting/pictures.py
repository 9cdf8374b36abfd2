"""The table of all pictures: which stage each is of, what it shows, and the function that draws it.

A new picture is a function that takes `Outputs` and a path, and a line here: the stage `report` draws it,
and the page shows it under its caption, in this order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.reporting import curation, evaluation, noise, oversampling
from stages.reporting.outputs import Outputs


@dataclass(frozen=True)
class Drawing:
    """A picture that is drawn of a stage's outputs.

    Attributes
    ----------
    stage : whose outputs it shows
    name : of the file, or of the folder of files, under `reports/pages/<stage>/`
    caption : what the page says of it
    draw : writes it to a path; one without anything to show may write nothing
    """

    stage: str
    name: str
    caption: str
    draw: Callable[[Outputs, Path], None]


def _of_issues(
    gallery: Callable[[pd.DataFrame, NDArray[np.uint8], NDArray[np.int64], Path], None],
) -> Callable[[Outputs, Path], None]:
    """Return a gallery of the table of issues as `Drawing` takes it."""
    return lambda outputs, path: gallery(outputs.issues, outputs.base.images, outputs.rows, path)


DRAWINGS = (
    Drawing(
        "detect_noise",
        "label_errors.png",
        "The least plausible labels: given → suggested, and what the models think of each",
        _of_issues(noise.label_issue_gallery),
    ),
    Drawing(
        "detect_noise",
        "transition.png",
        "How labels were mixed up, as far as the suspects tell; grey is right",
        lambda outputs, path: noise.transition_heat_map(
            noise.transition_matrix(outputs.table("detect_noise/transition.csv"), outputs.base.classes),
            outputs.base.classes,
            path,
        ),
    ),
    Drawing(
        "detect_noise",
        "near_duplicates.png",
        "Near-duplicates: under two labels one of them is wrong, in two splits they leak",
        _of_issues(noise.near_duplicate_gallery),
    ),
    Drawing(
        "detect_noise",
        "outliers.png",
        "Images that are unlike all others",
        _of_issues(noise.outlier_gallery),
    ),
    Drawing(
        "detect_noise",
        "image_checks.png",
        "What the checks of single images found",
        _of_issues(noise.finding_gallery),
    ),
    Drawing(
        "curate",
        "class_balance.png",
        "Each class as given and as curated",
        lambda outputs, path: curation.class_balance(outputs.table("curate/changes.csv"), path),
    ),
    Drawing(
        "curate",
        "changes.png",
        "What was changed in the training split",
        lambda outputs, path: curation.change_gallery(
            outputs.ledger, outputs.base.images, outputs.rows, path
        ),
    ),
    Drawing(
        "augment",
        "transforms.png",
        "What each transform does by itself",
        oversampling.transforms_preview,
    ),
    Drawing("augment", "preview.png", "Augmented copies", oversampling.copies_preview),
    Drawing(
        "synthesize",
        "samples.png",
        "What was added, beside real images and the real one that is nearest",
        oversampling.synthetic_preview,
    ),
    Drawing("synthesize", "refused.png", "What the gate refused", oversampling.refused_preview),
    Drawing(
        "synthesize",
        "progress",
        "The generator's images of each class after the last step, from the same latents throughout",
        oversampling.gan_progress,
    ),
    Drawing("evaluate", "recall.png", "Recall of each class", evaluation.recall),
    Drawing(
        "evaluate",
        "confusion.png",
        "Confusion: rows are the true class, shaded by their share",
        evaluation.confusion,
    ),
    Drawing(
        "evaluate",
        "reliability.png",
        "Reliability: on the dashed line, confidence is accuracy",
        evaluation.reliability,
    ),
    Drawing(
        "evaluate",
        "curves.png",
        "Loss and accuracy by epoch; validation labels are as noisy as the training ones",
        evaluation.training_curves,
    ),
    Drawing("evaluate", "gan_curves.png", "The generator's training", evaluation.gan_curves),
)


def draw_all(stage: str, outputs: Outputs, folder: Path) -> None:
    """Draw every picture of a stage into `folder`, which is there."""
    for drawing in DRAWINGS:
        if drawing.stage == stage:
            drawing.draw(outputs, folder / drawing.name)


def caption_of(stage: str, name: str) -> str:
    """Return the caption of a picture, or of the folder that it is in; empty for an unknown one."""
    captions = {(drawing.stage, drawing.name): drawing.caption for drawing in DRAWINGS}
    return captions.get((stage, name.split("/", maxsplit=1)[0]), "")


def names_of(stage: str) -> list[str]:
    """Return the names of a stage's pictures in the order of the table."""
    return [drawing.name for drawing in DRAWINGS if drawing.stage == stage]
