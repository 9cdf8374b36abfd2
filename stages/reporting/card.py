"""The data card: what came in, on one page, `data_card.html`.

It needs nothing but itself. Names of classes and files come from strangers: the template escapes all
it is given, and the page forbids itself scripts and anything from elsewhere.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.ids import SPLITS, hex_ids
from stages.reporting import card_sections as sections
from stages.reporting import sheets
from stages.reporting.pages import render_template

THUMBNAIL = 72  # pixels a side that a picture takes in the page


@dataclass(frozen=True)
class Card:
    """Everything that the page tells; tables may be empty, but have their columns.

    Attributes
    ----------
    source : as the user named it
    kind : what it was read as, a few words
    notes, warnings : a line each
    summary : content of `summary.json`; a count that is missing is left out of the page.
        `files` (met in the source), `splits_brought_by_source`, `splits_frozen`,
        `splits_frozen_absent`, `splits_frozen_overruled`, `conflicts`, `near_duplicate_sets`,
        `near_duplicates`, `left_out`, `groups` (of more than one image), `planted`
    counts : `class` (None where there is no label), `split`, `count`; in index order of the classes
    sizes : `width`, `height` (native, pixels), `count`; a row for each size
    channels : `split`, `channel`, `mean`, `std` (0 to 255, over the squares as stored)
    duplicates : `sample_id`, `source`, `label`, `split`, `kept_id`, `kept_source`; a row for each copy
        that was collapsed into another
    near_duplicates : `sample_id`, `source`, `label`, `split`, `set`, `nearest_id`, `similarity`,
        `outcome`
    conflicts : `sample_id`, `label`, `source`; a row for each file that claimed a label
    quarantine : `path`, `reason`, `detail`
    examples : of `choose_examples`
    picture : stored squares by `sample_id`, uint8 n×S×S×C; a KeyError where one is not in the base
    image_size : side of the stored squares, pixels
    resize, color : how they were made
    val_share, test_share : wanted of what there is to deal, 0 to 1; None where it is not known
    """

    source: str
    kind: str
    notes: Sequence[str]
    warnings: Sequence[str]
    summary: Mapping[str, Any]
    counts: pd.DataFrame
    sizes: pd.DataFrame
    channels: pd.DataFrame
    duplicates: pd.DataFrame
    near_duplicates: pd.DataFrame
    conflicts: pd.DataFrame
    quarantine: pd.DataFrame
    examples: pd.DataFrame
    picture: Callable[[Sequence[str]], NDArray[np.uint8]]
    image_size: int
    resize: Literal["crop", "pad", "stretch"]
    color: Literal["grey", "rgb"]
    val_share: float | None = None
    test_share: float | None = None

    def images(self, sample_ids: Sequence[str]) -> dict[str, NDArray[np.uint8]]:
        """Those of the images that there are, by id."""
        wanted = list(dict.fromkeys(sample_ids))
        if not wanted:
            return {}
        try:
            return dict(zip(wanted, self.picture(wanted), strict=True))
        except KeyError:
            if len(wanted) == 1:
                return {}
        return {key: image for one in wanted for key, image in self.images([one]).items()}

    def thumbnails(self, sample_ids: Sequence[str]) -> dict[str, str]:
        """The same as addresses that hold their PNG."""
        return {
            key: inline(sheets.thumbnail_png(image, THUMBNAIL))
            for key, image in self.images(sample_ids).items()
        }


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


def inline(png: bytes) -> str:
    """The address of a picture that holds the picture."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
