"""Images and labels as numpy arrays: one `.npz`, or `.npy` files side by side.

The arrays are known by their names, in any case:

- `images` and `labels`, as the catalogue's sets have them (`stages/fetch.py`), with `classes`
  (names), `split` (`train`, `val`, `test`), `groups` and `weights` where there are any;
- the same with the split in the name, before or after: `x_train` and `y_train` as Keras has them,
  `train_images` and `train_labels` as MedMNIST has them, `X_val` and `y_val`, …;
- `X` and `y`, or `data` and `target`.

Images are uint8, bool or uint16; N×H×W, N×H×W×C or N×C×H×W. Labels are integers, which are indices
into `classes` or else names themselves, or text. An integer below 0 and empty text are no label.
Nothing is ever unpickled.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from stages.errors import WinnowError
from stages.ids import SPLITS, Split
from stages.sources.arrayfiles.npy import Member, is_npz, open_members
from stages.sources.arrayfiles.parts import Part, blocks_of, integer_classes, texts_of
from stages.sources.arrayfiles.stored import (
    LABEL_KINDS,
    Stored,
    channels_first_of,
    check_column,
    pixel_notes,
    require_room,
)
from stages.sources.base import Block
from stages.sources.files.trees import Tree
from stages.sources.names import class_name, label_problem, printable, split_of

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
        with open_members(tree, names, scratch) as members:
            known = _known(members, shown)
            headers = {key: member.header() for key, member in known.items()}
            used = _used(known, headers)
            if not any(len(headers[key]) for key in used if key[0] == "images"):
                raise WinnowError(f"{shown} holds 0 images")
            packed = [headers[key] for key in used if not headers[key].path]
            require_room(scratch, sum(array.offset + array.size for array in packed), shown)
            stored = {key: known[key].store() for key in used}
        self._parts = [_part(known, stored, split) for role, split in used if role == "images"]
        labels = [part.labels for part in self._parts if part.labels is not None]
        self._names: list[str] | None = None
        if _CLASSES in stored:
            self._names = _class_names(stored[_CLASSES], known[_CLASSES].shown)
            _check_range(labels, len(self._names), shown)
        self.classes = integer_classes(labels) if self._names is None else self._names
        self.count = sum(len(part.images) for part in self._parts)
        self.kind = "arrays (.npz)" if is_npz(names) else "arrays (.npy)"
        if said := [part.split for part in self._parts if part.split]:
            self.kind += f" with {', '.join(said)}"
        self.notes = _notes(members, known, headers, used)

    def blocks(self) -> Iterator[Block]:
        """Items in the order train, val, test, unlabeled, where the arrays' names say it."""
        return blocks_of(self._parts, self._names)


def find(tree: Tree) -> list[str] | None:
    """The `.npz`, or the `.npy` files with images, at the top of a tree; None where there are none.

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
        there = ", ".join(printable(name) for name in [*archives, *arrays][:_LISTED])
        raise WinnowError(
            f"{tree.shown} holds more than one set of arrays ({there}): leave one, "
            "or name one .npz in ingest.source"
        )
    return archives or (arrays if paired else None)


def role_of(name: str) -> _Key | None:
    """What an array's name says: `images`, `labels`, `splits`, …, and of which split; None for nothing."""
    lower = name.lower()
    if lower in _ROLES:
        return _ROLES[lower], None
    first, _, second = re.sub("[-.]", "_", lower).partition("_")
    for word, other in ((first, second), (second, first)):
        role, split = _ROLES.get(word), split_of(other)
        if role in _BY_SPLIT and split is not None:
            return role, split
    return None


def _known(members: Sequence[Member], shown: str) -> dict[_Key, Member]:
    known: dict[_Key, Member] = {}
    for member in members:
        key = role_of(member.name)
        if key is None:
            continue
        if key in known:
            what = " ".join(filter(None, (key[1], key[0])))
            raise WinnowError(f"{known[key].shown} and {member.shown} are both the {what}: leave one")
        known[key] = member
    if not any(role == "images" for role, _ in known):
        there = _listed(member.name for member in members) or "nothing"
        raise WinnowError(f"{shown} lacks images and labels, or x_train and y_train; there is {there}")
    return known


def _used(known: Mapping[_Key, Member], headers: Mapping[_Key, Stored]) -> list[_Key]:
    """What is read, split by split, judged by the headers before anything is unpacked."""
    used: list[_Key] = [_CLASSES] if _CLASSES in known else []
    for split in (None, *SPLITS):
        images = ("images", split)
        if images not in known:
            continue
        channels_first_of(headers[images], known[images].shown)
        columns: list[_Key] = [(role, split) for role in _COLUMNS if (role, split) in known]
        if split == "unlabeled":
            columns = [key for key in columns if key[0] != "labels"]
        elif ("labels", split) not in columns:
            raise WinnowError(f"{known[images].shown} lacks labels beside it, such as labels or y_train")
        for key in columns:
            check_column(headers[key], len(headers[images]), _COLUMNS[key[0]], known[key].shown)
        used += [images, *columns]
    return used


def _part(known: Mapping[_Key, Member], stored: Mapping[_Key, Stored], split: Split | None) -> Part:
    member, images = known["images", split], stored["images", split]
    return Part(
        name=member.item,
        images=images,
        channels_first=channels_first_of(images, member.shown),
        split=split,
        labels=stored.get(("labels", split)),
        splits=stored.get(("splits", split)),
        groups=stored.get(("groups", split)),
        weights=stored.get(("weights", split)),
    )


def _notes(
    members: Sequence[Member],
    known: Mapping[_Key, Member],
    headers: Mapping[_Key, Stored],
    used: Sequence[_Key],
) -> list[str]:
    notes = []
    for key in used:
        if key[0] == "images":
            notes += pixel_notes(headers[key], known[key].item)
    if unused := _listed(member.name for member in members if role_of(member.name) not in used):
        notes.append(f"arrays not used: {unused}")
    return notes


def _class_names(array: Stored, shown: str) -> list[str]:
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


def _check_range(labels: Sequence[Stored], classes: int, shown: str) -> None:
    known = integer_classes(labels)
    if known and int(known[-1]) >= classes:
        # Not row by row: such labels often start at 1, and then all of them are wrong.
        raise WinnowError(
            f"{shown}: labels run from {known[0]} to {known[-1]}, but there are {classes} classes, "
            f"which are 0 to {classes - 1}"
        )


def _listed(names: Iterator[str]) -> str:
    shown = sorted(map(printable, names))
    return ", ".join(shown[:_LISTED]) + (", …" if len(shown) > _LISTED else "")
