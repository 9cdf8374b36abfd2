"""From an encoded image, or an array of any size, to the pixels that a model takes.

The code that `ingest` reads files with does it here too: the same file gives the same pixels, bit for bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from stages.learning.models import ModelSpec
from stages.reading.decode import Color, Resize, decode, to_square
from stages.sources.base import UnusableError
from stages.sources.files.payloads import FilePayload

_CHANNELS = (1, 3)


def prepare(image: bytes | NDArray[np.uint8], spec: ModelSpec) -> NDArray[np.uint8]:
    """One image as the model that `spec` describes takes it.

    Parameters
    ----------
    image : the bytes of a file in one of the formats that `ingest` reads, or pixels, H×W×1 or H×W×3
    spec : says size and colours; without `spec.preprocessing` only pixels of the right shape are taken

    Returns
    -------
    uint8 array of `spec.image_shape`; pixels of this shape are returned as they are.

    Raises
    ------
    UnusableError
        For bytes that `stages.reading.decode` refuses, those of more than 2²⁸ bytes or 2²⁷ pixels
        among them; for pixels of another number of channels; and where it is not known how to resize.
    """
    if not isinstance(image, bytes):
        if image.shape == spec.image_shape:
            return image
        if image.ndim != 3 or image.shape[2] not in _CHANNELS or not image.size:
            shape = "×".join(map(str, image.shape))
            raise UnusableError("unsupported_pixels", f"{shape} is no image: H×W×1 or H×W×3 is needed")
    height, width, _ = spec.image_shape
    how = spec.preprocessing
    if how is None or height != width:
        raise UnusableError("unsupported_pixels", f"nothing is known of resizing: {takes(spec)}")
    pixels = decode(image) if isinstance(image, bytes) else image
    return to_square(pixels, height, cast(Color, how.color), cast(Resize, how.resize))


def takes(spec: ModelSpec) -> str:
    """What arrays the model takes without any resizing, for messages."""
    return f"the model takes uint8 images N×{'×'.join(map(str, spec.image_shape))}"


def read_file(path: Path) -> bytes:
    """The bytes of a file, a link followed.

    Raises
    ------
    UnusableError
        `unreadable` or `too_large`; a pipe or device is not waited for.
    """
    try:
        real = path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise UnusableError("unreadable", "no path that can be followed") from error
    (item,) = FilePayload(str(real.parent), [real.name]).read()
    if isinstance(item, UnusableError):
        raise item
    return cast(bytes, item)
