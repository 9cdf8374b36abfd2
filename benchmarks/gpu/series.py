"""Runs one after another within some minutes, each kept as it comes, and figures over several of them."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.results import Row

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class Budget:
    """Minutes from now on, within which runs may start that will probably end in them.

    Parameters
    ----------
    minutes : 0 or more
    """

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes
        self._longest = 0.0  # seconds of a run that costs 1

    def took(self, seconds: float, cost: float = 1.0) -> None:
        """A run took so long; `cost` is what it should take against another, in any unit."""
        self._longest = max(self._longest, seconds / cost)

    def allows(self, cost: float = 1.0) -> bool:
        """Whether a run of that cost would end in time, were it as slow as the slowest so far."""
        left = self._end - time.monotonic()
        return left > 0 and self._longest * cost <= left


def add_settings(parser: argparse.ArgumentParser, defaults: DataclassInstance) -> None:
    """A flag for each field: True and False as a switch, tuples as a list of words."""
    for name, value in asdict(defaults).items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            parser.add_argument(flag, action="store_true")
        elif isinstance(value, tuple):
            parser.add_argument(flag, nargs="+", default=value, help=f"default {' '.join(map(str, value))}")
        else:
            parser.add_argument(flag, type=type(value), default=value, help=f"default {value}")


def given_settings(options: argparse.Namespace, defaults: DataclassInstance) -> dict[str, Any]:
    """The fields as the flags have them."""
    values = {name: getattr(options, name) for name in asdict(defaults)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def as_key(**facts: Any) -> Row:
    """What a result is found again by, as JSON gives it back."""
    plain: Row = json.loads(json.dumps(facts))
    return plain


def keep(path: Path, row: Mapping[str, Any]) -> None:
    """Append a result to a file, so that it is there whatever happens next."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def spread(values: Iterable[float], scale: float = 1.0, digits: int = 2) -> str:
    """Median, and least and most where there are several; a dash where there are none."""
    numbers = [scale * value for value in values]
    if not numbers:
        return "–"
    median = f"{statistics.median(numbers):.{digits}f}"
    if len(numbers) == 1:
        return median
    return f"{median} ({min(numbers):.{digits}f} to {max(numbers):.{digits}f})"
