"""Define what every source yields, whatever it is made of: blocks of items, and a way to their pixels.

A source lists its items in blocks, and no more than one block at a time need be in memory. What
says where the pixels are (`Payload`) is small and goes to a worker process, which reads there. Names
of files, splits and classes that come from outside are judged here too.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stages.dataset.ids import Split
from stages.errors import Reason, UnusableError

BLOCK = 256  # most items in a block
LARGEST_WEIGHT = 1_000_000  # of a sample: above it sums lose what the others weigh

# Sound files that are left out for the company they keep; they are no sign of a broken source.
LEFT_OUT: frozenset[Reason] = frozenset({"conflicting_labels", "leakage", "bridges_splits"})


SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}

UNLABELED = ("unlabeled", "unlabelled")
CLUTTER = {"Thumbs.db", "desktop.ini", "__MACOSX"}  # what file managers leave behind
_LONGEST_LABEL = 200  # characters


@dataclass(frozen=True)
class Quarantined:
    """A row of the quarantine table: where, why (one of `REASONS`), and what exactly."""

    path: str
    reason: Reason
    detail: str


class Payload(Protocol):
    """Where a block's pixels are. It is pickled to a worker process: paths and positions, no handles."""

    def __len__(self) -> int:
        """Count the items."""

    def read(self) -> Iterator[bytes | NDArray[np.uint8] | UnusableError]:
        """Read every item in order: an encoded file's bytes, or pixels as uint8 H×W×C with 1 or 3 channels.

        An item that cannot be read is yielded as the reason why, and the next ones follow. Every call
        yields the same.
        """

    def part(self, start: int, stop: int) -> Payload:
        """Return the items from `start` up to `stop`."""


@dataclass(frozen=True)
class Block:
    """Some consecutive items of a source; all lists are as long as `payload`.

    Attributes
    ----------
    names : path relative to the source with `/`, or `<file>#<row>` in a table or an array;
        printable (`printable`)
    labels : class name, None where there is none
    splits : `train`, `val` or `test` as the source says it, None where it does not
    groups : what must not be separated (a patient, a video), None where nothing is said
    weights : of the sample in the loss, 0 to `LARGEST_WEIGHT`
    payload : where the pixels are
    refused : what was met on the way and can be no item
    second_labels : class name of a second column of labels, None where there is none; None instead of
        the list where no such column was named
    """

    names: list[str]
    labels: list[str | None]
    splits: list[Split | None]
    groups: list[str | None]
    weights: list[float]
    payload: Payload
    refused: list[Quarantined] = field(default_factory=list)
    second_labels: list[str | None] | None = None

    def part(self, start: int, stop: int) -> Block:
        """Return the items from `start` up to `stop`; what is refused goes with the first of them."""
        here = slice(start, stop)
        return Block(
            self.names[here],
            self.labels[here],
            self.splits[here],
            self.groups[here],
            self.weights[here],
            self.payload.part(start, stop),
            self.refused if start == 0 else [],
            None if self.second_labels is None else self.second_labels[here],
        )


@dataclass(frozen=True)
class EmptyPayload:
    """The payload of a block that brings refusals only."""

    def __len__(self) -> int:
        return 0

    def read(self) -> Iterator[bytes | NDArray[np.uint8] | UnusableError]:
        """Yield nothing."""
        return iter(())

    def part(self, start: int, stop: int) -> EmptyPayload:
        """Return the same."""
        return self


def only_refused(refused: list[Quarantined]) -> Block:
    """Make a block without items."""
    return Block([], [], [], [], [], EmptyPayload(), refused)


class Source(Protocol):
    """One reader for one kind of source; `opening.open_source` chooses it."""

    @property
    def kind(self) -> str:
        """Describe in a few words what was found, such as `class folders with train, test`."""

    @property
    def classes(self) -> Sequence[str]:
        """Return class names in index order, as far as they are known before anything is read.

        Labels that turn up later follow them, sorted.
        """

    @property
    def count(self) -> int:
        """Count the items that `blocks` will yield, refused ones included or not: for the progress bar."""

    @property
    def notes(self) -> Sequence[str]:
        """Tell the user what should be known of how the source is read, a line each."""

    def blocks(self) -> Iterator[Block]:
        """Yield all items, in an order that the file system does not decide; can be called once.

        Raises
        ------
        WinnowError
            Where the whole source cannot be used.
        """


@dataclass(frozen=True)
class Columns:
    """The columns of a manifest, or of Parquet files with images, where `path` is the images' column.

    `auto` is the usual names where there is such a column; None is no column; another name has to
    be there. A second column of labels has no usual name.
    """

    path: str = "auto"
    label: str = "auto"
    split: str | None = "auto"
    group: str | None = "auto"
    weight: str | None = "auto"
    second_label: str | None = None


def split_of(name: str) -> Split | None:
    """Return the split that a folder's or a cell's name means, None for none; `unlabeled` is one, too."""
    lower = name.strip().lower()
    return "unlabeled" if lower in UNLABELED else SPLIT_NAMES.get(lower)


def hidden(name: str) -> bool:
    """Return whether a file or folder of this name is passed over."""
    return name.startswith(".") or name in CLUTTER


def printable(name: str) -> str:
    """Bring a name to a form that a table, a page and a terminal can hold.

    Bytes that are not UTF-8 become the replacement character, control characters `\\x0a` and so on.
    """
    if name.isprintable():
        return name
    try:
        text = os.fsencode(name).decode("utf-8", "replace")
    except UnicodeEncodeError:  # half a surrogate pair, which no file system gives
        text = name.encode("utf-8", "replace").decode()
    return "".join(c if c.isprintable() or c == " " else _escaped(c) for c in text)


def name_problem(name: str) -> str | None:
    """Say what is wrong with a file's name, None where nothing is: control characters break tables."""
    if name.isprintable():  # nearly always; looking at every character costs more
        return None
    for character in name:
        if unicodedata.category(character) in ("Cc", "Zl", "Zp"):
            return f"the name holds the control character {_escaped(character)}"
    return None


def class_name(label: str) -> str:
    """Bring a label to the form that is compared: without blanks around it, accents composed (NFC).

    The same letter may be one code point or two: macOS and Linux write file names differently.
    """
    return unicodedata.normalize("NFC", label.strip())


def label_problem(label: str) -> str | None:
    """Say what is wrong with a `class_name`, None where nothing is."""
    if not label:
        return "a blank class name"
    if len(label) > _LONGEST_LABEL:
        return f"a class name of {len(label)} characters; at most {_LONGEST_LABEL}"
    for character in label:
        if unicodedata.category(character).startswith("C"):
            return f"the class name holds the control character {_escaped(character)}"
    parts = label.replace("\\", "/").split("/")
    if ".." in parts or "." in parts or parts[0] == "":
        return f"the class name {label!r} is a path that climbs"
    return None


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
