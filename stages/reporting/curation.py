"""Draw what `curate` did: the samples it changed, and class balance before and after."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.errors import shorten
from stages.reporting.figures import (
    INK,
    MUTED,
    Section,
    canvas,
    change_title,
    gallery,
    note,
    open_axes,
    open_bars,
)
from stages.reporting.rendering import label_text, shown_text

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_BARS = 40  # classes that have a bar of their own
_MAX_CHANGED = 20
_KEPT, _REWEIGHTED, _GAINED = "#8b93a1", "#c3c8d0", "#2e8b6f"
_RELABELLED, _DROPPED = "#e8a66b", "#c8553d"


def change_gallery(
    ledger: pd.DataFrame, images: NDArray[np.uint8], rows: NDArray[np.int64], path: Path, *, most: int = 40
) -> None:
    """Write the training images that were dropped or relabelled, each kind of its own, the worst first.

    Parameters
    ----------
    ledger : `LEDGER_COLUMNS`; N rows
    images : uint8, any number × H×W×C, may be memory-mapped
    rows : int64, N; where in `images` the image of each row of `ledger` is
    path : the PNG to write
    most : images that were dropped, and as many that were relabelled
    """
    table = ledger.assign(row=np.asarray(rows, np.int64))
    table = table[(table["split"] == "train").to_numpy()].sort_values(["score", "sample_id"])
    sections = []
    for action, name in (
        ("drop", "Dropped, with the given label"),
        ("relabel", "Relabelled: given → new label"),
    ):
        changed = table[(table["action"] == action).to_numpy()]
        shown = changed.head(most)
        titles = [
            label_text(given) if action == "drop" else change_title(label_text(given), str(label))
            for given, label in zip(shown["given_label"], shown["label"], strict=True)
        ]
        heading = f"{name} ({shown_text(len(shown), len(changed))})"
        sections.append(Section(heading, images[shown["row"].to_numpy(np.int64)], titles))
    gallery(sections, path, columns=8, empty="nothing was dropped or relabelled")


def class_balance(changes: pd.DataFrame, path: Path) -> None:
    """Write how many training images each class was given and has now, and where the others went.

    Up to 40 classes have a bar each, the largest on top; more are a curve from the largest to the
    smallest, with bars of those that changed most.

    Parameters
    ----------
    changes : `class`, `given`, `keep`, `relabel`, `reweight`, `drop`, `curated`, a row a class, as
        `curation.ledger.changes_by_class` makes them
    path : the PNG to write
    """
    if changes.empty:
        note("there are no training images", path)
        return
    table = changes.copy()
    stayed = table["keep"] + table["reweight"]
    table["gained"] = (table["curated"] - stayed).clip(lower=0)
    table = table.sort_values(["given", "class"], ascending=[False, True], kind="stable")
    title = f"largest : smallest class {_ratio(table['given'])} as given, {_ratio(table['curated'])} curated"
    if len(table) <= _MAX_BARS:
        height = 0.24 * len(table) + 1.3
        with canvas(8.6, max(height, 1.9), path) as figure:
            _class_bars(figure.subplots(), table)
            _headline(figure, title)
        return
    changed = (table["gained"] + table["drop"] + table["relabel"]).to_numpy()
    most = table.iloc[np.argsort(-changed, kind="stable")[:_MAX_CHANGED]]
    with canvas(11, 5.6, path) as figure:
        left, right = figure.subplots(1, 2, width_ratios=[5, 6])
        _profile(left, table)
        _class_bars(right, most)
        right.set_title(f"the {len(most)} classes that changed most", fontsize=9, color=MUTED)
        _headline(figure, title)


def _class_bars(axes: Axes, table: pd.DataFrame) -> None:
    """Draw a bar a class: the images that it has now, and behind them those that it lost."""
    places = range(len(table))
    start = np.zeros(len(table))
    parts = (
        ("keep", "kept", _KEPT),
        ("reweight", "reweighted", _REWEIGHTED),
        ("gained", "came in by a new label", _GAINED),
        ("relabel", "left by a new label", _RELABELLED),
        ("drop", "dropped", _DROPPED),
    )
    for column, name, colour in parts:
        counts = table[column].to_numpy(np.float64)
        if counts.any():
            height = 0.4 if column in ("relabel", "drop") else 0.76
            axes.barh(places, counts, height, left=start, color=colour, label=name)
        start = start + counts
    top = max(float(start.max()), 1.0)
    for place, end, given, curated in zip(places, start, table["given"], table["curated"], strict=True):
        axes.text(end + 0.01 * top, place, f"{given} → {curated}", va="center", fontsize=7, color=INK)
    open_bars(axes, [shorten(str(name), 24) for name in table["class"]], len(table))
    axes.set_xlim(0, 1.2 * top)
    axes.set_xlabel("training images: given → curated")


def _profile(axes: Axes, table: pd.DataFrame) -> None:
    """Draw given and curated counts from the largest class to the smallest, each sorted for itself."""
    ranks = np.arange(1, len(table) + 1)
    given = np.sort(table["given"].to_numpy(np.float64))[::-1]
    curated = np.sort(table["curated"].to_numpy(np.float64))[::-1]
    axes.plot(ranks, given, color=MUTED, linewidth=1.6, linestyle=(0, (4, 2)), label="given")
    axes.plot(ranks, curated, color=_GAINED, linewidth=1.8, label="curated")
    least, most = min(given.min(), curated.min()), max(given.max(), curated.max())
    if most >= 10 * max(least, 1):
        # An empty class has no logarithm: near to zero the axis is linear.
        axes.set_yscale("symlog", linthresh=1) if least == 0 else axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter("")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlim(1, len(table))
    axes.set_xlabel("classes, the largest first")
    axes.set_ylabel("training images")
    axes.legend(frameon=False)
    open_axes(axes)


def _headline(figure: Figure, title: str) -> None:
    """Put a line of text, and the key to the colours, above everything."""
    handles: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            if name not in ("given", "curated"):
                handles.setdefault(name, handle)
    legend = figure.legend(
        list(handles.values()), list(handles), loc="outside upper left", ncols=5, frameon=False, fontsize=8
    )
    legend.set_title(title)
    legend.get_title().set_fontsize(10)
    legend.set_alignment("left")


def _ratio(counts: pd.Series) -> str:
    """Return the largest count by the smallest, as `10.3 : 1`, or `12 : 0` where a class is empty."""
    most, least = int(counts.max()), int(counts.min())
    return f"{most / least:.1f} : 1" if least else f"{most} : 0"
