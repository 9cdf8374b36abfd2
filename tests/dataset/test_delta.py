import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.dataset.delta import ClassTarget, quotas, target_sizes
from stages.errors import WinnowError

COUNTS = np.array([100, 40, 10, 1, 0])
NAMES = list("abcde")


@pytest.mark.parametrize(("to", "size"), [("majority", 100), ("median", 25), (60, 60), (500, 500)])
def test_target_is_the_largest_the_median_of_present_classes_or_the_number(to, size):
    assert target_sizes(COUNTS, ClassTarget(to, 5)).tolist() == [size] * 5


@pytest.mark.parametrize(
    ("to", "max_factor", "expected"),
    [
        ("majority", 5, [0, 60, 50, 5, 0]),
        ("majority", 1, [0, 40, 10, 1, 0]),
        ("majority", 0, [0, 0, 0, 0, 0]),
        ("majority", 1e300, [0, 60, 90, 99, 0]),
        ("median", 5, [0, 0, 15, 5, 0]),
        (150, 0.5, [50, 20, 5, 0, 0]),
    ],
)
def test_quota_fills_up_to_the_target_within_the_factor(to, max_factor, expected):
    assert quotas(COUNTS, ClassTarget(to, max_factor)).tolist() == expected


def test_nothing_is_asked_of_no_data():
    assert quotas(np.zeros(3, np.int64), ClassTarget("majority", 5)).tolist() == [0, 0, 0]
    assert quotas(np.zeros(3, np.int64), ClassTarget("median", 5)).tolist() == [0, 0, 0]


@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=8),
    st.one_of(st.sampled_from(["majority", "median"]), st.integers(1, 400)),
    st.floats(0, 10),
)
def test_quota_never_exceeds_target_or_factor(counts, to, max_factor):
    real, target = np.array(counts), ClassTarget(to, max_factor)
    added = quotas(real, target)
    assert (added >= 0).all()
    assert (added <= real * max_factor + 1e-6).all()
    grown = added > 0
    assert (real[grown] + added[grown] <= target_sizes(real, target)[grown]).all()


def test_a_third_times_three_is_one():
    assert quotas(np.array([9, 3]), ClassTarget("majority", 1 / 3)).tolist() == [0, 1]


def test_a_class_may_have_a_target_of_its_own():
    own = {"c": ClassTarget(30, 1.5), "a": ClassTarget(120, 1), "d": ClassTarget("median", 0)}
    default = ClassTarget("majority", 0.5)
    assert target_sizes(COUNTS, default, NAMES, own).tolist() == [120, 100, 30, 25, 100]
    assert quotas(COUNTS, default, NAMES, own).tolist() == [20, 20, 15, 0, 0]
    assert quotas(COUNTS, default, NAMES, {}).tolist() == quotas(COUNTS, default).tolist()


def test_a_class_that_is_not_there_is_named_beside_those_that_are():
    with pytest.raises(WinnowError, match=r"'f'.*no such class; there are a, b, c, d, e$"):
        quotas(COUNTS, ClassTarget("majority", 5), NAMES, {"a": ClassTarget(9, 1), "f": ClassTarget(9, 1)})
