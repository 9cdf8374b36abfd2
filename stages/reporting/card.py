"""The data card: what came in, on one page, `data_card.html`.

It needs nothing but itself. Names of classes and files come from strangers: the template escapes all
it is given, and the page forbids itself scripts and anything from elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.dataset.ids import SPLITS, hex_ids
from stages.reporting import card_sections as sections
from stages.reporting import sheets
from stages.reporting.card_sections import THUMBNAIL, Card, inline
from stages.reporting.page import render_template


def choose_examples(
    sample_id: NDArray[np.uint64],
    label: NDArray[np.int32],
    split: NDArray[np.int8],
    classes: Sequence[str],
    *,
    most_classes: int = 20,
    each: int = 8,
) -> pd.DataFrame:
    """The samples that the card shows: of each class those with the smallest ids.

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
    there = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    if len(there) > most_classes:
        smallest = most_classes // 2
        there = np.concatenate([there[: most_classes - smallest], there[len(there) - smallest :]])
    rows: list[tuple[str, str, str | None]] = []
    for code in [*there.tolist(), -1]:
        members = np.flatnonzero(label == code)
        if len(members) > each:
            members = members[np.argpartition(sample_id[members], each)[:each]]
        members = members[np.argsort(sample_id[members])]
        name = None if code < 0 else classes[code]
        ids, codes = hex_ids(sample_id[members]), split[members].tolist()
        rows += [(key, SPLITS[of], name) for key, of in zip(ids, codes, strict=True)]
    return pd.DataFrame(rows, columns=["sample_id", "split", "label"], dtype=object)


def render(card: Card) -> str:
    """The whole of `data_card.html`; the same card gives the same bytes."""
    context: dict[str, Any] = {
        "card": card,
        "thumbnail": THUMBNAIL,
        "accounting": sections.accounting(card),
        "classes": sections.classes(card),
        "splits": sections.splits(card),
        "examples": sections.examples(card),
        "sizes": sections.sizes(card),
        "chart": inline(size_chart(card)) if len(card.sizes) > 1 else "",
        "channels": sections.channels(card),
        "copies": sections.copies(card),
        "conflicts": sections.conflicts(card),
        "near": sections.near_duplicates(card),
        "quarantine": sections.quarantine(card),
    }
    filters = {"count": sections.count_text, "percent": sections.percent_text, "cut": sections.cut}
    return render_template("data_card.html.j2", context, filters)


def write_card(folder: Path, card: Card) -> None:
    """Write `data_card.html`, and `samples.png` and `sizes.png` for those who show pictures only."""
    (folder / "data_card.html").write_text(render(card), "utf-8")
    (folder / "sizes.png").write_bytes(size_chart(card))
    (folder / "samples.png").write_bytes(sample_sheet(card))


def size_chart(card: Card) -> bytes:
    """`sheets.size_map` of the native sizes."""
    width, height, count = (card.sizes[name].to_numpy(np.int64) for name in ("width", "height", "count"))
    return sheets.size_map(width, height, count, card.image_size)


def sample_sheet(card: Card) -> bytes:
    """`sheets.image_rows` of the examples, a row a class."""
    shown = card.images(card.examples["sample_id"].tolist())
    rows = [
        (
            "no label" if pd.isna(name) else str(name),
            [shown[key] for key in group["sample_id"] if key in shown],
        )
        for name, group in card.examples.groupby("label", sort=False, dropna=False)
    ]
    return sheets.image_rows(rows, empty="no samples")
