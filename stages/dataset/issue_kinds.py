"""Name the kinds of issue that a sample can have, in words and as columns; light, for all rooms.

`dvc.yaml` counts it to those stages alone that find issues, act on them or show them.
"""

from __future__ import annotations

from typing import Literal, get_args

EmbeddingKind = Literal["outlier", "near_duplicate", "non_iid", "underperforming_group"]
PixelKind = Literal["dark", "light", "blurry", "low_information"]
ShapeKind = Literal["odd_size", "odd_aspect_ratio"]
OtherKind = Literal[EmbeddingKind, PixelKind, ShapeKind]
Kind = Literal["label_error", OtherKind]

EMBEDDING_KINDS: tuple[EmbeddingKind, ...] = get_args(EmbeddingKind)
PIXEL_KINDS: tuple[PixelKind, ...] = get_args(PixelKind)
SHAPE_KINDS: tuple[ShapeKind, ...] = get_args(ShapeKind)
OTHER_KINDS: tuple[OtherKind, ...] = get_args(OtherKind)  # in the order of their columns
KINDS: tuple[Kind, ...] = get_args(Kind)

NAMES: dict[str, str] = {
    "label_error": "label errors",
    "outlier": "outliers",
    "near_duplicate": "near-duplicates",
    "non_iid": "not in random order",
    "underperforming_group": "underperforming groups",
    "dark": "dark images",
    "light": "light images",
    "blurry": "blurry images",
    "low_information": "low-information images",
    "odd_size": "odd sizes",
    "odd_aspect_ratio": "odd aspect ratios",
}
# Protections that a ledger's reason may name, and how: "outlier, but the class needs it: for review".
PROTECTIONS = {
    "rare_class": "the class is rare",
    "max_lost_per_class": "the class has lost its share",
    "min_per_class": "the class needs it",
}


def flag_column(kind: str) -> str:
    """Return the column of `issues.parquet` that tells whether a sample has this kind of issue."""
    return "is_label_issue" if kind == "label_error" else f"is_{kind}_issue"


def score_column(kind: str) -> str:
    """Return the column of `issues.parquet` with the kind's score, 0 to 1, low is bad."""
    return "label_score" if kind == "label_error" else f"{kind}_score"
