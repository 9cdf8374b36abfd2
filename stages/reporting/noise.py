"""Draw what `detect_noise` found: suspected labels, near-duplicates, outliers, and confused classes.

PNG only, the same bytes for the same input; a table without findings gives a picture that says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.dataset.issue_kinds import NAMES, PIXEL_KINDS, SHAPE_KINDS, flag_column, score_column
from stages.errors import shorten
from stages.reporting.figures import (
    INK,
    MUTED,
    SERIES,
    Section,
    canvas,
    change_title,
    gallery,
    name_axis,
    note,
    open_bars,
)
from stages.reporting.rendering import label_text, shown_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# Kinds of issue that are checked image by image.
IMAGE_CHECKS = (*PIXEL_KINDS, *SHAPE_KINDS, "underperforming_group")

_COLUMNS = 8
_MOST_CLASSES = 30  # of a heat map whose names can be read
_MOST_NUMBERS = 14
_MOST_FLOWS = 20


def label_issue_gallery(
    issues: pd.DataFrame, images: NDArray[np.uint8], rows: NDArray[np.int64], path: Path, *, most: int = 40
) -> None:
    """Write the suspected label errors, the least plausible labels first, training before other splits.

    Above each image stand given → suggested label, and the probability of each.

    Parameters
    ----------
    issues : `sample_id`, `split`, `given_label`, `suggested_label`, `suggested_score`, `label_score`,
        `is_label_issue`; N rows
    images : uint8, any number × H×W×C, may be memory-mapped
    rows : int64, N; where in `images` the image of each row of `issues` is
    path : the PNG to write
    most : of the training split; of the others together at most half as many
    """
    suspects = _with_rows(issues, rows)[issues["is_label_issue"].to_numpy(bool)]
    suspects = suspects.sort_values(["label_score", "sample_id"])
    training = (suspects["split"] == "train").to_numpy()
    groups = (
        ("Training split", suspects[training], most),
        ("Validation and test", suspects[~training], most // 2),
    )
    sections = []
    for name, flagged, limit in groups:
        shown = flagged.head(limit)
        titles = [
            f"{change_title(row.given_label, row.suggested_label)}?\n"
            f"{row.label_score:.2f} → {row.suggested_score:.2f}"
            for row in shown.itertuples()
        ]
        count = shown_text(len(shown), len(flagged))
        heading = f"{name}: suspected labels, and the probability of each label ({count})"
        sections.append(_section(heading, images, shown, titles))
    gallery(sections, path, columns=_COLUMNS, empty="no label is suspected to be wrong")


def near_duplicate_gallery(
    issues: pd.DataFrame, images: NDArray[np.uint8], rows: NDArray[np.int64], path: Path, *, most: int = 24
) -> None:
    """Write pairs of near-duplicates side by side: one of each set, with label and split of both.

    Pairs under two labels come first: one of the two is wrong. Then come pairs of two splits, which
    leak, then the nearest.

    Parameters
    ----------
    issues : `sample_id`, `split`, `given_label`, `near_duplicate_score`, `near_duplicate_set` and
        `neighbors`; N rows
    images, rows, path : see `label_issue_gallery`
    most : pairs
    """
    table = _with_rows(issues, rows)
    pairs = near_duplicate_pairs(issues)
    disputed, agreed = pairs[pairs["labels_differ"]], pairs[~pairs["labels_differ"]]
    least = min(most // 3, len(agreed))
    sections = []
    most_disputed = min(len(disputed), most - least)
    for name, group, limit in (
        ("Under two labels", disputed, most_disputed),
        ("Under one label", agreed, most - most_disputed),
    ):
        shown = group.head(limit)
        both = table.iloc[shown[["first", "second"]].to_numpy().ravel()]
        titles = [f"{label_text(row.given_label)}\n{row.split}" for row in both.itertuples()]
        heading = f"{name}: near-duplicates, a pair of each set ({shown_text(len(shown), len(group))})"
        sections.append(_section(heading, images, both, titles))
    gallery(sections, path, columns=_COLUMNS, together=2, empty="no near-duplicates were found")


def near_duplicate_pairs(issues: pd.DataFrame) -> pd.DataFrame:
    """Choose the most telling pair of each set of near-duplicates, those under two labels first.

    Parameters
    ----------
    issues : see `near_duplicate_gallery`; `neighbors` may be missing

    Returns
    -------
    `first` and `second` (positions in `issues`), `labels_differ`, `splits_differ` and `score` (the
    lower of the two), a row a set. Both are neighbours of one another where the table tells: a set is
    a chain, and its ends may differ. A missing label differs from none.
    """
    sets = issues["near_duplicate_set"].to_numpy()
    members = np.flatnonzero(sets >= 0)
    members = members[np.argsort(sets[members], kind="stable")]
    same_set = sets[members[1:]] == sets[members[:-1]]
    first, second = members[:-1][same_set], members[1:][same_set]
    neighbours = np.zeros(len(first), bool)
    if "neighbors" in issues:
        lists = issues["neighbors"].iloc[members]
        lists.index = pd.Index(members)
        near = lists.explode().dropna()
        known = pd.Index(issues["sample_id"].iloc[members])
        at = known.get_indexer(pd.Index(near.to_numpy(object)))
        start, end = near.index.to_numpy()[at >= 0], members[at[at >= 0]]
        within = sets[start] == sets[end]
        first, second = np.concatenate([start[within], first]), np.concatenate([end[within], second])
        neighbours = np.concatenate([np.ones(within.sum(), bool), neighbours])
    labels, splits = issues["given_label"].to_numpy(object), issues["split"].to_numpy(object)
    known_labels = issues["given_label"].notna().to_numpy()
    scores = issues["near_duplicate_score"].to_numpy(np.float64)
    pairs = pd.DataFrame(
        {
            "set": sets[first],
            "first": np.minimum(first, second),
            "second": np.maximum(first, second),
            "labels_differ": (labels[first] != labels[second]) & known_labels[first] & known_labels[second],
            "splits_differ": splits[first] != splits[second],
            "score": np.fmin(scores[first], scores[second]),
            "neighbours": neighbours,
        }
    )
    order = ["neighbours", "labels_differ", "splits_differ", "score", "first", "second"]
    rising = [False, False, False, True, True, True]
    pairs = (
        pairs.sort_values(order, ascending=rising)
        .drop_duplicates("set")
        .sort_values(order[1:], ascending=rising[1:])
    )
    return pairs[["first", "second", "labels_differ", "splits_differ", "score"]].reset_index(drop=True)


def outlier_gallery(
    issues: pd.DataFrame, images: NDArray[np.uint8], rows: NDArray[np.int64], path: Path, *, most: int = 40
) -> None:
    """Write the outliers of all splits, the oddest first, each with its label, split and score.

    Parameters
    ----------
    issues : `sample_id`, `split`, `given_label`, `outlier_score`, `is_outlier_issue`; N rows
    images, rows, path : see `label_issue_gallery`
    most : images
    """
    sections = [_worst_of("outlier", issues, images, rows, most)]
    gallery(sections, path, columns=_COLUMNS, empty="no outliers were found")


def finding_gallery(
    issues: pd.DataFrame, images: NDArray[np.uint8], rows: NDArray[np.int64], path: Path, *, most: int = 16
) -> None:
    """Write what the checks of single images (`IMAGE_CHECKS`) found, kind by kind, the worst first.

    Parameters
    ----------
    issues : `sample_id`, `split`, `given_label`, and of each kind `<kind>_score` and `is_<kind>_issue`;
        a kind without its columns is left out; N rows
    images, rows, path : see `label_issue_gallery`
    most : images of each kind
    """
    sections = [
        _worst_of(kind, issues, images, rows, most) for kind in IMAGE_CHECKS if flag_column(kind) in issues
    ]
    gallery(sections, path, columns=_COLUMNS, empty="no image is dark, light, blurry or odd otherwise")


def transition_matrix(table: pd.DataFrame, classes: list[str]) -> NDArray[np.float64]:
    """Return the matrix that `detect_noise/transition.csv` lists: K×K, rows the true class.

    Parameters
    ----------
    table : `true_label`, `given_label`, `probability`, a row an entry that is not zero
    classes : K names in index order

    Returns
    -------
    float64, each row with a sum of 1, or of NaN where the table has no entry of that class.
    """
    matrix = np.zeros((len(classes), len(classes)))
    names = pd.Index(classes)
    rows = names.get_indexer(pd.Index(table["true_label"]))
    matrix[rows, names.get_indexer(pd.Index(table["given_label"]))] = table["probability"]
    matrix[np.setdiff1d(np.arange(len(classes)), rows)] = np.nan
    return matrix


def transition_heat_map(transition: NDArray[np.float64], classes: list[str], path: Path) -> None:
    """Write P(given label | likely true one) as a heat map, and the strongest confusions as bars.

    The diagonal, labels that are right, is left grey: it would drown all others. Of many classes the
    map shows those that take part in most confusions.

    Parameters
    ----------
    transition : K×K, 0 to 1, rows the true class; NaN where nothing is known of a class
    classes : K names in index order
    path : the PNG to write
    """
    size = len(classes)
    off = np.nan_to_num(transition) * ~np.eye(size, dtype=bool)
    if not off.any():
        note("no label is suspected to be wrong: there is nothing to mix up", path)
        return
    shown = _most_mixed_up(off)
    side = float(np.clip(0.3 * len(shown) + 1.6, 3.2, 7.6))
    flows = min(_MOST_FLOWS, int(np.count_nonzero(off)))
    with canvas(side + 4.4, max(side, 0.19 * flows + 1), path) as figure:
        left, right = figure.subplots(1, 2, width_ratios=[side, 4.4])
        _heat_map(left, transition[np.ix_(shown, shown)], [classes[number] for number in shown])
        title = "P(given label | likely true label), in %"
        left.set_title(
            title if len(shown) == size else f"{title}\nthe {len(shown)} most mixed-up of {size} classes",
            fontsize=10,
        )
        _strongest(right, off, classes, flows)


def _most_mixed_up(off: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the classes of the largest entries, in index order: all, or as many as can be named."""
    if len(off) <= _MOST_CLASSES:
        return np.arange(len(off))
    # So many of the largest entries hold at least as many classes as are shown.
    largest = np.argsort(-off, axis=None, kind="stable")[: _MOST_CLASSES**2]
    ends = np.stack(np.unravel_index(largest, off.shape), 1).ravel()
    _, first = np.unique(ends, return_index=True)
    return np.sort(ends[np.sort(first)[:_MOST_CLASSES]])


