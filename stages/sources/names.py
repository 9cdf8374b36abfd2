"""Names that come from outside: of files, splits and classes."""

from __future__ import annotations

import os
import unicodedata

from stages.ids import Split

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
_CLUTTER = {"Thumbs.db", "desktop.ini", "__MACOSX"}  # what file managers leave behind
_LONGEST_LABEL = 200  # characters


def split_of(name: str) -> Split | None:
    """The split that a folder's or a cell's name means, None for none; `unlabeled` is one, too."""
    lower = name.strip().lower()
    return "unlabeled" if lower in UNLABELED else SPLIT_NAMES.get(lower)


def hidden(name: str) -> bool:
    """Whether a file or folder of this name is passed over."""
    return name.startswith(".") or name in _CLUTTER


def printable(name: str) -> str:
    """A name in a form that a table, a page and a terminal can hold.

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
    """What is wrong with a file's name, None where nothing is: control characters break tables."""
    if name.isprintable():  # nearly always; looking at every character costs more
        return None
    for character in name:
        if unicodedata.category(character) in ("Cc", "Zl", "Zp"):
            return f"the name holds the control character {_escaped(character)}"
    return None


def class_name(label: str) -> str:
    """A label as it is compared: without blanks around it, accents composed (NFC).

    The same letter may be one code point or two: macOS and Linux write file names differently.
    """
    return unicodedata.normalize("NFC", label.strip())


def label_problem(label: str) -> str | None:
    """What is wrong with a `class_name`, None where nothing is."""
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
