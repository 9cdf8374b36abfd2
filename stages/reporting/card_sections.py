"""Turn a `Card` into what each section of the data card shows.

Tables may have a million rows: only what is shown is turned into Python objects.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.dataset.ids import SPLITS
from stages.reporting.figures import thumbnail
from stages.reporting.rendering import count_text, label_text, percent_text, png_uri

# What each reason of the quarantine (`errors.REASONS`) means, and what to do about it.
REASONS: dict[str, tuple[str, str]] = {
    "unreadable": (
        "The file system, the archive or the table did not give its bytes.",
        "Look at permissions, and whether the copy or download is complete.",
    ),
    "not_an_image": (
        "None of the image formats that are read, whatever its name says.",
        "Delete it, or convert it to JPEG or PNG.",
    ),
    "damaged": ("An image that is cut off or corrupt.", "Fetch it again from where it came, or delete it."),
    "too_large": (
        "More bytes or pixels than are opened.",
        "Reduce the image before it comes in, or delete it.",
    ),
    "unsupported_pixels": (
        "Pixel values without a known range, such as floating point.",
        "Save it with 8 or 16 bits a channel.",
    ),
    "outside_source": (
        "A link or path that leaves the source's folder.",
        "Put the file itself into the source.",
    ),
    "linked_folder": (
        "A link to a folder, which is not followed.",
        "Put the folder itself into the source.",
    ),
    "no_class_folder": (
        "Lies beside the class folders, not in one.",
        "Move it into its class's folder, or into unlabeled/.",
    ),
    "bad_name": (
        "A file name with control characters, such as a line break.",
        "Rename the file.",
    ),
    "bad_label": (
        "A class name that is blank, no plain text, or a path that climbs.",
        "Correct the name of the folder, or the label in the table.",
    ),
    "bad_row": (
        "A row of the table whose split, weight or number of columns cannot be right.",
        "Correct the row; the detail says which.",
    ),
    "conflicting_labels": (
        "The same pixels under two labels. One copy goes on, for a reviewer where no split decides.",
        "Decide in make review, or delete the file that is wrong.",
    ),
    "leakage": (
        "Near to, or in one group with, an image in validation or test: training on it would leak.",
        "Nothing, unless the source's own splits or groups are yours to change.",
    ),
    "bridges_splits": (
        "New, and near to images of two splits: it can be in neither.",
        "Nothing: images much like it are in the data already.",
    ),
}

_LARGEST, _SMALLEST = 20, 10  # classes shown where there are more than both together
_SIZES = 8  # sizes in the table
_SETS, _MEMBERS = 6, 8  # sets of duplicates, and pictures of each
_QUARANTINE_ROWS = 20
_ELONGATED = 2  # times as long as wide
THUMBNAIL = 72  # pixels a side that a picture takes in the page


def accounting(card: Card) -> dict[str, Any]:
    """Count the files that came in, and the table that each of them ends in; `missing` should be 0."""
    removed = sum(split.get("removed", 0) for split in (card.summary.get("planted") or {}).values())
    parts = [
        ("samples", _images(card), "samples.parquet"),
        ("exact duplicates collapsed", len(card.duplicates), "duplicates.parquet"),
        ("in quarantine", len(card.quarantine), "quarantine.parquet"),
    ]
    if removed:
        parts.append(("taken away by simulate", removed, "truth.parquet"))
    total = sum(number for _, number, _ in parts)
    files = int(card.summary.get("files", total))
    return {"files": files, "parts": parts, "missing": files - total, "images": _images(card)}


def classes(card: Card) -> dict[str, Any]:
    """List the classes, the largest first, with their bars; and how unbalanced the training split is."""
    known = card.counts.dropna(subset=["class"])
    by_class = known.pivot_table("count", "class", "split", aggfunc="sum", fill_value=0, sort=False)
    names = by_class.index.to_numpy(object)
    counts = by_class.reindex(columns=list(SPLITS), fill_value=0).to_numpy(np.int64)
    totals = counts.sum(1)
    order = np.argsort(-totals, kind="stable")
    left_out = max(0, len(order) - _LARGEST - _SMALLEST)
    shown = order if not left_out else np.concatenate([order[:_LARGEST], order[-_SMALLEST:]])
    largest = max(int(totals.max(initial=0)), 1)
    rows = [
        {
            "name": names[at],
            "counts": counts[at].tolist(),
            "bars": [round(100 * n / largest, 2) for n in counts[at].tolist()],
            "total": int(totals[at]),
        }
        for at in shown.tolist()
    ]
    return {
        "rows": rows,
        "number": len(order),
        "left_out": left_out,
        "cut_after": _LARGEST if left_out else None,
        "balance": _balance(names, counts[:, 0]),
        "unlabeled": _by_split(card)["unlabeled"],
    }


def splits(card: Card) -> dict[str, Any]:
    """List the splits: how many images each holds, and how it came about."""
    by_split = _by_split(card)
    brought = set(card.summary.get("splits_brought_by_source") or [])
    labelled = sum(by_split[name] for name in SPLITS[:3])
    to_deal = labelled - sum(by_split[name] for name in {"val", "test"} & brought)
    wanted = {"val": card.val_share, "test": card.test_share}
    rows = []
    for name in SPLITS:
        if not by_split[name] and name not in brought and not wanted.get(name):
            continue
        rows.append(
            {
                "name": name,
                "images": by_split[name],
                "share": by_split[name] / labelled if labelled and name != "unlabeled" else None,
                "how": _how(name, brought),
                "wanted": wanted.get(name) if name not in brought else None,
                "reached": by_split[name] / to_deal if to_deal else 0.0,
            }
        )
    return {
        "rows": rows,
        "to_deal": to_deal,
        "frozen": _frozen(card),
        "groups": card.summary.get("groups", 0),
    }


def examples(card: Card) -> list[dict[str, Any]]:
    """List the classes in the order given, each with its pictures."""
    shown = card.thumbnails(card.examples["sample_id"].tolist())
    rows = []
    for name, group in card.examples.groupby("label", sort=False, dropna=False):
        pictures = [
            {"data": shown[row.sample_id], "id": row.sample_id, "split": row.split}
            for row in group.itertuples()
            if row.sample_id in shown
        ]
        rows.append({"name": None if pd.isna(name) else name, "pictures": pictures})
    return rows


def sizes(card: Card) -> dict[str, Any]:
    """Describe the sizes: the commonest, their range, what resizing does; empty where nothing is known."""
    count = card.sizes["count"].to_numpy(np.int64)
    total = int(count.sum())
    if total == 0:
        return {}
    sides = card.sizes[["width", "height"]].to_numpy(np.int64)
    short, long = sides.min(1), sides.max(1)
    small = (long if card.resize == "pad" else short) < card.image_size
    facts = {
        "enlarged": int(count[small].sum()) / total,
        "elongated": int(count[long >= _ELONGATED * short].sum()) / total,
    }
    top = np.lexsort((sides[:, 1], sides[:, 0], -count))[:_SIZES]
    return {
        **facts,
        "number": len(count),
        "rows": [(*sides[at].tolist(), int(count[at]), int(count[at]) / total) for at in top.tolist()],
        "left_out": len(count) - len(top),
        "short": (int(short.min()), _median(short, count), int(short.max())),
        "hints": _size_hints(card, facts["enlarged"], facts["elongated"]),
    }


def channels(card: Card) -> dict[str, Any]:
    """Tabulate mean and deviation by split and channel, 0 to 255 and 0 to 1."""
    known = card.channels.dropna(subset=["mean"])
    rows: dict[str, dict[str, tuple[str, str]]] = {}
    for row in known.itertuples():
        texts = (f"{row.mean:.1f} ± {row.std:.1f}", f"{row.mean / 255:.4f} ± {row.std / 255:.4f}")
        rows.setdefault(row.split, {})[row.channel] = texts
    return {"names": list(dict.fromkeys(known["channel"])), "rows": rows}


def copies(card: Card) -> dict[str, Any]:
    """List the images with the most exact copies."""
    table = card.duplicates
    number = _value_counts(table["kept_id"])
    chosen = number.head(_SETS)
    rows = table[table["kept_id"].isin(chosen.index)]
    pictures = card.thumbnails(list(chosen.index))
    shown = []
    for kept_id, copies_of in chosen.items():
        group = rows[rows["kept_id"] == kept_id]
        sources = sorted(group["source"].astype(str))[:3]
        shown.append(
            {
                "picture": pictures.get(kept_id),
                "kept": group["kept_source"].iloc[0],
                "copies": int(copies_of),
                "sources": sources,
                "left_out": int(copies_of) - len(sources),
            }
        )
    return {
        "number": len(table),
        "originals": len(number),
        "rows": shown,
        "left_out": len(number) - len(shown),
    }


def conflicts(card: Card) -> dict[str, Any]:
    """List the images whose pixels stand under several labels, with the file that claims each."""
    table = card.conflicts
    ids = table["sample_id"].drop_duplicates()
    chosen = ids.head(_SETS)
    pictures = card.thumbnails(chosen.tolist())
    rows = table[table["sample_id"].isin(chosen)]
    shown = []
    for sample_id in chosen:
        group = rows[rows["sample_id"] == sample_id]
        claims = list(zip(group["label"].map(label_text), group["source"], strict=True))
        shown.append(
            {
                "picture": pictures.get(sample_id),
                "claims": claims[:_MEMBERS],
                "left_out": max(0, len(claims) - _MEMBERS),
            }
        )
    for_review = card.summary.get("conflicts_for_review", len(ids))
    return {
        "number": len(ids),
        "for_review": for_review,
        "settled": len(ids) - for_review,
        "rows": shown,
        "left_out": len(ids) - len(shown),
    }


def near_duplicates(card: Card) -> dict[str, Any]:
    """List sets with several labels, then the largest, and what was left out so that nothing leaks."""
    table = card.near_duplicates
    several = table.dropna(subset=["label"]).groupby("set")["label"].nunique()
    number = _value_counts(table["set"])
    mixed = number.index.isin(several.index[several > 1])
    number = pd.concat([number[mixed], number[~mixed]])
    chosen = number.head(_SETS)
    rows = table[table["set"].isin(chosen.index)].sort_values("sample_id")
    # The pictures of what was left out are not in the base; the others of its set show what it was.
    members = {key: rows[rows["set"] == key] for key in chosen.index}
    in_base = {key: group[group["outcome"] != "left_out"].head(_MEMBERS) for key, group in members.items()}
    pictures = card.thumbnails([sample_id for group in in_base.values() for sample_id in group["sample_id"]])
    return {
        "images": len(table),
        "sets": len(number),
        "several_labels": int((several > 1).sum()),
        "straddling": card.summary.get("near_duplicate_sets_in_several_splits", 0),
        "rows": [
            {
                "images": int(images),
                "labels": sorted({label_text(name) for name in members[key]["label"]}),
                "pictures": [
                    {"data": pictures[row.sample_id], "id": row.sample_id, "split": row.split}
                    for row in in_base[key].itertuples()
                    if row.sample_id in pictures
                ],
                "outcomes": sorted(members[key]["outcome"].value_counts().items()),
            }
            for key, images in chosen.items()
        ],
        "left_out": len(number) - len(chosen),
        "refused": _refused(card),
    }


def quarantine(card: Card) -> dict[str, Any]:
    """Count the files by reason, with what it means, and list the first."""
    table = card.quarantine
    rows = table.head(_QUARANTINE_ROWS)
    return {
        "number": len(table),
        "reasons": [
            {"reason": reason, "number": int(number), "meaning": meaning, "remedy": remedy}
            for reason, number in _value_counts(table["reason"]).items()
            for meaning, remedy in [REASONS.get(str(reason), ("", ""))]
        ],
        "rows": list(zip(rows["path"], rows["reason"], rows["detail"], strict=True)),
        "left_out": len(table) - len(rows),
    }


def _by_split(card: Card) -> dict[str, int]:
    """Return the images of each split, as the summary counts them, else as the table does."""
    given = card.summary.get("splits") or {}
    counted = card.counts.groupby("split")["count"].sum().to_dict()
    return {name: int(given.get(name, counted.get(name, 0))) for name in SPLITS}


def _images(card: Card) -> int:
    return int(card.summary.get("images", sum(_by_split(card).values())))


def _balance(names: NDArray[np.object_], train: NDArray[np.int64]) -> dict[str, Any] | None:
    """Compare the largest and the smallest class of the training split; None where there are not two."""
    present = np.flatnonzero(train)
    if len(present) < 2:
        return None
    most, least = present[train[present].argmax()], present[train[present].argmin()]
    return {
        "ratio": f"{train[most] / train[least]:.3g}",
        "even": bool(train[most] == train[least]),
        "most": (names[most], int(train[most])),
        "least": (names[least], int(train[least])),
    }


def _how(split: str, brought: set[str]) -> str:
    if split == "unlabeled":
        return "has no label: never trained or scored on, until a reviewer gives it one"
    if split == "train":
        return "as the source brings it" if {"val", "test"} <= brought else "what the other splits leave"
    return "as the source brings it" if split in brought else "dealt, class by class"


def _frozen(card: Card) -> list[str]:
    """Say what `data/splits.csv` did, a sentence each."""
    sentences = {
        "splits_frozen": "keep the split that data/splits.csv gives them.",
        "splits_frozen_absent": "rows of data/splits.csv are for samples that are not in the source.",
        "splits_frozen_overruled": "rows of data/splits.csv give way to the split that the source brings.",
    }
    return [
        f"{count_text(number)} {text}" for key, text in sentences.items() if (number := card.summary.get(key))
    ]


def _size_hints(card: Card, enlarged: float, elongated: float) -> list[str]:
    hints = []
    if enlarged > 0.5:
        hints.append(
            f"Most images have fewer pixels than image_size ({card.image_size}) and are enlarged, which adds "
            "none: a smaller image_size trains faster and loses nothing."
        )
    if elongated > 0.2 and card.resize == "crop":
        hints.append(
            f"{percent_text(elongated)} of the images are at least twice as long as wide, and cropping keeps "
            "half of them or less: with ingest.resize: pad nothing is cut off."
        )
    if elongated > 0.2 and card.resize == "stretch":
        hints.append(
            f"{percent_text(elongated)} of the images are at least twice as long as wide, and are squeezed "
            "into squares: with ingest.resize: pad they keep their shape."
        )
    return hints


def _median(values: NDArray[np.int64], count: NDArray[np.int64]) -> int:
    order = np.argsort(values)
    cumulated = np.cumsum(count[order])
    return int(values[order[np.searchsorted(cumulated, cumulated[-1] / 2)]])


def _value_counts(column: pd.Series) -> pd.Series:
    """Count how often each value is there: the commonest first, ties in the order of the values."""
    return column.value_counts().sort_index().sort_values(ascending=False, kind="stable")


def _refused(card: Card) -> dict[str, Any]:
    """List the first rows that were left out for their neighbours, each with the picture of its nearest."""
    table = card.quarantine[card.quarantine["reason"].isin(["leakage", "bridges_splits"])]
    rows, near = table.head(_SETS), card.near_duplicates
    matches = near[near["source"].isin(rows["path"])].drop_duplicates("source")
    nearest = dict(zip(matches["source"], matches["nearest_id"], strict=True))
    pictures = card.thumbnails([sample_id for sample_id in nearest.values() if pd.notna(sample_id)])
    shown = [
        {
            "picture": pictures.get(nearest.get(row.path, "")),
            "path": row.path,
            "reason": row.reason,
            "detail": row.detail,
        }
        for row in rows.itertuples()
    ]
    return {"number": len(table), "rows": shown, "left_out": len(table) - len(rows)}


@dataclass(frozen=True)
class Card:
    """What the data card shows; tables may be empty, but have their columns.

    Attributes
    ----------
    source : as the user named it
    kind : what it was read as, a few words
    notes, warnings : a sentence each
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
    read_images : stored squares by `sample_id`, uint8 n×S×S×C; a KeyError where one is not in the base
    image_size : side of the stored squares, pixels
    resize, color : how they were made
    val_share, test_share : wanted of the images without a given split, 0 to 1; None where it is not known
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
    read_images: Callable[[Sequence[str]], NDArray[np.uint8]]
    image_size: int
    resize: Literal["crop", "pad", "stretch"]
    color: Literal["grey", "rgb"]
    val_share: float | None = None
    test_share: float | None = None

    def images(self, sample_ids: Sequence[str]) -> dict[str, NDArray[np.uint8]]:
        """Return the images by id, without those that are not in the base."""
        wanted = list(dict.fromkeys(sample_ids))
        if not wanted:
            return {}
        try:
            return dict(zip(wanted, self.read_images(wanted), strict=True))
        except KeyError:
            if len(wanted) == 1:
                return {}
        return {key: image for sample_id in wanted for key, image in self.images([sample_id]).items()}

    def thumbnails(self, sample_ids: Sequence[str]) -> dict[str, str]:
        """Return the same as `data:` addresses of PNGs of at most `THUMBNAIL` pixels a side."""
        addresses = {}
        for key, image in self.images(sample_ids).items():
            stream = io.BytesIO()
            thumbnail(image, THUMBNAIL, enlarge=False).save(stream, format="PNG")
            addresses[key] = png_uri(stream.getvalue())
        return addresses
