import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.synthesis.targets import quotas, target_size

COUNTS = np.array([100, 40, 10, 1, 0])


@pytest.mark.parametrize(("target", "size"), [("majority", 100), ("median", 25), (60, 60), (500, 500)])
def test_target_is_the_largest_the_median_of_present_classes_or_the_number(target, size):
    assert target_size(COUNTS, target) == size


@pytest.mark.parametrize(
    ("target", "max_factor", "expected"),
    [
        ("majority", 5, [0, 60, 50, 5, 0]),
        ("majority", 1, [0, 40, 10, 1, 0]),
        ("majority", 0, [0, 0, 0, 0, 0]),
        ("median", 5, [0, 0, 15, 5, 0]),
        (150, 0.5, [50, 20, 5, 0, 0]),
    ],
)
def test_quota_fills_up_to_the_target_within_the_factor(target, max_factor, expected):
    assert quotas(COUNTS, target, max_factor).tolist() == expected


def test_nothing_is_asked_of_no_data():
    assert quotas(np.zeros(3, np.int64), "majority", 5).tolist() == [0, 0, 0]
    assert quotas(np.zeros(3, np.int64), "median", 5).tolist() == [0, 0, 0]


@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=8),
    st.one_of(st.sampled_from(["majority", "median"]), st.integers(1, 400)),
    st.floats(0, 10),
)
def test_quota_never_exceeds_target_or_factor(counts, target, max_factor):
    real = np.array(counts)
    added = quotas(real, target, max_factor)
    assert (added >= 0).all()
    assert (added <= real * max_factor + 1e-6).all()
    grown = real[added > 0] + added[added > 0]
    assert (grown <= target_size(real, target)).all()


def test_a_third_times_three_is_one():
    assert quotas(np.array([9, 3]), "majority", 1 / 3).tolist() == [0, 1]
