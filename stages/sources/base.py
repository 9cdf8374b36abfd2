"""What every source gives, whatever it is made of: items to read, and pictures with an id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from PIL import Image

from stages.dataset import Split

Reason = Literal[
    "unreadable",  # the file system does not give its bytes
    "not_an_image",  # none of the formats that are read, whatever its name says
    "damaged",  # cut off or corrupt
    "too_large",  # more bytes or pixels than `decode.MAX_BYTES` and `decode.MAX_PIXELS`
    "unsupported_pixels",  # values with no known range, such as floating point
    "outside_source",  # a link that leaves the source's folder
    "linked_folder",  # a link to a folder: following it could go round in circles
    "no_class_folder",  # lies beside the class folders, not in one
    "conflicting_labels",  # the same pixels under two labels: which is right is not ours to guess
]
REASONS: tuple[Reason, ...] = get_args(Reason)


class UnusableError(Exception):
    """An item that cannot become a sample; it goes to quarantine and the run goes on."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Quarantined:
    """A row of the quarantine table: where, why (one of `REASONS`), and what exactly."""

    source: str
    reason: Reason
    detail: str


@dataclass(frozen=True)
class Item:
    """Something in a source that ought to be an image.

    Attributes
    ----------
    source : path relative to the source with `/`, or `<file>.npz#<index>` in an array
    label : class name
    split : the one that the source brings, None where it brings none
    """

    source: str
    label: str
    split: Split | None


@dataclass(frozen=True)
class Picture:
    """An item as it was read.

    Attributes
    ----------
    sample_id : `dataset.bytes_id` of a file, `dataset.pixel_id` of an array's row
    pixel_key : equal for two items of a source exactly where their decoded pixels are equal
    image : upright, at its native size, mode `L` or `RGB`
    """

    sample_id: str
    pixel_key: str
    image: Image.Image


class Source(Protocol):
    """One reader for one kind of source; `opening.open_source` chooses it."""

    @property
    def classes(self) -> list[str]:
        """Class names in index order."""

    @property
    def items(self) -> Sequence[Item]:
        """What there is to read, in an order that the file system does not decide."""

    @property
    def refused(self) -> Sequence[Quarantined]:
        """What the listing alone shows to be unusable."""

    @property
    def unlabeled(self) -> int:
        """Files in a folder `unlabeled/`, which are left out."""

    def read(self, index: int) -> Picture:
        """Read the item at `index`; safe to call from several threads.

        Raises
        ------
        UnusableError
            Where it is no image that can be used.
        """
