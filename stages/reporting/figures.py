"""Pictures for reports: PNG only, drawn without a display, the same bytes for the same input.

Class names come from folders of a stranger's making: no text here is ever read as mathematics or
markup, and long names are cut.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, RULE = "#22272e", "#667080", "#d8dce2"
# Grey for what is compared with, then colours that also differ for the colour-blind.
SERIES = ("#8b93a1", "#2f6db5", "#d9731a", "#2e8b6f", "#8a5aa8", "#b8932a")
_DPI = 110
_MAX_NAMES = 40  # classes that can still be named along an axis
_MAX_NUMBERS = 14  # classes whose counts can still be read in a confusion matrix


def image_grid(
    images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
    titles: Sequence[str],
    path: Path,
    *,
    columns: int = 10,
    cell: int = 84,
    heading: str = "",
    empty: str = "nothing to show",
) -> None:
    """Write a grid of small images, each with its title above it.

    Parameters
    ----------
    images : uint8, H×W×C (C 1 or 3) or H×W; they may differ in size
    titles : one an image, of one or more lines; long ones are wrapped, then cut
    path : the PNG to write
    columns : images a row, at most
    cell : width and height that each image is brought to, in pixels, its proportions kept
    heading : a line above the grid
    empty : what the picture says where there are no images

    Raises
    ------
    ValueError
        Where there are not as many titles as images.
    """
    if len(images) != len(titles):
        raise ValueError(f"{len(images)} images but {len(titles)} titles")
    if len(images) == 0:
        _note(empty, path)
        return
    gap, line, top = 8, 13, 26 if heading else 4
    wrapped = [_wrap(title, (cell + gap) // 6) for title in titles]
    lines = max(len(parts) for parts in wrapped)
    columns = max(1, min(columns, len(images)))
    rows = -(-len(images) // columns)
    step_y = cell + lines * line + gap
    width = max(columns * (cell + gap) + gap, 240 if heading else 0)
    canvas = np.full((top + rows * step_y + gap, width, 3), 255, np.uint8)
    corners = []
    for number, image in enumerate(images):
        x = gap + (number % columns) * (cell + gap)
        y = top + (number // columns) * step_y + lines * line
        thumbnail = _thumbnail(image, cell)
        offset_y, offset_x = (cell - thumbnail.shape[0]) // 2, (cell - thumbnail.shape[1]) // 2
        y0, x0 = y + offset_y, x + offset_x
        canvas[y0 : y0 + thumbnail.shape[0], x0 : x0 + thumbnail.shape[1]] = thumbnail
        corners.append((x, y))
    with _figure(width / 100, canvas.shape[0] / 100, path, dpi=100, layout=None) as figure:
        figure.figimage(canvas)
        height = canvas.shape[0]
        for (x, y), parts in zip(corners, wrapped, strict=True):
            place = ((x + cell / 2) / width, 1 - (y - 3) / height)
            text = "\n".join(parts)
            figure.text(*place, text, ha="center", va="bottom", fontsize=7, color=INK, linespacing=1.15)
        if heading:
            figure.text(gap / width, 1 - 8 / height, heading, ha="left", va="top", fontsize=9, color=INK)


def confusion_matrices(matrices: Mapping[str, NDArray[np.int64]], classes: list[str], path: Path) -> None:
    """Write confusion matrices side by side, shaded by the share of each true class (0 to 1).

    Parameters
    ----------
    matrices : by title; K×K counts, rows the true class and columns the predicted one
    classes : K names in index order
    path : the PNG to write
    """
    size = float(np.clip(0.26 * len(classes) + 1.1, 3.4, 6.5))
    with _figure(size * len(matrices), size + 0.4, path) as figure:
        panels = figure.subplots(1, len(matrices), squeeze=False)[0]
        for number, (axes, (title, matrix)) in enumerate(zip(panels, matrices.items(), strict=True)):
            share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
            axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
            axes.set_title(title, fontsize=10)
            axes.set_xlabel("predicted")
            if number == 0:
                axes.set_ylabel("true")
            _name_axis(axes, classes, "x")
            _name_axis(axes, classes if number == 0 else [""] * len(classes), "y")
            if len(classes) > _MAX_NUMBERS:
                continue
            for (row, column), count in np.ndenumerate(matrix):
                if count:
                    colour = "white" if share[row, column] > 0.55 else INK
                    axes.text(column, row, str(count), ha="center", va="center", fontsize=7, color=colour)


def curves(
    panels: Mapping[str, Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]],
    path: Path,
    *,
    x_label: str = "epoch",
    log: Sequence[str] = (),
) -> None:
    """Write line charts side by side.

    Parameters
    ----------
    panels : title → name of a line → (x, y), each of the same length
    path : the PNG to write
    x_label : under each chart
    log : titles of the charts with a logarithmic y axis
    """
    if not any(panels.values()):
        _note("no curves were written", path)
        return
    with _figure(3.7 * len(panels), 3.0, path) as figure:
        charts = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (title, lines) in zip(charts, panels.items(), strict=True):
            for (name, (x, y)), colour in zip(lines.items(), _colours(len(lines)), strict=True):
                axes.plot(x, y, color=colour, label=name, linewidth=1.6)
            axes.set_title(title, fontsize=10, loc="left")
            axes.set_xlabel(x_label)
            if title in log:
                axes.set_yscale("log")
            _open_axes(axes)
            if lines:
                axes.legend(frameon=False)


def class_bars(
    values: Mapping[str, NDArray[np.float64]], classes: list[str], path: Path, *, y_label: str, top: float
) -> None:
    """Write grouped bars: for each class one bar a series.

    Parameters
    ----------
    values : by name of the series; K values from 0 to `top`, NaN where there is none
    classes : K names in index order
    path : the PNG to write
    y_label, top : of the vertical axis
    """
    with _figure(float(np.clip(0.55 * len(classes) + 2, 6, 14)), 3.2, path) as figure:
        axes = figure.subplots()
        wide = 0.8 / max(len(values), 1)
        for number, ((name, heights), colour) in enumerate(
            zip(values.items(), _colours(len(values)), strict=True)
        ):
            at = np.arange(len(classes)) + (number - (len(values) - 1) / 2) * wide
            axes.bar(at, heights, wide * 0.92, color=colour, label=name)
        axes.set_ylim(0, top)
        axes.set_ylabel(y_label)
        _name_axis(axes, classes, "x")
        _open_axes(axes)
        axes.legend(frameon=False, ncols=len(values), loc="lower left", bbox_to_anchor=(0, 1))


def reliability_diagrams(
    bins: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]], path: Path
) -> None:
    """Write reliability diagrams side by side: accuracy against confidence, bin by bin.

    Parameters
    ----------
    bins : by title; mean confidence, accuracy (0 to 1; NaN in an empty bin) and images of each bin
    path : the PNG to write

    References
    ----------
    Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599, figure 1.
    """
    with _figure(3.3 * len(bins), 3.2, path) as figure:
        panels = figure.subplots(1, len(bins), squeeze=False)[0]
        colours = _colours(len(bins))
        for axes, (title, (confidence, accuracy, counts)), colour in zip(
            panels, bins.items(), colours, strict=True
        ):
            edges = np.linspace(0, 1, len(counts) + 1)
            axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
            axes.bar(edges[:-1], counts / max(counts.sum(), 1), 1 / len(counts), align="edge", color=RULE)
            there = counts > 0
            axes.plot(confidence[there], accuracy[there], color=colour, linewidth=1, alpha=0.6)
            # A bin of one image is at 0 or 1: the size says how little that means.
            sizes = 6 + 90 * np.sqrt(counts[there] / max(counts.sum(), 1))
            axes.scatter(confidence[there], accuracy[there], sizes, color=colour, zorder=3)
            axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence", aspect="equal")
            axes.set_title(title, fontsize=10)
            _open_axes(axes)
        panels[0].set_ylabel("accuracy (dots), share of images (bars)")


def shorten(text: str, limit: int) -> str:
    """`text` in at most `limit` characters, with … where something was cut; no control characters."""
    clean = "".join(character if character.isprintable() else "�" for character in text)
    return clean if len(clean) <= limit else clean[: max(limit - 1, 0)] + "…"


def _wrap(title: str, width: int) -> list[str]:
    """The lines of a title, each of at most `width` characters; at most three for a line given."""
    parts = [shorten(part, 10 * width) for part in title.split("\n") if part]
    return [line for part in parts for line in textwrap.wrap(part, width, max_lines=3, placeholder="…")]


@contextmanager
def _figure(
    width: float,
    height: float,
    path: Path,
    *,
    dpi: int = _DPI,
    layout: Literal["constrained"] | None = "constrained",
) -> Iterator[Figure]:
    """A figure of so many inches, saved to `path`; the user's own matplotlibrc changes nothing."""
    from matplotlib import style
    from matplotlib.figure import Figure

    look: dict[str, Any] = {
        "font.size": 8,
        "text.parse_math": False,
        "axes.edgecolor": RULE,
        "text.color": INK,
    }
    look |= {"axes.labelcolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED}
    with style.context(["default", look]), warnings.catch_warnings():
        # A script that the font lacks gets boxes here; tables and pages still show the name.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=(width, height), dpi=dpi, layout=layout)
        yield figure
        figure.savefig(path, format="png", metadata={"Software": None})


def _note(text: str, path: Path) -> None:
    """A picture that says why there is none: an output that is declared has to be there."""
    with _figure(4.2, 0.7, path, layout=None) as figure:
        figure.text(0.5, 0.5, text, ha="center", va="center", color=MUTED, fontsize=10)


def _thumbnail(image: NDArray[np.uint8], cell: int) -> NDArray[np.uint8]:
    """RGB of at most cell×cell pixels; enlarged without smoothing, so that pixels stay pixels."""
    from PIL import Image

    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    picture = Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")
    scale = cell / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    method = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    return np.asarray(picture.resize(size, method))


def _name_axis(axes: Axes, classes: Sequence[str], which: str) -> None:
    """Class names along an axis, or none where they could not be read."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    if len(classes) > _MAX_NAMES:
        axis.set_ticks([])
        return
    names = [shorten(name, 16) for name in classes]
    steep = which == "x" and max(len(name) for name in names) > 3
    axis.set_ticks(range(len(classes)), labels=names)
    if steep:
        axes.tick_params("x", labelrotation=60)


def _open_axes(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)


def _colours(count: int) -> list[str]:
    return [SERIES[number % len(SERIES)] for number in range(count)]
