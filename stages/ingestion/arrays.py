"""Read images and labels from numpy arrays: one `.npz`, or `.npy` files side by side.

The arrays are known by their names, in any case:

- `images` and `labels`, as the catalogue's sets have them (`stages/fetch.py`), with `classes`
  (names), `split` (`train`, `val`, `test`), `groups` and `weights` where there are any;
- the same with the split in the name, before or after: `x_train` and `y_train` as Keras has them,
  `train_images` and `train_labels` as MedMNIST has them, `X_val` and `y_val`, …;
- `X` and `y`, or `data` and `target`.

Images are uint8, bool or uint16; N×H×W, N×H×W×C or N×C×H×W. Labels are integers, which are indices
into `classes` or else names themselves, or text. An integer below 0 and empty text are no label.
Headers are read by `numpy.lib.format`, from a bounded number of bytes; nothing is ever unpickled.
"""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from stages.dataset.ids import SPLITS, Split
from stages.errors import WinnowError
from stages.ingestion.array_file import (
    LABEL_KINDS,
    DiskArray,
    LabelledImages,
    blocks_of,
    channels_first_of,
    check_column,
    check_size,
    integer_classes,
    one_line,
    pixel_notes,
    require_room,
    texts_of,
    unpack,
)
from stages.ingestion.source import Block, class_name, label_problem, printable, split_of
from stages.ingestion.trees import Tree

_HEADER = 4096  # bytes of an .npy header; numpy writes 128
_MOST_READ = 2**20  # bytes that are read from a zip at once; its list of files has to fit in
_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others unpack without a bound

_ROLES = {
    **dict.fromkeys(("images", "image", "x", "data"), "images"),
    **dict.fromkeys(("labels", "label", "y", "target", "targets"), "labels"),
    **dict.fromkeys(("split", "splits"), "splits"),
    **dict.fromkeys(("group", "groups"), "groups"),
    **dict.fromkeys(("weight", "weights"), "weights"),
    **dict.fromkeys(("classes", "class_names"), "classes"),
}

_COLUMNS = {"labels": LABEL_KINDS, "splits": "US", "groups": LABEL_KINDS, "weights": "iubf"}
_BY_SPLIT = ("images", "labels", "groups", "weights")  # roles that may have a split in the name
_CLASSES = ("classes", None)
_MOST_CLASS_BYTES = 2**26
_LISTED = 20  # names in a message
_Key = tuple[str, Split | None]


@dataclass(frozen=True)
class NamedArray:
    """An `.npy` file, or one in an `.npz`.

    Attributes
    ----------
    name : without `.npy`
    shown : what to call it in messages
    item : what to call it in the names of items, relative to the source
    """

    name: str
    shown: str
    item: str
    _header: Callable[[], DiskArray]
    _unpack: Callable[[DiskArray], DiskArray]

    def header(self) -> DiskArray:
        """Read its type and shape; the path is empty where it is still to be unpacked.

        Raises
        ------
        WinnowError
            Where it is no array of plain values in C order, or damaged.
        """
        return self._header()

    def on_disk(self) -> DiskArray:
        """Return the array on disk, unpacked where it must be.

        Raises
        ------
        WinnowError
            Where it is damaged, or does not hold what its header says.
        """
        return self._unpack(self._header())


@contextmanager
def open_arrays(tree: Tree, names: Sequence[str], scratch: Path) -> Iterator[list[NamedArray]]:
    """Open the arrays of one `.npz`, or of `.npy` files, in the order of the names.

    Parameters
    ----------
    tree : where the files are
    names : one `.npz`, or some `.npy`
    scratch : folder that arrays of an `.npz` unpack to

    Raises
    ------
    WinnowError
        Where an `.npz` is none.
    """
    if not is_npz(names):
        yield [_file(tree, name) for name in names]
        return
    shown = f"{tree.shown}/{printable(names[0])}"
    with _BoundedFile(tree.local(names[0])) as file:
        try:
            archive = zipfile.ZipFile(file)
        except Exception as error:  # zipfile raises what it likes on bytes that are none
            raise WinnowError(f"{shown} is not an .npz, or damaged: {one_line(error)}") from error
        entries = [entry for entry in archive.infolist() if entry.filename.endswith(".npy")]
        yield [
            _zipped(archive, entry, printable(names[0]), shown, scratch / f"array-{at}.npy")
            for at, entry in enumerate(entries)
        ]


def is_npz(names: Sequence[str]) -> bool:
    """Return whether these names are of one `.npz`, not of `.npy` files."""
    return names[0].lower().endswith(".npz")


