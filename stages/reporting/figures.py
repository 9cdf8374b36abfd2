"""Pictures for reports: PNG only, drawn without a display, the same bytes for the same input.

Class names come from folders of a stranger's making: no text here is ever read as mathematics or
markup, and long names are cut.

Pictures of samples: a montage with a line for each class, and a page that says there is nothing.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from stages.errors import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


INK, MUTED, RULE = "#22272e", "#667080", "#d8dce2"

# Grey for what is compared with, then colours that also differ for the colour-blind.
SERIES = ("#8b93a1", "#2f6db5", "#d9731a", "#2e8b6f", "#8a5aa8", "#b8932a")

_DPI = 110

# Of a gallery, in pixels.
_GAP, _LINE, _WIDEST_HEADING = 8, 13, 760

_HEADING: dict[str, Any] = {"ha": "left", "va": "top", "fontsize": 9}
_TITLE: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 7, "linespacing": 1.15}
_MAX_NAMES = 40  # classes that can still be named along an axis
_MAX_NUMBERS = 14  # classes whose counts can still be read in a confusion matrix
_SPACE = 2  # pixels between two images
_BACKGROUND = 235
_MIN_TILE = 32  # pixels: smaller images are magnified


@dataclass(frozen=True)
class Section:
    """Some images of a gallery under a heading of their own.

    Attributes
    ----------
    heading : a line above them, empty for none
    images : uint8, H×W×C (C 1 or 3) or H×W; they may differ in size
    titles : one an image, of one or more lines; long ones are wrapped, then cut
    """

    heading: str
    images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]
    titles: Sequence[str]

    def __post_init__(self) -> None:
        if len(self.images) != len(self.titles):
            raise ValueError(f"{len(self.images)} images but {len(self.titles)} titles")


def gallery(
    sections: Sequence[Section],
    path: Path,
    *,
    columns: int = 10,
    cell: int = 84,
    together: int = 1,
    empty: str = "nothing to show",
) -> None:
    """Write grids of small images below one another, each image with its title above it.

    Parameters
    ----------
    sections : from top to bottom; those without images are left out
    path : the PNG to write
    columns : images a row, at most
    cell : width and height that each image is brought to, in pixels, its proportions kept
    together : so many neighbours belong together, and have a wider gap to the next ones
    empty : what the picture says where there are no images
    """
    sections = [section for section in sections if len(section.images)]
    if not sections:
        note(empty, path)
        return
    columns = max(1, min(columns, max(len(section.images) for section in sections)))
    lefts = [_GAP + (cell + _GAP) * number + 2 * _GAP * (number // together) for number in range(columns)]
    wide = [min(7 * len(section.heading), _WIDEST_HEADING) + 2 * _GAP for section in sections]
    width = max(lefts[-1] + cell + _GAP, *wide)
    bands: list[NDArray[np.uint8]] = []
    texts: list[_Text] = []
    for section in sections:
        below = sum(len(band) for band in bands)
        band, written = _band(section, lefts, cell, width)
        bands.append(band)
        texts += [replace(text, y=text.y + below) for text in written]
    pixels = np.concatenate(bands)
    height = len(pixels)
    with canvas(width / 100, height / 100, path, dpi=100, layout=None) as figure:
        figure.figimage(pixels)
        for text in texts:
            look = _HEADING if text.heading else _TITLE
            figure.text(text.x / width, 1 - text.y / height, text.text, color=INK, **look)


@dataclass(frozen=True)
class _Text:
    """A heading hangs from its place, a title stands on it; in pixels from the upper left corner."""

    x: float
    y: int
    text: str
    heading: bool = False


def _band(
    section: Section, lefts: Sequence[int], cell: int, width: int
) -> tuple[NDArray[np.uint8], list[_Text]]:
    """The pixels of a section, and the texts to write on them."""
    wrapped = [_wrap(title, (cell + _GAP) // 6) for title in section.titles]
    over = _LINE * max(len(parts) for parts in wrapped)
    start, step = (26 if section.heading else 4), cell + over + _GAP
    rows = -(-len(section.images) // len(lefts))
    band = np.full((start + rows * step + _GAP, width, 3), 255, np.uint8)
    texts = [_Text(_GAP, 8, shorten(section.heading, width // 7), heading=True)] if section.heading else []
    for number, (image, parts) in enumerate(zip(section.images, wrapped, strict=True)):
        row, column = divmod(number, len(lefts))
        upper, left = start + row * step + over, lefts[column]
        texts.append(_Text(left + cell / 2, upper - 3, "\n".join(parts)))
        thumbnail = _thumbnail(image, cell)
        high, wide, _ = thumbnail.shape
        y, x = upper + (cell - high) // 2, left + (cell - wide) // 2
        band[y : y + high, x : x + wide] = thumbnail
    return band, texts


def confusion_matrices(matrices: Mapping[str, NDArray[np.int64]], classes: list[str], path: Path) -> None:
    """Write confusion matrices side by side, shaded by the share of each true class (0 to 1).

    Parameters
    ----------
    matrices : by title; K×K counts, rows the true class and columns the predicted one
    classes : K names in index order
    path : the PNG to write
    """
    size = float(np.clip(0.26 * len(classes) + 1.1, 3.4, 6.5))
    with canvas(size * len(matrices), size + 0.4, path) as figure:
        panels = figure.subplots(1, len(matrices), squeeze=False)[0]
        for number, (axes, (title, matrix)) in enumerate(zip(panels, matrices.items(), strict=True)):
            share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
            axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
            axes.set_title(title, fontsize=10)
            axes.set_xlabel("predicted")
            if number == 0:
                axes.set_ylabel("true")
            name_axis(axes, classes, "x")
            name_axis(axes, classes if number == 0 else [""] * len(classes), "y")
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
        note("no curves were written", path)
        return
    with canvas(3.7 * len(panels), 3.0, path) as figure:
        charts = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (title, lines) in zip(charts, panels.items(), strict=True):
            for (name, (x, y)), colour in zip(lines.items(), _colours(len(lines)), strict=True):
                axes.plot(x, y, color=colour, label=name, linewidth=1.6)
            axes.set_title(title, fontsize=10, loc="left")
            axes.set_xlabel(x_label)
            if title in log:
                axes.set_yscale("log")
            open_axes(axes)
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
    with canvas(float(np.clip(0.55 * len(classes) + 2, 6, 14)), 3.2, path) as figure:
        axes = figure.subplots()
        wide = 0.8 / max(len(values), 1)
        for number, ((name, heights), colour) in enumerate(
            zip(values.items(), _colours(len(values)), strict=True)
        ):
            at = np.arange(len(classes)) + (number - (len(values) - 1) / 2) * wide
            axes.bar(at, heights, wide * 0.92, color=colour, label=name)
        axes.set_ylim(0, top)
        axes.set_ylabel(y_label)
        name_axis(axes, classes, "x")
        open_axes(axes)
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
    with canvas(3.3 * len(bins), 3.2, path) as figure:
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
            open_axes(axes)
        panels[0].set_ylabel("accuracy (dots), share of images (bars)")


def change_title(before: str, after: str) -> str:
    """`before → after`, of which neither can push the other out: on two lines where they are long."""
    short = shorten(before, 26), shorten(after, 24)
    return f"{short[0]} → {short[1]}" if len("".join(short)) <= 11 else f"{short[0]}\n→ {short[1]}"


def _wrap(title: str, width: int) -> list[str]:
    """The lines of a title, each of at most `width` characters; at most three for a line given."""
    parts = [shorten(part, 10 * width) for part in title.split("\n") if part]
    return [line for part in parts for line in textwrap.wrap(part, width, max_lines=3, placeholder="…")]


@contextmanager
def canvas(
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


def note(text: str, path: Path) -> None:
    """A picture that says why there is none: an output that is declared has to be there."""
    with canvas(4.2, 0.7, path, layout=None) as figure:
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


def name_axis(axes: Axes, classes: Sequence[str], which: str) -> None:
    """Class names along an axis, or none where they could not be read."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    if len(classes) > _MAX_NAMES:
        axis.set_ticks([])
        return
    names = [shorten(name, 16) for name in classes]
    steep = which == "x" and max(len(name) for name in names) > 3
    axis.set_ticks(range(len(classes)), labels=names)
    if steep:
        # By their ends, or nobody could tell which name belongs to which tick.
        axis.set_tick_params(rotation=60)
        for label in axis.get_ticklabels():
            label.set(ha="right", rotation_mode="anchor")


