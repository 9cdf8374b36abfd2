"""What a `workers.Pool` and its processes say to each other: pickles with their length before them."""

from __future__ import annotations

import pickle
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from stages.images.decode import Color, Resize
from stages.ingestion.source import Payload

READY = "ready"
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Setup:
    """The first message: where to write what. See `blocks.Output`."""

    squares: Path
    thumbs: Path
    size: int
    color: Color
    resize: Resize


@dataclass(frozen=True)
class Task:
    """A block to read. With `crashed` not None, every step is announced before it is taken.

    Attributes
    ----------
    start : place of the first item
    payload : the items
    crashed : positions that a process died of as it decoded them
    limit : the position that one died of as it read it; that and those after it are given up
    """

    start: int
    payload: Payload
    crashed: frozenset[int] | None = None
    limit: int | None = None


@dataclass(frozen=True)
class Step:
    """Announces what comes next: reading an item, or (`has_read`) decoding it."""

    index: int
    has_read: bool


@dataclass(frozen=True)
class Failed:
    """An answer in place of a result: what the user can put right, or the traceback of a bug."""

    reason: str
    trace: str = ""


def send(stream: BinaryIO, message: object) -> None:
    """Write one message."""
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    stream.write(_LENGTH.pack(len(data)))
    stream.write(data)
    stream.flush()


def receive(stream: BinaryIO) -> Any:
    """Read one message.

    Raises
    ------
    EOFError
        Where the other side is gone.
    """
    header = stream.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(header)
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return pickle.loads(data)  # noqa: S301  (from the process at the other end of a private pipe)
