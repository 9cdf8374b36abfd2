"""Turn the inputs of `predict` into the pixels that a model takes: tables, lists, arrays, encoded images.

Files are decoded by the code of `ingest`: the same file gives the same pixels, bit for bit.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.errors import UnusableError, WinnowError
from stages.images.decode import Color, Resize, decode, to_square
from stages.ingestion.payloads import FilePayload
from stages.learning.networks.layers import ModelSpec

_CHANNELS = (1, 3)
COLUMN = "image"  # of tables
_BATCH = 256  # images that are in memory as pixels at a time


def prepare(image: bytes | NDArray[np.uint8], spec: ModelSpec) -> NDArray[np.uint8]:
    """Prepare one image for the model that `spec` describes.

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
        For bytes that `stages.images.decode` refuses, those of more than 2²⁸ bytes or 2²⁷ pixels
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
    """Say which arrays the model takes without any resizing, for messages."""
    return f"the model takes uint8 images N×{'×'.join(map(str, spec.image_shape))}"


def read_file(path: Path) -> bytes:
    """Read the bytes of a file; links are followed.

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


def image_batches(given: object, spec: ModelSpec, *, read_files: bool = False) -> Iterator[NDArray[np.uint8]]:
    """Yield the images in `given`, prepared for the model, in batches.

    Parameters
    ----------
    given : a table with the column `image`, a dictionary with that key, a list, or a single image. An
        image is a file's bytes, a `Path`, an array of integers (H×W×C, or H×W for grey), or text:
        base64 of a file's bytes. All in one: an array N×H×W×C.
    spec : of the model
    read_files : take text for a path in place of base64. A request to a server is text: with it,
        whoever can ask the server can find out what it can read.

    Yields
    ------
    uint8 arrays n×H×W×C of `spec.image_shape`, in the order of the rows.

    Raises
    ------
    WinnowError
        For what is no image; it names the row, counted from 0.
    """
    rows = _rows(given, spec)
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH]
        if isinstance(batch, np.ndarray) and batch.shape[1:] == spec.image_shape:
            yield batch
        else:
            yield np.stack(
                [_prepared(item, start + i, spec, read_files=read_files) for i, item in enumerate(batch)]
            )


def _rows(given: object, spec: ModelSpec) -> Sequence[object] | NDArray[np.uint8]:
    """Return one item an image; for numbers an array of uint8."""
    if isinstance(given, (pd.DataFrame, dict)):
        if COLUMN not in given:
            columns = ", ".join(map(str, given)) or "none"
            raise WinnowError(f"the images have to be in the column {COLUMN!r}; the columns are: {columns}")
        given = given[COLUMN]
    if isinstance(given, (pd.Series, list, tuple)):
        return list(given)
    if not isinstance(given, np.ndarray):
        return [given]
    if given.dtype.kind in "OSU":
        return list(given.reshape(-1))
    if given.ndim == 3 and (given.shape == spec.image_shape or given.shape[2] in (1, 3)):
        given = given[None]
    if given.ndim != 4:
        raise WinnowError(f"{takes(spec)}, not {_shown(given)}")
    try:
        return _bytes(given)
    except UnusableError as error:
        raise WinnowError(f"{takes(spec)}, not {_shown(given)}: {error.detail}") from error


def _prepared(item: object, row: int, spec: ModelSpec, *, read_files: bool) -> NDArray[np.uint8]:
    try:
        return prepare(_image(item, read_files=read_files), spec)
    except UnusableError as error:
        raise WinnowError(f"row {row}: {error}") from error


def _image(item: object, *, read_files: bool) -> bytes | NDArray[np.uint8]:
    """Return the bytes or pixels that an item is, or stands for."""
    if isinstance(item, dict) and COLUMN in item:
        item = item[COLUMN]
    if isinstance(item, np.ndarray) and item.ndim == 0:
        item = item.item()
    if isinstance(item, str):
        item = Path(item) if read_files else _from_base64(item)
    if isinstance(item, os.PathLike):
        return read_file(Path(item))
    if isinstance(item, (bytes, bytearray, memoryview)):
        return bytes(item)
    if isinstance(item, (list, tuple)):  # pixels as JSON has them
        try:
            item = np.asarray(item)
        except ValueError as error:
            raise UnusableError("unsupported_pixels", "rows of pixels of unequal length") from error
    if not isinstance(item, np.ndarray):
        name = type(item).__name__
        raise UnusableError("not_an_image", f"{name}: bytes, a Path, an array or base64 is needed")
    pixels = _bytes(item)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _from_base64(text: str) -> bytes:
    try:
        # MLflow breaks its lines.
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UnusableError(
            "not_an_image",
            "text that is not base64: for a file give a pathlib.Path, which no request can hold",
        ) from error


def _bytes(pixels: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Convert integers from 0 to 255 to uint8."""
    if pixels.dtype == np.uint8:
        return pixels.astype(np.uint8, copy=False)
    if not np.issubdtype(pixels.dtype, np.integer):
        raise UnusableError("unsupported_pixels", f"{pixels.dtype}: integers from 0 to 255 are needed")
    if pixels.size and (int(pixels.min()) < 0 or int(pixels.max()) > 255):
        raise UnusableError("unsupported_pixels", "values outside of 0 to 255")
    return pixels.astype(np.uint8)


def _shown(array: NDArray[np.generic]) -> str:
    return f"{array.dtype} {'×'.join(map(str, array.shape))}"
