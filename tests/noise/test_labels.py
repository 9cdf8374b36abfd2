import numpy as np
import pytest

from stages.errors import WinnowError
from stages.noise import find_label_errors
from stages.noise.labels import RULES, better_than_chance, label_margin, suggest_labels


def planted(noise: float, count: int = 600, classes: int = 5, seed: int = 0):
    """Labels with symmetric noise, and probabilities of a model that is right 95 % of the time."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, classes, count)
    given = true.copy()
    wrong = rng.permutation(count)[: round(noise * count)]
    given[wrong] = (true[wrong] + rng.integers(1, classes, len(wrong))) % classes
    seen = np.where(rng.random(count) < 0.95, true, rng.integers(0, classes, count))
    logits = rng.normal(0, 0.6, (count, classes))
    logits[np.arange(count), seen] += 3
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return given, probs, given != true


def f1(mask, truth):
    return 2 * (mask & truth).sum() / (mask.sum() + truth.sum())


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_finds_most_planted_errors(rule: str):
    given, probs, wrong = planted(0.2)
    mask = find_label_errors(given, probs, rule)
    assert mask.dtype == bool
    assert mask.shape == given.shape
    assert f1(mask, wrong) > 0.75


@pytest.mark.parametrize("noise", [0.05, 0.2, 0.45])
def test_auto_is_close_to_the_better_of_strict_and_lenient_margins(noise: float):
    given, probs, wrong = planted(noise)
    margin = label_margin(given, probs)
    best = max(f1(margin < -threshold, wrong) for threshold in (0.0, 0.2))
    assert f1(find_label_errors(given, probs), wrong) >= best - 0.02


@pytest.mark.parametrize("rule", RULES)
def test_the_inputs_are_left_as_they_are(rule: str):
    given, probs, _ = planted(0.2, count=100)
    before = given.copy(), probs.copy()
    find_label_errors(given, probs, rule)
    np.testing.assert_array_equal(given, before[0])
    np.testing.assert_array_equal(probs, before[1])


@pytest.mark.parametrize("rule", RULES)
def test_a_class_without_samples_and_lists_are_fine(rule: str):
    given, probs, _ = planted(0.2, count=200, classes=4)
    given, probs = given[given != 2], probs[given != 2]
    assert len(find_label_errors(given.tolist(), probs.tolist(), rule)) == len(given)


@pytest.mark.parametrize("rule", RULES)
def test_one_class_data_and_no_data_have_no_errors_by_comparison(rule: str):
    probs = np.tile([0.9, 0.1], (5, 1))
    assert not find_label_errors(np.zeros(5, int), probs, rule).any()
    assert find_label_errors(np.zeros(0, int), np.zeros((0, 2)), rule).shape == (0,)


def test_suggestions_are_the_likeliest_other_class():
    suggested, score = suggest_labels(np.array([0, 1]), np.array([[0.7, 0.1, 0.2], [0.5, 0.1, 0.4]]))
    assert suggested.tolist() == [2, 0]
    np.testing.assert_allclose(score, [0.2, 0.5])


@pytest.mark.parametrize(
    ("labels", "probs", "message"),
    [
        ([0, 1], [[0.5, 0.5]], "must be 1 long"),
        ([0, 2], [[0.5, 0.5]] * 2, "0 to 1, not 0 to 2"),
        ([-1, 1], [[0.5, 0.5]] * 2, "not -1 to 1"),
        ([0.0, 1.0], [[0.5, 0.5]] * 2, "must be integers"),
        ([0, 1], [[0.5, float("nan")]] * 2, "NaN"),
        ([0, 1], [[1.5, -0.5]] * 2, "negative"),
        ([0, 1], [[0.9, 0.9]] * 2, "sum to 1"),
        ([0, 1], [0.5, 0.5], "must be N×K"),
        ([0, 0], [[1.0], [1.0]], "K of at least 2"),
    ],
)
def test_impossible_input_is_one_clear_line(labels, probs, message):
    with pytest.raises(WinnowError, match=message):
        find_label_errors(labels, probs)


def test_an_unknown_rule_lists_the_rules():
    given, probs, _ = planted(0.2, count=20)
    with pytest.raises(WinnowError, match="prune_by_noise_rate"):
        find_label_errors(given, probs, "best")


def test_a_model_that_learned_something_is_told_from_one_that_guesses():
    given, probs, _ = planted(0.3)
    assert better_than_chance(given, probs)
    rng = np.random.default_rng(0)
    assert not better_than_chance(given, rng.permutation(probs))
    always_the_commonest = np.tile([0.9, 0.05, 0.05], (100, 1))
    assert not better_than_chance(np.repeat([0, 1, 2], [80, 15, 5]), always_the_commonest)
    assert not better_than_chance(np.zeros(0, int), np.zeros((0, 2)))
