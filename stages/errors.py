"""What users are told: the errors that they can put right, and why an item cannot become a sample."""

from __future__ import annotations

from typing import Literal, get_args

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


class WinnowError(Exception):
    """A mistake in the input, or in the surroundings, that the user can put right.

    The message is a single line that names what is wrong, where, and what to do. A stage or flow
    prints it without a traceback and ends with exit status 2.
    """


class ProcessGoneError(WinnowError):
    """Another of the processes that train together ended too early; it says why itself."""


def shorten(text: str, limit: int) -> str:
    """`text` in at most `limit` characters, with … where something was cut; no control characters."""
    clean = "".join(character if character.isprintable() else "�" for character in text)
    return clean if len(clean) <= limit else clean[: max(limit - 1, 0)] + "…"


class UnusableError(Exception):
    """An item that cannot become a sample; it goes to quarantine and the run goes on."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[UnusableError], tuple[Reason, str]]:
        return type(self), (self.reason, self.detail)
