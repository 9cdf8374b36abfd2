import math
from typing import get_args

import pytest

from stages.errors import WinnowError
from stages.learning.names import Schedule
from stages.learning.optimisers import share_of_peak


@pytest.mark.parametrize("name", get_args(Schedule))
@pytest.mark.parametrize("total", [1, 2, 3, 5, 10, 1000])
@pytest.mark.parametrize("warm_up", [0.0, 0.2, 0.99])
def test_rates_are_shares_of_the_peak_for_any_budget(name: Schedule, total: int, warm_up: float):
    rates = [share_of_peak(name, step, total, warm_up) for step in range(total + 1)]
    assert all(0 <= rate <= 1 for rate in rates)
    assert max(rates) >= 0.1  # also a single step moves something


@pytest.mark.parametrize("total", [2, 3, 5, 10, 1000])
def test_one_cycle_rises_to_its_peak_and_falls_to_nothing(total: int):
    rates = [share_of_peak("one_cycle", step, total, 0.2) for step in range(total + 1)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[-1] == pytest.approx(0, abs=1e-9)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_one_cycle_has_its_peak_where_warm_up_ends():
    assert share_of_peak("one_cycle", 200, 1000, 0.2) == 1
    assert share_of_peak("one_cycle", 100, 1000, 0.2) == pytest.approx(0.55)
    assert share_of_peak("one_cycle", 600, 1000, 0.2) == pytest.approx(0.5)


def test_cosine_is_half_a_cosine_over_the_whole_budget():
    rates = [share_of_peak("cosine", step, 100, 0.0) for step in range(101)]
    assert rates == pytest.approx([0.5 + 0.5 * math.cos(math.pi * step / 100) for step in range(101)])


def test_step_goes_down_to_a_tenth_twice():
    rates = [share_of_peak("step", step, 10, 0.0) for step in range(10)]
    assert rates == pytest.approx([1] * 6 + [0.1] * 2 + [0.01] * 2)


@pytest.mark.parametrize("name", ["cosine", "step", "constant"])
def test_warm_up_is_a_line_from_a_tenth_and_leaves_the_rest_alone(name: str):
    for step in range(100):
        line = 0.1 + 0.9 * step / 20 if step < 20 else 1
        bare = share_of_peak(name, step, 100, 0.0)
        assert share_of_peak(name, step, 100, 0.2) == pytest.approx(line * bare)


def test_a_wrong_name_lists_the_right_ones():
    with pytest.raises(WinnowError, match="unknown schedule 'zigzag'") as caught:
        share_of_peak("zigzag", 0, 10, 0.1)
    assert all(name in str(caught.value) for name in get_args(Schedule))


def test_triangle_rises_from_a_fifth_and_falls_to_seven_hundredths():
    at = {step: share_of_peak("triangle", step, 1000, 0.2) for step in (0, 100, 200, 600, 1000)}
    assert at == pytest.approx({0: 0.2, 100: 0.6, 200: 1.0, 600: 0.535, 1000: 0.07})
