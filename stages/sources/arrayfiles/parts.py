"""Images and what is known of each, as arrays on disk: read block by block, and judged row by row."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.ids import Split
from stages.sources.arrayfiles.stored import ArrayPayload, Stored
from stages.sources.base import BLOCK, LARGEST_WEIGHT, Block, Quarantined, UnusableError
from stages.sources.names import class_name, label_problem, split_of

_MANY = 2**16  # labels that are looked at together


@dataclass(frozen=True)
class Part:
    """An array of images and what is known of each row; all arrays are equally long.

    Attributes
    ----------
    name : rows are called `<name>#<row>`
    images : see `channels_first_of`
    channels_first : whether it is N×C×H×W
    split : of all rows; `unlabeled` takes away the labels
    labels : one of `LABEL_KINDS`; integers are indices into the source's classes, below 0 is no label
    splits : text, of each row; overrules `split`
    groups : one of `LABEL_KINDS`
    weights : numbers
    """

    name: str
    images: Stored
    channels_first: bool
    split: Split | None
    labels: Stored | None
    splits: Stored | None = None
    groups: Stored | None = None
    weights: Stored | None = None


def integer_classes(labels: Iterable[Stored]) -> list[str]:
    """The integers from 0 on that occur, as decimal text in numeric order; of text nothing."""
    seen: set[int] = set()
    for column in labels:
        if np.dtype(column.dtype).kind in "iub":
            for start in range(0, len(column), _MANY):
                seen.update(
                    np.unique(_integers(column.read(start, min(start + _MANY, len(column))))).tolist()
                )
    return [str(label) for label in sorted(seen) if label >= 0]


def blocks_of(parts: Iterable[Part], classes: Sequence[str] | None) -> Iterator[Block]:
    """The items of all parts.

    Parameters
    ----------
    parts : in the order of the items
    classes : what integer labels are indices of; None where they are names themselves
    """
    for part in parts:
        for start in range(0, len(part.images), BLOCK):
            yield _block(part, range(start, min(start + BLOCK, len(part.images))), classes)


def texts_of(values: NDArray[Any]) -> list[str | None]:
    """Text, UTF-8 bytes or integers as strings; None where it is no Unicode."""
    if values.dtype.kind in "iub":
        return [str(value) for value in _integers(values).tolist()]
    return [_text(values, at) for at in range(len(values))]


def _text(values: NDArray[Any], at: int) -> str | None:
    try:
        text = bytes(values[at]).decode() if values.dtype.kind == "S" else str(values[at])
        text.encode()  # numpy lets lone surrogates through
    except (ValueError, SystemError):  # a number that is no character is met on the way out of the array
        return None
    return text


def _block(part: Part, rows: range, classes: Sequence[str] | None) -> Block:
    count = len(rows)
    refused: dict[int, UnusableError] = {}
    labels = _labels(part, rows, classes, refused)
    splits: list[Split | None] = [part.split] * count
    groups: list[str | None] = [None] * count
    weights = [1.0] * count
    if part.splits is not None:
        splits = _splits(texts_of(part.splits.read(rows.start, rows.stop)), refused)
    if part.groups is not None:
        groups = _groups(texts_of(part.groups.read(rows.start, rows.stop)), refused)
    if part.weights is not None:
        weights = _weights(part.weights.read(rows.start, rows.stop), refused)
    for at, split in enumerate(splits):
        if split == "unlabeled":
            labels[at] = splits[at] = None
    names = [f"{part.name}#{row}" for row in rows]
    kept = [at for at in range(count) if at not in refused]
    return Block(
        names=[names[at] for at in kept],
        labels=[labels[at] for at in kept],
        splits=[splits[at] for at in kept],
        groups=[groups[at] for at in kept],
        weights=[weights[at] for at in kept],
        payload=ArrayPayload(
            part.images, rows if len(kept) == count else [rows[at] for at in kept], part.channels_first
        ),
        refused=[Quarantined(names[at], why.reason, why.detail) for at, why in sorted(refused.items())],
    )


def _labels(
    part: Part, rows: range, classes: Sequence[str] | None, refused: dict[int, UnusableError]
) -> list[str | None]:
    if part.labels is None:
        return [None] * len(rows)
    values = part.labels.read(rows.start, rows.stop)
    if values.dtype.kind in "iub":
        numbers = _integers(values).tolist()
        return [None if at < 0 else str(at) if classes is None else classes[at] for at in numbers]
    labels: list[str | None] = []
    for at, text in enumerate(texts_of(values)):
        label, problem = _label(text)
        if problem:
            refused[at] = UnusableError("bad_label", problem)
        labels.append(label)
    return labels


@functools.lru_cache(maxsize=2**14)
def _label(text: str | None) -> tuple[str | None, str | None]:
    """A class name and what is wrong with it; empty text is no label."""
    if text is None:
        return None, "the class name is no Unicode text"
    if not text:
        return None, None
    return class_name(text), label_problem(class_name(text))


def _splits(texts: list[str | None], refused: dict[int, UnusableError]) -> list[Split | None]:
    splits = [split_of(text or "") for text in texts]
    for at, text in enumerate(texts):
        if text != "" and splits[at] is None:
            refused.setdefault(at, UnusableError("bad_row", f"{text!r} is none of train, val and test"[:200]))
    return splits


def _groups(texts: list[str | None], refused: dict[int, UnusableError]) -> list[str | None]:
    for at, text in enumerate(texts):
        if text is None:
            refused.setdefault(at, UnusableError("bad_row", "the group is no Unicode text"))
    return [text or None for text in texts]


def _weights(values: NDArray[Any], refused: dict[int, UnusableError]) -> list[float]:
    weights: list[float] = values.astype(np.float64).tolist()
    for at, weight in enumerate(weights):
        if not 0 <= weight <= LARGEST_WEIGHT:
            said = f"the weight {weight} is no number from 0 to {LARGEST_WEIGHT:,}"
            refused.setdefault(at, UnusableError("bad_row", said))
    return weights


def _integers(values: NDArray[Any]) -> NDArray[Any]:
    return (values.view(np.uint8) != 0).astype(np.uint8) if values.dtype.kind == "b" else values
