import numpy as np
import pandas as pd
import pytest

from stages.noise.nearest import nearest_neighbours
from stages.noise.neighbourhood import (
    all_alike,
    order_issues,
    outliers_and_duplicates,
    underperforming_groups,
)


def _samples(sources: list[str], labels: list[str], split: str = "train") -> pd.DataFrame:
    return pd.DataFrame({"source": sources, "label": labels, "split": split})


def _walk(count: int, rng: np.random.Generator) -> np.ndarray:
    """Images of a film: each like the one before."""
    return np.cumsum(rng.normal(size=(count, 8)), axis=0) + 5.0


def test_outliers_and_near_duplicates_are_found():
    rng = np.random.default_rng(0)
    vectors = np.eye(8)[0] * 6 + rng.normal(0, 0.5, (60, 8))
    vectors[10] = -6.0 * np.eye(8)[7]
    vectors[[21, 22]] = vectors[20] + 1e-4
    found = outliers_and_duplicates(nearest_neighbours(vectors, 5))
    assert found["is_outlier_issue"].idxmax() == found["outlier_score"].idxmin() == 10
    assert (found.loc[[20, 21, 22], "near_duplicate_set"] == found.loc[20, "near_duplicate_set"]).all()
    assert found.loc[20, "near_duplicate_set"] >= 0
    assert ((found["near_duplicate_set"] >= 0) == found["is_near_duplicate_issue"]).all()


def test_two_samples_are_neither():
    found = outliers_and_duplicates(nearest_neighbours(np.eye(2), 10))
    assert not found[["is_outlier_issue", "is_near_duplicate_issue"]].any().any()
    assert found["near_duplicate_set"].tolist() == [-1, -1]


def test_a_film_is_not_iid_and_its_frames_in_random_order_are():
    rng = np.random.default_rng(0)
    graph = nearest_neighbours(_walk(200, rng), 10)
    film = [f"a/frame_{i}.png" for i in range(200)]
    table, p_value = order_issues(_samples(film, ["a"] * 200), graph, ["a"], seed=0)
    assert p_value < 0.01
    assert table["is_non_iid_issue"].sum() == 1
    assert table["non_iid_score"].idxmin() == table["is_non_iid_issue"].idxmax()
    assert table["non_iid_score"].between(0, 1).all()
    mixed = [film[i] for i in rng.permutation(200)]
    table, p_value = order_issues(_samples(mixed, ["a"] * 200), graph, ["a"], seed=0)
    assert p_value > 0.05
    assert not table["is_non_iid_issue"].any()


def test_numbers_in_names_are_ordered_as_numbers():
    """As text, frame 10 would stand beside frame 1 and far from frame 9; 40 short bursts tell it apart."""
    rng = np.random.default_rng(0)
    bursts = np.repeat(5.0 * rng.normal(size=(40, 8)), 5, axis=0) + 0.1 * rng.normal(size=(200, 8))
    graph = nearest_neighbours(bursts, 4)
    plain = [f"a/{i}.png" for i in range(200)]
    padded = [f"a/{i:04d}.png" for i in range(200)]
    scores = [order_issues(_samples(names, ["a"] * 200), graph, ["a"], 0)[0] for names in (plain, padded)]
    pd.testing.assert_frame_equal(*scores)


@pytest.mark.parametrize("folders", [True, False])
def test_a_table_sorted_by_class_is_not_called_non_iid(folders: bool):
    """In class folders also where labels were changed afterwards: the path still knows the first class."""
    rng = np.random.default_rng(1)
    classes = ["a", "b", "c", "d"]
    true = np.repeat(np.arange(4), 60)
    graph = nearest_neighbours(6.0 * np.eye(8)[true] + rng.normal(size=(240, 8)), 10)
    given = true.copy()
    if folders:
        given[rng.random(240) < 0.3] = 0
    names = [f"{classes[t]}/{i}.png" if folders else f"x[{i}]" for i, t in enumerate(true)]
    labels = [classes[label] for label in given]
    assert order_issues(_samples(names, labels), graph, classes, seed=0)[1] > 0.05


def test_drift_within_the_classes_is_seen_through_the_classes():
    rng = np.random.default_rng(2)
    true = np.repeat(np.arange(4), 60)
    drift = np.tile(np.linspace(-4, 4, 60), 4)[:, None] * np.eye(8)[7]
    graph = nearest_neighbours(6.0 * np.eye(8)[true] + drift + 0.5 * rng.normal(size=(240, 8)), 10)
    names = [f"{'abcd'[t]}/{i}.png" for i, t in enumerate(true)]
    assert order_issues(_samples(names, ["abcd"[t] for t in true]), graph, list("abcd"), seed=0)[1] < 0.01


def test_the_order_of_few_is_not_judged():
    graph = nearest_neighbours(np.random.default_rng(0).normal(size=(10, 4)), 3)
    table, p_value = order_issues(_samples([f"{i}" for i in range(10)], ["a"] * 10), graph, ["a"], 0)
    assert p_value is None
    assert table["non_iid_score"].isna().all()


def test_order_leaves_the_global_generator_alone():
    graph = nearest_neighbours(np.random.default_rng(0).normal(size=(60, 4)), 3)
    np.random.seed(7)
    expected = np.random.get_state()[1].tolist()
    order_issues(_samples([f"{i}" for i in range(60)], ["a"] * 60), graph, ["a"], 0)
    assert np.random.get_state()[1].tolist() == expected


def _grouped() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """300 samples in 6 heaps; in the last one the model never says the label."""
    rng = np.random.default_rng(0)
    heap = np.arange(300) % 6
    vectors = 6.0 * np.eye(8)[heap] + 0.3 * rng.normal(size=(300, 8))
    labels = heap % 3
    probs = np.full((300, 4), 0.05)
    probs[np.arange(300), np.where(heap == 5, (labels + 1) % 3, labels)] = 0.85
    return vectors, labels, probs, heap == 5


def test_the_group_that_the_model_fails_is_named():
    vectors, labels, probs, bad = _grouped()
    found = underperforming_groups(vectors, labels, probs, seed=0)
    assert found["is_underperforming_group_issue"].tolist() == bad.tolist()
    assert found.loc[bad, "underperforming_group"].nunique() == 1
    assert (found.loc[~bad, "underperforming_group"] == -1).all()
    assert (found.loc[bad, "underperforming_group_score"] < 0.1).all()
    pd.testing.assert_frame_equal(found, underperforming_groups(vectors, labels, probs, seed=0))


def test_absent_classes_do_not_shift_the_columns():
    vectors, labels, probs, bad = _grouped()
    wide = np.insert(probs, 1, 0.0, axis=1)
    moved = np.where(labels > 0, labels + 1, labels)
    found = underperforming_groups(vectors, moved, wide, seed=0)
    assert found["is_underperforming_group_issue"].tolist() == bad.tolist()


def test_one_group_of_one_class_underperforms_nobody():
    rng = np.random.default_rng(0)
    found = underperforming_groups(rng.normal(size=(20, 4)), np.zeros(20, int), np.full((20, 2), 0.5), seed=0)
    assert (found["underperforming_group_score"] == 1.0).all()
    assert not found["is_underperforming_group_issue"].any()


def test_embeddings_of_one_direction_are_all_alike():
    assert all_alike(np.ones((5, 3), np.float32) * np.arange(1, 6)[:, None])
    assert all_alike(np.zeros((5, 3), np.float32))
    assert all_alike(np.ones((1, 3), np.float32))
    assert not all_alike(np.eye(3, dtype=np.float32))
