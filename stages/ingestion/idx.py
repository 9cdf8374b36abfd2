"""Read MNIST's IDX files, plain or gzipped: `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-…`.

The format is that of LeCun, Cortes and Burges, "The MNIST database of handwritten digits": a header
of big-endian sizes, then unsigned bytes. Fashion-MNIST, KMNIST and EMNIST come in it too. EMNIST
keeps its images transposed; they are left as they are.
"""

from __future__ import annotations

import dataclasses
import gzip
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

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
    require_room,
    unpack,
)
from stages.ingestion.source import Block, printable, split_of
from stages.ingestion.trees import Tree

_NAME = re.compile(r"(?P<before>.*)(?P<role>images|labels)[-._]idx\d-ubyte(\.gz)?", re.IGNORECASE)
_AXES = {"images": (3, 4), "labels": (1,)}
_UNSIGNED_BYTES = 8  # the third byte of the magic number

_Key = tuple[str, Split | None]


class Idx:
    """Reads pairs of IDX files with images and labels; the classes are the labels' decimal text.

    Parameters
    ----------
    tree : where they are
    names : the files, as `find` gives them
    scratch : folder for what `.gz` files unpack to; made where it is not there

    Raises
    ------
    WinnowError
        Where they are no such files, damaged, or not as many labels as images.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, tree: Tree, names: Sequence[str], scratch: Path) -> None:
        files = _files(tree, names)
        splits = {split for _, split in files}
        pairs = [s for s in (None, *SPLITS) if ("images", s) in files and ("labels", s) in files]
        self._arrays = [_pair(tree, files, split, scratch) for split in pairs]
        unpaired = [name for (_, split), name in files.items() if split in splits - set(pairs)]
        if unpaired or not pairs:
            what = f"{tree.shown}/{printable(unpaired[0])}" if unpaired else tree.shown
            raise WinnowError(f"{what} is not a pair of images-idx3-ubyte and labels-idx1-ubyte: bring both")
        self.count = sum(len(one.images) for one in self._arrays)
        if not self.count:
            raise WinnowError(f"{tree.shown} holds 0 images")
        self.classes = integer_classes(one.labels for one in self._arrays if one.labels is not None)
        named = [split for split in pairs if split]
        self.kind = "IDX files" + (f" with {', '.join(named)}" if named else "")

    def blocks(self) -> Iterator[Block]:
        """Yield items in the order train, val, test."""
        return blocks_of(self._arrays, None)


def find(tree: Tree) -> list[str] | None:
    """Find the IDX files at the top of a tree; None where there are no images among them.

    Where a file is there gzipped and plain, the plain one is taken.

    Raises
    ------
    WinnowError
        Where there is more than one set.
    """
    every = set(tree.files())
    names = [
        name
        for name in sorted(every)
        if _NAME.fullmatch(name) and name.removesuffix(".gz") not in every - {name}
    ]
    return names if any(role == "images" for role, _ in _files(tree, names)) else None


def _files(tree: Tree, names: Sequence[str]) -> dict[_Key, str]:
    files: dict[_Key, str] = {}
    sets: set[str] = set()
    for name in names:
        prefix, key = _parsed(name)
        sets.add(prefix)
        if key in files or len(sets) > 1:
            listed = ", ".join(map(printable, names[:20]))
            raise WinnowError(f"{tree.shown} holds more than one set of IDX files ({listed}): leave one")
        files[key] = name
    return files


def _parsed(name: str) -> tuple[str, _Key]:
    """Split a name: `emnist-letters-train-images-idx3-ubyte.gz` is `emnist-letters`, images, train."""
    match = _NAME.fullmatch(name)
    if match is None:
        return "", ("images", None)
    before = re.split("[-._]", match["before"].lower().rstrip("-._"))
    split = "test" if before[-1] == "t10k" else split_of(before[-1])
    prefix = before[:-1] if split else before
    return "-".join(prefix), (match["role"].lower(), split)


def _pair(tree: Tree, files: dict[_Key, str], split: Split | None, scratch: Path) -> LabelledImages:
    name = files["images", split]
    images = _on_disk(tree, name, "images", scratch, split)
    labels = _on_disk(tree, files["labels", split], "labels", scratch, split)
    first = channels_first_of(images, f"{tree.shown}/{printable(name)}")
    check_column(labels, len(images), LABEL_KINDS, f"{tree.shown}/{printable(files['labels', split])}")
    return LabelledImages(
        name=printable(name), images=images, channels_first=first, split=split, labels=labels
    )


def _on_disk(tree: Tree, name: str, role: str, scratch: Path, split: Split | None) -> DiskArray:
    """Return an IDX file as an array on disk: itself, or unpacked."""
    shown = f"{tree.shown}/{printable(name)}"
    if not name.lower().endswith(".gz"):
        path = tree.local(name)
        with path.open("rb") as stream:
            array = _header(stream, role, shown, path)
        check_size(array, shown)
        return array
    with tree.open(name) as packed:
        target = scratch / f"idx-{role}-{split}"
        unzipped: Any = gzip.GzipFile(fileobj=packed)
        array = _header(unzipped, role, shown, target)
        require_room(scratch, array.size, shown)
        unpack(unzipped, target, array.size, shown)
    return dataclasses.replace(array, offset=0)


def _header(stream: BinaryIO, role: str, shown: str, path: Path) -> DiskArray:
    """Read the header from `stream`: the shape, and where the bytes begin."""
    try:
        magic = stream.read(4)
        axes = magic[3] if len(magic) == 4 and magic[:3] == bytes((0, 0, _UNSIGNED_BYTES)) else 0
        if axes not in _AXES[role]:
            wanted = " or ".join(f"0x{_UNSIGNED_BYTES:06x}{axes:02x}" for axes in _AXES[role])
            raise WinnowError(
                f"{shown} begins with 0x{magic.hex()}, not {wanted}: it holds no {role} in bytes"
            )
        sizes = stream.read(4 * axes)
    except (OSError, EOFError, zlib.error) as error:  # of gzip
        raise WinnowError(f"{shown} cannot be unpacked: {one_line(error)}") from error
    if len(sizes) < 4 * axes:
        raise WinnowError(f"{shown} ends in its header: it is damaged; bring it again")
    return DiskArray(str(path), 4 + len(sizes), "|u1", struct.unpack(f">{axes}I", sizes))
