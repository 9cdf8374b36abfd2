"""Judge the image itself, whatever its label: dark, light, blurry, …; by cleanvision.

Formulas, thresholds and scores are cleanvision's. Its `Imagelab` wants files; here its issue manager
is given the properties of images that are in memory already, a batch at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.dataset.issue_kinds import PIXEL_KINDS, SHAPE_KINDS, flag_column, score_column
from stages.errors import WinnowError

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_CHECKS: tuple[str, ...] = (*PIXEL_KINDS, *SHAPE_KINDS)
ON = "on"

Checks = Literal["auto"] | Sequence[str]

COMMON = 0.2  # share of images from which on a property is the data set's
# Pixels a side under which a blurred image cannot be told from a small one: cleanvision's filter
# leaves the border as it is, and in small images that outweighs all edges.
SHARP_FROM = 32
_BATCH_PIXELS = 2**20


def image_issues(
    images: NDArray[np.uint8] | None,
    width: NDArray[np.integer],
    height: NDArray[np.integer],
    checks: Checks = "auto",
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Judge every image by its pixels and its original shape.

    Parameters
    ----------
    images : uint8, N×H×W×C with C of 1 or 3, a memory map or an array; None where there are none
    width, height : N, pixels; of the images as they came
    checks : names of `IMAGE_CHECKS`, exactly these are made; or `auto`, all that make sense for the
        data. Then a check is off that flags more than a fifth of the images, since that is what the
        data set is like (scans on white, strokes on black), `blurry` for images of fewer than 32
        pixels a side, and `odd_size` and `odd_aspect_ratio` where all are equal.

    Returns
    -------
    N rows: for each of `IMAGE_CHECKS` a `<name>_score` (float64, 0 to 1, low is bad; NaN where the
    check is off) and `is_<name>_issue` (False there); and for each check "on", or why it is off.

    Raises
    ------
    WinnowError
        For an unknown name, and for images that are not uint8 N×H×W×C.
    """
    chosen = _chosen(checks)
    if images is not None and (images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3)):
        raise WinnowError(f"images must be uint8 N×H×W×C with C of 1 or 3, not {images.dtype} {images.shape}")
    report = dict.fromkeys(IMAGE_CHECKS, ON)
    report |= {name: "not asked for" for name in IMAGE_CHECKS if name not in chosen}
    if images is None:
        report |= {name: "no pixels were given" for name in PIXEL_KINDS if report[name] == ON}
    if checks == "auto":
        report |= _senseless(images, width, height, report)
    scores = _by_cleanvision(images, width, height, [name for name in IMAGE_CHECKS if report[name] == ON])
    table = pd.DataFrame(index=pd.RangeIndex(len(width)))
    for name in IMAGE_CHECKS:
        score, flag = score_column(name), flag_column(name)
        share = float(scores[flag].mean()) if flag in scores else 0.0
        if checks == "auto" and share > COMMON:
            report[name] = f"{share:.0%} of the images would be flagged: the data set is like that"
        on = report[name] == ON and flag in scores
        table[score] = scores[score].astype(np.float64) if on else np.nan
        table[flag] = scores[flag].astype(bool) if on else False
    return table, report


def _chosen(checks: Checks) -> tuple[str, ...]:
    if checks == "auto":
        return IMAGE_CHECKS
    names = (checks,) if isinstance(checks, str) else tuple(checks)
    unknown = [name for name in names if name not in IMAGE_CHECKS]
    if unknown:
        raise WinnowError(
            f"unknown image check {unknown[0]!r}; they are auto, or of {', '.join(IMAGE_CHECKS)}"
        )
    return names


def _senseless(
    images: NDArray[np.uint8] | None,
    width: NDArray[np.integer],
    height: NDArray[np.integer],
    report: dict[str, str],
) -> dict[str, str]:
    """Name the checks that the shape of the data alone rules out, and why."""
    off: dict[str, str] = {}
    side = min(images.shape[1:3]) if images is not None else SHARP_FROM
    if side < SHARP_FROM and report["blurry"] == ON:
        off["blurry"] = f"images of {side} pixels are too small to tell blurred from sharp"
    if len(width) == 0:
        return off
    if (width == width[0]).all() and (height == height[0]).all():
        off["odd_size"] = f"all images are {width[0]}×{height[0]} pixels"
    if (width * height[0] == height * width[0]).all():
        off["odd_aspect_ratio"] = "all images are of one shape"
    return off


