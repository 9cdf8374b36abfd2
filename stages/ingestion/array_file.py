"""Read images, labels and what else is known of them from arrays on disk that are never held whole.

`.npy`, `.npz` and IDX files come to this. Columns are read block by block and checked row by row, as
the cells of a table are. Worker processes import this module: they read the images.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stages.dataset.ids import Split
from stages.errors import UnusableError, WinnowError
from stages.images.decode import MAX_PIXELS
from stages.ingestion import cells
from stages.ingestion.source import BLOCK, Block, Quarantined

MAX_UNPACKED = 2**36  # bytes that an .npz or a .gz may unpack to
LABEL_KINDS = "iubUS"  # numpy's letters for integers, truth values and text
_CHANNELS = (1, 3, 4)
_CHUNK = 2**20  # bytes that are copied at once
_LONGEST_TEXT = 2000  # characters that a label or group may have room for
_LABELS_AT_ONCE = 2**16  # that are read to find the classes


@dataclass(frozen=True)
class DiskArray:
    """An array in a file, in C order from byte `offset` on; `dtype` as in `numpy.dtype.str`."""

    path: str
    offset: int
    dtype: str
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def size(self) -> int:
        """Count the bytes of the whole array."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Read the rows from `start` up to `stop` of an array with one value a row.

        Raises
        ------
        WinnowError
            Where the file has become shorter since it was opened.
        """
        dtype = np.dtype(self.dtype)
        values = np.fromfile(self.path, dtype, stop - start, offset=self.offset + start * dtype.itemsize)
        if len(values) < stop - start:
            raise WinnowError(f"{self.path} has changed while it was read: run again")
        return values


@dataclass(frozen=True)
class ArrayPayload:
    """Some rows of an array of images, N×H×W, N×H×W×C or N×C×H×W; see `eight_bits`."""

    images: DiskArray
    rows: Sequence[int]
    channels_first: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def read(self) -> Iterator[bytes | NDArray[np.uint8] | UnusableError]:
        """Read every row as uint8 H×W×1 or H×W×3; see `source.Payload`."""
        dtype, shape = np.dtype(self.images.dtype), self.images.shape[1:]
        size = math.prod(shape) * dtype.itemsize
        done = 0
        try:
            with Path(self.images.path).open("rb") as file:
                for row in self.rows:
                    raw = bytearray(size)
                    file.seek(self.images.offset + row * size)
                    whole = file.readinto(raw) == size
                    done += 1
                    if whole:
                        yield eight_bits(np.frombuffer(raw, dtype).reshape(shape), self.channels_first)
                    else:
                        yield UnusableError("damaged", "the file ends before this row")
        except OSError as error:
            for _ in range(len(self.rows) - done):
                yield UnusableError("unreadable", error.strerror or type(error).__name__)

    def part(self, start: int, stop: int) -> ArrayPayload:
        """See `source.Payload`."""
        return ArrayPayload(self.images, self.rows[start:stop], self.channels_first)


def eight_bits(values: NDArray[Any], channels_first: bool) -> NDArray[np.uint8]:
    """Convert one image to what decoding an encoded one would give.

    Truth values become 0 and 255, 16-bit values are scaled (65535 becomes 255), transparency is laid
    over white.

    Parameters
    ----------
    values : bool, uint8 or uint16; H×W, H×W×C or, with `channels_first`, C×H×W; C is 1, 3 or 4

    Returns
    -------
    uint8 array, H×W×1 or H×W×3, contiguous
    """
    if values.ndim == 2:
        values = values[..., np.newaxis]
    elif channels_first:
        values = values.transpose(1, 2, 0)
    if values.dtype.kind == "b":
        # Nothing says that the bytes of a foreign file are 0 or 1.
        values = (values.view(np.uint8) != 0) * np.uint8(255)
    elif values.dtype.itemsize == 2:
        values = np.round(values / 257).astype(np.uint8)
    if values.shape[2] == 4:
        picture = Image.fromarray(np.ascontiguousarray(values))
        white = Image.new("RGBA", picture.size, "white")
        values = np.array(Image.alpha_composite(white, picture).convert("RGB"))
    return np.ascontiguousarray(values)


def channels_first_of(images: DiskArray, shown: str) -> bool:
    """Return whether an array of images is N×C×H×W, not N×H×W or N×H×W×C.

    Four axes are taken for N×C×H×W only where the second is 1 or 3 and the last is no number of
    channels.

    Raises
    ------
    WinnowError
        Where it is no array of images: another type of values, other axes, or too many pixels.
    """
    dtype, shape = np.dtype(images.dtype), images.shape
    if dtype.kind == "f":
        raise WinnowError(
            f"{shown} holds {dtype} values, whose range nothing says: multiply them by 255 if they run "
            "from 0 to 1, and save them as uint8"
        )
    if dtype.kind != "b" and (dtype.kind != "u" or dtype.itemsize > 2):
        raise WinnowError(f"{shown} holds {dtype} values: save the images as uint8")
    if len(shape) == 2:
        raise WinnowError(
            f"{shown} has a flat row for each image, shape {_axes(shape)}: reshape it to N×H×W or N×H×W×C"
        )
    first = len(shape) == 4 and shape[1] in (1, 3) and shape[3] not in _CHANNELS
    channels = 1 if len(shape) == 3 else shape[1 if first else -1] if len(shape) == 4 else 0
    if channels not in _CHANNELS or 0 in shape[1:]:
        raise WinnowError(
            f"{shown} has the shape {_axes(shape)}: images are N×H×W, or N×H×W×C with 1, 3 or 4 channels"
        )
    pixels = math.prod(shape[1:]) // channels
    if pixels > MAX_PIXELS:
        raise WinnowError(f"{shown} has {pixels} pixels in each image; at most {MAX_PIXELS} can be read")
    return first


def pixel_notes(images: DiskArray, name: str) -> list[str]:
    """Tell the user how an array of images is read where that is not obvious, a line each."""
    notes = []
    if channels_first_of(images, name):
        notes.append(f"{name}: the channels come first (N×C×H×W)")
    elif len(images.shape) == 4 and images.shape[3] == 4:
        notes.append(f"{name}: transparency is laid over white")
    if np.dtype(images.dtype).itemsize == 2:
        notes.append(f"{name}: 16-bit values are divided by 257")
    return notes


def check_column(array: DiskArray, count: int, kinds: str, shown: str) -> None:
    """Check that an array can hold one value for each of `count` images.

    Raises
    ------
    WinnowError
        Where its values are none of `kinds` (numpy's letters), or it has another length or shape.
    """
    dtype, shape = np.dtype(array.dtype), array.shape
    if len(shape) == 2 and shape[1] != 1:
        raise WinnowError(
            f"{shown} has the shape {_axes(shape)}, but one value for each image is needed; "
            "of one-hot labels save labels.argmax(axis=1)"
        )
    if len(shape) not in (1, 2):
        raise WinnowError(f"{shown} has the shape {_axes(shape)}, but one value for each image is needed")
    if shape[0] != count:
        raise WinnowError(f"{shown} has {shape[0]} rows for {count} images")
    if dtype.kind not in kinds:
        wanted = [
            word for word, kind in (("integers", "i"), ("numbers", "f"), ("text", "U")) if kind in kinds
        ]
        raise WinnowError(f"{shown} holds {dtype} values: save {' or '.join(wanted)}")
    if dtype.kind in "US" and not 0 < dtype.itemsize <= 4 * _LONGEST_TEXT:
        raise WinnowError(f"{shown} holds text of {dtype.itemsize} bytes a row; at most {4 * _LONGEST_TEXT}")


def require_room(scratch: Path, size: int, shown: str) -> None:
    """Make the scratch folder, and check that `size` bytes may and can be written there.

    Raises
    ------
    WinnowError
        Where they are more than `MAX_UNPACKED`, or more than the disk has room for.
    """
    if size > MAX_UNPACKED:
        raise WinnowError(f"{shown} would unpack to {size} bytes; at most {MAX_UNPACKED} are unpacked")
    scratch.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(scratch).free
    if size > free:
        raise WinnowError(f"{shown} unpacks to {size} bytes, but only {free} are free on the disk")


def unpack(stream: BinaryIO, target: Path, size: int, shown: str) -> None:
    """Write a stream's bytes to a new file; there have to be exactly `size`.

    Raises
    ------
    WinnowError
        Where there are less or more, or they are damaged.
    """
    left = size
    try:
        with target.open("wb") as file:
            while chunk := stream.read(min(_CHUNK, left + 1)):
                left -= len(chunk)
                if left < 0:
                    break
                file.write(chunk)
    except Exception as error:  # a broken file can raise anything in a decompressor
        raise WinnowError(f"{shown} cannot be unpacked: {one_line(error)}") from error
    if left:
        raise _wrong_size(shown, size, "less" if left > 0 else "more")


def check_size(array: DiskArray, shown: str) -> None:
    """Check that the file of an array ends where the array does.

    Raises
    ------
    WinnowError
        Where it holds less or more.
    """
    wanted, actual = array.offset + array.size, Path(array.path).stat().st_size
    if actual != wanted:
        raise _wrong_size(shown, wanted, "less" if actual < wanted else "more")


def one_line(error: Exception) -> str:
    """Shorten what an exception says to one line without the name of a file on this machine."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__


def _axes(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape[:8])) + ("×…" if len(shape) > 8 else "") if shape else "of a single value"


