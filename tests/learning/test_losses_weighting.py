import numpy as np
import pytest

from stages.dataset.base import View
from stages.learning.losses import cap_made, class_weighted


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


@pytest.mark.parametrize("beta", [0.9, 0.9999])
def test_effective_weights_are_the_inverse_of_the_effective_number(beta: float):
    counts = np.array([90, 10])
    view = view_of(np.repeat([0, 1], counts))
    weights = class_weighted(view, "effective", beta).weights
    expected = (1 - beta) / (1 - beta**counts)
    assert weights[-1] / weights[0] == pytest.approx(expected[1] / expected[0], rel=1e-4)
    assert weights.mean() == pytest.approx(1, rel=1e-4)


def test_effective_weights_lie_between_none_and_balanced():
    view = view_of(np.repeat([0, 1], [90, 10]))
    ratios = [class_weighted(view, "effective", beta).weights[[0, -1]] for beta in (1e-9, 1 - 1e-9)]
    assert ratios[0][1] / ratios[0][0] == pytest.approx(1, rel=1e-4)
    assert ratios[1][1] / ratios[1][0] == pytest.approx(9, rel=1e-4)


def test_classes_weigh_by_what_their_samples_do_and_a_class_without_any_does_no_harm():
    halved = view_of(np.repeat([0, 1], [80, 10]), [0.5] * 80 + [1.0] * 10, classes="abc")
    for mode in ("balanced", "sqrt", "effective"):
        same = class_weighted(view_of(np.repeat([0, 1], [40, 10])), mode).weights
        weights = class_weighted(halved, mode).weights
        assert np.isfinite(weights).all()
        assert weights[-1] / (2 * weights[0]) == pytest.approx(same[-1] / same[0], rel=1e-4)


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
