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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from stages.errors import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image


INK, MUTED, RULE = "#22272e", "#667080", "#d8dce2"

# Grey for what is compared with, then colours that also differ for the colour-blind.
SERIES = ("#8b93a1", "#2f6db5", "#d9731a", "#2e8b6f", "#8a5aa8", "#b8932a")

_DPI = 110

# Of grids of images, in pixels.
_GAP, _LINE, _MAX_HEADING = 8, 13, 760

_HEADING: dict[str, Any] = {"va": "top", "fontsize": 9}
_TITLE: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 7, "linespacing": 1.15}
_MONTAGE_TITLE: dict[str, Any] = {"va": "top", "fontsize": 10}
_BLOCK_TITLE: dict[str, Any] = {"va": "bottom", "fontsize": 9}
_ROW_NAME: dict[str, Any] = {"ha": "right", "va": "center", "fontsize": 8}
_NAME = 30  # characters a line of a name beside its images
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
    together : images that belong together: after so many the gap is wider
    empty : what the picture says where there are no images
    """
    sections = [section for section in sections if len(section.images)]
    if not sections:
        note(empty, path)
        return
    columns = max(1, min(columns, max(len(section.images) for section in sections)))
    lefts = [_GAP + (cell + _GAP) * number + 2 * _GAP * (number // together) for number in range(columns)]
    headings = [min(7 * len(section.heading), _MAX_HEADING) + 2 * _GAP for section in sections]
    width = max(lefts[-1] + cell + _GAP, *headings)
    grid = _Grid(width)
    for section in sections:
        if section.heading:
            grid.write(_GAP, grid.height + 8, shorten(section.heading, width // 7), _HEADING)
        titles = [_wrap(title, (cell + _GAP) // 6) for title in section.titles]
        above = _LINE * max(len(lines) for lines in titles)
        start, step = grid.height + (26 if section.heading else 4), cell + above + _GAP
        for number, (image, lines) in enumerate(zip(section.images, titles, strict=True)):
            row, column = divmod(number, columns)
            upper, left = start + row * step + above, lefts[column]
            grid.write(left + cell / 2, upper - 3, "\n".join(lines), _TITLE)
            picture = thumbnail(image, cell)
            grid.paste(picture, left + (cell - picture.width) // 2, upper + (cell - picture.height) // 2)
        grid.height = start + -(-len(titles) // columns) * step + _GAP
    grid.save(path)


class _Grid:
    """Images and text at places in pixels from the upper left corner; `height` is what is taken so far."""

    def __init__(self, width: int) -> None:
        self.width, self.height = width, 0
        self._images: list[tuple[int, int, NDArray[np.uint8]]] = []
        self._texts: list[tuple[float, float, str, Mapping[str, Any]]] = []

    def write(self, x: float, y: float, text: str, look: Mapping[str, Any]) -> None:
        self._texts.append((x, y, text, look))

    def paste(self, image: Image.Image, x: int, y: int) -> None:
        self._images.append((x, y, np.asarray(image.convert("RGB"))))

    def fill(self, x: int, y: int, width: int, height: int) -> None:
        self._images.append((x, y, np.full((height, width, 3), _BACKGROUND, np.uint8)))

    def save(self, path: Path) -> None:
        pixels = np.full((self.height, self.width, 3), 255, np.uint8)
        for x, y, image in self._images:
            pixels[y : y + image.shape[0], x : x + image.shape[1]] = image
        with canvas(self.width / 100, self.height / 100, path, dpi=100, layout=None) as figure:
            figure.figimage(pixels)
            for left, top, text, look in self._texts:
                figure.text(left / self.width, 1 - top / self.height, text, **look)


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
        width = 0.8 / max(len(values), 1)
        for number, ((name, heights), colour) in enumerate(
            zip(values.items(), _colours(len(values)), strict=True)
        ):
            at = np.arange(len(classes)) + (number - (len(values) - 1) / 2) * width
            axes.bar(at, heights, width * 0.92, color=colour, label=name)
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
            filled = counts > 0
            axes.plot(confidence[filled], accuracy[filled], color=colour, linewidth=1, alpha=0.6)
            # A bin of one image is at 0 or 1: the size says how little that means.
            sizes = 6 + 90 * np.sqrt(counts[filled] / max(counts.sum(), 1))
            axes.scatter(confidence[filled], accuracy[filled], sizes, color=colour, zorder=3)
            axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence", aspect="equal")
            axes.set_title(title, fontsize=10)
            open_axes(axes)
        panels[0].set_ylabel("accuracy (dots), share of images (bars)")


def change_title(before: str, after: str) -> str:
    """Return `before → after`, each cut by itself, on two lines where they are long."""
    before, after = shorten(before, 26), shorten(after, 24)
    return f"{before} → {after}" if len(before + after) <= 11 else f"{before}\n→ {after}"


def _wrap(title: str, width: int) -> list[str]:
    """Wrap each line of a title to at most three of at most `width` characters."""
    given = [shorten(line, 10 * width) for line in title.split("\n") if line]
    return [short for line in given for short in textwrap.wrap(line, width, max_lines=3, placeholder="…")]


@contextmanager
def canvas(
    width: float,
    height: float,
    path: Path | BinaryIO,
    *,
    dpi: int = _DPI,
    layout: Literal["constrained"] | None = "constrained",
) -> Iterator[Figure]:
    """Open a figure of so many inches and save it to `path`; the user's own matplotlibrc changes nothing."""
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
    """Write a picture that says why there is none: an output that is declared has to be there."""
    with canvas(4.2, 0.7, path, layout=None) as figure:
        figure.text(0.5, 0.5, text, ha="center", va="center", color=MUTED, fontsize=10)


