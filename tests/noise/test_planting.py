"""What the benchmarks plant is what they say: a test of a measure is worth as much as its noise."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier

from benchmarks import planting
from benchmarks.planting import KINDS, digits, kept, long_tail, out_of_fold, plant


@pytest.fixture(scope="module")
def data():
    return digits()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_about_the_wanted_share_is_made_wrong_and_repeats_with_the_seed(data, kind, rate):
    features, true = data
    before = true.copy()
    first, second = (plant(true, kind, rate, np.random.default_rng(0), features) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(true, before)
    # rates of the classes are drawn, so that the mean over ten of them varies
    assert np.mean(first != true) == pytest.approx(rate, abs=0.4 * rate)
    assert set(np.unique(first)) <= set(range(10))


def test_pair_noise_makes_each_class_the_next_one(data):
    features, true = data
    given = plant(true, "pair", 0.3, np.random.default_rng(0), features)
    wrong = given != true
    np.testing.assert_array_equal(given[wrong], (true[wrong] + 1) % 10)


def test_symmetric_noise_goes_to_all_other_classes_alike():
    true = np.zeros(9000, np.int64)
    given = plant(true, "symmetric", 1.0, np.random.default_rng(0), np.zeros((9000, 1)))
    counts = np.bincount(given, minlength=10)
    assert counts[0] == 0
    assert counts[1:].min() > 850
    assert counts[1:].max() < 1150


def test_class_dependent_noise_has_rates_and_targets_of_its_own():
    true = np.repeat(np.arange(10), 500)
    given = plant(true, "class-dependent", 0.3, np.random.default_rng(0), np.zeros((5000, 1)))
    table = np.zeros((10, 10), int)
    np.add.at(table, (true, given), 1)
    rates = 1 - np.diag(table) / 500
    np.fill_diagonal(table, 0)
    assert rates.max() > 3 * rates.min()
    assert np.median(table.max(1) / np.maximum(table.sum(1), 1)) > 0.4


def test_instance_dependent_noise_prefers_what_a_model_finds_ambiguous(data):
    features, true = data
    given = plant(true, "instance-dependent", 0.2, np.random.default_rng(0), features)
    weak = LogisticRegression(C=0.01, max_iter=300)
    probs = out_of_fold(weak, features, true, folds=3, seed=1)
    own = probs[np.arange(len(true)), true]
    probs[np.arange(len(true)), true] = 0.0
    order = np.argsort(own / probs.max(1))
    wrong = (given != true)[order]
    assert wrong[:360].mean() > 2 * wrong[-360:].mean()


def test_a_long_tail_has_the_wanted_ratio(data):
    true = data[1]
    rows = long_tail(true, 170, 10.0, np.random.default_rng(0))
    counts = np.sort(np.bincount(true[rows]))
    assert (counts[0], counts[-1]) == (17, 170)
    assert len(np.unique(rows)) == len(rows)


def test_out_of_fold_probabilities_come_from_models_that_did_not_see_the_sample(data):
    features, true = data
    shuffled = np.random.default_rng(0).permutation(true)
    probs = out_of_fold(DecisionTreeClassifier(random_state=0), features, shuffled, folds=3, seed=0)
    np.testing.assert_allclose(probs.sum(1), 1.0)
    assert (probs.argmax(1) == shuffled).mean() < 0.2  # in-sample a tree repeats every label


def test_what_was_computed_is_kept_until_an_input_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(planting, "_PLACE", tmp_path / "kept")
    calls = []

    def make():
        calls.append(1)
        return {"numbers": np.arange(3)}

    for x in (np.zeros(2), np.zeros(2), np.ones(2)):
        found = kept("thing", {"x": x, "seed": 0}, make)
        np.testing.assert_array_equal(found["numbers"], np.arange(3))
    assert len(calls) == 2
    assert not list((tmp_path / "kept").glob("*.partial"))
