"""Pictures of an ingested dataset, drawn with Pillow: they are made in milliseconds.

`figures` draws charts with matplotlib, which takes longer to load and draw than a small dataset
takes to read. Everything here is a PNG in memory, the same bytes for the same input.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stages.errors import shorten
from stages.reporting.figures import INK, MUTED, RULE

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

_PER_OCTAVE = 6  # bins of a size for each doubling
_LOW, _HIGH = (198, 219, 240), (20, 64, 120)  # of one image, and of the fullest bin


def thumbnail_png(image: NDArray[np.uint8], most: int) -> bytes:
    """One image as a PNG of its own size, or reduced to `most` pixels a side where it is larger.

    Parameters
    ----------
    image : uint8, H×W×C with C 1 or 3
    most : pixels
    """
    return _encoded(_picture(image, most))


def image_rows(
    rows: Sequence[tuple[str, Sequence[NDArray[np.uint8]]]],
    *,
    columns: int = 8,
    cell: int = 64,
    empty: str = "nothing to show",
) -> bytes:
    """A sheet with a row of images for each title, which stands on the left.

    Parameters
    ----------
    rows : title, and images as uint8, H×W×C with C 1 or 3
    columns : images a row, at most; the others are left out
    cell : width and height that each image is brought to, in pixels, its proportions kept
    empty : what the sheet says where there are no rows

    Returns
    -------
    The bytes of a PNG.
    """
    from PIL import Image, ImageDraw

    gap, left, font = 6, 150, _font(11)
    wide = max((min(len(images), columns) for _, images in rows), default=4)
    size = (left + wide * (cell + gap) + gap, max(len(rows), 1) * (cell + gap) + gap)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for number, (title, images) in enumerate(rows):
        top = gap + number * (cell + gap)
        _write_title(draw, title, (gap, top, left - 2 * gap, cell), font)
        for place, image in enumerate(images[:columns]):
            picture = _fitted(image, cell)
            corner = left + place * (cell + gap) + (cell - picture.width) // 2
            sheet.paste(picture, (corner, top + (cell - picture.height) // 2))
    if not rows:
        draw.text((size[0] // 2, size[1] // 2), empty, fill=MUTED, font=font, anchor="mm")
    return _encoded(sheet)


def size_map(
    width: NDArray[np.int64], height: NDArray[np.int64], count: NDArray[np.int64], image_size: int
) -> bytes:
    """How many images have which width and height, as squares on logarithmic axes.

    Parameters
    ----------
    width, height : native sizes in pixels, at least 1
    count : images of each size
    image_size : where the dashed lines are; what lies below or left of them has too few pixels

    Returns
    -------
    The bytes of a PNG, 1120×840.
    """
    from PIL import Image, ImageDraw

    plot = _Plot(_octaves(width, image_size), _octaves(height, image_size))
    sheet = Image.new("RGB", (1120, 840), "white")
    draw = ImageDraw.Draw(sheet)
    _grid(draw, plot)
    bins, filled = _binned(width, height, count)
    for (column, line), number in zip(bins.tolist(), filled.tolist(), strict=True):
        left, top = plot.at(column / _PER_OCTAVE, (line + 1) / _PER_OCTAVE)
        right, bottom = plot.at((column + 1) / _PER_OCTAVE, line / _PER_OCTAVE)
        box = (round(left), round(top), round(right) - 1, round(bottom) - 1)
        draw.rectangle(box, fill=_shade(number, filled.max()))
    limit = float(np.log2(image_size))
    _dashed(draw, plot.at(limit, plot.y[0]), plot.at(limit, plot.y[1]))
    _dashed(draw, plot.at(plot.x[0], limit), plot.at(plot.x[1], limit))
    x, y = plot.at(limit, plot.y[1])
    side, anchor = (8, "lb") if x < 800 else (-8, "rb")
    draw.text((x + side, y - 6), f"image_size {image_size}", fill=INK, font=_font(22), anchor=anchor)
    return _encoded(sheet)


@dataclass(frozen=True)
class _Plot:
    """Two logarithmic axes, each from one power of two to another."""

    x: tuple[int, int]
    y: tuple[int, int]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a width and a height, as powers of two, stand on the sheet."""
        left, top, right, bottom = 110, 60, 1080, 740
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return left + across * (right - left), bottom - up * (bottom - top)


