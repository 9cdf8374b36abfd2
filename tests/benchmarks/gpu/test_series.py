"""Runs within a budget, and figures over them."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.gpu import series
from benchmarks.gpu.series import Budget, add_settings, given_settings, keep, spread
from benchmarks.results import read_results


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(series, "time", fake)
    return fake


def test_a_run_starts_where_the_slowest_so_far_would_end_in_time(clock: Clock):
    budget = Budget(2)
    assert budget.allows()  # nothing is known yet
    budget.took(70)
    budget.took(50)
    assert budget.allows()
    clock.now += 60
    assert not budget.allows()
    assert budget.allows(0.5)
    clock.now += 60
    assert not budget.allows(0.0)


def test_costs_are_in_any_unit(clock: Clock):
    budget = Budget(2)
    budget.took(200, cost=4)
    assert budget.allows(2)
    assert not budget.allows(3)


def test_no_minutes_allow_nothing():
    assert not Budget(0).allows()


@dataclass(frozen=True)
class Choices:
    many: tuple[str, ...] = ("a",)
    rate: float = 0.5
    switch: bool = False


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], Choices()),
        (["--many", "b", "c", "--rate", "1", "--switch"], Choices(("b", "c"), 1.0, switch=True)),
    ],
)
def test_settings_come_back_from_flags(given: list[str], expected: Choices):
    parser = argparse.ArgumentParser()
    add_settings(parser, Choices())
    assert Choices(**given_settings(parser.parse_args(given), Choices())) == expected


def test_results_are_appended(tmp_path: Path):
    path = tmp_path / "new" / "results.jsonl"
    keep(path, {"number": 1})
    keep(path, {"number": 2})
    assert [row["number"] for row in read_results(path, lambda row: True)] == [1, 2]


def test_spread_says_as_much_as_there_is():
    assert spread([]) == "–"
    assert spread([0.5], 100, 1) == "50.0"
    assert spread([0.3, 0.1, 0.2], 100, 0) == "20 (10 to 30)"
