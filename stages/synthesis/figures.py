"""Pictures of samples: a montage with a line for each class, and a page that says there is nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_GAP = 2  # pixels between two images
_BACKGROUND = 235
_MIN_TILE = 32  # pixels: smaller images are magnified


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
    height = side + _GAP
    axes.set_yticks([height * i + side / 2 for i in range(len(lines))], [_plain(line.name) for line in lines])
    axes.set_xticks([])
    start = 0
    for count, text in zip(columns, block_titles, strict=True):
        axes.text(start, -6, text, fontsize=9, va="bottom", ha="left")
        start += count * (side + _GAP) + side // 2
    axes.set_title(_plain(title), fontsize=10, loc="left", pad=22)
    axes.tick_params(length=0)
    axes.set_frame_on(False)
    figure.savefig(path, format="png", bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def _paint(lines: Sequence[Line], columns: Sequence[int], side: int) -> NDArray[np.uint8]:
    """The montage as one RGB image."""
    gap = side // 2
    width = sum(count * (side + _GAP) for count in columns) + gap * (len(columns) - 1)
    canvas = np.full((len(lines) * (side + _GAP), width, 3), _BACKGROUND, np.uint8)
    for row, line in enumerate(lines):
        start = 0
        for count, block in zip(columns, line.blocks, strict=True):
            for column, image in enumerate(block[:count]):
                tile = _scaled(image, side)
                top, left = row * (side + _GAP), start + column * (side + _GAP)
                canvas[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
            start += count * (side + _GAP) + gap
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
