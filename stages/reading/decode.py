"""Encoded bytes to an upright 8-bit image, and that to a square of the dataset.

What is done, in this order:

1. The first frame or page is decoded (GIF, animated WebP and PNG, multi-page TIFF); of a phone's
   multi-picture JPEG the main picture.
2. 16-bit grey becomes 8-bit by value/257, rounded; 12-bit grey by value·255/4095. Of 16-bit colour
   the high byte is taken. Wider, signed and floating point values have no known range and are
   refused.
3. The rotation that EXIF asks for is applied.
4. Transparency is laid over white.
5. Bilevel and grey images become grey. All others become RGB: palettes by their colours, CMYK by
   Pillow's formula, (255 - c)·(255 - k)/255, which knows no ink (Adobe's inverted CMYK is turned
   first), CIE Lab by way of LittleCMS to sRGB. Colour profiles inside the file are not applied.
6. The image is brought to the dataset's colours, grey being ITU-R 601 luma, and to its square:
   `to_square`.
"""

from __future__ import annotations

import functools
import io
import re
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from stages.reading.jpeg import decode_plain_jpeg
from stages.reading.sniff import begins_as, other_kind
from stages.sources.base import MAX_BYTES, UnusableError

MAX_PIXELS = 2**27  # of one decoded image: 400 MB as RGB

Color = Literal["grey", "rgb"]
Resize = Literal["crop", "pad", "stretch"]

# No plugin that runs another program (EPS calls Ghostscript), and none for what is no photograph.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
_MODES = {"grey": "L", "rgb": "RGB"}
_CHANNELS = {"grey": 1, "rgb": 3}
_BICUBIC = Image.Resampling.BICUBIC
_AT_ONCE = 2**20  # pixels that are copied out of Pillow together: it makes copies on the way

