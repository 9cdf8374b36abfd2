"""Decode bytes to an upright 8-bit image, and bring that to a square of the dataset.

The steps, in this order:

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

Small plain JPEGs are decoded by simplejpeg, at several times the speed of Pillow, whose cost for a file,
whatever its size, is far above that of decoding 32×32 pixels. Both use libjpeg-turbo, and give the same
pixels wherever the file says nothing but what is in the standard (tests compare them bit for bit); any
file with more to say is left to Pillow. Of a file that is no image the error says what it is and what to
do about it.
"""

from __future__ import annotations

import functools
import io
import re
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from stages.errors import MAX_BYTES, UnusableError

_LARGEST = 256  # pixels of a side: above it the decoding itself dominates
_BASELINE, _PROGRESSIVE = (0xC0, 0xC1), 0xC2  # start of frame, ITU-T T.81 table B.1
_START_OF_SCAN = 0xDA
_LEFT_TO_PILLOW = frozenset({0xE1, 0xEE})  # EXIF may ask for a rotation, Adobe for other colours
_OTHER_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]").search  # neither stuffing nor a restart
_SPACES = {1: "GRAY", 3: "RGB"}  # by number of components
_CONVERT = "convert it to JPEG or PNG"

# Where in the file, what stands there, what it is then, what to do.
_SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"8BPS", "a Photoshop document", _CONVERT),
    (0, b"\xff\x0a", "a JPEG XL image", _CONVERT),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL image", _CONVERT),
    (0, b"%PDF", "a PDF document", _CONVERT),
    (0, b"%!PS", "a PostScript document", _CONVERT),
    (0, b"\0\0\x01\0", "a Windows icon", _CONVERT),
    (0, b"gimp xcf", "a GIMP project", _CONVERT),
    (0, b"v/1\x01", "an OpenEXR image", _CONVERT),
    (0, b"SIMPLE  =", "a FITS image", _CONVERT),
    (128, b"DICM", "a DICOM file", "export it as PNG"),
    (0, b"FUJIFILMCCD-RAW", "a camera's raw file (RAF)", _CONVERT),
    (0, b"IIRO", "a camera's raw file (ORF)", _CONVERT),
    (0, b"IIU\0", "a camera's raw file (RW2)", _CONVERT),
    (8, b"CR\x02", "a camera's raw file (CR2)", _CONVERT),
    (0, b"PK\x03\x04", "a ZIP archive", "unpack it"),
    (0, b"\x1f\x8b", "compressed by gzip", "unpack it"),
    (0, b"\x1a\x45\xdf\xa3", "a video", "take still images from it"),
    (0, b"version https://git-lfs", "a Git LFS pointer in place of the file", "run `git lfs pull`"),
)

_BRANDS = {  # of an ISO base media file, ISO/IEC 14496-12: bytes 8 to 12
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "a HEIF image"),
    b"crx ": "a camera's raw file (CR3)",
}

_READABLE = (
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"GIF8", "GIF"),
    (8, b"WEBP", "WEBP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (4, b"jP  \r\n", "JPEG2000"),
    (4, b"ftypavif", "AVIF"),
)

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


def decode_plain_jpeg(encoded: bytes) -> NDArray[np.uint8] | None:
    """Decode a JPEG if it is small and plain.

    Plain is: whole from its first marker to its last; 8 bits; baseline in one scan, or progressive;
    1 or 3 components; no EXIF and no Adobe segment; at most 256×256 pixels.

    Returns
    -------
    uint8 array, H×W×1 or H×W×3 as RGB; None for whatever is anything else.
    """
    import simplejpeg  # here: the names of source formats are read without any decoder

    channels = _plain_channels(encoded)
    if not channels:
        return None
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(encoded, _SPACES[channels])
    except ValueError:
        return None  # Pillow decides whether it is damaged, and says how
    return pixels


def _plain_channels(encoded: bytes) -> int:
    """Walk the segments up to the first scan: the number of components, 0 where it is not plain."""
    if encoded[:3] != b"\xff\xd8\xff" or encoded[-2:] != b"\xff\xd9":
        return 0
    at, frame, channels, end = 2, 0, 0, len(encoded) - 10
    while at < end:
        marker = encoded[at + 1]
        if encoded[at] != 0xFF or marker in _LEFT_TO_PILLOW:
            return 0
        if marker == _START_OF_SCAN:
            # A marker inside the data of a single scan means that the file is corrupt.
            corrupt = frame in _BASELINE and _OTHER_MARKER(encoded, at + 2, len(encoded) - 2)
            return 0 if corrupt else channels
        if marker in _BASELINE or marker == _PROGRESSIVE:
            height, width = encoded[at + 5] << 8 | encoded[at + 6], encoded[at + 7] << 8 | encoded[at + 8]
            channels = encoded[at + 9]
            plain = encoded[at + 4] == 8 and channels in _SPACES
            if not plain or not 0 < height <= _LARGEST or not 0 < width <= _LARGEST:
                return 0
            frame = marker
        at += 2 + (encoded[at + 2] << 8 | encoded[at + 3])
    return 0


def other_kind(encoded: bytes) -> str | None:
    """Name what these bytes are and what to do about it, None where they look like nothing that is known."""
    for at, signature, what, remedy in _SIGNATURES:
        if encoded.startswith(signature, at):
            return f"{what}: {remedy}"
    if encoded.startswith(b"ftyp", 4) and begins_as(encoded) is None:
        brand = _BRANDS.get(encoded[8:12])
        return f"{brand}: {_CONVERT}" if brand else "a video: take still images from it"
    text = encoded[:1000].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<svg", b"<?xml")) and b"<svg" in text:
        return f"an SVG drawing: {_CONVERT}"
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page, perhaps an error saved in place of an image: download it again"
    return None


def begins_as(encoded: bytes) -> str | None:
    """Name the format, as Pillow does, that these bytes begin like; None where they do not."""
    for at, signature, name in _READABLE:
        if encoded.startswith(signature, at):
            return name
    return None


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
    """Bring an image to a square of the dataset.

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
    """Return an exception's message as one short line that is the same in every run."""
    # The text of an error of the operating system names a path of this machine.
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(message.split()) or type(error).__name__
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