def _by_cleanvision(
    images: NDArray[np.uint8] | None,
    width: NDArray[np.integer],
    height: NDArray[np.integer],
    names: list[str],
) -> pd.DataFrame:
    """Return scores and flags of the checks named, by cleanvision's own rules and thresholds."""
    if not names or len(width) == 0:
        return pd.DataFrame()
    from cleanvision.issue_managers.image_property_issue_manager import ImagePropertyIssueManager

    sides = width.astype(np.float64), height.astype(np.float64)
    properties: dict[str, NDArray[np.float64]] = {}
    if "odd_size" in names:
        properties["size"] = np.sqrt(sides[0]) * np.sqrt(sides[1])
    if "odd_aspect_ratio" in names:
        properties["aspect_ratio"] = np.minimum(sides[0] / sides[1], sides[1] / sides[0])
    if images is not None:
        batches = [pixel_properties(batch, names) for batch in _batches(images)]
        properties |= {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    raw = pd.DataFrame(properties)
    manager = ImagePropertyIssueManager()
    manager.issues = pd.DataFrame(index=raw.index)
    manager.update_issues(raw, names)
    return manager.issues


def _batches(images: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    size = max(1, _BATCH_PIXELS // (images.shape[1] * images.shape[2]))
    for start in range(0, len(images), size):
        yield np.asarray(images[start : start + size])


def pixel_properties(images: NDArray[np.uint8], names: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Compute the properties of images that cleanvision's checks `names` need, by its names for them.

    The same numbers as from `ImageProperty.calculate` image by image, five times as fast: percentiles
    and variances are taken of all images at once.
    """
    from cleanvision.issue_managers.image_property import calc_entropy
    from PIL.Image import fromarray

    properties: dict[str, NDArray[np.float64]] = {}
    if "dark" in names or "light" in names:
        light, dark = np.percentile(_brightness(images), [5, 99], axis=1)
        properties |= {"brightness_perc_99": dark, "brightness_perc_5": light}
    if "low_information" in names or "blurry" in names:
        pictures = [fromarray(image[:, :, 0] if image.shape[2] == 1 else image) for image in images]
        if "low_information" in names:
            properties["entropy"] = np.array([calc_entropy(picture) for picture in pictures])
        if "blurry" in names:
            properties |= _blurriness(pictures)
    return properties


def _brightness(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the perceived brightness of each pixel, 0 to 1; N×(H·W)."""
    from cleanvision.issue_managers.image_property import calculate_brightness

    flat = images.reshape(len(images), -1, images.shape[3])
    if images.shape[3] == 1:
        return flat[:, :, 0] / 255.0
    red, green, blue = (flat[:, :, channel].astype(np.int64) for channel in range(3))
    return calculate_brightness(red, green, blue)


def _blurriness(pictures: list[Image]) -> dict[str, NDArray[np.float64]]:
    """Return the spread of the edges and of the histogram of each image, at 64 pixels at most."""
    from cleanvision.issue_managers.image_property import get_edges
    from cleanvision.utils.constants import MAX_RESOLUTION_FOR_BLURRY_DETECTION

    width, height = pictures[0].size
    ratio = max(width, height) / MAX_RESOLUTION_FOR_BLURRY_DETECTION
    if ratio > 1:
        pictures = [
            picture.resize((max(int(width // ratio), 1), max(int(height // ratio), 1)))
            for picture in pictures
        ]
    grey = [picture.convert("L") for picture in pictures]
    edges = np.stack([np.asarray(get_edges(picture)) for picture in grey]).reshape(len(grey), -1)
    levels = np.stack([np.asarray(picture.histogram()) for picture in grey])
    return {"blurriness": edges.std(1), "blurriness_grayscale_std": levels.std(1)}
