"""Encoded bytes to an upright 8-bit image, and that to a square of the dataset.

What is done, in this order: the first frame is decoded; EXIF rotation is applied; 16-bit values
are scaled to 8 bits; transparency is laid over white; the image is brought to grey (ITU-R 601
luma) or RGB; the largest centred square is cut out and resized to the wanted size.
"""

from __future__ import annotations

import functools
import io
import re

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from stages.sources.base import UnusableError

MAX_BYTES = 2**28  # of one encoded file
MAX_PIXELS = 2**27  # of one decoded image: 400 MB as RGB

# No plugin that runs another program (EPS calls Ghostscript), and none for what is no photograph.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
_MODES = {"grey": "L", "rgb": "RGB"}


def decode(encoded: bytes) -> Image.Image:
    """Decode a file's bytes.

    Returns
    -------
    Image in mode `L` or `RGB`, upright, at its native size.

    Raises
    ------
    UnusableError
        `not_an_image`, `damaged`, `too_large` or `unsupported_pixels`.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=_formats()) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnusableError("too_large", f"{image.width}×{image.height} pixels; at most {MAX_PIXELS}")
            return _eight_bits(ImageOps.exif_transpose(image))
    except UnusableError:
        raise
    except UnidentifiedImageError:
        # Pillow's own message names an address in memory, which differs from run to run.
        detail = "by its content none of " + ", ".join(_formats()) if encoded else "an empty file"
        raise UnusableError("not_an_image", detail) from None
    except Image.DecompressionBombError:
        raise UnusableError("too_large", f"more than {2 * MAX_PIXELS} pixels") from None
    except Exception as error:  # a broken file can raise anything in a decoder; it must not end the run
        raise UnusableError("damaged", _one_line(error)) from error


def to_square(image: Image.Image, size: int, color: str) -> NDArray[np.uint8]:
    """The centred square of an image, at the dataset's size.

    The shorter side is brought to `size`, what the longer one has over is cut off on both sides.
    Bicubic with a support that grows with the reduction, hence antialiased: Parmar, Zhang and Zhu,
    "On Aliased Resizing and Surprising Subtleties in GAN Evaluation", CVPR 2022, section 3.

    Parameters
    ----------
    image : mode `L` or `RGB`
    size : pixels of a side
    color : `grey` or `rgb`

    Returns
    -------
    uint8 array, size×size×1 or size×size×3
    """
    image = image.convert(_MODES[color])
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.uint8).reshape(size, size, -1)


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _scale_sixteen_bits(image)
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    mode = "L" if image.mode in ("1", "L") else "RGB"
    try:
        return image.convert(mode)
    except ValueError as error:
        raise UnusableError("unsupported_pixels", _one_line(error)) from error


def _scale_sixteen_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if image.mode == "F":
        raise UnusableError("unsupported_pixels", "floating point values have no known range")
    if values.min() < 0 or values.max() > 0xFFFF:
        raise UnusableError(
            "unsupported_pixels", f"values from {values.min()} to {values.max()} exceed 16 bits"
        )
    return Image.fromarray(np.round(values / 257).astype(np.uint8))


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"0x[0-9a-fA-F]+", "0x…", text)[:200]