def thumbnail(image: NDArray[np.uint8], side: int, *, enlarge: bool = True) -> Image.Image:
    """Bring an image to `side` pixels on its longer side; enlarged pixels stay squares.

    Parameters
    ----------
    image : uint8, H×W×C (C 1 or 3) or H×W
    side : pixels
    enlarge : False leaves smaller images as they are
    """
    from PIL import Image

    pixels = image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    scale = side / max(picture.size)
    if scale >= 1 and not enlarge:
        return picture
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS)


def name_axis(axes: Axes, classes: Sequence[str], which: str) -> None:
    """Put class names along an axis, or none where they could not be read."""
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
    """Show only the two axes with figures on them, and thin lines across."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)


def open_bars(axes: Axes, names: Sequence[str], lines: int) -> None:
    """Name horizontal bars from top to bottom, in room for so many lines, and draw thin lines across."""
    axes.set_yticks(range(len(names)), labels=names)
    axes.set_ylim(lines - 0.4, -0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params("y", length=0)
    axes.grid(axis="x", color=RULE, linewidth=0.6)
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
    names = ["\n".join(textwrap.wrap(shorten(line.name, 2 * _NAME), _NAME)) for line in lines]
    left = 2 * _GAP + max(_text_width(name, _ROW_NAME["fontsize"]) for name in names)
    step, top = side + _SPACE, 44 if any(block_titles) else 28
    starts = [left + sum(columns[:i]) * step + i * (side // 2) for i in range(len(columns))]
    title_width = 2 * _GAP + _text_width(title, _MONTAGE_TITLE["fontsize"])
    grid = _Grid(max(starts[-1] + columns[-1] * step + _GAP, title_width))
    grid.write(_GAP, 6, title, _MONTAGE_TITLE)
    for start, text in zip(starts, block_titles, strict=True):
        grid.write(start, top - 4, text, _BLOCK_TITLE)
    for row, (line, name) in enumerate(zip(lines, names, strict=True)):
        y = top + row * step
        grid.write(left - _GAP, y + side / 2, name, _ROW_NAME)
        for start, count, block in zip(starts, columns, line.blocks, strict=True):
            grid.fill(start, y, count * step - _SPACE, side)
            for column, image in enumerate(block[:count]):
                grid.paste(thumbnail(image, side), start + column * step, y)
    grid.height = top + len(lines) * step + _GAP
    grid.save(path)


def _text_width(text: str, points: float) -> int:
    """Return the width in pixels of the longest line of a text in a grid, which has 100 pixels an inch."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family="DejaVu Sans", size=points)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        widths = [
            text_to_path.get_text_width_height_descent(line, font, ismath=False)[0]
            for line in text.split("\n")
        ]
    return int(max(widths) * 100 / 72) + 1


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
