from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from stages.errors import WinnowError
from stages.noise import neighbourhood
from stages.noise.neighbourhood import (
    all_alike,
    nearest_neighbours,
    neighbours_of,
    order_issues,
    outliers_and_duplicates,
    underperforming_groups,
)


def _clustered(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(20, 16))
    return (centres[rng.integers(0, 20, count)] + 0.3 * rng.normal(size=(count, 16))).astype(np.float32)


def test_neighbours_are_the_nearest_by_cosine_with_itself_left_out():
    vectors = _clustered(200)
    graph = nearest_neighbours(vectors, 5)
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    distance = 1.0 - unit @ unit.T
    np.fill_diagonal(distance, np.inf)
    assert neighbours_of(graph, 5).tolist() == np.argsort(distance, axis=1)[:, :5].tolist()
    np.testing.assert_allclose(graph.data.reshape(200, 5), np.sort(distance, axis=1)[:, :5], atol=1e-12)


def test_length_does_not_count_and_twins_are_at_no_distance():
    vectors = _clustered(50)
    vectors[1] = 3.0 * vectors[0]
    graph = nearest_neighbours(vectors, 3)
    assert neighbours_of(graph, 1)[:2, 0].tolist() == [1, 0]
    assert graph.data[0] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("count", "most"), [(1, 0), (2, 1), (4, 3)])
def test_there_are_no_more_neighbours_than_others(count: int, most: int):
    graph = nearest_neighbours(_clustered(count), 10)
    assert neighbours_of(graph, 5).shape == (count, most)


def test_the_search_by_cells_finds_nearly_all_and_never_the_sample_itself(monkeypatch):
    vectors = np.concatenate([_clustered(3000), np.tile(_clustered(1), (30, 1))])
    exact = neighbours_of(nearest_neighbours(vectors, 10), 10)
    monkeypatch.setattr(neighbourhood, "EXACT_UP_TO", 1000)
    monkeypatch.setattr(neighbourhood, "_CELL", 100)
    graph = nearest_neighbours(vectors, 10, seed=3)
    found = neighbours_of(graph, 10)
    assert (found != np.arange(len(vectors))[:, None]).all()
    assert all(len(set(row)) == 10 for row in found.tolist())
    shared = [len(set(a) & set(b)) for a, b in zip(found[:3000].tolist(), exact[:3000].tolist(), strict=True)]
    assert np.mean(shared) > 9
    assert (np.diff(graph.data.reshape(-1, 10)) >= 0).all()
    assert (found == neighbours_of(nearest_neighbours(vectors, 10, seed=3), 10)).all()


def test_cells_smaller_than_the_neighbours_asked_for_take_in_others(monkeypatch):
    monkeypatch.setattr(neighbourhood, "EXACT_UP_TO", 10)
    monkeypatch.setattr(neighbourhood, "_CELL", 1)
    monkeypatch.setattr(neighbourhood, "_PROBES", 1)
    found = neighbours_of(nearest_neighbours(_clustered(60), 20), 20)
    assert all(len(set(row)) == 20 for row in found.tolist())


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_numbers_that_are_none_are_refused(wrong: float):
    vectors = _clustered(10)
    vectors[3, 2] = wrong
    with pytest.raises(WinnowError, match="NaN or infinity"):
        nearest_neighbours(vectors, 3)


def test_vectors_must_be_a_matrix():
    with pytest.raises(WinnowError, match="N×D"):
        nearest_neighbours(np.zeros(5, np.float32), 3)


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
