"""Which columns of a table hold the path, the labels, the split, the group and the weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stages.errors import WinnowError
from stages.sources.base import Columns
from stages.sources.names import printable

AUTO = "auto"
USUAL: dict[str, tuple[str, ...]] = {  # in lower case; headers are compared without regard to case
    "path": ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img"),
    "label": ("label", "labels", "class", "class_name", "target", "category"),
    "split": ("split", "subset", "partition", "set"),
    "group": ("group", "group_id"),
    "weight": ("weight", "sample_weight"),
    "second_label": (),
}
NEEDED = ("path", "label")
_MOST_SHOWN = 20  # columns in a message


def choose(
    columns: Columns,
    header: Sequence[str],
    shown: str,
    known: Mapping[str, int] | None = None,
    no_paths: frozenset[int] = frozenset(),
) -> dict[str, int]:
    """The position of each role's column.

    Parameters
    ----------
    columns : what the user chose
    header : names of the table's columns
    shown : the table, for messages
    known : roles whose column is found already
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
    found = dict(known or {})
    wanted = {role: getattr(columns, role) for role in USUAL if role not in found}
    for role, name in wanted.items():
        if name is not None and name != AUTO:
            found[role] = _named(role, name, names, found, shown)
    for role in [role for role, name in wanted.items() if name == AUTO]:
        taken = frozenset(found.values()) | (no_paths if role == "path" else frozenset())
        usual = candidates(role, names, taken)
        if len(usual) > 1:
            which = ", ".join(_quoted(names[at]) for at in usual[:_MOST_SHOWN])
            raise WinnowError(
                f"{shown} has several columns that could be the {role} ({which}): "
                f"name one of them as ingest.columns.{role}"
            )
        if usual:
            found[role] = _named(role, names[usual[0]], names, found, shown)
        elif role in NEEDED:
            raise WinnowError(
                f"{shown} has no column for the {role}: name one of its columns ({listed(names)}) "
                f"as ingest.columns.{role}"
            )
    return found


def candidates(role: str, header: Sequence[str], skip: frozenset[int] = frozenset()) -> list[int]:
    """Positions of the columns that have one of the role's usual names."""
    return [
        at
        for at, name in enumerate(header)
        if at not in skip and len(name) < 100 and name.strip().lower() in USUAL[role]
    ]


def listed(names: Sequence[str]) -> str:
    """Column names as they stand in a message."""
    shown = [_quoted(name) for name in names[:_MOST_SHOWN] if name]
    more = ["…"] if len(names) > _MOST_SHOWN else []
    return ", ".join(shown + more) or "none has a name"


def unused(header: Sequence[str], found: Mapping[str, int]) -> list[str]:
    """A line on the columns that are not used; none where all are."""
    left = [name.strip() for at, name in enumerate(header) if at not in found.values()]
    left = [name for name in left if name]
    return [f"columns not used: {listed(left)}"] if left else []


def _named(role: str, name: str, names: Sequence[str], found: Mapping[str, int], shown: str) -> int:
    key = f"ingest.columns.{role}"
    places = [at for at, there in enumerate(names) if there == name]
    if not places:
        raise WinnowError(f"{shown} has no column {name!r} ({key}); its columns are {listed(names)}")
    if len(places) > 1:
        raise WinnowError(f"{shown} has {len(places)} columns {name!r} ({key}): give each a name of its own")
    for other, at in found.items():
        if at == places[0]:
            raise WinnowError(f"{shown}: {key} and ingest.columns.{other} both name the column {name!r}")
    return places[0]


def _quoted(name: str) -> str:
    text = printable(name)
    return text if len(text) <= 40 else f"{text[:39]}…"