_ORIENTATION = 0x0112
_UPRIGHT = {  # by the EXIF orientation, Exif 2.32 section 4.6.4
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Of a TIFF: TIFF 6.0 section 8, and the DNG specification.
_SUBFILE, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT, _DNG_VERSION = 254, 258, 262, 339, 50706
_WHITE_IS_ZERO, _SIGNED, _REDUCED = 0, 2, 1


def decode(encoded: bytes) -> NDArray[np.uint8]:
    """Decode a file's bytes.

    Returns
    -------
    uint8 array, H×W×1 (grey) or H×W×3 (RGB), upright, at its native size.

    Raises
    ------
    UnusableError
        `not_an_image`, `damaged`, `too_large` or `unsupported_pixels`.
    """
    if len(encoded) > MAX_BYTES:
        raise UnusableError("too_large", f"{len(encoded)} bytes; at most {MAX_BYTES}")
    try:
        pixels = decode_plain_jpeg(encoded)
        return _decode_by_pillow(encoded) if pixels is None else pixels
    except UnusableError:
        raise
    except UnidentifiedImageError:
        # Pillow's own message names an address in memory, which differs from run to run.
        raise _unidentified(encoded) from None
    except Image.DecompressionBombError:
        raise UnusableError("too_large", f"more than {MAX_PIXELS} pixels") from None
    except MemoryError:
        raise UnusableError("too_large", "more memory is needed than there is") from None
    except Exception as error:  # a broken file can raise anything in a decoder; it must not end the run
        raise UnusableError("damaged", one_line(error)) from error


def to_square(
    pixels: NDArray[np.uint8], size: int, color: Color, resize: Resize = "crop"
) -> NDArray[np.uint8]:
    """An image as a square of the dataset.

    Bicubic with a support that grows with the reduction, hence antialiased: Parmar, Zhang and Zhu,
    "On Aliased Resizing and Surprising Subtleties in GAN Evaluation", CVPR 2022, section 3.

    Parameters
    ----------
    pixels : uint8 array, H×W×1 or H×W×3
    size : pixels of a side
    color : `grey` or `rgb`
    resize : `crop` brings the shorter side to `size` and cuts off on both sides what the longer one
        has over; `pad` brings the longer side to `size` and lays the image on the middle of a black
        square; `stretch` brings both sides to `size`, whatever becomes of the proportions

    Returns
    -------
    uint8 array, size×size×1 or size×size×3; an image that is one already keeps its pixels.
    """
    channels = _CHANNELS[color]
    if pixels.shape == (size, size, channels):
        return pixels
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert(_MODES[color])
    if image.size != (size, size):
        image = _resized(image, size, resize)
    return np.asarray(image, dtype=np.uint8).reshape(size, size, channels)


def one_line(error: Exception) -> str:
    """What an exception says, in one short line that is the same in every run."""
    # The text of an error of the operating system names a path of this machine.
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(said.split()) or type(error).__name__
    return re.sub(r"0x[0-9a-fA-F]+", "0x…", text)[:200]


def _resized(image: Image.Image, size: int, resize: Resize) -> Image.Image:
    if resize == "crop":
        return ImageOps.fit(image, (size, size), _BICUBIC)
    if resize == "stretch":
        return image.resize((size, size), _BICUBIC)
    longer = max(image.size)
    # A line of pixels stays one pixel thick.
    width, height = (max(1, round(side * size / longer)) for side in image.size)
    square = Image.new(image.mode, (size, size))
    square.paste(image.resize((width, height), _BICUBIC), ((size - width) // 2, (size - height) // 2))
    return square


def _decode_by_pillow(encoded: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(encoded), formats=_formats()) as image:
        if image.width * image.height > MAX_PIXELS:
            raise UnusableError("too_large", f"{image.width}×{image.height} pixels; at most {MAX_PIXELS}")
        _refuse_previews(image)
        image.load()
        return _pixels(_eight_bits(_upright(image)))


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # notes beside the picture that nobody can read are no reason to refuse it
        return image
    if not isinstance(orientation, int) or orientation not in _UPRIGHT:
        return image
    return image.transpose(_UPRIGHT[orientation])


def _refuse_previews(image: Image.Image) -> None:
    """Refuse raw photographs: as TIFF, what Pillow gives of them is a preview of a few pixels."""
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    subfile = tags.get(_SUBFILE, 0)
    if _DNG_VERSION in tags or (isinstance(subfile, int) and subfile & _REDUCED):
        raise UnusableError("not_an_image", "a camera's raw file (DNG, NEF, ARW): convert it to JPEG or PNG")


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _scale_sixteen_bits(image)
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    if image.mode == "LAB":
        return _lab_to_rgb(image)
    try:
        return image.convert("L" if image.mode in ("1", "L") else "RGB")
    except ValueError as error:
        raise UnusableError("unsupported_pixels", one_line(error)) from error


def _scale_sixteen_bits(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise UnusableError("unsupported_pixels", "floating point values have no known range")
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    if (image.mode == "I" and image.format == "TIFF") or tags.get(_SAMPLE_FORMAT) == (_SIGNED,):
        raise UnusableError("unsupported_pixels", "signed and 32-bit values have no known range")
    values = np.asarray(image).astype(np.int32)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise UnusableError("unsupported_pixels", f"values from {values.min()} to {values.max()}: no 16 bits")
    highest = 0xFFF if tags.get(_BITS) == (12,) else 0xFFFF
    scaled = ((values * 255 + highest // 2) // highest).astype(np.uint8)
    return Image.fromarray(255 - scaled if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else scaled)


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, rgb, "LAB", "RGB").apply(image)


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    width, height = image.size
    if width * height <= _AT_ONCE:
        return np.asarray(image).reshape(height, width, -1)
    pixels = np.empty((height, width, len(image.getbands())), np.uint8)
    rows = max(1, _AT_ONCE // width)
    for top in range(0, height, rows):
        strip = np.asarray(image.crop((0, top, width, min(top + rows, height))))
        pixels[top : top + rows] = strip.reshape(len(strip), width, -1)
    return pixels


def _unidentified(encoded: bytes) -> UnusableError:
    if not encoded:
        return UnusableError("not_an_image", "an empty file")
    other = other_kind(encoded)
    if other is None and (name := begins_as(encoded)) in _formats():
        return UnusableError("damaged", f"begins as {name}, but its header is cut off, corrupt or unusual")
    return UnusableError("not_an_image", other or "by its content none of " + ", ".join(_formats()))


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)
