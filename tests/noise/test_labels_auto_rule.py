"""The rule `auto` on made probabilities, on digits, and on published ones; tests/noise/test_labels.py has
what all rules share."""

import warnings
from collections.abc import Iterator

import numpy as np
import pytest

from benchmarks.measuring import bench_data
from benchmarks.noise_rules import FIXED, nine_arrays, scores
from benchmarks.planting import digit_models, digits, long_tail, out_of_fold, plant
from stages.noise.labels import estimate_error_rate, find_label_errors, label_margin, suggest_labels


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings(), np.errstate(divide="raise", invalid="raise", over="raise"):
        warnings.simplefilter("error")
        yield


def model_of(true, *, distance: float, seed: int = 0):
    """Exact probabilities where classes are normal clouds whose centres are so far from the origin.

    At 3 the likeliest class is the true one for 90 % of the samples, at 4 for 98 %, at 2.2 for 73 %.
    """
    rng = np.random.default_rng(seed)
    points = rng.normal(0, 1, (len(true), 10))
    points[np.arange(len(true)), true] += distance
    probs = np.exp(distance * points)
    return probs / probs.sum(1, keepdims=True)


def wrong_labels(true, kind, rate, seed: int = 1):
    return plant(true, kind, rate, np.random.default_rng(seed), np.zeros((len(true), 1)))


def balanced(count: int = 4000):
    return np.random.default_rng(0).integers(0, 10, count)


@pytest.mark.parametrize(("distance", "floor"), [(3.0, 0.83), (4.0, 0.95)])
@pytest.mark.parametrize("kind", ["symmetric", "pair", "class-dependent"])
@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_planted_noise_is_found_about_as_well_as_by_the_best_rule(kind, rate, distance, floor):
    true = balanced()
    score = scores(wrong_labels(true, kind, rate), model_of(true, distance=distance), true)
    assert score["auto"] >= max(score[rule] for rule in FIXED) - 0.02
    assert score["auto"] > floor


@pytest.mark.parametrize(("distance", "error"), [(3.0, 0.04), (4.0, 0.02)])
@pytest.mark.parametrize("rate", [0.05, 0.2, 0.4])
def test_the_share_of_wrong_labels_is_about_right(rate, distance, error):
    true = balanced()
    given = wrong_labels(true, "symmetric", rate)
    estimate = estimate_error_rate(given, model_of(true, distance=distance))
    assert estimate == pytest.approx(np.mean(given != true), abs=error)


def test_clean_labels_and_a_sure_model_leave_nothing_to_flag():
    true = balanced()
    probs = np.full((len(true), 10), 0.002)
    probs[np.arange(len(true)), true] = 0.982
    assert not find_label_errors(true, probs).any()


def test_few_and_mild_contradictions_are_put_down_to_the_model():
    """Three of 200 are contradicted at odds of 11 to 9: less than one wrong label is expected."""
    true = np.arange(200) % 2
    probs = np.full((200, 2), 0.02)
    probs[np.arange(200), true] = 0.98
    probs[:3] = np.where(np.eye(2)[true[:3]] == 1, 0.45, 0.55)
    assert round(200 * estimate_error_rate(true, probs)) == 0
    assert (label_margin(true, probs) < 0).sum() == 3
    assert not find_label_errors(true, probs).any()


def test_a_class_that_no_label_names_is_not_lifted():
    """Divided by the root of its mean, the eleventh class would contradict 40 labels that are likelier."""
    true = balanced(2000)
    few = np.arange(40)
    probs = np.column_stack([model_of(true, distance=6.0), np.zeros(2000)])
    probs[few] = 0.0
    probs[few, true[few]], probs[few, 10] = 0.6, 0.4
    assert 0.4 / np.sqrt(probs[:, 10].mean()) > 2 * 0.6 / np.sqrt(probs[:, :10].mean())
    assert not find_label_errors(true, probs)[few].any()


@pytest.mark.parametrize("form", ["float16", "saturated", "one-hot"])
def test_the_order_of_equal_samples_decides_nothing(form):
    """Each sample is there three times, and the last flagged one has equals."""
    true = balanced(500)
    given = np.tile(wrong_labels(true, "class-dependent", 0.1), 3)
    probs = np.tile(model_of(true, distance=2.2), (3, 1))
    if form == "float16":
        probs = probs.astype(np.float16)
    elif form == "saturated":
        probs = np.where(probs.max(1, keepdims=True) > 0.6, probs.round(), probs)
    else:
        probs = np.eye(10)[probs.argmax(1)]
    flagged = find_label_errors(given, probs)
    assert flagged.any()
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(1500)
        assert find_label_errors(given[order], probs[order]).tolist() == flagged[order].tolist()


