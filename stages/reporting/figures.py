"""Draw charts and grids of images for reports: PNG, without a display, the same bytes for the same input.

Class names come from folders of a stranger's making: no text here is ever read as mathematics or
markup, and long names are cut.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

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
_BLUES = ("#c6dbf0", "#144078")  # of one image, and of the fullest square


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
    path: Path | BinaryIO,
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
    """A line of a montage: its name, and blocks of images next to one another."""

    name: str
    blocks: Sequence[NDArray[np.uint8]]


def save_montage(
    path: Path, title: str, lines: Sequence[Line], columns: Sequence[int], block_titles: Sequence[str]
) -> None:
    """Write a PNG with one line of images for each of `lines`; where there are none, only the title.

    Parameters
    ----------
    path : of the PNG
    title : stands above
    lines : each block holds uint8 images N×H×W×C, all of one size; where there are fewer than its columns,
        the rest stays empty
    columns : images that a block shows, one number a block
    block_titles : stand above the blocks
    """
    if not lines:
        note(title, path)
        return
    side = max(max(block.shape[1:3]) for line in lines for block in line.blocks)
    side *= -(-_MIN_TILE // side)
    step, gap, left, top = side + _SPACE, side // 2, 150, 44
    starts = [left + sum(columns[:number]) * step + number * gap for number in range(len(columns))]
    width = max(starts[-1] + columns[-1] * step + _GAP, left + 7 * len(title))
    pixels = np.full((top + len(lines) * step + _GAP, width, 3), 255, np.uint8)
    for row, line in enumerate(lines):
        y = top + row * step
        for start, count, block in zip(starts, columns, line.blocks, strict=True):
            pixels[y : y + side, start : start + count * step - _SPACE] = _BACKGROUND
            for column, image in enumerate(block[:count]):
                tile = _thumbnail(image, side)
                x = start + column * step
                pixels[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
    height = len(pixels)
    with canvas(width / 100, height / 100, path, dpi=100, layout=None) as figure:
        figure.figimage(pixels)
        figure.text(_GAP / width, 1 - 6 / height, shorten(title, width // 7), va="top", fontsize=10)
        for start, text in zip(starts, block_titles, strict=True):
            figure.text(start / width, 1 - (top - 4) / height, text, va="bottom", fontsize=9)
        for row, line in enumerate(lines):
            name = "\n".join(textwrap.wrap(shorten(line.name, 60), 24))
            y = 1 - (top + row * step + side / 2) / height
            figure.text((left - _GAP) / width, y, name, ha="right", va="center", fontsize=8)


def size_map(
    width: NDArray[np.int64], height: NDArray[np.int64], count: NDArray[np.int64], image_size: int
) -> bytes:
    """Draw how many images have which width and height, as squares on logarithmic axes.

    Parameters
    ----------
    width, height : native sizes in pixels, at least 1
    count : images of each size
    image_size : where the dashed lines are; what lies below or left of them has too few pixels

    Returns
    -------
    The bytes of a PNG, 1120×840; the darker a square, the more images.
    """
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    x_edges, y_edges = (_octave_edges(sides, image_size) for sides in (width, height))
    # The little more keeps powers of two out of the bin below, whatever the logarithm rounds to.
    x, y = (np.log2(np.maximum(sides, 1)) + 1e-9 for sides in (width, height))
    images, *_ = np.histogram2d(x, y, bins=[x_edges, y_edges], weights=count)
    stream = io.BytesIO()
    with canvas(5.6, 4.2, stream, dpi=200) as figure:
        axes = figure.subplots()
        blues = LinearSegmentedColormap.from_list("blues", _BLUES)
        if images.any():
            shown = np.ma.masked_equal(images.T, 0)
            axes.pcolormesh(
                x_edges, y_edges, shown, cmap=blues, norm=LogNorm(1, max(images.max(), 2)), zorder=2
            )
        limit = float(np.log2(image_size))
        for draw_line in (axes.axvline, axes.axhline):
            draw_line(limit, color=INK, linewidth=1, linestyle=(0, (5, 3)), zorder=3)
        axes.set_title(f"dashed: image_size {image_size}", fontsize=8, loc="right")
        for axis, ends, name in ((axes.xaxis, x_edges, "width"), (axes.yaxis, y_edges, "height")):
            powers = np.arange(ends[0], ends[-1] + 0.5, 1 + (ends[-1] - ends[0]) // 12)
            axis.set_ticks(powers, labels=[f"{2**power:g}" for power in powers])
            axis.set_label_text(f"{name} in pixels")
        axes.grid(color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)
    return stream.getvalue()


def _octave_edges(sides: NDArray[np.int64], image_size: int) -> NDArray[np.float64]:
    """Return the edges of bins, six a doubling, over all sides and `image_size`, three doublings at least."""
    low = int(np.log2(max(int(sides.min(initial=image_size)), 1)))
    high = int(np.log2(max(int(sides.max(initial=image_size)), 1))) + 1
    low = max(0, low - max(0, 4 - (high - low)) // 2)
    high = max(high, low + 3)
    return np.linspace(low, high, 6 * (high - low) + 1)