def open_axes(axes: Axes) -> None:
    """Only the two axes with figures on them, and thin lines across."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)


def _colours(count: int) -> list[str]:
    return [SERIES[number % len(SERIES)] for number in range(count)]


@dataclass(frozen=True)
class Line:
    """A line of a montage: its name, and blocks of images beside one another."""

    name: str
    blocks: Sequence[NDArray[np.uint8]]


def save_montage(
    path: Path, title: str, lines: Sequence[Line], columns: Sequence[int], block_titles: Sequence[str]
) -> None:
    """Write a PNG with one line of images for each of `lines`.

    Parameters
    ----------
    path : of the PNG
    title : stands above
    lines : each block holds uint8 images N×H×W×C; where there are fewer than its columns, the rest
        stays empty
    columns : images that a block shows, one number a block
    block_titles : stand above the blocks
    """
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    if not lines:
        _save_notice(path, title)
        return
    side = _tile(lines)
    canvas = _paint(lines, columns, side)
    figure, axes = plt.subplots(figsize=(canvas.shape[1] / 100 + 1.6, canvas.shape[0] / 100 + 0.9), dpi=100)
    axes.imshow(canvas, interpolation="nearest")
    height = side + _SPACE
    axes.set_yticks([height * i + side / 2 for i in range(len(lines))], [_plain(line.name) for line in lines])
    axes.set_xticks([])
    start = 0
    for count, text in zip(columns, block_titles, strict=True):
        axes.text(start, -6, text, fontsize=9, va="bottom", ha="left")
        start += count * (side + _SPACE) + side // 2
    axes.set_title(_plain(title), fontsize=10, loc="left", pad=22)
    axes.tick_params(length=0)
    axes.set_frame_on(False)
    figure.savefig(path, format="png", bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def _paint(lines: Sequence[Line], columns: Sequence[int], side: int) -> NDArray[np.uint8]:
    """The montage as one RGB image."""
    gap = side // 2
    width = sum(count * (side + _SPACE) for count in columns) + gap * (len(columns) - 1)
    canvas = np.full((len(lines) * (side + _SPACE), width, 3), _BACKGROUND, np.uint8)
    for row, line in enumerate(lines):
        start = 0
        for count, block in zip(columns, line.blocks, strict=True):
            for column, image in enumerate(block[:count]):
                tile = _scaled(image, side)
                top, left = row * (side + _SPACE), start + column * (side + _SPACE)
                canvas[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
            start += count * (side + _SPACE) + gap
    return canvas


def _tile(lines: Sequence[Line]) -> int:
    sides = [max(block.shape[1:3]) for line in lines for block in line.blocks]
    side = max(sides)
    return side * -(-_MIN_TILE // side)


def _scaled(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """An image, magnified by a whole number to at most `side` pixels, as RGB."""
    factor = max(1, side // max(image.shape[:2]))
    large = np.kron(image, np.ones((factor, factor, 1), np.uint8))
    return large if large.shape[2] == 3 else np.repeat(large[..., :1], 3, axis=2)


def _save_notice(path: Path, text: str) -> None:
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(6, 1), dpi=100)
    figure.text(0.02, 0.5, _plain(text), fontsize=11, va="center")
    figure.savefig(path, format="png", metadata={"Software": None})
    plt.close(figure)


def _plain(text: str) -> str:
    """Text that matplotlib does not take for mathematics."""
    return text.replace("$", r"\$")
