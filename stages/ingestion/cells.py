"""Read the cells of a table: file names, classes, splits, groups and weights; and find their columns.

Anybody may have written the table. A cell that cannot be right raises `UnusableError`: the row is
refused, and the next one follows.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Generic, TypeVar

from stages.dataset.ids import Split
from stages.errors import Reason, UnusableError, WinnowError, shorten
from stages.ingestion.source import (
    LARGEST_WEIGHT,
    Block,
    Columns,
    Payload,
    Quarantined,
    class_name,
    label_problem,
    name_problem,
    printable,
    split_of,
)

_LONGEST_PATH = 4096  # characters; PATH_MAX of Linux
_LONGEST_CELL = 1000  # characters of a label or a split: longer ones are not held in caches
LONGEST_SHOWN = 300  # characters of a cell in a message
_DRIVE = re.compile(r"[A-Za-z]:")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")

# Most paths by far: nothing to normalise. No part starts with a full stop.
_PLAIN = re.compile(r"(?:\w[\w .()+,=@-]*/)*[\w()+,=@-][\w .()+,=@-]*")

AUTO = "auto"

USUAL_NAMES: dict[str, tuple[str, ...]] = {  # in lower case; headers are compared without regard to case
    "path": ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img"),
    "label": ("label", "labels", "class", "class_name", "target", "category"),
    "split": ("split", "subset", "partition", "set"),
    "group": ("group", "group_id"),
    "weight": ("weight", "sample_weight"),
    "second_label": (),
}

_REQUIRED = ("path", "label")
_MOST_SHOWN = 20  # columns in a message

Item = TypeVar("Item")


def file_name(cell: str | None, folder: str = "") -> str:
    """Read a path, relative to the top of the tree.

    Parameters
    ----------
    cell : path relative to `folder`; backslashes separate as slashes do, since such tables come
        from Windows, and a file whose name holds one cannot be listed
    folder : the folder of the table, relative to the top of the tree

    Raises
    ------
    UnusableError
        `bad_row` where the cell is empty, `bad_name`, or `outside_source` for absolute paths,
        drives, addresses and paths that climb out of the tree.
    """
    path = (cell or "").strip(" ")
    if not path:
        raise UnusableError("bad_row", "no path")
    if len(path) > _LONGEST_PATH:
        raise UnusableError("bad_name", f"a path of {len(path)} characters; at most {_LONGEST_PATH}")
    if problem := name_problem(path):
        raise UnusableError("bad_name", problem)
    if _PLAIN.fullmatch(path):
        return f"{folder}/{path}" if folder else path
    if _ADDRESS.match(path):
        raise UnusableError("outside_source", "an address: bring remote data with `dvc import-url`")
    path = path.replace("\\", "/")
    if path.startswith("/") or _DRIVE.match(path):
        raise UnusableError("outside_source", "an absolute path; paths are relative to the table")
    parts: list[str] = folder.split("/") if folder else []
    for part in path.split("/"):
        if part == "..":
            if not parts:
                raise UnusableError("outside_source", "a path that climbs out of the source's folder")
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    if not parts:
        raise UnusableError("bad_row", "no path")
    return "/".join(parts)


def label(cell: str | None) -> str | None:
    """Read a class name, None where the cell is empty.

    Raises
    ------
    UnusableError
        `bad_label`: only blanks, too long, no plain text, or a path that climbs.
    """
    if not cell:
        return None
    return _label(cell) if len(cell) <= _LONGEST_CELL else _label.__wrapped__(cell)


def split(cell: str | None) -> Split | None:
    """Read a split, None where the cell is empty.

    Raises
    ------
    UnusableError
        `bad_row` where it is no split's name.
    """
    if not cell:
        return None
    return _split(cell) if len(cell) <= _LONGEST_CELL else _split.__wrapped__(cell)


def label_and_split(label_cell: str | None, split_cell: str | None) -> tuple[str | None, Split | None]:
    """Read both, or neither where the split says `unlabeled`.

    An item without a label keeps its split here: public test sets often come with their labels taken
    away, and whoever deals the splits has to say that such a set tests nothing.

    Raises
    ------
    UnusableError
        As `label` and `split`.
    """
    name, where = label(label_cell), split(split_cell)
    return (None, None) if where == "unlabeled" else (name, where)


def group(cell: str | None) -> str | None:
    """Read a group, which is compared as class names are; None where the cell is empty or blank.

    Raises
    ------
    UnusableError
        `bad_row` where it is no UTF-8.
    """
    if not cell:
        return None
    if not cell.isprintable() and any("\ud800" <= character <= "\udfff" for character in cell):
        raise UnusableError("bad_row", "the group is no UTF-8 text")
    return unicodedata.normalize("NFC", cell.strip()) or None


def weight(cell: str | float | None) -> float:
    """Read a weight, 1 where the cell is empty.

    Raises
    ------
    UnusableError
        `bad_row` where it is no number from 0 to `LARGEST_WEIGHT`.
    """
    if cell is None or cell == "":
        return 1.0
    try:
        number = float(cell)
    except ValueError:
        number = -1.0
    if not 0 <= number <= LARGEST_WEIGHT:
        text = shorten(str(cell), LONGEST_SHOWN)
        raise UnusableError("bad_row", f"the weight {text!r} is no number from 0 to {LARGEST_WEIGHT:,}")
    return number


def word(value: object) -> str | None:
    """Convert a value of a typed table to the text it would have in a CSV.

    Whole numbers have no decimal point: pandas makes 3 into 3.0 where a column has gaps, and the
    gaps into NaN.

    Raises
    ------
    ValueError
        For a number that is not whole.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float):
        if value != value:  # noqa: PLR0124 - NaN
            return None
        if not value.is_integer():
            raise ValueError(f"{value} is no whole number")
        return str(int(value))
    return str(value)


