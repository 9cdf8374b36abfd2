"""What each reason of the quarantine (`sources.base.REASONS`) means, and what to do about it."""

from __future__ import annotations

REASONS: dict[str, tuple[str, str]] = {
    "unreadable": (
        "The file system, the archive or the table did not give its bytes.",
        "Look at permissions, and whether the copy or download is complete.",
    ),
    "not_an_image": (
        "None of the image formats that are read, whatever its name says.",
        "Delete it, or convert it to JPEG or PNG.",
    ),
    "damaged": ("An image that is cut off or corrupt.", "Fetch it again from where it came, or delete it."),
    "too_large": (
        "More bytes or pixels than are opened.",
        "Reduce the image before it comes in, or delete it.",
    ),
    "unsupported_pixels": (
        "Pixel values without a known range, such as floating point.",
        "Save it with 8 or 16 bits a channel.",
    ),
    "outside_source": (
        "A link or path that leaves the source's folder.",
        "Put the file itself into the source.",
    ),
    "linked_folder": (
        "A link to a folder, which is not followed.",
        "Put the folder itself into the source.",
    ),
    "no_class_folder": (
        "Lies beside the class folders, not in one.",
        "Move it into its class's folder, or into unlabeled/.",
    ),
    "bad_name": (
        "A file name with control characters, such as a line break.",
        "Rename the file.",
    ),
    "bad_label": (
        "A class name that is blank, no plain text, or a path that climbs.",
        "Correct the name of the folder, or the label in the table.",
    ),
    "bad_row": (
        "A row of the table whose split, weight or number of columns cannot be right.",
        "Correct the row; the detail says which.",
    ),
    "conflicting_labels": (
        "The same pixels under two labels. One copy goes on, for a reviewer where no split decides.",
        "Decide in make review, or delete the file that is wrong.",
    ),
    "leakage": (
        "Near to, or in one group with, an image in validation or test: training on it would leak.",
        "Nothing, unless the source's own splits or groups are yours to change.",
    ),
    "bridges_splits": (
        "New, and near to images of two splits: it can be in neither.",
        "Nothing: images much like it are in the data already.",
    ),
}