def read_header(stream: BinaryIO, shown: str, path: str = "") -> DiskArray:
    """Read the type and shape of an `.npy`, by numpy itself, from a bounded number of bytes.

    Raises
    ------
    WinnowError
        Where it is no array of plain values in C order; objects are pickles, and never opened.
    """
    beginning = io.BytesIO(stream.read(_HEADER))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a hostile header is also odd Python
            version = np.lib.format.read_magic(beginning)
            if version not in _READERS:
                raise ValueError(f"version {version[0]}.{version[1]}")
            shape, fortran, dtype = _READERS[version](beginning, max_header_size=_HEADER)
    except Exception as error:  # the header is a literal, and numpy makes a type of whatever it holds
        raise WinnowError(f"{shown} is no .npy array, or damaged: {one_line(error)}") from error
    if dtype.hasobject:
        raise WinnowError(f"{shown} holds Python objects (a pickle), which are not opened; save plain arrays")
    if dtype.kind not in "biufcSUmM" or not all(0 <= axis < 2**62 for axis in shape) or len(shape) > 64:
        raise WinnowError(f"{shown} holds no plain values: save numbers or text")
    if not shape:
        raise WinnowError(f"{shown} holds a single value, no array")
    if fortran and len(shape) > 1:
        raise WinnowError(f"{shown} is saved in Fortran order: save numpy.ascontiguousarray(…) of it")
    return DiskArray(path, beginning.tell(), dtype.str, tuple(int(axis) for axis in shape))


def _file(tree: Tree, name: str) -> NamedArray:
    shown = f"{tree.shown}/{printable(name)}"

    def header() -> DiskArray:
        path = tree.local(name)
        with path.open("rb") as stream:
            array = read_header(stream, shown, str(path))
        check_size(array, shown)
        return array

    return NamedArray(name[:-4], shown, printable(name), header, lambda array: array)


def _zipped(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, file: str, shown: str, target: Path
) -> NamedArray:
    name = entry.filename[:-4]
    shown = f"{shown}/{printable(name)}"

    @contextmanager
    def opened() -> Iterator[BinaryIO]:
        if entry.compress_type not in _METHODS:
            raise WinnowError(f"{shown} is packed in a way that numpy does not use: save it with numpy.savez")
        try:
            with archive.open(entry) as stream:
                yield stream  # type: ignore[misc]
        except WinnowError:
            raise
        except Exception as error:  # encrypted, cut off, a bad checksum, ...
            raise WinnowError(f"{shown} cannot be unpacked: {one_line(error)}") from error

    def header() -> DiskArray:
        with opened() as stream:
            return read_header(stream, shown)

    def on_disk(array: DiskArray) -> DiskArray:
        size = array.offset + array.size
        with opened() as stream:
            unpack(stream, target, size, shown)
        return DiskArray(str(target), array.offset, array.dtype, array.shape)

    # The catalogue's sets keep the short names that they have always had.
    item = file if name == "images" else f"{file}/{printable(name)}"
    return NamedArray(name, shown, item, header, on_disk)


class _BoundedFile(io.FileIO):
    """A file that gives no more at once than an honest `.npz` asks for, whatever its fields claim."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MOST_READ:
            raise zipfile.BadZipFile(f"{size} bytes to be read at once")
        return super().read(_MOST_READ if size is None or size < 0 else size) or b""


class Arrays:
    """Reads the arrays of one `.npz`, or of `.npy` files.

    Parameters
    ----------
    tree : where they are
    names : one `.npz`, or `.npy` files, as `find` gives them
    scratch : folder for what an `.npz` unpacks to; made where it is not there

    Raises
    ------
    WinnowError
        Where they are no plain arrays, damaged, or not images with a label each.
    """

    def __init__(self, tree: Tree, names: Sequence[str], scratch: Path) -> None:
        shown = f"{tree.shown}/{printable(names[0])}" if is_npz(names) else tree.shown
        with open_arrays(tree, names, scratch) as arrays:
            by_role = _by_role(arrays, shown)
            headers = {key: array.header() for key, array in by_role.items()}
            used = _checked_keys(by_role, headers)
            if not any(len(headers[key]) for key in used if key[0] == "images"):
                raise WinnowError(f"{shown} holds 0 images")
            packed = [headers[key] for key in used if not headers[key].path]
            require_room(scratch, sum(array.offset + array.size for array in packed), shown)
            on_disk = {key: by_role[key].on_disk() for key in used}
        self._arrays = [
            LabelledImages(
                name=by_role[key].item,
                images=on_disk[key],
                channels_first=channels_first_of(on_disk[key], by_role[key].shown),
                split=key[1],
                **{role: on_disk.get((role, key[1])) for role in _COLUMNS},
            )
            for key in used
            if key[0] == "images"
        ]
        labels = [one.labels for one in self._arrays if one.labels is not None]
        self._names: list[str] | None = None
        if _CLASSES in on_disk:
            self._names = _class_names(on_disk[_CLASSES], by_role[_CLASSES].shown)
            _check_range(labels, len(self._names), shown)
        self.classes = integer_classes(labels) if self._names is None else self._names
        self.count = sum(len(one.images) for one in self._arrays)
        self.kind = "arrays (.npz)" if is_npz(names) else "arrays (.npy)"
        if splits := [one.split for one in self._arrays if one.split]:
            self.kind += f" with {', '.join(splits)}"
        self.notes = []
        for key in used:
            if key[0] == "images":
                self.notes += pixel_notes(headers[key], by_role[key].item)
        if unused := _listed(array.name for array in arrays if role_of(array.name) not in used):
            self.notes.append(f"arrays not used: {unused}")

    def blocks(self) -> Iterator[Block]:
        """Yield items in the order train, val, test, unlabeled, where the arrays' names say it."""
        return blocks_of(self._arrays, self._names)