class BlockBuilder(Generic[Item]):
    """Collects checked rows of a table, and those that are refused, as a block of a source.

    Parameters
    ----------
    second : whether there is a second column of labels
    """

    def __init__(self, *, second: bool) -> None:
        self._second = second
        self._rows: list[tuple[Any, ...]] = []
        self._items: list[Item] = []
        self._refused: list[Quarantined] = []

    def __len__(self) -> int:
        return len(self._rows) + len(self._refused)

    def add(
        self,
        name: str,
        item: Item,
        label_cell: str | None,
        split_cell: str | None,
        group_cell: str | None,
        weight_cell: str | float | None,
        second_cell: str | None,
    ) -> None:
        """Take a row.

        Parameters
        ----------
        name : of the item, printable
        item : what its payload is made of

        Raises
        ------
        UnusableError
            As the functions that read the cells; then nothing is taken.
        """
        known = label_and_split(label_cell, split_cell)
        self._rows.append((name, *known, group(group_cell), weight(weight_cell), label(second_cell)))
        self._items.append(item)

    def refuse(self, name: str, reason: Reason, detail: str) -> None:
        """Take a row for quarantine."""
        self._refused.append(Quarantined(name, reason, detail))

    def take(self, payload: Callable[[Sequence[Item]], Payload]) -> Block:
        """Return what was collected as a block, and start anew."""
        names, labels, splits, groups, weights, seconds = (
            map(list, zip(*self._rows, strict=True)) if self._rows else ([] for _ in range(6))
        )
        second_labels = seconds if self._second else None
        block = Block(
            names, labels, splits, groups, weights, payload(self._items), self._refused, second_labels
        )
        self._rows, self._items, self._refused = [], [], []
        return block


@lru_cache(maxsize=2**14)
def _label(cell: str) -> str:
    name = class_name(cell)
    if problem := label_problem(name):
        raise UnusableError("bad_label", problem)
    return name


@lru_cache(maxsize=2**8)
def _split(cell: str) -> Split | None:
    if not cell.strip():
        return None
    name = split_of(cell)
    if name is None:
        raise UnusableError(
            "bad_row", f"the split {shorten(cell, LONGEST_SHOWN)!r} is none of train, val, test, unlabeled"
        )
    return name


def choose(
    columns: Columns,
    header: Sequence[str],
    shown: str,
    given: Mapping[str, int] | None = None,
    no_paths: frozenset[int] = frozenset(),
) -> dict[str, int]:
    """Find the column of each role.

    Parameters
    ----------
    columns : what the user chose
    header : names of the table's columns
    shown : the table, for messages
    given : roles whose column is found already
    no_paths : positions that `auto` does not take for the path, since they hold numbers or pictures

    Returns
    -------
    Positions by role; path and label always, the others where there is such a column.

    Raises
    ------
    WinnowError
        Where a named column is not there, path or label are not found, or several columns could be
        meant.
    """
    names = [name.strip() for name in header]
    found = dict(given or {})
    wanted = {role: getattr(columns, role) for role in USUAL_NAMES if role not in found}
    for role, name in wanted.items():
        if name is not None and name != AUTO:
            found[role] = _named(role, name, names, found, shown)
    for role in [role for role, name in wanted.items() if name == AUTO]:
        taken = frozenset(found.values()) | (no_paths if role == "path" else frozenset())
        usual = candidates(role, names, taken)
        if len(usual) > 1:
            which = ", ".join(shorten(printable(names[at]), 40) for at in usual[:_MOST_SHOWN])
            raise WinnowError(
                f"{shown} has several columns that could be the {role} ({which}): "
                f"name one of them as ingest.columns.{role}"
            )
        if usual:
            found[role] = _named(role, names[usual[0]], names, found, shown)
        elif role in _REQUIRED:
            raise WinnowError(
                f"{shown} has no column for the {role}: name one of its columns ({listed(names)}) "
                f"as ingest.columns.{role}"
            )
    return found


def candidates(role: str, header: Sequence[str], skip: frozenset[int] = frozenset()) -> list[int]:
    """Return the positions of the columns that have one of the role's usual names."""
    return [
        at
        for at, name in enumerate(header)
        if at not in skip and len(name) < 100 and name.strip().lower() in USUAL_NAMES[role]
    ]


def listed(names: Sequence[str]) -> str:
    """List column names for a message."""
    shown = [shorten(printable(name), 40) for name in names[:_MOST_SHOWN] if name]
    more = ["…"] if len(names) > _MOST_SHOWN else []
    return ", ".join(shown + more) or "none has a name"


def unused(header: Sequence[str], found: Mapping[str, int]) -> list[str]:
    """Return a line on the columns that are not used; none where all are."""
    left = [name.strip() for at, name in enumerate(header) if at not in found.values()]
    left = [name for name in left if name]
    return [f"columns not used: {listed(left)}"] if left else []


def _named(role: str, name: str, names: Sequence[str], found: Mapping[str, int], shown: str) -> int:
    key = f"ingest.columns.{role}"
    places = [at for at, column in enumerate(names) if column == name]
    if not places:
        raise WinnowError(f"{shown} has no column {name!r} ({key}); its columns are {listed(names)}")
    if len(places) > 1:
        raise WinnowError(f"{shown} has {len(places)} columns {name!r} ({key}): give each a name of its own")
    for taken_by, at in found.items():
        if at == places[0]:
            raise WinnowError(f"{shown}: {key} and ingest.columns.{taken_by} both name the column {name!r}")
    return places[0]