def _octaves(sides: NDArray[np.int64], image_size: int) -> tuple[int, int]:
    """The powers of two around all sides and `image_size`, three doublings apart at least."""
    least, most = int(sides.min(initial=image_size)), int(sides.max(initial=image_size))
    low, high = max(least, 1).bit_length() - 1, max(most, 1).bit_length()
    missing = max(0, 3 - (high - low))
    low = max(0, low - (missing + 1) // 2)
    return low, max(high, low + 3)


def _binned(
    width: NDArray[np.int64], height: NDArray[np.int64], count: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Column and line of each bin that holds images (n×2), and how many it holds."""
    sides = np.stack([width, height], 1)
    # The little more keeps powers of two out of the bin below, whatever the logarithm rounds to.
    places = np.floor(np.log2(np.maximum(sides, 1)) * _PER_OCTAVE + 1e-9).astype(np.int64)
    codes, inverse = np.unique(places[:, 0] * 1024 + places[:, 1], return_inverse=True)
    bins: NDArray[np.int64] = np.stack([codes // 1024, codes % 1024], 1)
    return bins, np.bincount(inverse, weights=count).astype(np.float64)


def _grid(draw: ImageDraw, plot: _Plot) -> None:
    """Thin lines with their figures at the powers of two, fewer where there are many."""
    font = _font(22)
    for power in range(plot.x[0], plot.x[1] + 1, 1 + (plot.x[1] - plot.x[0]) // 12):
        foot = plot.at(power, plot.y[0])
        draw.line((foot, plot.at(power, plot.y[1])), fill=RULE)
        draw.text((foot[0], foot[1] + 10), str(2**power), fill=MUTED, font=font, anchor="mt")
    for power in range(plot.y[0], plot.y[1] + 1, 1 + (plot.y[1] - plot.y[0]) // 12):
        foot = plot.at(plot.x[0], power)
        draw.line((foot, plot.at(plot.x[1], power)), fill=RULE)
        draw.text((foot[0] - 10, foot[1]), str(2**power), fill=MUTED, font=font, anchor="rm")
    draw.text((595, 826), "width in pixels", fill=MUTED, font=font, anchor="ms")
    draw.text((12, 8), "height in pixels", fill=MUTED, font=font)


def _shade(number: float, most: float) -> tuple[int, int, int]:
    """A blue, darker with the logarithm of the number."""
    share = float(np.log1p(number) / np.log1p(most)) if most > 0 else 0.0
    red, green, blue = (round(low + share * (high - low)) for low, high in zip(_LOW, _HIGH, strict=True))
    return red, green, blue


def _dashed(draw: ImageDraw, start: tuple[float, float], end: tuple[float, float]) -> None:
    x, y = end[0] - start[0], end[1] - start[1]
    length = max(abs(x), abs(y))
    for step in range(0, int(length), 16):
        first, last = step / length, min(step + 9, length) / length
        points = [(start[0] + share * x, start[1] + share * y) for share in (first, last)]
        draw.line(points, fill=INK, width=2)


def _write_title(draw: ImageDraw, title: str, box: tuple[int, int, int, int], font: FreeTypeFont) -> None:
    """A title in a box of left, top, width and height, in the middle of its height, on one or two lines."""
    left, top, width, height = box
    text = shorten(title, 60)
    lines: list[str] = []
    while text and len(lines) < 2:
        fitting = next(n for n in range(len(text), 0, -1) if n == 1 or font.getlength(text[:n]) <= width)
        lines.append(text[:fitting])
        text = text[fitting:]
    if text:
        lines[-1] = lines[-1][:-1] + "…"
    for number, line in enumerate(lines):
        y = top + height / 2 + 14 * (number - (len(lines) - 1) / 2)
        draw.text((left, y), line, fill=INK, font=font, anchor="lm")


def _picture(image: NDArray[np.uint8], most: int) -> Image:
    """As Pillow has it, reduced to `most` pixels a side where it is larger."""
    from PIL import Image

    pixels = np.ascontiguousarray(image[:, :, 0] if image.shape[2] == 1 else image)
    picture = Image.fromarray(pixels)
    scale = most / max(picture.size)
    if scale >= 1:
        return picture
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BOX)


def _fitted(image: NDArray[np.uint8], cell: int) -> Image:
    """Of exactly `cell` pixels on the longer side; enlarged without smoothing, so that pixels stay pixels."""
    from PIL import Image

    picture = _picture(image, cell)
    scale = cell / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture if scale == 1 else picture.resize(size, Image.Resampling.NEAREST)


def _font(size: int) -> FreeTypeFont:
    """The font that matplotlib brings, as in `figures`: the same on every machine."""
    from matplotlib import get_data_path
    from PIL import ImageFont

    return ImageFont.truetype(
        str(Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size, layout_engine=ImageFont.Layout.BASIC
    )


def _encoded(picture: Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()
