"""What every source gives, whatever it is made of: blocks of items, and a way to their pixels.

A source lists its items in blocks, and no more than one block at a time need be in memory. What
says where the pixels are (`Payload`) is small and goes to a worker process, which reads there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from stages.ids import Split

BLOCK = 256  # most items in a block
LARGEST_WEIGHT = 1_000_000  # of a sample: above it sums lose what the others weigh
MAX_BYTES = 2**28  # of one encoded file

Reason = Literal[
    "unreadable",  # the file system, the archive or the table does not give its bytes
    "not_an_image",  # none of the formats that are read, whatever its name says
    "damaged",  # cut off or corrupt
    "too_large",  # more bytes or pixels than `MAX_BYTES` and `decode.MAX_PIXELS`
    "unsupported_pixels",  # values with no known range, such as floating point
    "outside_source",  # a link or path that leaves the source's folder
    "linked_folder",  # a link to a folder: following it could go round in circles
    "no_class_folder",  # lies beside the class folders, not in one
    "bad_name",  # a file name with control characters, such as a line break
    "bad_label",  # a class name that is blank, no plain text, or a path that climbs
    "bad_row",  # a row of a table whose split, weight or number of columns cannot be right
    "conflicting_labels",  # the same pixels under two labels: which is right is not ours to guess
    "leakage",  # a near-duplicate of an image in validation or test: training on it would leak
    "bridges_splits",  # new, and near to images of two splits: it can be in neither
]
REASONS: tuple[Reason, ...] = get_args(Reason)
# Sound files that are left out for the company they keep; they are no sign of a broken source.
LEFT_OUT: frozenset[Reason] = frozenset({"conflicting_labels", "leakage", "bridges_splits"})


class UnusableError(Exception):
    """An item that cannot become a sample; it goes to quarantine and the run goes on."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[UnusableError], tuple[Reason, str]]:
        return type(self), (self.reason, self.detail)


@dataclass(frozen=True)
class Quarantined:
    """A row of the quarantine table: where, why (one of `REASONS`), and what exactly."""

    path: str
    reason: Reason
    detail: str


class Payload(Protocol):
    """Where a block's pixels are. It is pickled to a worker process: paths and positions, no handles."""

    def __len__(self) -> int:
        """How many items there are."""

    def read(self) -> Iterator[bytes | NDArray[np.uint8] | UnusableError]:
        """Every item in order: an encoded file's bytes, or pixels as uint8 H×W×C with 1 or 3 channels.

        An item that cannot be read is given as the reason why, and the next ones follow. It may be
        called again, and gives the same again.
        """

    def part(self, start: int, stop: int) -> Payload:
        """The items from `start` up to `stop`."""


@dataclass(frozen=True)
class Block:
    """Some consecutive items of a source; all lists are as long as `payload`.

    Attributes
    ----------
    names : path relative to the source with `/`, or `<file>#<row>` in a table or an array;
        printable (`names.printable`)
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
        """The items from `start` up to `stop`; what is refused goes with the first of them."""
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
class Nothing:
    """The payload of a block that brings refusals only."""

    def __len__(self) -> int:
        return 0

    def read(self) -> Iterator[bytes | NDArray[np.uint8] | UnusableError]:
        """Nothing."""
        return iter(())

    def part(self, start: int, stop: int) -> Nothing:
        """Nothing."""
        return self


def only_refused(refused: list[Quarantined]) -> Block:
    """A block without items."""
    return Block([], [], [], [], [], Nothing(), refused)


class Source(Protocol):
    """One reader for one kind of source; `opening.open_source` chooses it."""

    @property
    def kind(self) -> str:
        """A few words on what was found, such as `class folders with train, test`."""

    @property
    def classes(self) -> Sequence[str]:
        """Class names in index order, as far as they are known before anything is read.

        Labels that turn up later follow them, sorted.
        """

    @property
    def count(self) -> int:
        """How many items `blocks` will give, refused ones included or not: for the progress bar."""

    @property
    def notes(self) -> Sequence[str]:
        """What the user should know of how the source is read, a line each."""

    def blocks(self) -> Iterator[Block]:
        """All items, in an order that the file system does not decide; can be called once.

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