def test_on_clean_labels_it_flags_much_less_than_the_model_contradicts():
    true = balanced()
    probs = model_of(true, distance=3.0)
    contradicted = (probs.argmax(1) != true).mean()
    assert 0 < find_label_errors(true, probs).mean() < 0.5 * contradicted


def test_only_what_the_model_contradicts_is_flagged():
    true = balanced()
    given = wrong_labels(true, "symmetric", 0.4)
    probs = model_of(true, distance=2.2)
    flagged = find_label_errors(given, probs)
    assert flagged.any()
    # of classes that are equally common the correction for frequency moves next to nothing
    assert (label_margin(given, probs) < 0.05)[flagged].all()


def test_of_equally_doubtful_labels_those_of_the_common_mistake_are_flagged():
    """Each class is mistaken for the next one alone: contradictions of other pairs are the model's."""
    true = balanced()
    given = wrong_labels(true, "pair", 0.3)
    probs = model_of(true, distance=2.2)
    flagged = find_label_errors(given, probs)
    margin = label_margin(given, probs)
    doubtful = (margin < -0.1) & (margin > -0.4)
    common = given == (suggest_labels(given, probs)[0] + 1) % 10
    assert flagged[doubtful & common].mean() > flagged[doubtful & ~common].mean() + 0.3


def test_a_label_of_a_rare_class_needs_more_evidence_than_one_of_a_common_class():
    """The same doubtful probabilities, once against each of two classes that differ in size alone."""
    rng = np.random.default_rng(0)
    given = np.repeat(np.arange(10), [200] * 9 + [20])
    doubtful = rng.permutation(len(given))[:400]
    probs = np.full((len(given), 10), 0.01)
    probs[np.arange(len(given)), given] = 0.91
    other = (given + 1) % 9
    probs[doubtful] = 0.04
    probs[doubtful, given[doubtful]] = 0.2
    probs[doubtful, other[doubtful]] = 0.48
    flagged = find_label_errors(given, probs)
    rare = given == 9
    assert flagged[doubtful].any()
    assert rare[doubtful].sum() >= 2
    assert not flagged[rare].any()


@pytest.mark.parametrize(
    ("name", "kind", "rate"),
    [
        ("logistic regression", "symmetric", 0.2),
        ("logistic regression", "pair", 0.2),
        ("logistic regression", "class-dependent", 0.2),
        ("logistic regression", "instance-dependent", 0.1),
        ("random forest", "symmetric", 0.3),
        ("random forest", "class-dependent", 0.1),
    ],
)
def test_on_digits_it_is_near_the_best_rule(name, kind, rate):
    features, true = digits()
    given = plant(true, kind, rate, np.random.default_rng(0), features)
    probs = out_of_fold(digit_models(0)[name], features, given, folds=3, seed=0)
    score = scores(given, probs, true)
    assert score["auto"] >= max(score[rule] for rule in FIXED) - 0.02


def test_clean_samples_of_rare_classes_are_spared():
    """Imbalance 10:1 and 20 % noise, three draws, and a model that seldom names rare classes."""
    features, true = digits()
    lost, total = dict.fromkeys(("auto", "margin", "predicted_neq_given"), 0), 0
    for seed in range(3):
        rng = np.random.default_rng(seed)
        rows = long_tail(true, 170, 10.0, rng)
        label = true[rows]
        given = plant(label, "symmetric", 0.2, rng, features[rows])
        model = digit_models(seed)["logistic regression"]
        probs = out_of_fold(model, features[rows], given, folds=5, seed=seed)
        size = np.bincount(label)
        clean = (given == label) & (size < np.median(size) / 2)[label]
        total += clean.sum()
        for rule in lost:
            lost[rule] += (find_label_errors(given, probs, rule) & clean).sum()
        score = scores(given, probs, label)
        assert score["auto"] >= max(score[rule] for rule in FIXED) - 0.03
    assert lost["auto"] < 0.08 * total
    assert lost["margin"] > 2 * lost["auto"]
    assert lost["predicted_neq_given"] > 4 * lost["auto"]


def test_on_published_arrays_it_is_near_the_best_rule_and_better_than_each_on_average():
    results = {name: scores(labels, probs, true) for name, labels, probs, true in nine_arrays(bench_data())}
    if not results:
        pytest.skip("no pred_probs_*.npz in WINNOW_BENCH_DATA or ../shared/data")
    for name, score in results.items():
        assert score["auto"] >= max(score[rule] for rule in FIXED) - 0.02, name
    means = {rule: np.mean([score[rule] for score in results.values()]) for rule in ("auto", *FIXED)}
    assert all(means["auto"] > means[rule] for rule in FIXED)
