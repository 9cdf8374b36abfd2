"""Sides that take turns on one machine: each round is kept as it ends, and ratios within rounds are told."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.gpu.series import Budget, as_key, keep
from benchmarks.results import Row, read_results
from stages.errors import WinnowError


@dataclass
class Rounds:
    """Images a second of each side in each round, in a file that outlives this process.

    Attributes
    ----------
    out : of the results, a line of JSON a round
    settings : all that a round's figures follow from, machine and versions included, as plain JSON values:
        rounds of other settings in the file do not count
    wanted : rounds, those of earlier processes included
    minutes : from now on, within which this process is to end
    rows : the rounds there are

    Raises
    ------
    WinnowError
        Where no round is wanted, or the file holds a line that is no result.
    """

    out: Path
    settings: Row
    wanted: int
    minutes: float
    rows: list[Row] = field(init=False)

    def __post_init__(self) -> None:
        if self.wanted < 1:
            raise WinnowError(f"{self.wanted} rounds are nothing to tell of: --rounds must be 1 or more")
        self.out = self.out.resolve()  # the working directory may change in between
        self.settings = as_key(**self.settings)
        self.rows = read_results(self.out, lambda row: row["settings"] == self.settings)[: self.wanted]
        self._budget, self._since = Budget(self.minutes), 0.0

    @property
    def left(self) -> int:
        """Rounds that are still wanted."""
        return self.wanted - len(self.rows)

    @property
    def may_go_on(self) -> bool:
        """Whether another round is wanted, and one as long as the longest so far would end in time."""
        return self.left > 0 and self._budget.allows()

    def begin(self) -> None:
        """A round begins."""
        self._since = time.monotonic()

    def end(self, speed: dict[str, float], **more: object) -> None:
        """Keep a round.

        Parameters
        ----------
        speed : images a second of each side
        more : whatever else there is to say, as plain JSON values
        """
        self._budget.took(time.monotonic() - self._since)
        row = {"settings": self.settings, "speed": speed, **more}
        keep(self.out, row)
        self.rows.append(row)
        print(
            f"round {len(self.rows)} of {self.wanted}: "
            + ", ".join(f"{side} {rate:,.0f}" for side, rate in speed.items())
            + " images/s",
            flush=True,
        )

    def speeds(self, side: str) -> list[float]:
        """Images a second, one value a round."""
        return [row["speed"][side] for row in self.rows]

    def ratios(self, side: str, other: str) -> list[float]:
        """Of one side's speed to another's in the same round."""
        return [own / its for own, its in zip(self.speeds(side), self.speeds(other), strict=True)]


def speed_table(rounds: Rounds, own: str, sides: Sequence[tuple[str, str]]) -> str:
    """A line a side: its images a second, and how many times as fast our own side is; medians and quarters.

    Parameters
    ----------
    own : name of the side that is compared with the others
    sides : names, and what to call them
    """
    width = max(len(text) for _, text in sides) + 2
    head = f"{'':{width}}{'images/s':>10}{'quarters':>20}{'ours / it':>12}{'quarters':>16}{'all':>16}"
    lines = [head]
    for side, text in sides:
        speeds = rounds.speeds(side)
        line = f"{text:{width}}{statistics.median(speeds):>10,.0f}{_quarters(speeds, ',.0f'):>20}"
        if side != own:
            ratios = rounds.ratios(own, side)
            line += f"{statistics.median(ratios):>12.3f}{_quarters(ratios, '.3f'):>16}"
            line += f"{f'{min(ratios):.3f} to {max(ratios):.3f}':>16}"
        lines.append(line)
    return "\n".join(lines)


def _quarters(values: Sequence[float], form: str) -> str:
    low, high = np.quantile(values, [0.25, 0.75])
    return f"{low:{form}} to {high:{form}}"
