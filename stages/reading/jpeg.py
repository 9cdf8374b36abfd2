"""Small plain JPEGs, which simplejpeg decodes at several times the speed of Pillow, to the same pixels.

Pillow's cost for a file, whatever its size, is far above that of decoding 32×32 pixels. Both use
libjpeg-turbo, and give the same pixels wherever the file says nothing but what is in the standard
(tests compare them bit for bit); any file with more to say is left to Pillow.
"""

from __future__ import annotations

import re

import numpy as np
import simplejpeg
from numpy.typing import NDArray

_LARGEST = 256  # pixels of a side: above it the decoding itself dominates
_BASELINE, _PROGRESSIVE = (0xC0, 0xC1), 0xC2  # start of frame, ITU-T T.81 table B.1
_START_OF_SCAN = 0xDA
_LEFT_TO_PILLOW = frozenset({0xE1, 0xEE})  # EXIF may ask for a rotation, Adobe for other colours
_OTHER_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]").search  # neither stuffing nor a restart
_SPACES = {1: "GRAY", 3: "RGB"}  # by number of components


def decode_plain_jpeg(encoded: bytes) -> NDArray[np.uint8] | None:
    """Decode a JPEG if it is small and plain.

    Plain is: whole from its first marker to its last; 8 bits; baseline in one scan, or progressive;
    1 or 3 components; no EXIF and no Adobe segment; at most 256×256 pixels.

    Returns
    -------
    uint8 array, H×W×1 or H×W×3 as RGB; None for whatever is anything else.
    """
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