def _heat_map(axes: Axes, transition: NDArray[np.float64], names: list[str]) -> None:
    right = np.eye(len(names), dtype=bool)
    off = np.where(right | np.isnan(transition), 0, transition)
    axes.imshow(np.where(right, np.nan, off), cmap="OrRd", vmin=0, vmax=max(float(off.max()), 0.02))
    axes.set_facecolor("#e9ebee")
    axes.set_xlabel("given label")
    axes.set_ylabel("likely true label")
    name_axis(axes, names, "x")
    name_axis(axes, names, "y")
    small = len(names) > _MOST_NUMBERS
    for (row, column), value in np.ndenumerate(transition):
        percent = "?" if np.isnan(value) else f"{100 * value:.0f}"
        if percent == "0" or (small and row != column and value < 0.1):
            continue
        colour = "white" if row != column and value > 0.6 * off.max() else MUTED if row == column else INK
        size = 5 if small else 7
        axes.text(column, row, percent, ha="center", va="center", fontsize=size, color=colour)


def _strongest(axes: Axes, off: NDArray[np.float64], classes: list[str], count: int) -> None:
    """Draw bars of the largest entries off the diagonal, the largest on top."""
    order = np.argsort(-off, axis=None, kind="stable")[:count]
    true, given = np.unravel_index(order, off.shape)
    values = 100 * off[true, given]
    axes.barh(np.arange(count), values, 0.72, color=SERIES[2])
    names = [
        f"{shorten(classes[a], 18)} → {shorten(classes[b], 18)}" for a, b in zip(true, given, strict=True)
    ]
    open_bars(axes, names, max(count, 5))
    axes.set_xlim(0, 1.15 * values.max())
    for y, value in enumerate(values):
        axes.text(value, y, f" {value:.1f}", va="center", fontsize=7, color=INK)
    axes.set_title("likely true → given label", fontsize=10, loc="left")
    axes.set_xlabel("% of the class")