def _wrong_size(shown: str, size: int, how: str) -> WinnowError:
    return WinnowError(
        f"{shown} holds {how} than the {size} bytes that its header speaks of: it is damaged; bring it again"
    )


@dataclass(frozen=True)
class LabelledImages:
    """An array of images and what is known of each row; all arrays are equally long.

    Attributes
    ----------
    name : rows are called `<name>#<row>`
    images : see `channels_first_of`
    channels_first : whether it is N×C×H×W
    split : of all rows; `unlabeled` takes away the labels
    labels : one of `LABEL_KINDS`; integers are indices into the source's classes, below 0 is no label
    splits : text, of each row; overrules `split`
    groups : one of `LABEL_KINDS`
    weights : numbers
    """

    name: str
    images: DiskArray
    channels_first: bool
    split: Split | None
    labels: DiskArray | None
    splits: DiskArray | None = None
    groups: DiskArray | None = None
    weights: DiskArray | None = None


def integer_classes(labels: Iterable[DiskArray]) -> list[str]:
    """Return the integers from 0 on that occur, as decimal text in numeric order; of text nothing."""
    seen: set[int] = set()
    for column in labels:
        if np.dtype(column.dtype).kind in "iub":
            for start in range(0, len(column), _LABELS_AT_ONCE):
                values = column.read(start, min(start + _LABELS_AT_ONCE, len(column)))
                seen.update(np.unique(_integers(values)).tolist())
    return [str(label) for label in sorted(seen) if label >= 0]


