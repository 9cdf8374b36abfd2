import numpy as np
import pytest

from stages.dataset import View
from stages.learning.weighting import cap_made, class_weighted


def view_of(labels: list[int] | np.ndarray, weights: list[float] | None = None, classes: str = "ab") -> View:
    count = len(labels)
    return View(
        np.zeros((count, 8, 8, 1), np.uint8),
        np.asarray(labels, np.int64),
        np.ones(count, np.float32) if weights is None else np.asarray(weights, np.float32),
        np.arange(count).astype(object),
        list(classes),
    )


@pytest.mark.parametrize(("mode", "expected"), [("none", 9.0), ("balanced", 1.0), ("sqrt", 3.0)])
def test_class_weights_even_out_the_mass_of_classes(mode: str, expected: float):
    view = view_of(np.repeat([0, 1], [90, 10]))
    weights = class_weighted(view, mode).weights
    assert weights[view.labels == 0].sum() / weights[view.labels == 1].sum() == pytest.approx(
        expected, rel=1e-4
    )
    assert weights.mean() == pytest.approx(1, rel=1e-4)


def test_made_samples_over_the_cap_are_scaled_down_together_and_no_others_are():
    # a: real 2, made 6 in two kinds; b: real 3, made 1
    view = view_of([0, 0, 1, 1, 1, 0, 0, 0, 1], [1, 1, 1, 1, 1, 1, 2, 3, 1])
    made = np.arange(9) >= 5
    capped, factors = cap_made(view, made, 1.5)
    assert factors == {"a": pytest.approx(0.5)}
    assert capped.weights.tolist() == [1, 1, 1, 1, 1, 0.5, 1.0, 1.5, 1]
    assert capped.weights.dtype == np.float32
    assert view.weights[5] == 1  # the view that was given stays as it is


def test_under_the_cap_and_at_it_the_view_is_the_same():
    view = view_of([0, 1] + [0] * 10, [1.0, 1.0] + [0.3] * 10)
    made = np.arange(12) >= 2
    for limit in (3.0, 4.0):  # ten times float32(.3) is a little more than 3
        capped, factors = cap_made(view, made, limit)
        assert capped is view
        assert factors == {}


def test_the_cap_goes_by_what_real_samples_weigh_not_by_their_number():
    view = view_of([0, 0, 0], [0.5, 0.5, 4.0])
    capped, factors = cap_made(view, np.array([False, False, True]), 2.0)
    assert factors["a"] == pytest.approx(0.5)
    assert capped.weights[2] == pytest.approx(2.0)


def test_a_class_without_real_samples_has_no_cap():
    view = view_of([0, 1, 1])
    capped, factors = cap_made(view, np.array([False, True, True]), 0.5)
    assert (capped.weights.tolist(), factors) == ([1, 1, 1], {})


def test_nothing_made_is_nothing_to_cap():
    view = view_of([0, 1])
    assert cap_made(view, np.zeros(2, bool), 0.1)[1] == {}