def find(tree: Tree) -> list[str] | None:
    """Find the `.npz`, or the `.npy` files with images, at the top of a tree; None where there are none.

    Raises
    ------
    WinnowError
        Where there is more than one choice.
    """
    files = tree.files()
    # Beside class folders, a stray file is no source of its own; ingest.source can still name it.
    archives = [] if tree.folders() else [name for name in files if name.lower().endswith(".npz")]
    arrays = [name for name in files if name.lower().endswith(".npy") and role_of(name[:-4])]
    roles = {key[0] for name in arrays if (key := role_of(name[:-4]))}
    paired = "images" in roles and ("labels" in roles or not tree.folders())
    if len(archives) > 1 or (archives and paired):
        listed = ", ".join(printable(name) for name in [*archives, *arrays][:_LISTED])
        raise WinnowError(
            f"{tree.shown} holds more than one set of arrays ({listed}): leave one, "
            "or name one .npz in ingest.source"
        )
    return archives or (arrays if paired else None)


def role_of(name: str) -> _Key | None:
    """Read an array's name: `images`, `labels`, `splits`, …, and of which split; None for nothing."""
    lower = name.lower()
    if lower in _ROLES:
        return _ROLES[lower], None
    first, _, second = re.sub("[-.]", "_", lower).partition("_")
    for role_word, split_word in ((first, second), (second, first)):
        role, split = _ROLES.get(role_word), split_of(split_word)
        if role in _BY_SPLIT and split is not None:
            return role, split
    return None


def _by_role(arrays: Sequence[NamedArray], shown: str) -> dict[_Key, NamedArray]:
    by_role: dict[_Key, NamedArray] = {}
    for array in arrays:
        key = role_of(array.name)
        if key is None:
            continue
        if key in by_role:
            what = " ".join(filter(None, (key[1], key[0])))
            raise WinnowError(f"{by_role[key].shown} and {array.shown} are both the {what}: leave one")
        by_role[key] = array
    if not any(role == "images" for role, _ in by_role):
        names = _listed(array.name for array in arrays) or "nothing"
        raise WinnowError(f"{shown} lacks images and labels, or x_train and y_train; there is {names}")
    return by_role


def _checked_keys(by_role: Mapping[_Key, NamedArray], headers: Mapping[_Key, DiskArray]) -> list[_Key]:
    """Return what is read, split by split, after a check of all headers: nothing is unpacked before."""
    used: list[_Key] = [_CLASSES] if _CLASSES in by_role else []
    for split in (None, *SPLITS):
        images = ("images", split)
        if images not in by_role:
            continue
        channels_first_of(headers[images], by_role[images].shown)
        columns: list[_Key] = [(role, split) for role in _COLUMNS if (role, split) in by_role]
        if split == "unlabeled":
            columns = [key for key in columns if key[0] != "labels"]
        elif ("labels", split) not in columns:
            raise WinnowError(f"{by_role[images].shown} lacks labels beside it, such as labels or y_train")
        for key in columns:
            check_column(headers[key], len(headers[images]), _COLUMNS[key[0]], by_role[key].shown)
        used += [images, *columns]
    return used


def _class_names(array: DiskArray, shown: str) -> list[str]:
    if len(array.shape) != 1 or np.dtype(array.dtype).kind not in "iuUS" or not array.size:
        raise WinnowError(f"{shown} must be one row of class names, not {array.dtype} {array.shape}")
    if array.size > _MOST_CLASS_BYTES:
        raise WinnowError(f"{shown} holds {array.size} bytes of class names; at most {_MOST_CLASS_BYTES}")
    names: dict[str, None] = {}
    for at, text in enumerate(texts_of(array.read(0, len(array)))):
        name = class_name(text or "")
        if problem := label_problem(name):
            raise WinnowError(f"{shown}, entry {at}: {problem}")
        if name in names:
            raise WinnowError(f"{shown}: the same name stands twice, {name!r}")
        names[name] = None
    return list(names)


def _check_range(labels: Sequence[DiskArray], classes: int, shown: str) -> None:
    numbers = integer_classes(labels)
    if numbers and int(numbers[-1]) >= classes:
        # Not row by row: such labels often start at 1, and then all of them are wrong.
        raise WinnowError(
            f"{shown}: labels run from {numbers[0]} to {numbers[-1]}, but there are {classes} classes, "
            f"which are 0 to {classes - 1}"
        )


def _listed(names: Iterator[str]) -> str:
    shown = sorted(map(printable, names))
    return ", ".join(shown[:_LISTED]) + (", …" if len(shown) > _LISTED else "")