def blocks_of(arrays: Iterable[LabelledImages], classes: Sequence[str] | None) -> Iterator[Block]:
    """Yield the items of all arrays.

    Parameters
    ----------
    arrays : in the order of the items
    classes : what integer labels are indices of; None where they are names themselves
    """
    for images in arrays:
        for start in range(0, len(images.images), BLOCK):
            yield _block(images, range(start, min(start + BLOCK, len(images.images))), classes)


def texts_of(values: NDArray[Any]) -> list[str | None]:
    """Convert text, UTF-8 bytes or integers to strings; None where it is no Unicode."""
    if values.dtype.kind in "iub":
        return [str(value) for value in _integers(values).tolist()]
    texts: list[str | None] = []
    for at in range(len(values)):
        try:
            text = bytes(values[at]).decode() if values.dtype.kind == "S" else str(values[at])
            text.encode()  # numpy lets lone surrogates through
            texts.append(text)
        except (ValueError, SystemError):  # a number that is no character is met on the way out of the array
            texts.append(None)
    return texts


def _block(arrays: LabelledImages, rows: range, classes: Sequence[str] | None) -> Block:
    count = len(rows)
    refused: dict[int, UnusableError] = {}

    def column(array: DiskArray | None, default: Any, check: Callable[[Any], Any]) -> list[Any]:
        """Read and check the cells of one column; rows with a bad one are refused."""
        if array is None:
            return [default] * count
        values = array.read(rows.start, rows.stop)
        checked = []
        for at, cell in enumerate(values.tolist() if check is cells.weight else texts_of(values)):
            try:
                if cell is None:
                    raise UnusableError(
                        "bad_label" if check is cells.label else "bad_row", "a cell that is no Unicode text"
                    )
                checked.append(check(cell))
            except UnusableError as error:
                refused.setdefault(at, error)
                checked.append(default)
        return checked

    labels: list[str | None]
    if arrays.labels is not None and np.dtype(arrays.labels.dtype).kind in "iub":
        numbers = _integers(arrays.labels.read(rows.start, rows.stop)).tolist()
        labels = [None if at < 0 else str(at) if classes is None else classes[at] for at in numbers]
    else:
        labels = column(arrays.labels, None, cells.label)
    splits = column(arrays.splits, arrays.split, cells.split)
    groups = column(arrays.groups, None, cells.group)
    weights = column(arrays.weights, 1.0, cells.weight)
    for at, split in enumerate(splits):
        if split == "unlabeled":
            labels[at] = splits[at] = None
    names = [f"{arrays.name}#{row}" for row in rows]
    good = [at for at in range(count) if at not in refused]
    return Block(
        names=[names[at] for at in good],
        labels=[labels[at] for at in good],
        splits=[splits[at] for at in good],
        groups=[groups[at] for at in good],
        weights=[weights[at] for at in good],
        payload=ArrayPayload(
            arrays.images, rows if len(good) == count else [rows[at] for at in good], arrays.channels_first
        ),
        refused=[Quarantined(names[at], why.reason, why.detail) for at, why in sorted(refused.items())],
    )


def _integers(values: NDArray[Any]) -> NDArray[Any]:
    return (values.view(np.uint8) != 0).astype(np.uint8) if values.dtype.kind == "b" else values
