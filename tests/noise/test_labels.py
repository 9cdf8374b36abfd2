import warnings
from collections.abc import Iterator

import numpy as np
import pytest

from stages.errors import WinnowError
from stages.noise.labels import RULES, better_than_chance, find_label_errors, suggest_labels


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """Divisions by nothing and logarithms of it are errors here."""
    with warnings.catch_warnings(), np.errstate(divide="raise", invalid="raise", over="raise"):
        warnings.simplefilter("error")
        # cleanlab's honest word on classes of a handful of samples
        warnings.filterwarnings("ignore", message="May not flag all label issues")
        yield


def planted(noise: float, count: int = 600, classes: int = 5, seed: int = 0):
    """Labels with symmetric noise, and probabilities of a model that is right 95 % of the time."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, classes, count)
    given = true.copy()
    wrong = rng.permutation(count)[: round(noise * count)]
    given[wrong] = (true[wrong] + rng.integers(1, classes, len(wrong))) % classes
    seen = np.where(rng.random(count) < 0.95, true, rng.integers(0, classes, count))
    logits = rng.normal(0, 0.6, (count, classes))
    logits[np.arange(count), seen] += 3 + np.log(classes / 5)
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


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("classes", [2, 100])
def test_two_and_a_hundred_classes_are_fine(rule: str, classes: int):
    given, probs, wrong = planted(0.2, count=300 * min(classes, 10), classes=classes)
    assert f1(find_label_errors(given, probs, rule), wrong) > 0.6


@pytest.mark.parametrize("rule", RULES)
def test_the_inputs_are_left_as_they_are(rule: str):
    given, probs, _ = planted(0.2, count=100)
    before = given.copy(), probs.copy()
    find_label_errors(given, probs, rule)
    np.testing.assert_array_equal(given, before[0])
    np.testing.assert_array_equal(probs, before[1])


@pytest.mark.parametrize("rule", RULES)
def test_memory_that_may_not_be_written_is_enough(rule: str):
    given, probs, _ = planted(0.2, count=100)
    given.setflags(write=False)
    probs.setflags(write=False)
    assert find_label_errors(given, probs, rule).any()


@pytest.mark.parametrize("rule", RULES)
def test_a_class_that_no_label_names_changes_little(rule: str):
    given, probs, wrong = planted(0.2, count=600, classes=4)
    there = given != 2
    given, probs, wrong = given[there], probs[there], wrong[there]
    mask = find_label_errors(given.tolist(), probs.tolist(), rule)
    named = probs[:, 2] < 0.5  # what the model calls 2 contradicts its label, whatever the rule thinks
    assert f1(mask[named], wrong[named]) > 0.7


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "low_self_confidence"])
def test_a_class_that_the_model_never_names_is_fine(rule: str):
    given, probs, wrong = planted(0.2, count=600, classes=4)
    probs[:, 2] = 0.0
    probs /= probs.sum(1, keepdims=True)
    known = given != 2
    assert f1(find_label_errors(given, probs, rule)[known], wrong[known]) > 0.6


@pytest.mark.parametrize("rule", RULES)
def test_a_class_that_one_fold_did_not_learn_is_fine(rule: str):
    given, probs, wrong = planted(0.2, count=1000, classes=5)
    probs[:200, 4] = 0.0
    probs /= probs.sum(1, keepdims=True)
    learned = np.arange(1000) >= 200
    assert f1(find_label_errors(given, probs, rule)[learned], wrong[learned]) > 0.7


@pytest.mark.parametrize("rule", RULES)
def test_half_precision_flags_the_same_but_for_ties(rule: str):
    given, probs, _ = planted(0.2, count=1000, classes=10)
    rough = find_label_errors(given.astype(np.int8), probs.astype(np.float16), rule)
    assert (rough != find_label_errors(given, probs, rule)).mean() < 0.005


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_a_handful_of_samples_gets_an_answer(rule: str, count: int):
    given, probs, _ = planted(0.0, count=count, classes=3)
    assert find_label_errors(given, probs, rule).shape == (count,)


@pytest.mark.parametrize("rule", [rule for rule in RULES if not rule.startswith("low_")])
def test_one_hot_predictions_of_the_given_labels_contradict_none(rule: str):
    given = planted(0.2, count=200)[0]
    assert not find_label_errors(given, np.eye(5)[given], rule).any()


@pytest.mark.parametrize("rule", RULES)
def test_predictions_that_are_all_alike_are_an_answer(rule: str):
    given = planted(0.2, count=200)[0]
    assert find_label_errors(given, np.full((200, 5), 0.2), rule).shape == (200,)


@pytest.mark.parametrize("rule", RULES)
def test_the_order_of_samples_does_not_matter(rule: str):
    given, probs, _ = planted(0.2)
    order = np.random.default_rng(1).permutation(len(given))
    mask = find_label_errors(given, probs, rule)
    np.testing.assert_array_equal(find_label_errors(given[order], probs[order], rule), mask[order])


@pytest.mark.parametrize("rule", RULES)
def test_the_numbering_of_classes_does_not_matter(rule: str):
    given, probs, _ = planted(0.2)
    number = np.random.default_rng(1).permutation(5)
    mask = find_label_errors(number[given], probs[:, np.argsort(number)], rule)
    np.testing.assert_array_equal(mask, find_label_errors(given, probs, rule))


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
        ([True, False], [[0.5, 0.5]] * 2, "must be integers from 0 to K-1, not bool"),
        (["a", "b"], [[0.5, 0.5]] * 2, "must be integers"),
        ([[0, 1]], [[0.5, 0.5]] * 2, "must be 2 long"),
        ([0, 1], [[0.5, float("nan")]] * 2, "NaN"),
        ([0, 1], [[0.5, float("inf")]] * 2, "infinity"),
        ([0, 1], [[0.5, 0.5], [0.5]], "must be arrays of numbers"),
        ([0, 1], [["a", "b"]] * 2, "must be arrays of numbers"),
        ([0, 1], [[0.0, 0.0]] * 2, "sum to 1"),
        ([0, 1], [[1.5, -0.5]] * 2, "negative"),
        ([0, 1], [[0.9, 0.9]] * 2, "sum to 1"),
        ([0, 1], [0.5, 0.5], "must be N×K"),
        ([0, 0], [[1.0], [1.0]], "K of at least 2"),
    ],
)
def test_impossible_input_is_one_clear_line(labels, probs, message):
    with pytest.raises(WinnowError, match=message):
        find_label_errors(labels, probs)


@pytest.mark.parametrize("rule", ["margin", "corrected_margin"])
def test_a_larger_margin_flags_fewer(rule: str):
    given, probs, _ = planted(0.2)
    masks = [find_label_errors(given, probs, rule, margin=margin) for margin in (0.0, 0.3, 0.6)]
    assert masks[0].sum() > masks[1].sum() > masks[2].sum() > 0
    assert not (masks[1] & ~masks[0]).any()


@pytest.mark.parametrize("margin", [-1.5, 1.1, float("nan")])
def test_a_margin_that_is_none_is_refused(margin: float):
    given, probs, _ = planted(0.2, count=20)
    with pytest.raises(WinnowError, match="margin must lie in -1 to 1"):
        find_label_errors(given, probs, "margin", margin=margin)


def test_a_corrected_margin_asks_more_of_common_classes():
    """A model that prefers the common class contradicts labels of the rare one without reason."""
    probs = np.tile([0.6, 0.4], (100, 1))
    given = np.repeat([0, 1], [90, 10])
    assert find_label_errors(given, probs, "margin", margin=0.1)[90:].all()
    assert not find_label_errors(given, probs, "corrected_margin", margin=0.1)[90:].any()


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