def _worst_of(
    kind: str, issues: pd.DataFrame, images: NDArray[np.uint8], rows: NDArray[np.int64], most: int
) -> Section:
    """Return the flagged samples of a kind as a section, the lowest scores first."""
    score = score_column(kind)
    flagged = _with_rows(issues, rows)[issues[flag_column(kind)].to_numpy(bool)]
    shown = flagged.sort_values([score, "sample_id"]).head(most)
    titles = [
        f"{label_text(label)}\n{split} {score:.2f}"
        for label, split, score in zip(shown["given_label"], shown["split"], shown[score], strict=True)
    ]
    heading = (
        f"{NAMES[kind].capitalize()}: label, split and score; low is bad "
        f"({shown_text(len(shown), len(flagged))})"
    )
    return _section(heading, images, shown, titles)


def _section(heading: str, images: NDArray[np.uint8], shown: pd.DataFrame, titles: Sequence[str]) -> Section:
    return Section(heading, images[shown["row"].to_numpy(np.int64)], titles)


def _with_rows(issues: pd.DataFrame, rows: NDArray[np.int64]) -> pd.DataFrame:
    """Return the issues with the row of their image, numbered from 0."""
    if len(issues) != len(rows):
        raise ValueError(f"{len(issues)} issues but {len(rows)} rows of images")
    return issues.assign(row=np.asarray(rows, np.int64)).reset_index(drop=True)
