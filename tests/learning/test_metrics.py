from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as reference

from stages.learning.metrics import (
    FOLD_METRICS,
    METRICS,
    Comparison,
    Interval,
    calibration_error,
    compare_models,
    confusion,
    detector_scores,
    fold_means,
    per_class,
    reliability,
    resample_counts,
    scores_of,
)


def make_probabilities(labels, classes, strength, seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(len(labels), classes))
    logits[np.arange(len(labels)), labels] += strength
    odds = np.exp(logits)
    return (odds / odds.sum(1, keepdims=True)).astype(np.float32)


def compare(labels, probabilities, **changes) -> Comparison:
    settings = {"baseline": "baseline", "bins": 15, "resamples": 200, "confidence": 0.95, "seed": 0}
    return compare_models(labels, probabilities, **(settings | changes))


@pytest.fixture
def labels():
    return np.random.default_rng(1).choice(6, 150, p=[0.4, 0.25, 0.2, 0.1, 0.05, 0.0])


@pytest.fixture
def probabilities(labels):
    return {
        "baseline": make_probabilities(labels, 6, 1.0, 2),
        "train": make_probabilities(labels, 6, 2.5, 3),
    }


def reference_scores(labels, probabilities):
    predicted = probabilities.argmax(1)
    there = np.unique(labels)
    recalls = reference.recall_score(labels, predicted, labels=there, average=None, zero_division=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # predictions of a class that is not among the labels
        balanced = reference.balanced_accuracy_score(labels, predicted)
    return {
        "macro_f1": reference.f1_score(labels, predicted, labels=there, average="macro", zero_division=0),
        "balanced_accuracy": balanced,
        "worst_class_recall": recalls.min(),
        "accuracy": reference.accuracy_score(labels, predicted),
    }


def test_values_are_scikit_learns_also_with_a_class_that_has_no_test_images(labels, probabilities):
    assert 5 not in labels
    for name, figures in compare(labels, probabilities).models.items():
        for metric, expected in reference_scores(labels, probabilities[name]).items():
            assert figures[metric].value == pytest.approx(expected, abs=1e-12)


def test_intervals_are_percentiles_over_whole_resamples_of_the_images(labels, probabilities):
    result = compare(labels, probabilities, resamples=40)
    counts = np.concatenate(list(resample_counts(len(labels), 40, 0)), axis=1).astype(int)
    drawn = {name: [] for name in probabilities}
    for column in counts.T:
        picked = np.repeat(np.arange(len(labels)), column)
        for name, values in probabilities.items():
            drawn[name].append(reference_scores(labels[picked], values[picked]))
    for metric in ("macro_f1", "balanced_accuracy", "worst_class_recall", "accuracy"):
        own = {name: np.array([scores[metric] for scores in rows]) for name, rows in drawn.items()}
        low, high = np.quantile(own["train"], [0.025, 0.975])
        assert result.models["train"][metric].low == pytest.approx(low)
        assert result.models["train"][metric].high == pytest.approx(high)
        low, high = np.quantile(own["train"] - own["baseline"], [0.025, 0.975])
        assert result.gain["train"][metric].low == pytest.approx(low)
        assert result.gain["train"][metric].high == pytest.approx(high)


def test_gain_is_paired_so_equal_models_differ_by_exactly_nothing(labels, probabilities):
    same = {"baseline": probabilities["train"], "train": probabilities["train"].copy()}
    gain = compare(labels, same).gain["train"]
    assert set(gain) == set(METRICS)
    assert all(interval == Interval(0.0, 0.0, 0.0) for interval in gain.values())


def test_a_much_better_model_is_shown_to_be_better(labels, probabilities):
    gain = compare(labels, probabilities).gain
    assert set(gain) == {"train"}
    for metric in ("macro_f1", "balanced_accuracy", "accuracy"):
        assert gain["train"][metric].low > 0


def test_intervals_cover_the_true_accuracy_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(60):
        labels = rng.integers(0, 2, 200)
        hit = rng.random(200) < 0.8
        values = np.where((hit == labels)[:, None], [0.1, 0.9], [0.9, 0.1])
        interval = compare(labels, {"baseline": values}, seed=seed).models["baseline"]["accuracy"]
        covered += interval.low <= 0.8 <= interval.high
    assert 52 <= covered <= 60


def test_a_class_that_a_resample_misses_does_not_pull_it_down():
    labels = np.array([0] * 30 + [1])
    perfect = np.eye(2)[labels]
    figures = compare(labels, {"baseline": perfect}).models["baseline"]
    for metric in ("macro_f1", "balanced_accuracy", "worst_class_recall"):
        assert figures[metric] == Interval(1.0, 1.0, 1.0)


def test_calibration_error_of_a_worked_example():
    # two bins: (0, .5] holds a miss at .5; (.5, 1] holds a hit at .9 and a miss at .7
    labels = np.array([0, 0, 0])
    values = np.array([[0.0, 0.5, 0.5], [0.9, 0.1, 0.0], [0.3, 0.7, 0.0]])
    figure = compare(labels, {"baseline": values}, bins=2).models["baseline"]["expected_calibration_error"]
    assert figure.value == pytest.approx(0.5 * 1 / 3 + abs(0.5 - 0.8) * 2 / 3)


def test_reliability_gives_the_bins_of_the_calibration_error(labels, probabilities):
    values = probabilities["train"]
    confidence, accuracy, counts = reliability(labels, values, 10)
    assert counts.sum() == len(labels)
    assert np.isnan(accuracy[counts == 0]).all()
    there = counts > 0
    assert (np.ceil(confidence[there] * 10) - 1 == np.flatnonzero(there)).all()
    error = np.abs(accuracy - confidence)[there] @ counts[there] / len(labels)
    figure = compare(labels, {"baseline": values}, bins=10).models["baseline"]["expected_calibration_error"]
    assert figure.value == pytest.approx(error, abs=1e-6)


def test_resamples_hold_as_many_images_as_there_are_and_follow_from_the_seed(monkeypatch):
    monkeypatch.setattr("stages.learning.metrics._CHUNK", 90)
    chunks = list(resample_counts(30, 8, 5))
    assert [chunk.shape for chunk in chunks] == [(30, 3), (30, 3), (30, 2)]
    together = np.concatenate(chunks, axis=1)
    assert (together.sum(0) == 30).all()
    assert np.array_equal(together, np.concatenate(list(resample_counts(30, 8, 5)), axis=1))
    assert not np.array_equal(together, np.concatenate(list(resample_counts(30, 8, 6)), axis=1))


def test_two_thousand_resamples_of_a_large_test_split_take_seconds(benchmark_seconds=10.0):
    import time

    labels = np.random.default_rng(0).integers(0, 10, 5000)
    values = {name: make_probabilities(labels, 10, 2, i) for i, name in enumerate(("baseline", "train"))}
    start = time.process_time()  # of this process alone, whatever else the machine does
    compare(labels, values, resamples=2000)
    assert time.process_time() - start < benchmark_seconds


def test_no_images_or_other_images_are_an_error(labels, probabilities):
    with pytest.raises(ValueError, match="no test images"):
        compare(np.zeros(0, np.int64), {"baseline": np.zeros((0, 2))})
    with pytest.raises(ValueError, match="train: 149 predictions for 150 labels"):
        compare(labels, {**probabilities, "train": probabilities["train"][1:]})


def test_rounded_interval_has_no_negative_zero():
    rounded = Interval(-1e-9, -0.12345678, 0.5).rounded()
    assert rounded == {"value": 0.0, "low": -0.123457, "high": 0.5}
    assert str(rounded["value"]) == "0.0"


def test_per_class_table_and_its_gaps():
    labels, predicted = np.array([0, 0, 1, 1]), np.array([0, 3, 0, 0])
    table = per_class(labels, predicted, ["a", "b", "c", "d"]).set_index("class")
    assert table["support"].tolist() == [2, 2, 0, 0]
    assert table.loc["a"].tolist() == pytest.approx([2, 1 / 3, 0.5, 0.4])
    assert np.isnan(table.loc["b", "precision"])  # never predicted
    assert table.loc["b", ["recall", "f1"]].tolist() == [0, 0]
    assert table.loc["c", ["precision", "recall", "f1"]].isna().all()  # neither there nor predicted
    assert table.loc["d", "precision"] == 0
    assert np.isnan(table.loc["d", "recall"])


def test_confusion_has_a_row_for_every_class():
    matrix = confusion(np.array([0, 2, 2]), np.array([1, 2, 0]), 4)
    assert matrix.tolist() == [[0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]


def test_detector_scores():
    wrong = np.array([1, 1, 1, 1, 0, 0], bool)
    flagged = np.array([1, 1, 1, 0, 1, 0], bool)
    expected = {"precision": 0.75, "recall": 0.75, "f1": 0.75, "planted": 4, "flagged": 4}
    assert detector_scores(flagged, wrong) == expected
    nothing = detector_scores(np.zeros(6, bool), wrong)
    assert (nothing["precision"], nothing["recall"], nothing["f1"]) == (0, 0, 0)
    assert detector_scores(flagged, np.zeros(6, bool)) == {}


def test_scores_of_one_model_are_those_of_the_comparison(labels, probabilities):
    found = scores_of(labels, probabilities["train"])
    expected = reference_scores(labels, probabilities["train"])
    assert found == pytest.approx({metric: expected[metric] for metric in FOLD_METRICS})


def test_the_mean_over_folds_has_a_t_interval():
    folds = pd.DataFrame({metric: [0.5, 0.6, 0.7] for metric in FOLD_METRICS})
    found = fold_means(folds)["macro_f1"]
    assert found["value"] == pytest.approx(0.6)
    # 4.303 is the 97.5 % quantile of Student's t with two degrees of freedom
    assert found["high"] - found["value"] == pytest.approx(4.303 * 0.1 / 3**0.5, rel=1e-3)
    assert fold_means(folds.head(1))["accuracy"] == {"value": 0.5, "low": 0.5, "high": 0.5}


def test_the_interval_of_a_share_ends_at_one():
    folds = pd.DataFrame({metric: [0.9, 1.0, 1.0] for metric in FOLD_METRICS})
    assert fold_means(folds)["accuracy"]["high"] == 1.0


def test_the_calibration_error_by_itself_is_that_of_the_comparison(labels, probabilities):
    expected = compare(labels, probabilities).models["train"]["expected_calibration_error"].value
    assert calibration_error(labels, probabilities["train"], 15) == pytest.approx(expected)
