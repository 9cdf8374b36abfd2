"""Write the data card: what came in, on one page, `data_card.html`.

It needs nothing but itself, and forbids itself scripts and anything from elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.dataset.ids import SPLITS, hex_ids, number_of
from stages.errors import WinnowError
from stages.reporting import card_sections as sections
from stages.reporting.card_sections import THUMBNAIL, Card
from stages.reporting.figures import Line, save_montage, size_map
from stages.reporting.outputs import Outputs
from stages.reporting.rendering import label_text, png_uri, render_template

_EXAMPLES = 8  # images of each class
# What the summary of `ingest` has besides counts.
_SOURCE = ("source", "kind", "notes", "warnings")
_SETTINGS = ("image_size", "resize", "color", "val_share", "test_share")


def choose_examples(
    sample_id: NDArray[np.uint64],
    label: NDArray[np.int32],
    split: NDArray[np.int8],
    classes: Sequence[str],
    *,
    most_classes: int = 20,
    each: int = _EXAMPLES,
) -> pd.DataFrame:
    """Choose the samples that the card shows: of each class those with the smallest ids.

    Ids are hashes of the content, so the choice is as good as drawn at random and is always the same.
    Of more than `most_classes` classes the largest and the smallest are shown, half of each.

    Parameters
    ----------
    sample_id : N, in any order
    label : N, index into `classes`; -1 where there is none
    split : N, index into `ids.SPLITS`
    classes : names in index order
    most_classes, each : bounds; samples without a label come on top, `each` of them at most

    Returns
    -------
    `sample_id` (16 hex), `split`, `label` (None where there is none): the largest class first, the
    unlabelled last.
    """
    counts = np.bincount(label[label >= 0], minlength=len(classes))
    shown = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    if len(shown) > most_classes:
        smallest = most_classes // 2
        shown = np.concatenate([shown[: most_classes - smallest], shown[len(shown) - smallest :]])
    rows: list[tuple[str, str, str | None]] = []
    for code in [*shown.tolist(), -1]:
        members = np.flatnonzero(label == code)
        if len(members) > each:
            members = members[np.argpartition(sample_id[members], each)[:each]]
        members = members[np.argsort(sample_id[members])]
        name = None if code < 0 else classes[code]
        ids, codes = hex_ids(sample_id[members]), split[members].tolist()
        rows += [(key, SPLITS[at], name) for key, at in zip(ids, codes, strict=True)]
    return pd.DataFrame(rows, columns=["sample_id", "split", "label"], dtype=object)


def read_card(outputs: Outputs) -> Card:
    """Return what `ingest` wrote, as the card shows it.

    Raises
    ------
    WinnowError
        Where a table is not there or cannot be read, or another version wrote the summary.
    """
    samples, classes = outputs.base.samples, outputs.base.classes
    summary = outputs.content("ingest/summary.json")
    missing = [name for name in (*_SOURCE, *_SETTINGS) if name not in summary]
    if missing:
        raise WinnowError(
            f"reports/ingest/summary.json has no {missing[0]!r}: another version wrote it; run `dvc repro`"
        )
    tables = {
        name: outputs.table(f"ingest/{name}.parquet")
        for name in ("duplicates", "near_duplicates", "conflicts", "quarantine")
    }
    counts = outputs.table("ingest/class_counts.csv")
    unlabeled = int((samples["split"] == "unlabeled").sum())
    if unlabeled:
        row = pd.DataFrame({"class": [None], "split": ["unlabeled"], "count": [unlabeled]})
        counts = pd.concat([counts, row], ignore_index=True)
    sizes = samples.groupby(["width", "height"]).size().rename("count").reset_index()
    examples = choose_examples(
        np.array([number_of(key) for key in samples["sample_id"]], np.uint64),
        pd.Index(classes).get_indexer(samples["label"]).astype(np.int32),
        pd.Index(SPLITS).get_indexer(samples["split"]).astype(np.int8),
        classes,
    )
    return Card(
        summary=summary,
        counts=counts,
        sizes=sizes,
        channels=outputs.table("ingest/channels.csv"),
        examples=examples,
        read_images=outputs.images_of,
        **tables,
        **{name: summary[name] for name in (*_SOURCE, *_SETTINGS)},
    )


def render(card: Card) -> str:
    """Return the whole of `data_card.html`; the same card gives the same bytes."""
    context: dict[str, Any] = {
        "card": card,
        "thumbnail": THUMBNAIL,
        "accounting": sections.accounting(card),
        "classes": sections.classes(card),
        "splits": sections.splits(card),
        "examples": sections.examples(card),
        "sizes": sections.sizes(card),
        "chart": png_uri(size_chart(card)) if len(card.sizes) > 1 else "",
        "channels": sections.channels(card),
        "copies": sections.copies(card),
        "conflicts": sections.conflicts(card),
        "near": sections.near_duplicates(card),
        "quarantine": sections.quarantine(card),
    }
    return render_template("data_card.html.j2", context)


def write_card(folder: Path, card: Card) -> None:
    """Write `data_card.html`, and `samples.png` and `sizes.png` for those who show pictures only."""
    (folder / "data_card.html").write_text(render(card), "utf-8")
    (folder / "sizes.png").write_bytes(size_chart(card))
    images = card.images(card.examples["sample_id"].tolist())
    lines = [
        Line(label_text(name), [np.stack([images[key] for key in ids])])
        for name, group in card.examples.groupby("label", sort=False, dropna=False)
        if (ids := [key for key in group["sample_id"] if key in images])
    ]
    title = "Some images of each class" if lines else "There are no samples"
    save_montage(folder / "samples.png", title, lines, [_EXAMPLES], [""])


def size_chart(card: Card) -> bytes:
    """Return `figures.size_map` of the native sizes, a PNG."""
    width, height, count = (card.sizes[name].to_numpy(np.int64) for name in ("width", "height", "count"))
    return size_map(width, height, count, card.image_size)
